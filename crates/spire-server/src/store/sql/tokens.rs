//! Join tokens.

use super::{SqlStore, now};
use crate::store::{JoinToken, JoinTokens, StoreError};

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

    async fn consume_join_token(&self, token: &str) -> Result<Option<JoinToken>, StoreError> {
        // One statement, so that the row's lock decides between callers.
        let sql = "DELETE FROM join_tokens WHERE token = $1 RETURNING coalesce(expiry, 0)";
        let mut db = self.begin().await?;
        let taken = db.row::<(i64,)>(sql, &[token.into()]).await;
        let taken = db.end(taken).await?;
        Ok(taken.map(|(expires_at,)| JoinToken {
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
