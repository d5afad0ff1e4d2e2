//! Attested agents.

use std::collections::HashMap;

use ah_spire_wire::model::Selector;
use spiffe::SpiffeId;

use super::connection::{Arg, Connection, Kind};
use super::entries::delete_join_token_alias;
use super::events::{events, events_among, prune_events};
use super::filter::{Where, id_list};
use super::tokens::forget_receipts;
use super::{SqlStore, after, cut, limit, now, optional_time, time_text};
use crate::store::{Agent, AgentFilter, Agents, Changed, Page, Paged, StoreError};

/// How agents prove themselves whose registration goes with them.
const JOIN_TOKEN: &str = "join_token";

/// Agents named one by one when their selectors are read; more are read as a range.
const NAMED: usize = 500;

/// Writes [`columns`] as a row.
const INSERT: &str = "INSERT INTO attested_node_entries (spiffe_id, data_type, serial_number, expires_at, new_serial_number, new_expires_at, can_reattest, agent_version, created_at, updated_at)
    VALUES ($1, $2, $3, $4::timestamptz, $5, $6::timestamptz, $7, $8, $9::timestamptz, $9::timestamptz)";

/// Writes them over a row.
const UPDATE: &str = "UPDATE attested_node_entries SET data_type = $2, serial_number = $3, expires_at = $4::timestamptz, new_serial_number = $5,
    new_expires_at = $6::timestamptz, can_reattest = $7, agent_version = $8, updated_at = $9::timestamptz WHERE spiffe_id = $1";

struct Stored {
    row: i64,
    agent: Agent,
}

type Columns = (
    i64,
    String,
    String,
    String,
    Option<i64>,
    String,
    Option<i64>,
    bool,
    String,
);

impl Agents for SqlStore {
    async fn put_agent(&self, agent: &Agent) -> Result<(), StoreError> {
        let mut db = self.begin().await?;
        let put = put(&mut db, agent).await;
        db.end(put).await
    }

    async fn agent(&self, id: &SpiffeId) -> Result<Option<Agent>, StoreError> {
        let mut db = self.read().await?;
        let found = load(&mut db, "WHERE e.spiffe_id = $1", &[id.to_string().into()]).await;
        let found = db.end(found).await?.into_iter().next();
        Ok(found.map(|stored| stored.agent))
    }

    async fn agents(&self, filter: &AgentFilter, page: &Page) -> Result<Paged<Agent>, StoreError> {
        let mut db = self.read().await?;
        let listed = list(&mut db, filter, page).await;
        db.end(listed).await
    }

    async fn all_agents(&self) -> Result<Vec<Agent>, StoreError> {
        let mut db = self.read().await?;
        let listed = list(&mut db, &AgentFilter::default(), &Page::default()).await;
        Ok(db.end(listed).await?.rows)
    }

    async fn count_agents(&self, filter: &AgentFilter) -> Result<u64, StoreError> {
        let mut db = self.read().await?;
        let count = count(&mut db, filter).await;
        db.end(count).await
    }

    async fn update_agent(
        &self,
        id: &SpiffeId,
        change: impl FnOnce(&mut Agent) + Send,
    ) -> Result<Agent, StoreError> {
        let mut db = self.begin().await?;
        let updated = update(&mut db, id, change).await;
        db.end(updated).await
    }

    async fn delete_agent(&self, id: &SpiffeId) -> Result<Agent, StoreError> {
        let mut db = self.begin().await?;
        let deleted = delete(&mut db, id).await;
        db.end(deleted).await
    }

    async fn prune_agents(
        &self,
        before: i64,
        include_non_reattestable: bool,
        batch: u32,
    ) -> Result<Vec<SpiffeId>, StoreError> {
        let mut db = self.begin().await?;
        let pruned = prune(&mut db, before, include_non_reattestable, batch).await;
        db.end(pruned).await
    }

    async fn agent_events(&self, after: Option<u64>) -> Result<Vec<Changed>, StoreError> {
        let mut db = self.read().await?;
        let found = events(&mut db, "attested_node_entries_events", "spiffe_id", after).await;
        db.end(found).await
    }

    async fn agent_events_among(&self, events: &[u64]) -> Result<Vec<Changed>, StoreError> {
        let mut db = self.read().await?;
        let found =
            events_among(&mut db, "attested_node_entries_events", "spiffe_id", events).await;
        db.end(found).await
    }

    async fn prune_agent_events(&self, before: i64) -> Result<u64, StoreError> {
        let mut db = self.begin().await?;
        let pruned = prune_events(&mut db, "attested_node_entries_events", before).await;
        db.end(pruned).await
    }
}

