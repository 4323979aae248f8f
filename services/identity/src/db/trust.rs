//! The authority's own certificates: roots and issuers with their state, changed as a whole.

mod stored;

pub use stored::{
    Cross, NewIssuer, NewJwtKey, NewRoot, Op, State, StoredIssuer, StoredJwtKey, StoredRoot, StoredTrust,
};

use super::{Db, Tx, int, revocations, unsigned};
use rustls_pki_types::CertificateDer;
use sqlx::{Row, any::AnyRow};
use weft_store::StoreError;

impl Db {
    /// The authority; `None` on first start.
    pub async fn trust(&self) -> Result<Option<StoredTrust>, StoreError> {
        let mut tx = self.store.begin_read().await?;
        read_trust(&mut tx).await.map_err(|e| self.error(&e))
    }

    /// What tells whether [`Db::trust`] would answer something new.
    pub async fn generation(&self) -> Result<u64, StoreError> {
        let read: sqlx::Result<i64> = sqlx::query_scalar("SELECT generation FROM trust")
            .fetch_one(self.store.pool())
            .await;
        read.map(unsigned).map_err(|e| self.error(&e))
    }

    /// Writes a new authority, whole. False when another replica was first.
    pub async fn create_trust(&self, trust_domain: &str, ops: &[Op], now: u64) -> Result<bool, StoreError> {
        let mut tx = self.begin().await?;
        let made = sqlx::query(
            "INSERT INTO trust (id, trust_domain, bundle_version) VALUES (1, $1, 1) ON CONFLICT (id) DO NOTHING",
        )
        .bind(trust_domain)
        .execute(&mut *tx)
        .await
        .map_err(|e| self.error(&e))?;
        if made.rows_affected() == 0 {
            return Ok(false);
        }
        self.apply(&mut tx, ops, now).await.map_err(|e| self.error(&e))?;
        self.commit(tx).await?;
        Ok(true)
    }

    /// Changes the authority if it is still as it was read (`generation`); false when another
    /// change came between.
    pub async fn change_trust(&self, generation: u64, ops: &[Op], now: u64) -> Result<bool, StoreError> {
        let mut tx = self.begin().await?;
        let same = sqlx::query("UPDATE trust SET generation = generation + 1 WHERE generation = $1")
            .bind(int(generation))
            .execute(&mut *tx)
            .await
            .map_err(|e| self.error(&e))?;
        if same.rows_affected() == 0 {
            return Ok(false);
        }
        self.apply(&mut tx, ops, now).await.map_err(|e| self.error(&e))?;
        self.commit(tx).await?;
        Ok(true)
    }

    async fn apply(&self, tx: &mut Tx, ops: &[Op], now: u64) -> sqlx::Result<()> {
        let mut newest_root = 0;
        for op in ops {
            match op {
                Op::AddRoot(root) => newest_root = insert_root(tx, root, now).await?,
                Op::AddIssuer(issuer) => {
                    let root_id = issuer.root_id.unwrap_or(newest_root);
                    insert_issuer(tx, issuer, root_id, now).await?;
                }
                Op::AddJwtKey(key) => insert_jwt_key(tx, key, now).await?,
                Op::SetState(id, state) => {
                    sqlx::query("UPDATE authorities SET state = $1 WHERE id = $2")
                        .bind(state.as_str())
                        .bind(id)
                        .execute(&mut **tx)
                        .await?;
                }
                Op::EraseKey(id) => {
                    sqlx::query("UPDATE authorities SET sealed_key = $1 WHERE id = $2")
                        .bind(Vec::new())
                        .bind(id)
                        .execute(&mut **tx)
                        .await?;
                }
                Op::Drop(id) => {
                    sqlx::query("DELETE FROM authorities WHERE id = $1")
                        .bind(id)
                        .execute(&mut **tx)
                        .await?;
                }
                Op::NextBundle => {
                    sqlx::query("UPDATE trust SET bundle_version = bundle_version + 1")
                        .execute(&mut **tx)
                        .await?;
                }
                Op::Revoke(it) => revocations::put(tx, it).await?,
                Op::Forget(target) => revocations::remove(tx, target).await?,
                Op::RenewBefore(time) => {
                    sqlx::query("UPDATE trust SET renew_before = $1")
                        .bind(int(*time))
                        .execute(&mut **tx)
                        .await?;
                }
            }
        }
        Ok(())
    }

    /// Notes, in the transaction that records it, that something which depends on an issuer or root
    /// lives until then. False when that issuer was dropped already: what it signed is worth nothing.
    pub async fn keep_until(&self, tx: &mut Tx, id: i64, until: u64) -> Result<bool, StoreError> {
        let kept = sqlx::query(
            "UPDATE authorities SET signed_until = CASE WHEN signed_until < $1 THEN $1 ELSE signed_until END \
             WHERE id = $2",
        )
        .bind(int(until))
        .bind(id)
        .execute(&mut **tx)
        .await
        .map_err(|e| self.error(&e))?;
        Ok(kept.rows_affected() == 1)
    }

    /// Notes when the newest certificate of the service itself begins.
    pub async fn note_own(&self, tx: &mut Tx, not_before: u64) -> Result<(), StoreError> {
        sqlx::query("UPDATE trust SET newest_own = $1 WHERE newest_own < $1")
            .bind(int(not_before))
            .execute(&mut **tx)
            .await
            .map_err(|e| self.error(&e))?;
        Ok(())
    }
}

