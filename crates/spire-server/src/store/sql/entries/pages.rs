//! All entries, a thousand at a time: what a server reads when it starts.

use std::borrow::Cow;
use std::collections::HashMap;

use ah_spire_wire::model::{Entry, Selector};
use serde::Deserialize;
use spiffe::SpiffeId;

use super::rows::{
    Stored, add_attributes, add_dns_names, add_federation, add_selector, malformed, normalize,
    of_row,
};
use crate::store::StoreError;
use crate::store::sql::connection::{Arg, Connection, Kind};

/// Entries read at a time: each is held twice for that long.
const AT_ONCE: i64 = 1_000;

/// SPIFFE IDs of parents that are kept to be copied: an agent mostly has many entries.
const PARENTS: usize = 1_000;

/// Reads one page after the other.
pub(super) struct Pages {
    /// The last row that was read.
    after: i64,
    /// Whether any entry has a DNS name, and whether any federates.
    dns_names: bool,
    federation: bool,
    parents: HashMap<String, SpiffeId>,
}

/// A row. Most entries have nothing but their names and when they were made: the rest is read of the others alone.
#[derive(Deserialize)]
struct Row<'a> {
    row: i64,
    #[serde(borrow)]
    id: Option<Text<'a>>,
    #[serde(borrow)]
    spiffe_id: Option<Text<'a>>,
    #[serde(borrow)]
    parent_id: Option<Text<'a>>,
    created: Option<i64>,
    #[serde(borrow)]
    rest: Option<Rest<'a>>,
}

/// Truths are numbers here.
#[derive(Deserialize)]
struct Rest<'a> {
    ttl: Option<i64>,
    admin: i64,
    downstream: i64,
    expiry: Option<i64>,
    revision: Option<i64>,
    store: i64,
    #[serde(borrow)]
    hint: Option<Text<'a>>,
    jwt_ttl: Option<i64>,
    attributes: Option<i64>,
}

#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

impl Pages {
    pub(super) async fn begin(db: &mut Connection) -> Result<Self, StoreError> {
        let sql = "SELECT CAST((SELECT count(*) FROM (SELECT 1 FROM dns_names LIMIT 1) d) AS BIGINT),
            CAST((SELECT count(*) FROM (SELECT 1 FROM federated_registration_entries LIMIT 1) f) AS BIGINT)";
        let (dns_names, federation) = db.row::<(i64, i64)>(sql, &[]).await?.unwrap_or((1, 1));
        Ok(Self {
            after: 0,
            dns_names: dns_names > 0,
            federation: federation > 0,
            parents: HashMap::new(),
        })
    }

    /// The next page; `None` after the last.
    pub(super) async fn next(
        &mut self,
        db: &mut Connection,
    ) -> Result<Option<Vec<Stored>>, StoreError> {
        let page = "SELECT * FROM registered_entries WHERE id > $1 ORDER BY id LIMIT $2";
        let args = [self.after.into(), AT_ONCE.into()];
        let text = db.json(&columns(db), &format!("({page}) e"), &args).await?;
        let rows: Vec<Row<'_>> = parsed(&text)?;
        let numbers = || rows.iter().map(|row| row.row);
        let Some((first, last)) = numbers().min().zip(numbers().max()) else {
            return Ok(None);
        };
        let range = [first.into(), last.into()];
        let mut with_attributes = false;
        let mut found = Vec::with_capacity(rows.len());
        for row in rows {
            let rest = row.rest.as_ref();
            with_attributes |= rest.is_some_and(|rest| rest.attributes.unwrap_or_default() > 0);
            found.extend(self.stored(row));
        }
        found.sort_unstable_by_key(|stored| stored.row);
        self.after = last;
        if with_attributes {
            let sql = "SELECT CAST(id AS BIGINT), additional_attributes FROM registered_entries
                WHERE id BETWEEN $1 AND $2 AND length(additional_attributes) > 0";
            let mut near = 0;
            for (row, attributes) in db.rows::<(i64, Vec<u8>)>(sql, &range).await? {
                if let Some(stored) = of_row(&mut found, row, &mut near) {
                    add_attributes(&mut stored.entry, &attributes);
                }
            }
        }
        self.add_belongings(db, &mut found, &range).await?;
        Ok(Some(found))
    }

