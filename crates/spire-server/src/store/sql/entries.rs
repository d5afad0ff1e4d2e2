//! Registration entries.

mod pages;
mod rows;
mod valid;

use ah_spire_wire::model::{Entry, Selector};
use spiffe::{SpiffeId, TrustDomain};

use self::pages::Pages;
use self::rows::{NAMED, Stored, columns, load, normalize};
use self::valid::{one_kind, valid, valid_id};
use super::batch::Batch;
use super::bundles::stored_name;
use super::connection::{Arg, Connection, Kind};
use super::events::{events, events_among, prune_events};
use super::filter::{Where, id_list};
use super::{ACQUIRE_TIMEOUT, SqlStore, after, cut, limit, now, time_text};
use crate::store::{Changed, Created, Entries, EntryFilter, EntryMask, Page, Paged, StoreError};

/// Entries deleted in one transaction.
const BATCH: usize = 500;

const SELECTORS: &str =
    "INSERT INTO selectors (registered_entry_id, type, value, created_at, updated_at)";
const DNS_NAMES: &str =
    "INSERT INTO dns_names (registered_entry_id, value, created_at, updated_at)";
const EVENTS: &str = "INSERT INTO registered_entries_events (entry_id, created_at, updated_at)";

impl Entries for SqlStore {
    async fn create_entry(&self, mut entry: Entry) -> Result<Created, StoreError> {
        valid(&entry, &EntryMask::ALL)?;
        valid_id(&entry.id)?;
        normalize(&mut entry);
        let mut db = self.begin().await?;
        let created = create(&mut db, entry).await;
        db.end(created).await
    }

    async fn entry(&self, id: &str) -> Result<Option<Entry>, StoreError> {
        let mut found = self.entries_by_id(&[id.to_owned()]).await?;
        Ok(found.pop())
    }

    async fn entries_by_id(&self, ids: &[String]) -> Result<Vec<Entry>, StoreError> {
        let mut db = self.read().await?;
        let found = by_id(&mut db, ids).await;
        db.end(found).await
    }

    async fn entries(&self, filter: &EntryFilter, page: &Page) -> Result<Paged<Entry>, StoreError> {
        let mut db = self.read().await?;
        let listed = list(&mut db, filter, page).await;
        db.end(listed).await
    }

    async fn each_entry(&self, take: impl FnMut(Entry) + Send) -> Result<(), StoreError> {
        let mut db = self.read_stale().await?;
        let done = each(&mut db, take).await;
        db.end(done).await
    }

    async fn count_entries(&self, filter: &EntryFilter) -> Result<u64, StoreError> {
        let clause = Where::entries(filter)?;
        let sql = format!("SELECT count(*) FROM registered_entries e {clause}");
        let mut db = self.read().await?;
        let count = db.row::<(i64,)>(&sql, clause.args()).await;
        let count = db.end(count).await?.map_or(0, |(n,)| n);
        Ok(count.unsigned_abs())
    }

    async fn update_entry(&self, mut entry: Entry, mask: &EntryMask) -> Result<Entry, StoreError> {
        valid(&entry, mask)?;
        normalize(&mut entry);
        let mut db = self.begin().await?;
        let updated = update(&mut db, entry, mask).await;
        db.end(updated).await
    }

    async fn delete_entry(&self, id: &str) -> Result<Entry, StoreError> {
        let mut db = self.begin().await?;
        let deleted = delete(&mut db, id).await;
        db.end(deleted).await
    }

    async fn prune_entries(&self, now: i64) -> Result<Vec<Entry>, StoreError> {
        let mut pruned = Vec::new();
        loop {
            let mut db = self.begin().await?;
            let batch = prune(&mut db, now).await;
            let batch = db.end(batch).await?;
            let last = batch.len() < BATCH;
            pruned.extend(batch);
            if last {
                return Ok(pruned);
            }
        }
    }

    async fn entry_events(&self, after: Option<u64>) -> Result<Vec<Changed>, StoreError> {
        let mut db = self.read_stale().await?;
        let found = events(&mut db, "registered_entries_events", "entry_id", after).await;
        db.end(found).await
    }

    async fn entry_events_among(&self, events: &[u64]) -> Result<Vec<Changed>, StoreError> {
        let mut db = self.read_stale().await?;
        let found = events_among(&mut db, "registered_entries_events", "entry_id", events).await;
        db.end(found).await
    }

