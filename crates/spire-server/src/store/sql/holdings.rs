//! What agents told that they hold, for the other servers of the database.
//!
//! The table is our own, beside upstream's schema: upstream's servers never look at it. Its statements are what all
//! databases have. A row is one server's word of one agent, so that no two servers write the same.

use spiffe::SpiffeId;

use super::SqlStore;
use super::connection::{Arg, Connection, Kind};
use crate::store::{StoreError, ToldHolding};

const TABLE: &str = "CREATE TABLE IF NOT EXISTS ah_agent_holdings (
    spiffe_id varchar(255) NOT NULL, server varchar(36) NOT NULL, bundle_sequence bigint NOT NULL,
    tainted_svids bigint NOT NULL, told_at bigint NOT NULL, PRIMARY KEY (spiffe_id, server))";

/// MySQL's own way takes `/A` for `/a`.
const EXACTLY: &str = " CHARACTER SET utf8mb4 COLLATE utf8mb4_bin";

/// Agents in one statement.
const CHUNK: usize = 1000;

impl SqlStore {
    /// Makes the table if there is none, and takes agents out of it that are gone.
    pub(crate) async fn tidy_holdings(&self) -> Result<(), StoreError> {
        let mut db = self.begin().await?;
        let compared = match db.kind() {
            Kind::MySql => EXACTLY,
            Kind::Sqlite | Kind::Postgres => "",
        };
        let made = db.execute(&format!("{TABLE}{compared}"), &[]).await;
        match db.end(made).await {
            // Another server made it at the same time.
            Ok(_) | Err(StoreError::AlreadyExists(_)) => {}
            Err(error) => return Err(error),
        }
        let mut db = self.begin().await?;
        let gone =
            "DELETE FROM ah_agent_holdings WHERE NOT EXISTS (SELECT 1 FROM attested_node_entries
            WHERE attested_node_entries.spiffe_id = ah_agent_holdings.spiffe_id)";
        let gone = db.execute(gone, &[]).await;
        db.end(gone).await.map(drop)
    }

    /// What agents told `server`, in place of all that was told of them before.
    pub(crate) async fn put_holdings(
        &self,
        server: &str,
        told: &[ToldHolding],
    ) -> Result<(), StoreError> {
        let mut db = self.begin().await?;
        let put = put(&mut db, server, told).await;
        db.end(put).await
    }

    /// What every agent told, whichever server.
    pub(crate) async fn holdings(&self) -> Result<Vec<ToldHolding>, StoreError> {
        let sql =
            "SELECT spiffe_id, bundle_sequence, tainted_svids, told_at FROM ah_agent_holdings";
        let mut db = self.read().await?;
        let rows = db.rows::<(String, i64, i64, i64)>(sql, &[]).await;
        let rows = db.end(rows).await?.into_iter();
        let told = rows.filter_map(|(id, bundle_sequence, tainted_svids, told_at)| {
            Some(ToldHolding {
                agent: SpiffeId::new(id).ok()?,
                bundle_sequence: u64::try_from(bundle_sequence).ok()?,
                tainted_svids: u32::try_from(tainted_svids).unwrap_or(u32::MAX),
                told_at,
            })
        });
        Ok(told.collect())
    }
}

async fn put(db: &mut Connection, server: &str, told: &[ToldHolding]) -> Result<(), StoreError> {
    for chunk in told.chunks(CHUNK) {
        // What was told before the first of these was told before each of them.
        let Some(first) = chunk.iter().map(|told| told.told_at).min() else {
            return Ok(());
        };
        let mut args: Vec<Arg> = vec![first.into(), server.into()];
        let ids = chunk.iter().enumerate().map(|(at, told)| {
            args.push(told.agent.to_string().into());
            format!("${}", at + 3)
        });
        let ids = ids.collect::<Vec<_>>().join(", ");
        let sql = format!(
            "DELETE FROM ah_agent_holdings WHERE (told_at <= $1 OR server = $2) AND spiffe_id IN ({ids})"
        );
        db.execute(&sql, &args).await?;
        let mut args = Vec::with_capacity(chunk.len() * 5);
        let rows = chunk.iter().enumerate().map(|(at, told)| {
            args.extend::<[Arg; 5]>([
                told.agent.to_string().into(),
                server.into(),
                i64::try_from(told.bundle_sequence)
                    .unwrap_or(i64::MAX)
                    .into(),
                i64::from(told.tainted_svids).into(),
                told.told_at.into(),
            ]);
            let n = at * 5;
            let [a, b, c, d, e] = [n + 1, n + 2, n + 3, n + 4, n + 5];
            format!("(${a}, ${b}, ${c}, ${d}, ${e})")
        });
        let rows = rows.collect::<Vec<_>>().join(", ");
        let sql = format!(
            "INSERT INTO ah_agent_holdings (spiffe_id, server, bundle_sequence, tainted_svids, told_at) VALUES {rows}"
        );
        db.execute(&sql, &args).await?;
    }
    Ok(())
}
