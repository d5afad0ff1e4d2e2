//! The logs of changes.

use super::connection::Connection;
use super::filter::id_list;
use crate::store::{Changed, StoreError};

/// Events named in one statement.
const NAMED: usize = 500;

/// After an event, in order; only the newest one for `None`.
pub(super) async fn events(
    db: &mut Connection,
    table: &str,
    column: &str,
    after: Option<u64>,
) -> Result<Vec<Changed>, StoreError> {
    let rest = match after {
        Some(after) => format!("WHERE id > {after} ORDER BY id"),
        None => "ORDER BY id DESC LIMIT 1".to_owned(),
    };
    select_events(db, table, column, &rest).await
}

/// Those of `events` that are there, in order.
pub(super) async fn events_among(
    db: &mut Connection,
    table: &str,
    column: &str,
    events: &[u64],
) -> Result<Vec<Changed>, StoreError> {
    let mut found = Vec::new();
    for events in events.chunks(NAMED) {
        let rest = format!("WHERE id IN ({}) ORDER BY id", id_list(events));
        found.extend(select_events(db, table, column, &rest).await?);
    }
    Ok(found)
}

async fn select_events(
    db: &mut Connection,
    table: &str,
    column: &str,
    rest: &str,
) -> Result<Vec<Changed>, StoreError> {
    let sql = format!("SELECT CAST(id AS BIGINT), coalesce({column}, '') FROM {table} {rest}");
    let rows: Vec<(i64, String)> = db.rows(&sql, &[]).await?;
    let changed = |(event, id): (i64, String)| Changed {
        event: event.unsigned_abs(),
        id,
    };
    Ok(rows.into_iter().map(changed).collect())
}

pub(super) async fn prune_events(
    db: &mut Connection,
    table: &str,
    before: i64,
) -> Result<u64, StoreError> {
    let created = db.seconds("created_at");
    let sql = format!("DELETE FROM {table} WHERE {created} < $1");
    db.execute(&sql, &[before.into()]).await
}