    async fn prune_entry_events(&self, before: i64) -> Result<u64, StoreError> {
        let mut db = self.begin().await?;
        let pruned = prune_events(&mut db, "registered_entries_events", before).await;
        db.end(pruned).await
    }
}

async fn create(db: &mut Connection, mut entry: Entry) -> Result<Created, StoreError> {
    // Without it two servers that are asked at once would both find nothing similar.
    let like = format!("{} {}", entry.spiffe_id, entry.parent_id);
    db.lock(&like, ACQUIRE_TIMEOUT).await?;
    if let Some(similar) = similar(db, &entry).await? {
        return Ok(Created::Similar(similar));
    }
    if entry.id.is_empty() {
        entry.id = uuid::Uuid::new_v4().to_string();
    }
    let created_at = time::OffsetDateTime::now_utc().unix_timestamp();
    entry.revision = 0;
    entry.created_at = created_at;
    let insert = "INSERT INTO registered_entries (entry_id, spiffe_id, parent_id, ttl, admin, downstream, expiry, revision_number, store_svid, hint, jwt_svid_ttl, additional_attributes, created_at, updated_at)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13::timestamptz, $13::timestamptz)";
    let mut args = columns(&entry);
    args.push(time_text(created_at));
    if db.kind() == Kind::Sqlite && entry.federates_with.is_empty() {
        let mut batch = Batch::default();
        batch.add(insert, &args);
        let row = || Arg::EntryRow(entry.id.clone());
        batch.insert(SELECTORS, &selector_rows(row(), &entry.selectors));
        batch.insert(DNS_NAMES, &dns_name_rows(row(), &entry.dns_names));
        batch.insert(EVENTS, &event_rows(&entry.id));
        return match batch.run_last(db).await {
            Ok(()) => Ok(Created::New(entry)),
            Err(StoreError::AlreadyExists(_)) => Err(exists(&entry.id)),
            Err(error) => Err(error),
        };
    }
    let Some(row) = db.insert_row(insert, &args).await? else {
        return Err(exists(&entry.id));
    };
    federate(db, row, &entry.federates_with).await?;
    add_selectors(db, row, &entry.selectors).await?;
    add_dns_names(db, row, &entry.dns_names).await?;
    add_event(db, &entry.id).await?;
    Ok(Created::New(entry))
}

/// The oldest with the same parent, SPIFFE ID and selectors.
async fn similar(db: &mut Connection, entry: &Entry) -> Result<Option<Entry>, StoreError> {
    let mut clause = Where::default();
    let spiffe_id = clause.arg(entry.spiffe_id.to_string());
    let parent_id = clause.arg(entry.parent_id.to_string());
    let count = i64::try_from(entry.selectors.len()).unwrap_or(i64::MAX);
    let count = clause.arg(count);
    let any = clause.selectors(entry.selectors.iter());
    // Joined to an empty text, the parent takes no index: an alias may be the parent of everything there is.
    clause.and(format!(
        "e.spiffe_id = {spiffe_id} AND e.parent_id || '' = {parent_id}"
    ));
    clause.and(format!(
        "(SELECT count(*) FROM selectors s WHERE s.registered_entry_id = e.id) = {count}"
    ));
    clause.and(format!(
        "(SELECT count(*) FROM selectors s WHERE s.registered_entry_id = e.id AND ({any})) = {count}"
    ));
    let found = load(
        db,
        &format!("{clause} ORDER BY e.id LIMIT 1"),
        clause.args(),
    )
    .await?;
    let found = found.into_iter().next().map(|stored| stored.entry);
    // To MySQL texts are the same that differ in spaces at their end.
    Ok(found.filter(|found| found.selectors == entry.selectors))
}

async fn by_id(db: &mut Connection, ids: &[String]) -> Result<Vec<Entry>, StoreError> {
    let mut found = Vec::new();
    for ids in ids.chunks(NAMED) {
        let mut clause = Where::default();
        let names: Vec<_> = ids.iter().map(|id| clause.arg(id.as_str())).collect();
        clause.and(format!("e.entry_id IN ({})", names.join(", ")));
        let stored = load(db, &format!("{clause} ORDER BY e.id"), clause.args()).await?;
        found.extend(stored.into_iter().map(|stored| stored.entry));
    }
    Ok(found)
}