    async fn add_belongings(
        &self,
        db: &mut Connection,
        found: &mut [Stored],
        range: &[Arg],
    ) -> Result<(), StoreError> {
        let which = "BETWEEN $1 AND $2";
        let from = format!("selectors WHERE registered_entry_id {which}");
        let text = db
            .json("registered_entry_id, type, value", &from, range)
            .await?;
        let mut near = 0;
        for (row, kind, value) in parsed::<(i64, Option<Text<'_>>, Option<Text<'_>>)>(&text)? {
            let selector = Selector::new(owned(kind), owned(value));
            add_selector(found, row, selector, &mut near);
        }
        if self.dns_names {
            add_dns_names(db, found, which, range).await?;
        }
        if self.federation {
            add_federation(db, found, which, range).await?;
        }
        for stored in found {
            normalize(&mut stored.entry);
        }
        Ok(())
    }

    /// `None` for a row that names no SPIFFE IDs: one such row must not hide all others.
    fn stored(&mut self, row: Row<'_>) -> Option<Stored> {
        let id = owned(row.id);
        let spiffe_id = row.spiffe_id.as_ref().map_or("", |text| &text.0);
        let parent_id = row.parent_id.as_ref().map_or("", |text| &text.0);
        let ids = (SpiffeId::new(spiffe_id), self.parent(parent_id));
        let (Ok(issued), Ok(parent)) = ids else {
            malformed(&id, spiffe_id, parent_id);
            return None;
        };
        let mut entry = Entry {
            id,
            created_at: row.created.unwrap_or_default(),
            ..Entry::new(issued, parent, Vec::new())
        };
        if let Some(rest) = row.rest {
            let seconds = |ttl: Option<i64>| i32::try_from(ttl.unwrap_or_default());
            entry.x509_svid_ttl = seconds(rest.ttl).unwrap_or_default();
            entry.jwt_svid_ttl = seconds(rest.jwt_ttl).unwrap_or_default();
            entry.admin = rest.admin != 0;
            entry.downstream = rest.downstream != 0;
            entry.expires_at = rest.expiry.unwrap_or_default();
            entry.revision = rest.revision.unwrap_or_default();
            entry.store_svid = rest.store != 0;
            entry.hint = owned(rest.hint);
        }
        Some(Stored {
            row: row.row,
            entry,
        })
    }

    fn parent(&mut self, text: &str) -> Result<SpiffeId, spiffe::SpiffeIdError> {
        if let Some(known) = self.parents.get(text) {
            return Ok(known.clone());
        }
        let id = SpiffeId::new(text)?;
        if self.parents.len() < PARENTS {
            self.parents.insert(text.to_owned(), id.clone());
        }
        Ok(id)
    }
}

/// What [`Row`] has.
fn columns(db: &Connection) -> String {
    let created = db.seconds("e.created_at");
    let flag = |flag| format!("CAST(coalesce(e.{flag}, false) AS INTEGER)");
    let (admin, downstream, store) = (flag("admin"), flag("downstream"), flag("store_svid"));
    let rest = format!(
        "e.ttl, {admin}, {downstream}, e.expiry, e.revision_number, {store}, e.hint, e.jwt_svid_ttl, length(e.additional_attributes)"
    );
    let rest = db.json_array(&rest);
    let rest = match db.kind() {
        // Out of a CASE an array of JSON comes as a text.
        Kind::MySql => rest,
        Kind::Sqlite | Kind::Postgres => format!(
            "CASE WHEN e.ttl <> 0 OR e.admin OR e.downstream OR e.expiry <> 0 OR e.revision_number <> 0 OR e.store_svid
                OR e.hint <> '' OR e.jwt_svid_ttl <> 0 OR length(e.additional_attributes) > 0 THEN {rest} END"
        ),
    };
    format!("e.id, e.entry_id, e.spiffe_id, e.parent_id, {created}, {rest}")
}

fn parsed<'a, T: Deserialize<'a>>(text: &'a str) -> Result<Vec<T>, StoreError> {
    serde_json::from_str(text).map_err(|error| StoreError::Broken(format!("rows as JSON: {error}")))
}

fn owned(text: Option<Text<'_>>) -> String {
    text.map_or_else(String::new, |text| text.0.into_owned())
}