async fn read_trust(tx: &mut Tx) -> sqlx::Result<Option<StoredTrust>> {
    let row = sqlx::query("SELECT * FROM trust")
        .fetch_optional(&mut **tx)
        .await?;
    let Some(row) = row else { return Ok(None) };
    let rows = sqlx::query("SELECT * FROM authorities ORDER BY id")
        .fetch_all(&mut **tx)
        .await?;
    let (mut roots, mut issuers, mut jwt_keys) = (Vec::new(), Vec::new(), Vec::new());
    for row in &rows {
        match row.try_get("kind")? {
            "root" => roots.push(stored_root(row)?),
            "jwt" => jwt_keys.push(stored_jwt_key(row)?),
            _ => issuers.push(stored_issuer(row)?),
        }
    }
    Ok(Some(StoredTrust {
        trust_domain: row.try_get("trust_domain")?,
        bundle_version: unsigned(row.try_get("bundle_version")?),
        generation: unsigned(row.try_get("generation")?),
        newest_own: unsigned(row.try_get("newest_own")?),
        renew_before: unsigned(row.try_get("renew_before")?),
        roots,
        issuers,
        revocations: revocations::all(tx).await?,
        jwt_keys,
    }))
}

async fn insert_root(tx: &mut Tx, root: &NewRoot, now: u64) -> sqlx::Result<i64> {
    sqlx::query_scalar(
        "INSERT INTO authorities (kind, cert_der, sealed_key, created_at, state, signed_until) \
         VALUES ('root', $1, $2, $3, $4, $5) RETURNING id",
    )
    .bind(root.cert.to_vec())
    .bind(root.sealed_key.clone().unwrap_or_default())
    .bind(int(now))
    .bind(root.state.as_str())
    .bind(int(root.wanted_until))
    .fetch_one(&mut **tx)
    .await
}

async fn insert_jwt_key(tx: &mut Tx, key: &NewJwtKey, now: u64) -> sqlx::Result<()> {
    sqlx::query(
        "INSERT INTO authorities (kind, cert_der, sealed_key, created_at, state) VALUES ('jwt', $1, $2, $3, $4)",
    )
    .bind(key.jwk.clone())
    .bind(key.sealed_key.clone())
    .bind(int(now))
    .bind(key.state.as_str())
    .execute(&mut **tx)
    .await?;
    Ok(())
}

async fn insert_issuer(tx: &mut Tx, issuer: &NewIssuer, root_id: i64, now: u64) -> sqlx::Result<()> {
    let (cross, cross_root) = issuer
        .cross
        .as_ref()
        .map_or((Vec::new(), 0), |c| (c.cert.to_vec(), c.root_id));
    sqlx::query(
        "INSERT INTO authorities \
         (kind, cert_der, sealed_key, created_at, state, root_id, cross_der, cross_root_id) \
         VALUES ('issuer', $1, $2, $3, $4, $5, $6, $7)",
    )
    .bind(issuer.cert.to_vec())
    .bind(issuer.sealed_key.clone())
    .bind(int(now))
    .bind(issuer.state.as_str())
    .bind(root_id)
    .bind(cross)
    .bind(cross_root)
    .execute(&mut **tx)
    .await?;
    Ok(())
}

fn state(row: &AnyRow) -> sqlx::Result<State> {
    let text: &str = row.try_get("state")?;
    let known = State::ALL.into_iter().find(|s| s.as_str() == text);
    known.ok_or_else(|| sqlx::Error::Decode(format!("state {text:?}").into()))
}

fn not_empty(bytes: Vec<u8>) -> Option<Vec<u8>> {
    (!bytes.is_empty()).then_some(bytes)
}

fn certificate(row: &AnyRow) -> sqlx::Result<CertificateDer<'static>> {
    Ok(row.try_get::<Vec<u8>, _>("cert_der")?.into())
}

fn stored_root(row: &AnyRow) -> sqlx::Result<StoredRoot> {
    Ok(StoredRoot {
        id: row.try_get("id")?,
        state: state(row)?,
        cert: certificate(row)?,
        sealed_key: not_empty(row.try_get("sealed_key")?),
        signed_until: unsigned(row.try_get("signed_until")?),
    })
}

fn stored_jwt_key(row: &AnyRow) -> sqlx::Result<StoredJwtKey> {
    Ok(StoredJwtKey {
        id: row.try_get("id")?,
        state: state(row)?,
        jwk: row.try_get("cert_der")?,
        sealed_key: not_empty(row.try_get("sealed_key")?),
        created_at: unsigned(row.try_get("created_at")?),
        signed_until: unsigned(row.try_get("signed_until")?),
    })
}

fn stored_issuer(row: &AnyRow) -> sqlx::Result<StoredIssuer> {
    let root_id: i64 = row.try_get("cross_root_id")?;
    let cross = not_empty(row.try_get("cross_der")?).map(|cert| Cross {
        root_id,
        cert: cert.into(),
    });
    Ok(StoredIssuer {
        id: row.try_get("id")?,
        state: state(row)?,
        root_id: row.try_get("root_id")?,
        cert: certificate(row)?,
        cross,
        sealed_key: not_empty(row.try_get("sealed_key")?),
        signed_until: unsigned(row.try_get("signed_until")?),
    })
}