async fn put(db: &mut Connection, agent: &Agent) -> Result<(), StoreError> {
    let sql = format!(
        "{INSERT} ON CONFLICT (spiffe_id) DO UPDATE SET data_type = excluded.data_type, serial_number = excluded.serial_number,
        expires_at = excluded.expires_at, new_serial_number = excluded.new_serial_number, new_expires_at = excluded.new_expires_at,
        can_reattest = excluded.can_reattest, agent_version = excluded.agent_version, updated_at = excluded.updated_at
        WHERE coalesce(attested_node_entries.serial_number, '') <> ''"
    );
    // The database looks at the row that it replaces: a ban that came after the caller looked stands.
    let written = match db.kind() {
        Kind::MySql => put_row(db, agent).await?,
        Kind::Sqlite | Kind::Postgres => db.execute(&sql, &columns(agent)).await? > 0,
    };
    if !written {
        return Err(StoreError::Precondition(format!(
            "agent {} is banned",
            agent.id
        )));
    }
    set_selectors(db, agent).await?;
    add_event(db, &agent.id).await
}

/// The same without conditions on what is replaced, which MySQL does not have: whether it was written.
async fn put_row(db: &mut Connection, agent: &Agent) -> Result<bool, StoreError> {
    let id = [agent.id.to_string().into()];
    let select = "SELECT coalesce(serial_number, '') FROM attested_node_entries WHERE spiffe_id = $1 FOR UPDATE";
    let mut known: Option<(String,)> = db.row(select, &id).await?;
    if known.is_none() {
        if db.insert_row(INSERT, &columns(agent)).await?.is_some() {
            return Ok(true);
        }
        // Another server was faster.
        known = db.row(select, &id).await?;
    }
    if known.is_none_or(|(serial,)| serial.is_empty()) {
        return Ok(false);
    }
    db.execute(UPDATE, &columns(agent)).await?;
    Ok(true)
}

/// The values of the columns, `spiffe_id` to `updated_at`.
fn columns(agent: &Agent) -> Vec<Arg> {
    vec![
        agent.id.to_string().into(),
        agent.attestation_type.as_str().into(),
        agent.serial_number.as_str().into(),
        time_text(agent.expires_at),
        agent.new_serial_number.as_str().into(),
        optional_time(agent.new_expires_at),
        agent.can_reattest.into(),
        agent.version.as_str().into(),
        now(),
    ]
}

async fn set_selectors(db: &mut Connection, agent: &Agent) -> Result<(), StoreError> {
    let id = agent.id.to_string();
    let delete = "DELETE FROM node_resolver_map_entries WHERE spiffe_id = $1";
    db.execute(delete, &[id.as_str().into()]).await?;
    let values = |selector: &Selector| {
        let (kind, value) = (selector.kind.as_str(), selector.value.as_str());
        vec![id.as_str().into(), kind.into(), value.into(), now()]
    };
    let insert =
        "INSERT INTO node_resolver_map_entries (spiffe_id, type, value, created_at, updated_at)";
    let mut selectors: Vec<_> = agent.selectors.iter().collect();
    selectors.sort_unstable();
    selectors.dedup();
    db.insert(insert, selectors.into_iter().map(values).collect())
        .await
}

async fn list(
    db: &mut Connection,
    filter: &AgentFilter,
    page: &Page,
) -> Result<Paged<Agent>, StoreError> {
    let mut clause = Where::agents(filter, db)?;
    let after = clause.arg(after(page)?);
    clause.and(format!("e.id > {after}"));
    let limit = clause.arg(limit(page));
    let rest = format!("{clause} ORDER BY e.id LIMIT {limit}");
    let paged = cut(load(db, &rest, clause.args()).await?, page, |stored| {
        stored.row
    });
    Ok(Paged {
        rows: paged.rows.into_iter().map(|stored| stored.agent).collect(),
        next: paged.next,
    })
}

async fn count(db: &mut Connection, filter: &AgentFilter) -> Result<u64, StoreError> {
    let clause = Where::agents(filter, db)?;
    let sql = format!("SELECT count(*) FROM attested_node_entries e {clause}");
    let count = db.row::<(i64,)>(&sql, clause.args()).await?;
    Ok(count.map_or(0, |(n,)| n.unsigned_abs()))
}

async fn update(
    db: &mut Connection,
    id: &SpiffeId,
    change: impl FnOnce(&mut Agent) + Send,
) -> Result<Agent, StoreError> {
    let before = lock(db, id).await?.agent;
    let mut agent = before.clone();
    change(&mut agent);
    agent.id = before.id;
    agent.selectors.sort_unstable();
    agent.selectors.dedup();
    db.execute(UPDATE, &columns(&agent)).await?;
    if agent.selectors != before.selectors {
        set_selectors(db, &agent).await?;
    }
    add_event(db, &agent.id).await?;
    Ok(agent)
}

async fn lock(db: &mut Connection, id: &SpiffeId) -> Result<Stored, StoreError> {
    let rest = "WHERE e.spiffe_id = $1 FOR UPDATE";
    let found = load(db, rest, &[id.to_string().into()]).await?;
    let found = found.into_iter().next();
    found.ok_or_else(|| StoreError::NotFound(format!("agent {id}")))
}

