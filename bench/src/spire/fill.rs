//! Entries by the hundred thousand, written into a datastore that no server has open.

use std::path::Path;

use ah_spire_wire::types;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{AssertSqlSafe, Connection};

/// Entry `n` stands below parent `n` modulo their number, for a workload that there is not.
pub(super) async fn entries(
    datastore: &Path,
    parents: &[types::Spiffeid],
    entries: u32,
) -> Result<(), sqlx::Error> {
    let options = SqliteConnectOptions::new().filename(datastore);
    let mut db = SqliteConnection::connect_with(&options).await?;
    let mut all = db.begin().await?;
    sqlx::query("CREATE TEMPORARY TABLE parents (n INTEGER PRIMARY KEY, id TEXT)")
        .execute(&mut *all)
        .await?;
    for (n, parent) in parents.iter().enumerate() {
        sqlx::query("INSERT INTO parents VALUES ($1, $2)")
            .bind(i64::try_from(n).unwrap_or_default())
            .bind(format!("spiffe://{}{}", parent.trust_domain, parent.path))
            .execute(&mut *all)
            .await?;
    }
    let rows = format!(
        "WITH RECURSIVE rows(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM rows WHERE n + 1 < {entries})
         INSERT INTO registered_entries (created_at, updated_at, entry_id, spiffe_id, parent_id, ttl, admin, downstream, expiry,
             revision_number, store_svid, hint, jwt_svid_ttl)
         SELECT '2026-01-01 00:00:00+00:00', '2026-01-01 00:00:00+00:00', printf('%08x-0000-4000-8000-%012x', rows.n, rows.n),
             'spiffe://example.org/filled/' || rows.n, parents.id, 0, 0, 0, 0, 0, 0, '', 0
         FROM rows JOIN parents ON parents.n = rows.n % {}",
        parents.len().max(1)
    );
    sqlx::query(AssertSqlSafe(rows)).execute(&mut *all).await?;
    sqlx::query(
        "INSERT INTO selectors (created_at, updated_at, registered_entry_id, type, value)
         SELECT created_at, updated_at, id, 'unix', 'uid:' || (1000000 + id) FROM registered_entries
         WHERE spiffe_id LIKE 'spiffe://example.org/filled/%'",
    )
    .execute(&mut *all)
    .await?;
    all.commit().await?;
    db.close().await
}
