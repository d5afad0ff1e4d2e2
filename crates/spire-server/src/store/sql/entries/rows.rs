//! Rows of entries, and what they stand for.

use std::collections::HashMap;

use ah_spire_wire::model::{Entry, Selector};
use ah_spire_wire::types;
use prost::Message;
use spiffe::SpiffeId;

use crate::store::StoreError;
use crate::store::sql::bundles::trust_domain;
use crate::store::sql::connection::{Arg, Connection};
use crate::store::sql::filter::id_list;

/// Up to so many rows are named one by one when what belongs to them is read; more are read as a range.
pub(super) const NAMED: usize = 500;

/// A row and what it stands for.
pub(super) struct Stored {
    pub(super) row: i64,
    pub(super) entry: Entry,
}

type Columns = (
    i64,
    String,
    String,
    String,
    i64,
    bool,
    bool,
    i64,
    i64,
    bool,
    String,
    Option<i64>,
    i64,
    Option<Vec<u8>>,
);

/// The same as JSON has it: truths as numbers, and without what is no text.
#[derive(serde::Deserialize)]
struct Plain {
    row: i64,
    id: String,
    spiffe_id: String,
    parent_id: String,
    ttl: i64,
    admin: i64,
    downstream: i64,
    expiry: i64,
    revision: i64,
    store: i64,
    hint: String,
    created: Option<i64>,
    jwt_ttl: i64,
}

impl Plain {
    fn with(self, more: Option<Vec<u8>>) -> Columns {
        (
            self.row,
            self.id,
            self.spiffe_id,
            self.parent_id,
            self.ttl,
            self.admin != 0,
            self.downstream != 0,
            self.expiry,
            self.revision,
            self.store != 0,
            self.hint,
            self.created,
            self.jwt_ttl,
            more,
        )
    }
}

/// Reads entries with all that belongs to them, in four statements however many there are. `rest` begins with
/// `WHERE` and calls the table `e`.
pub(super) async fn load(
    db: &mut Connection,
    rest: &str,
    args: &[Arg],
) -> Result<Vec<Stored>, StoreError> {
    let columns = read_columns(db, |flag| format!("coalesce(e.{flag}, false)"));
    let sql = format!("SELECT {columns}, e.additional_attributes FROM registered_entries e {rest}");
    let rows: Vec<Columns> = db.rows(&sql, args).await?;
    let mut found: Vec<_> = rows.into_iter().filter_map(stored).collect();
    add_belongings(db, &mut found, false).await?;
    Ok(found)
}

/// Reads up to `most` entries of the rows after `after`, with all that belongs to them, and says which row was the last.
pub(super) async fn load_page(
    db: &mut Connection,
    after: i64,
    most: i64,
) -> Result<(Vec<Stored>, Option<i64>), StoreError> {
    let page = "SELECT * FROM registered_entries WHERE id > $1 ORDER BY id LIMIT $2";
    let args = [after.into(), most.into()];
    let columns = read_columns(db, |flag| {
        format!("CAST(coalesce(e.{flag}, false) AS INTEGER)")
    });
    let rows: Vec<Plain> = db.json(&columns, &format!("({page}) e"), &args).await?;
    let last = rows.iter().map(|row| row.row).max();
    let sql = format!(
        "SELECT CAST(e.id AS BIGINT), e.additional_attributes FROM ({page}) e WHERE length(e.additional_attributes) > 0"
    );
    let more: Vec<(i64, Vec<u8>)> = db.rows(&sql, &args).await?;
    let mut more: HashMap<_, _> = more.into_iter().collect();
    let rows = rows.into_iter().map(|row| {
        let more = more.remove(&row.row);
        row.with(more)
    });
    let mut found: Vec<_> = rows.filter_map(stored).collect();
    add_belongings(db, &mut found, true).await?;
    Ok((found, last))
}

/// What is read of each entry, `flag` being how a truth is read.
fn read_columns(db: &Connection, flag: impl Fn(&str) -> String) -> String {
    let created = db.seconds("e.created_at");
    let (admin, downstream, store) = (flag("admin"), flag("downstream"), flag("store_svid"));
    format!(
        "CAST(e.id AS BIGINT), coalesce(e.entry_id, ''), coalesce(e.spiffe_id, ''), coalesce(e.parent_id, ''),
            CAST(coalesce(e.ttl, 0) AS BIGINT), {admin}, {downstream},
            coalesce(e.expiry, 0), coalesce(e.revision_number, 0), {store},
            coalesce(e.hint, ''), {created}, CAST(coalesce(e.jwt_svid_ttl, 0) AS BIGINT)"
    )
}

