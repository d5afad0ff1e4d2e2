//! Join tokens.
//!
//! A token that was taken leaves a receipt in its table, which ends like a token and is none: its name has a
//! character that no SPIFFE ID may have. Servers that know nothing of receipts prune them in time.

use ah_identity_provider::hex;
use aws_lc_rs::digest::{SHA256, digest};

use super::connection::Kind;
use super::{Connection, SqlStore, now};
use crate::store::{JoinToken, JoinTokens, Spender, StoreError};

const RECEIPT: &str = "used:";

/// The receipts of a token begin with it.
fn receipts(token: &str) -> String {
    format!(
        "{RECEIPT}{}:",
        hex(digest(&SHA256, token.as_bytes()).as_ref())
    )
}

/// Forgets who took `token`: an agent that is deleted does not come back with it.
pub(super) async fn forget_receipts(db: &mut Connection, token: &str) -> Result<(), StoreError> {
    let pattern = format!("{}%", receipts(token));
    let sql = "DELETE FROM join_tokens WHERE token LIKE $1";
    db.execute(sql, &[pattern.into()]).await.map(drop)
}

/// Deletes a token, and says when it ends. The row's lock decides between callers.
async fn take(db: &mut Connection, token: &str) -> Result<Option<i64>, StoreError> {
    let args = [token.into()];
    if db.kind() != Kind::MySql {
        let sql = "DELETE FROM join_tokens WHERE token = $1 RETURNING coalesce(expiry, 0)";
        return Ok(db.row::<(i64,)>(sql, &args).await?.map(|(end,)| end));
    }
    let sql = "SELECT coalesce(expiry, 0) FROM join_tokens WHERE token = $1 FOR UPDATE";
    let found = db.row::<(i64,)>(sql, &args).await?;
    let sql = "DELETE FROM join_tokens WHERE token = $1";
    let deleted = db.execute(sql, &args).await?;
    Ok(found.filter(|_| deleted > 0).map(|(end,)| end))
}

async fn consume(
    db: &mut Connection,
    token: &str,
    spender: &Spender,
) -> Result<Option<i64>, StoreError> {
    let receipt = format!("{}{}", receipts(token), spender.key);
    let Some(expires_at) = take(db, token).await? else {
        let sql = "SELECT coalesce(expiry, 0) FROM join_tokens WHERE token = $1 AND expiry >= $2";
        let args = [receipt.into(), spender.now.into()];
        let taken = db.row::<(i64,)>(sql, &args).await?;
        return Ok(taken.map(|(until,)| until));
    };
    if expires_at >= spender.now {
        let sql = "INSERT INTO join_tokens (token, expiry, created_at, updated_at) VALUES ($1, $2, $3::timestamptz, $3::timestamptz)
            ON CONFLICT DO NOTHING";
        db.execute(sql, &[receipt.into(), spender.until.into(), now()])
            .await?;
    }
    Ok(Some(expires_at))
}

impl JoinTokens for SqlStore {
    async fn create_join_token(&self, token: &JoinToken) -> Result<(), StoreError> {
        if token.token.is_empty() {
            return Err(StoreError::Invalid("token and expiry are required".into()));
        }
        let sql = "INSERT INTO join_tokens (token, expiry, created_at, updated_at) VALUES ($1, $2, $3::timestamptz, $3::timestamptz)
            ON CONFLICT DO NOTHING";
        let args = [token.token.as_str().into(), token.expires_at.into(), now()];
        let mut db = self.begin().await?;
        let made = db.execute(sql, &args).await;
        match db.end(made).await? {
            0 => Err(StoreError::AlreadyExists("join token".into())),
            _ => Ok(()),
        }
    }

    async fn consume_join_token(
        &self,
        token: &str,
        spender: &Spender,
    ) -> Result<Option<JoinToken>, StoreError> {
        if token.starts_with(RECEIPT) {
            return Ok(None);
        }
        let mut db = self.begin().await?;
        let taken = consume(&mut db, token, spender).await;
        let taken = db.end(taken).await?;
        Ok(taken.map(|expires_at| JoinToken {
            token: token.to_owned(),
            expires_at,
        }))
    }

    async fn prune_join_tokens(&self, now: i64) -> Result<u64, StoreError> {
        let mut db = self.begin().await?;
        let pruned = db
            .execute("DELETE FROM join_tokens WHERE expiry < $1", &[now.into()])
            .await;
        db.end(pruned).await
    }
}
