//! Rows of entries, and what they stand for.

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

/// Reads entries with all that belongs to them, in four statements however many there are. `rest` begins with
/// `WHERE` and calls the table `e`.
pub(super) async fn load(
    db: &mut Connection,
    rest: &str,
    args: &[Arg],
) -> Result<Vec<Stored>, StoreError> {
    let columns = read_columns(db);
    let sql = format!("SELECT {columns}, e.additional_attributes FROM registered_entries e {rest}");
    let rows: Vec<Columns> = db.rows(&sql, args).await?;
    let mut found: Vec<_> = rows.into_iter().filter_map(stored).collect();
    add_belongings(db, &mut found).await?;
    Ok(found)
}

/// What is read of each entry.
fn read_columns(db: &Connection) -> String {
    let created = db.seconds("e.created_at");
    format!(
        "CAST(e.id AS BIGINT), coalesce(e.entry_id, ''), coalesce(e.spiffe_id, ''), coalesce(e.parent_id, ''),
            CAST(coalesce(e.ttl, 0) AS BIGINT), coalesce(e.admin, false), coalesce(e.downstream, false),
            coalesce(e.expiry, 0), coalesce(e.revision_number, 0), coalesce(e.store_svid, false),
            coalesce(e.hint, ''), {created}, CAST(coalesce(e.jwt_svid_ttl, 0) AS BIGINT)"
    )
}

/// Adds what other tables have of the entries.
async fn add_belongings(db: &mut Connection, found: &mut [Stored]) -> Result<(), StoreError> {
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
    let sql = format!(
        "SELECT CAST(registered_entry_id AS BIGINT), coalesce(type, ''), coalesce(value, '') FROM selectors WHERE registered_entry_id {which}"
    );
    let mut near = 0;
    for (row, kind, value) in db.rows::<(i64, String, String)>(&sql, &args).await? {
        add_selector(found, row, Selector { kind, value }, &mut near);
    }
    add_dns_names(db, found, &which, &args).await?;
    add_federation(db, found, &which, &args).await?;
    for stored in found {
        normalize(&mut stored.entry);
    }
    Ok(())
}

pub(super) fn add_selector(found: &mut [Stored], row: i64, selector: Selector, near: &mut usize) {
    if let Some(stored) = of_row(found, row, near) {
        let selectors = &mut stored.entry.selectors;
        // Most have one.
        if selectors.is_empty() {
            selectors.reserve_exact(1);
        }
        selectors.push(selector);
    }
}

/// Adds the DNS names of those entries whose rows are `which`, an expression with `args`.
pub(super) async fn add_dns_names(
    db: &mut Connection,
    found: &mut [Stored],
    which: &str,
    args: &[Arg],
) -> Result<(), StoreError> {
    let sql = format!(
        "SELECT CAST(registered_entry_id AS BIGINT), coalesce(value, '') FROM dns_names WHERE registered_entry_id {which} ORDER BY id"
    );
    let mut near = 0;
    for (row, name) in db.rows::<(i64, String)>(&sql, args).await? {
        if let Some(stored) = of_row(found, row, &mut near) {
            stored.entry.dns_names.push(name);
        }
    }
    Ok(())
}

/// As [`add_dns_names`], the trust domains they federate with.
pub(super) async fn add_federation(
    db: &mut Connection,
    found: &mut [Stored],
    which: &str,
    args: &[Arg],
) -> Result<(), StoreError> {
    let sql = format!(
        "SELECT CAST(f.registered_entry_id AS BIGINT), b.trust_domain FROM federated_registration_entries f
         JOIN bundles b ON b.id = f.bundle_id WHERE f.registered_entry_id {which}"
    );
    let mut near = 0;
    for (row, domain) in db.rows::<(i64, String)>(&sql, args).await? {
        if let Some(stored) = of_row(found, row, &mut near) {
            stored.entry.federates_with.push(trust_domain(&domain)?);
        }
    }
    Ok(())
}

/// The entry of `row`. What belongs to entries mostly comes in their order: `near` is where the last one was.
pub(super) fn of_row<'a>(
    found: &'a mut [Stored],
    row: i64,
    near: &mut usize,
) -> Option<&'a mut Stored> {
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
        malformed(&id, &spiffe_id, &parent_id);
        return None;
    };
    let mut entry = Entry {
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
        disable_x509_svid_prefetch: false,
        jwt_svid_include_jti: false,
    };
    add_attributes(&mut entry, &more.unwrap_or_default());
    Some(Stored { row, entry })
}

pub(super) fn malformed(id: &str, spiffe_id: &str, parent_id: &str) {
    tracing::warn!(entry.id = %id, spiffe_id, parent_id, "an entry of the datastore is left out: its SPIFFE IDs are malformed");
}

/// Adds what the column of additional attributes has.
pub(super) fn add_attributes(entry: &mut Entry, encoded: &[u8]) {
    match types::entry::AdditionalAttributes::decode(encoded) {
        Ok(more) => {
            entry.disable_x509_svid_prefetch = more.disable_x509_svid_prefetch;
            entry.jwt_svid_include_jti = more.jwt_svid_include_jti;
        }
        Err(error) => {
            tracing::warn!(entry.id = %entry.id, %error, "additional attributes of an entry cannot be read and count as not given");
        }
    }
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