/// Adds what other tables have of the entries; `many` is whether all entries between the first and the last are there.
async fn add_belongings(
    db: &mut Connection,
    found: &mut [Stored],
    many: bool,
) -> Result<(), StoreError> {
    found.sort_unstable_by_key(|stored| stored.row);
    let (Some(first), Some(last)) = (found.first(), found.last()) else {
        return Ok(());
    };
    let (first, last) = (first.row, last.row);
    let (which, args): (_, Vec<Arg>) = if found.len() <= NAMED {
        let ids: Vec<_> = found.iter().map(|stored| stored.row).collect();
        (format!("IN ({})", id_list(&ids)), Vec::new())
    } else {
        (
            "BETWEEN $1 AND $2".to_owned(),
            vec![first.into(), last.into()],
        )
    };
    let mut near = 0;

    let columns = "CAST(registered_entry_id AS BIGINT), coalesce(type, ''), coalesce(value, '')";
    let from = format!("selectors WHERE registered_entry_id {which}");
    let rows: Vec<(i64, String, String)> = match many {
        true => db.json(columns, &from, &args).await?,
        false => {
            let sql = format!("SELECT {columns} FROM {from}");
            db.rows(&sql, &args).await?
        }
    };
    for (row, kind, value) in rows {
        if let Some(stored) = of_row(found, row, &mut near) {
            stored.entry.selectors.push(Selector { kind, value });
        }
    }
    let sql = format!(
        "SELECT CAST(registered_entry_id AS BIGINT), coalesce(value, '') FROM dns_names WHERE registered_entry_id {which} ORDER BY id"
    );
    let rows: Vec<(i64, String)> = db.rows(&sql, &args).await?;
    for (row, name) in rows {
        if let Some(stored) = of_row(found, row, &mut near) {
            stored.entry.dns_names.push(name);
        }
    }
    let sql = format!(
        "SELECT CAST(f.registered_entry_id AS BIGINT), b.trust_domain FROM federated_registration_entries f
         JOIN bundles b ON b.id = f.bundle_id WHERE f.registered_entry_id {which}"
    );
    let rows: Vec<(i64, String)> = db.rows(&sql, &args).await?;
    for (row, domain) in rows {
        if let Some(stored) = of_row(found, row, &mut near) {
            stored.entry.federates_with.push(trust_domain(&domain)?);
        }
    }
    for stored in found {
        normalize(&mut stored.entry);
    }
    Ok(())
}

/// The entry of `row`. What belongs to entries mostly comes in their order: `near` is where the last one was.
fn of_row<'a>(found: &'a mut [Stored], row: i64, near: &mut usize) -> Option<&'a mut Stored> {
    let is_it = |place: usize| found.get(place).is_some_and(|stored| stored.row == row);
    let place = match (is_it(*near), is_it(*near + 1)) {
        (true, _) => *near,
        (_, true) => *near + 1,
        _ => found.binary_search_by_key(&row, |stored| stored.row).ok()?,
    };
    *near = place;
    found.get_mut(place)
}

/// `None` for a row that names no SPIFFE IDs: one such row must not hide all others.
fn stored(columns: Columns) -> Option<Stored> {
    let (
        row,
        id,
        spiffe_id,
        parent_id,
        ttl,
        admin,
        downstream,
        expiry,
        revision,
        store,
        hint,
        created,
        jwt_ttl,
        more,
    ) = columns;
    let ids = (SpiffeId::new(&spiffe_id), SpiffeId::new(&parent_id));
    let (Ok(spiffe_id), Ok(parent_id)) = ids else {
        tracing::warn!(entry.id = %id, spiffe_id, parent_id, "an entry of the datastore is left out: its SPIFFE IDs are malformed");
        return None;
    };
    let more = types::entry::AdditionalAttributes::decode(more.unwrap_or_default().as_slice());
    let more = more.unwrap_or_else(|error| {
        tracing::warn!(entry.id = %id, %error, "additional attributes of an entry cannot be read and count as not given");
        Default::default()
    });
    let entry = Entry {
        id,
        spiffe_id,
        parent_id,
        selectors: Vec::new(),
        x509_svid_ttl: i32::try_from(ttl).unwrap_or_default(),
        jwt_svid_ttl: i32::try_from(jwt_ttl).unwrap_or_default(),
        federates_with: Vec::new(),
        admin,
        downstream,
        expires_at: expiry,
        dns_names: Vec::new(),
        revision,
        store_svid: store,
        hint,
        created_at: created.unwrap_or_default(),
        disable_x509_svid_prefetch: more.disable_x509_svid_prefetch,
        jwt_svid_include_jti: more.jwt_svid_include_jti,
    };
    Some(Stored { row, entry })
}

/// As the store holds it: sets without duplicates, in one order.
pub(super) fn normalize(entry: &mut Entry) {
    entry.selectors.sort_unstable();
    entry.selectors.dedup();
    entry.selectors.shrink_to_fit();
    entry.federates_with.sort_unstable();
    entry.federates_with.dedup();
    let mut seen = std::collections::HashSet::new();
    entry.dns_names.retain(|name| seen.insert(name.clone()));
    entry.dns_names.shrink_to_fit();
}

/// The values of the columns of an entry, `entry_id` to `additional_attributes`.
pub(super) fn columns(entry: &Entry) -> Vec<Arg> {
    let more = types::entry::AdditionalAttributes {
        disable_x509_svid_prefetch: entry.disable_x509_svid_prefetch,
        jwt_svid_include_jti: entry.jwt_svid_include_jti,
    };
    let more = more.encode_to_vec();
    vec![
        entry.id.as_str().into(),
        entry.spiffe_id.to_string().into(),
        entry.parent_id.to_string().into(),
        entry.x509_svid_ttl.into(),
        entry.admin.into(),
        entry.downstream.into(),
        entry.expires_at.into(),
        entry.revision.into(),
        entry.store_svid.into(),
        entry.hint.as_str().into(),
        entry.jwt_svid_ttl.into(),
        // Upstream reads an empty message as none given.
        Arg::Bytes(more),
    ]
}