async fn delete(db: &mut Connection, id: &SpiffeId) -> Result<Agent, StoreError> {
    let found = lock(db, id).await?;
    remove(db, &found).await?;
    Ok(found.agent)
}

async fn prune(
    db: &mut Connection,
    before: i64,
    include_non_reattestable: bool,
    batch: u32,
) -> Result<Vec<SpiffeId>, StoreError> {
    let filter = AgentFilter {
        banned: Some(false),
        can_reattest: (!include_non_reattestable).then_some(true),
        expires_before: Some(before),
        ..AgentFilter::default()
    };
    let mut clause = Where::agents(&filter, db)?;
    let limit = clause.arg(i64::from(batch));
    let rest = format!("{clause} ORDER BY e.id LIMIT {limit} FOR UPDATE");
    let expired = load(db, &rest, clause.args()).await?;
    for stored in &expired {
        remove(db, stored).await?;
    }
    Ok(expired.into_iter().map(|stored| stored.agent.id).collect())
}

async fn remove(db: &mut Connection, stored: &Stored) -> Result<(), StoreError> {
    let agent = &stored.agent;
    if agent.attestation_type == JOIN_TOKEN {
        delete_join_token_alias(db, &agent.id).await?;
        if let Some((_, token)) = agent.id.path().rsplit_once('/') {
            forget_receipts(db, token).await?;
        }
    }
    let delete = "DELETE FROM node_resolver_map_entries WHERE spiffe_id = $1";
    db.execute(delete, &[agent.id.to_string().into()]).await?;
    let delete = "DELETE FROM attested_node_entries WHERE id = $1";
    db.execute(delete, &[stored.row.into()]).await?;
    add_event(db, &agent.id).await
}

async fn add_event(db: &mut Connection, id: &SpiffeId) -> Result<(), StoreError> {
    let insert = "INSERT INTO attested_node_entries_events (spiffe_id, created_at, updated_at)";
    db.insert(insert, vec![vec![id.to_string().into(), now()]])
        .await
}

/// Reads agents with their selectors, in two statements. `rest` begins with `WHERE` and calls the table `e`.
async fn load(db: &mut Connection, rest: &str, args: &[Arg]) -> Result<Vec<Stored>, StoreError> {
    let expires = db.seconds("e.expires_at");
    let new_expires = db.seconds("e.new_expires_at");
    let sql = format!(
        "SELECT CAST(e.id AS BIGINT), coalesce(e.spiffe_id, ''), coalesce(e.data_type, ''), coalesce(e.serial_number, ''), {expires},
            coalesce(e.new_serial_number, ''), {new_expires}, coalesce(e.can_reattest, false), coalesce(e.agent_version, '')
         FROM attested_node_entries e {rest}"
    );
    let rows: Vec<Columns> = db.rows(&sql, args).await?;
    let mut found: Vec<_> = rows.into_iter().filter_map(stored).collect();
    let ids: Vec<_> = found.iter().map(|stored| stored.row).collect();
    let (Some(first), Some(last)) = (ids.iter().min(), ids.iter().max()) else {
        return Ok(found);
    };
    let (which, args): (_, Vec<Arg>) = if ids.len() <= NAMED {
        (format!("IN ({})", id_list(&ids)), Vec::new())
    } else {
        (
            "BETWEEN $1 AND $2".to_owned(),
            vec![(*first).into(), (*last).into()],
        )
    };
    let places: HashMap<_, _> = ids
        .iter()
        .enumerate()
        .map(|(place, row)| (*row, place))
        .collect();
    let sql = format!(
        "SELECT CAST(e.id AS BIGINT), coalesce(s.type, ''), coalesce(s.value, '') FROM attested_node_entries e
         JOIN node_resolver_map_entries s ON s.spiffe_id = e.spiffe_id WHERE e.id {which}"
    );
    let rows: Vec<(i64, String, String)> = db.rows(&sql, &args).await?;
    for (row, kind, value) in rows {
        if let Some(stored) = places.get(&row).and_then(|place| found.get_mut(*place)) {
            stored.agent.selectors.push(Selector { kind, value });
        }
    }
    for stored in &mut found {
        stored.agent.selectors.sort_unstable();
        stored.agent.selectors.dedup();
    }
    Ok(found)
}

/// `None` for a row that names no SPIFFE ID: one such row must not hide all others.
fn stored(columns: Columns) -> Option<Stored> {
    let (row, id, kind, serial, expires, new_serial, new_expires, can_reattest, version) = columns;
    let Ok(id) = SpiffeId::new(&id) else {
        tracing::warn!(agent.id = %id, "an agent of the datastore is left out: its SPIFFE ID is malformed");
        return None;
    };
    let agent = Agent {
        id,
        attestation_type: kind,
        serial_number: serial,
        expires_at: expires.unwrap_or_default(),
        new_serial_number: new_serial,
        new_expires_at: new_expires.unwrap_or_default(),
        selectors: Vec::new(),
        can_reattest,
        version,
    };
    Some(Stored { row, agent })
}
