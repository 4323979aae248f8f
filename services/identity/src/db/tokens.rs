//! JWTs that were shown once, until they are over.

use super::{Db, int};
use weft_store::StoreError;

/// Tokens that are remembered at once.
const MAX_TOKENS: i64 = 100_000;

/// What is known of a token that is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenUse {
    /// Not seen before.
    First,
    /// Seen with the same key: the same request again.
    SameKey,
    /// Seen with another key.
    Replayed,
    /// No more can be remembered.
    Full,
}

impl Db {
    /// Remembers a token until `until`, and says what was known of it.
    pub async fn use_token_once(
        &self,
        id: &str,
        key: &str,
        until: u64,
        now: u64,
    ) -> Result<TokenUse, StoreError> {
        let mut tx = self.begin().await?;
        let used: sqlx::Result<TokenUse> = async {
            sqlx::query("DELETE FROM used_jwts WHERE until < $1")
                .bind(int(now))
                .execute(&mut *tx)
                .await?;
            let held: i64 = sqlx::query_scalar("SELECT count(*) FROM used_jwts")
                .fetch_one(&mut *tx)
                .await?;
            let known: Option<String> = sqlx::query_scalar("SELECT key_sha256 FROM used_jwts WHERE id = $1")
                .bind(id)
                .fetch_optional(&mut *tx)
                .await?;
            match known {
                Some(known) if known == key => return Ok(TokenUse::SameKey),
                Some(_) => return Ok(TokenUse::Replayed),
                None if held >= MAX_TOKENS => return Ok(TokenUse::Full),
                None => {}
            }
            // Of two replicas at once, one writes.
            let written = sqlx::query(
                "INSERT INTO used_jwts (id, key_sha256, until) VALUES ($1, $2, $3) ON CONFLICT (id) DO NOTHING",
            )
            .bind(id)
            .bind(key)
            .bind(int(until))
            .execute(&mut *tx)
            .await?;
            Ok(match written.rows_affected() {
                0 => TokenUse::Replayed,
                _ => TokenUse::First,
            })
        }
        .await;
        let used = used.map_err(|e| self.error(&e))?;
        self.commit(tx).await?;
        Ok(used)
    }
}