async fn list(
    db: &mut Connection,
    filter: &EntryFilter,
    page: &Page,
) -> Result<Paged<Entry>, StoreError> {
    let mut clause = Where::entries(filter)?;
    let after = clause.arg(after(page)?);
    clause.and(format!("e.id > {after}"));
    let limit = clause.arg(limit(page));
    let rest = format!("{clause} ORDER BY e.id LIMIT {limit}");
    let paged = cut(load(db, &rest, clause.args()).await?, page, |stored| {
        stored.row
    });
    Ok(Paged {
        rows: paged.rows.into_iter().map(|stored| stored.entry).collect(),
        next: paged.next,
    })
}

async fn each(db: &mut Connection, mut take: impl FnMut(Entry)) -> Result<(), StoreError> {
    let mut pages = Pages::begin(db).await?;
    while let Some(found) = pages.next(db).await? {
        found.into_iter().for_each(|stored| take(stored.entry));
    }
    Ok(())
}

async fn update(db: &mut Connection, new: Entry, mask: &EntryMask) -> Result<Entry, StoreError> {
    let Stored { row, mut entry } = lock(db, &new.id).await?;
    entry.revision += 1;
    macro_rules! take {
        ($($field:ident),*) => {$(if mask.$field { entry.$field = new.$field; })*};
    }
    take!(
        spiffe_id,
        parent_id,
        selectors,
        x509_svid_ttl,
        jwt_svid_ttl,
        federates_with,
        admin,
        downstream,
        expires_at,
        dns_names,
        store_svid,
        hint
    );
    if mask.additional_attributes {
        entry.disable_x509_svid_prefetch = new.disable_x509_svid_prefetch;
        entry.jwt_svid_include_jti = new.jwt_svid_include_jti;
    }
    one_kind(&entry)?;
    let sql = "UPDATE registered_entries SET entry_id = $1, spiffe_id = $2, parent_id = $3, ttl = $4, admin = $5, downstream = $6,
        expiry = $7, revision_number = $8, store_svid = $9, hint = $10, jwt_svid_ttl = $11, additional_attributes = $12,
        updated_at = $13::timestamptz WHERE id = $14";
    let mut args = columns(&entry);
    args.extend([now(), row.into()]);
    db.execute(sql, &args).await?;
    if mask.selectors {
        clear(db, "selectors", &[row]).await?;
        add_selectors(db, row, &entry.selectors).await?;
    }
    if mask.dns_names {
        clear(db, "dns_names", &[row]).await?;
        add_dns_names(db, row, &entry.dns_names).await?;
    }
    if mask.federates_with {
        clear(db, "federated_registration_entries", &[row]).await?;
        federate(db, row, &entry.federates_with).await?;
    }
    add_event(db, &entry.id).await?;
    Ok(entry)
}

/// The entry, to be changed: no other transaction changes it before this one ends.
async fn lock(db: &mut Connection, id: &str) -> Result<Stored, StoreError> {
    let found = load(db, "WHERE e.entry_id = $1 FOR UPDATE", &[id.into()]).await?;
    let found = found.into_iter().next();
    found.ok_or_else(|| StoreError::NotFound(format!("entry {id:?}")))
}

async fn delete(db: &mut Connection, id: &str) -> Result<Entry, StoreError> {
    let found = lock(db, id).await?;
    remove(db, std::slice::from_ref(&found)).await?;
    Ok(found.entry)
}

async fn prune(db: &mut Connection, before: i64) -> Result<Vec<Entry>, StoreError> {
    let batch = i64::try_from(BATCH).unwrap_or(i64::MAX);
    let rest = "WHERE e.expiry <> 0 AND e.expiry < $1 ORDER BY e.id LIMIT $2 FOR UPDATE";
    let expired = load(db, rest, &[before.into(), batch.into()]).await?;
    remove(db, &expired).await?;
    Ok(expired.into_iter().map(|stored| stored.entry).collect())
}

/// Deletes entries that federate with a bundle.
pub(super) async fn delete_federated(db: &mut Connection, bundle: i64) -> Result<(), StoreError> {
    let rest = "WHERE e.id IN (SELECT registered_entry_id FROM federated_registration_entries WHERE bundle_id = $1) ORDER BY e.id FOR UPDATE";
    let found = load(db, rest, &[bundle.into()]).await?;
    for batch in found.chunks(BATCH) {
        remove(db, batch).await?;
    }
    Ok(())
}

