//! CA journals: one protobuf a server.

use ah_spire_wire::stored::journal;
use prost::Message;

use super::connection::Connection;
use super::{SqlStore, now};
use crate::store::{Journals, StoreError};

impl Journals for SqlStore {
    async fn journal(
        &self,
        active_x509_authority_id: &str,
    ) -> Result<Option<(u64, Vec<u8>)>, StoreError> {
        if active_x509_authority_id.is_empty() {
            return Err(StoreError::Invalid(
                "active X509 authority ID is required".into(),
            ));
        }
        let sql = "SELECT CAST(id AS BIGINT), data FROM ca_journals WHERE active_x509_authority_id = $1 ORDER BY id LIMIT 1";
        let mut db = self.read().await?;
        let found = db.row(sql, &[active_x509_authority_id.into()]).await;
        Ok(db.end(found).await?.map(known))
    }

    async fn put_journal(
        &self,
        id: Option<u64>,
        active_x509_authority_id: &str,
        data: &[u8],
    ) -> Result<u64, StoreError> {
        let mut db = self.begin().await?;
        let put = put(&mut db, id, active_x509_authority_id, data).await;
        db.end(put).await
    }

    async fn journals(&self) -> Result<Vec<(u64, Vec<u8>)>, StoreError> {
        let mut db = self.read().await?;
        let all = read_all(&mut db).await;
        db.end(all).await
    }

    async fn prune_journals(&self, now: i64) -> Result<u64, StoreError> {
        let mut db = self.begin().await?;
        let pruned = prune(&mut db, now).await;
        db.end(pruned).await
    }
}

async fn put(
    db: &mut Connection,
    id: Option<u64>,
    active: &str,
    data: &[u8],
) -> Result<u64, StoreError> {
    let data = data.to_vec();
    let Some(id) = id else {
        let sql = "INSERT INTO ca_journals (data, active_x509_authority_id, active_jwt_authority_id, created_at, updated_at)
            VALUES ($1, $2, '', $3::timestamptz, $3::timestamptz)";
        let args = [data.into(), active.into(), now()];
        let made = db.insert_row(sql, &args).await?;
        let made = made.ok_or_else(|| StoreError::Unavailable("no CA journal was made".into()))?;
        return Ok(made.unsigned_abs());
    };
    let missing = || StoreError::NotFound(format!("CA journal {id}"));
    let row = i64::try_from(id).map_err(|_| missing())?;
    let sql = "UPDATE ca_journals SET data = $1, active_x509_authority_id = $2, updated_at = $3::timestamptz WHERE id = $4";
    match db
        .execute(sql, &[data.into(), active.into(), now(), row.into()])
        .await?
    {
        0 => Err(missing()),
        _ => Ok(id),
    }
}

async fn read_all(db: &mut Connection) -> Result<Vec<(u64, Vec<u8>)>, StoreError> {
    let sql = "SELECT CAST(id AS BIGINT), data FROM ca_journals ORDER BY id";
    let rows: Vec<(i64, Option<Vec<u8>>)> = db.rows(sql, &[]).await?;
    Ok(rows.into_iter().map(known).collect())
}

async fn prune(db: &mut Connection, now: i64) -> Result<u64, StoreError> {
    let mut pruned = 0;
    for (id, data) in read_all(db).await? {
        let entries = journal::Entries::decode(data.as_slice())
            .map_err(|e| StoreError::Broken(format!("CA journal {id} cannot be read: {e}")))?;
        let mut ends = entries.x509_c_as.iter().map(|ca| ca.not_after);
        let mut keys = entries.jwt_keys.iter().map(|key| key.not_after);
        if ends.any(|end| end > now) || keys.any(|end| end > now) {
            continue;
        }
        // A server that comes back meanwhile writes its journal anew: what it wrote stays.
        let sql = "DELETE FROM ca_journals WHERE id = $1 AND data = $2";
        let id = i64::try_from(id).unwrap_or_default();
        pruned += db.execute(sql, &[id.into(), data.into()]).await?;
    }
    Ok(pruned)
}

fn known((id, data): (i64, Option<Vec<u8>>)) -> (u64, Vec<u8>) {
    (id.unsigned_abs(), data.unwrap_or_default())
}