/// Entries that federate with a bundle have changed.
pub(super) async fn touch_federated(db: &mut Connection, bundle: i64) -> Result<(), StoreError> {
    let sql = "INSERT INTO registered_entries_events (entry_id, created_at, updated_at)
        SELECT e.entry_id, $2::timestamptz, $2::timestamptz FROM registered_entries e
        JOIN federated_registration_entries f ON f.registered_entry_id = e.id WHERE f.bundle_id = $1 ORDER BY e.id";
    db.execute(sql, &[bundle.into(), now()]).await.map(drop)
}

/// Deletes the entry that a join token made for its agent: the agent's own ID is its only selector.
pub(super) async fn delete_join_token_alias(
    db: &mut Connection,
    agent: &SpiffeId,
) -> Result<(), StoreError> {
    let agent = agent.to_string();
    let children = load(
        db,
        "WHERE e.parent_id = $1 FOR UPDATE",
        &[agent.as_str().into()],
    )
    .await?;
    let own = [Selector::new("spiffe_id", agent)];
    let aliases: Vec<_> = children
        .into_iter()
        .filter(|child| child.entry.selectors == own)
        .collect();
    remove(db, &aliases).await
}

async fn remove(db: &mut Connection, found: &[Stored]) -> Result<(), StoreError> {
    if found.is_empty() {
        return Ok(());
    }
    let rows: Vec<_> = found.iter().map(|stored| stored.row).collect();
    for table in ["selectors", "dns_names", "federated_registration_entries"] {
        clear(db, table, &rows).await?;
    }
    let sql = format!(
        "DELETE FROM registered_entries WHERE id IN ({})",
        id_list(&rows)
    );
    db.execute(&sql, &[]).await?;
    for stored in found {
        add_event(db, &stored.entry.id).await?;
    }
    Ok(())
}

async fn clear(db: &mut Connection, table: &str, rows: &[i64]) -> Result<(), StoreError> {
    let rows = id_list(rows);
    let sql = format!("DELETE FROM {table} WHERE registered_entry_id IN ({rows})");
    db.execute(&sql, &[]).await.map(drop)
}

async fn add_selectors(
    db: &mut Connection,
    row: i64,
    selectors: &[Selector],
) -> Result<(), StoreError> {
    let rows = selector_rows(row.into(), selectors);
    db.insert(SELECTORS, rows).await
}

fn selector_rows(entry: Arg, selectors: &[Selector]) -> Vec<Vec<Arg>> {
    let values = |selector: &Selector| {
        let (kind, value) = (selector.kind.as_str(), selector.value.as_str());
        vec![entry.clone(), kind.into(), value.into(), now()]
    };
    selectors.iter().map(values).collect()
}

async fn add_dns_names(db: &mut Connection, row: i64, names: &[String]) -> Result<(), StoreError> {
    db.insert(DNS_NAMES, dns_name_rows(row.into(), names)).await
}

fn dns_name_rows(entry: Arg, names: &[String]) -> Vec<Vec<Arg>> {
    let values = |name: &String| vec![entry.clone(), name.as_str().into(), now()];
    names.iter().map(values).collect()
}

/// Every trust domain has to have a bundle.
async fn federate(
    db: &mut Connection,
    row: i64,
    domains: &[TrustDomain],
) -> Result<(), StoreError> {
    for domain in domains {
        let sql = "INSERT INTO federated_registration_entries (bundle_id, registered_entry_id)
            SELECT id, $1 FROM bundles WHERE trust_domain = $2";
        let name = stored_name(domain);
        if db.execute(sql, &[row.into(), name.as_str().into()]).await? == 0 {
            return Err(StoreError::Invalid(format!(
                "unable to find federated bundle {name:?}"
            )));
        }
    }
    Ok(())
}

async fn add_event(db: &mut Connection, id: &str) -> Result<(), StoreError> {
    db.insert(EVENTS, event_rows(id)).await
}

fn event_rows(id: &str) -> Vec<Vec<Arg>> {
    vec![vec![id.into(), now()]]
}

fn exists(id: &str) -> StoreError {
    StoreError::AlreadyExists(format!("entry {id:?}"))
}
