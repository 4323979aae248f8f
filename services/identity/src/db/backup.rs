//! The whole state but the audit record and join tokens, read at one moment and written into an
//! empty database. Keys in it are open: whoever holds an [`Image`] encrypts it at once.

use super::{Db, Tx, int, patterns_json, revocations};
use crate::{
    db::{Revocation, StoredTrust, Target},
    pattern::HostPattern,
};
use serde::{Deserialize, Serialize};
use sqlx::Row;
use weft_store::StoreError;

/// All there is.
#[derive(Debug, Serialize, Deserialize)]
pub struct Image {
    /// Whose authority it is.
    pub trust_domain: String,
    /// When it was made, in seconds since the Unix epoch.
    pub made_at: u64,
    /// Of the bundle.
    pub bundle_version: u64,
    /// Certificates that begin before are to be renewed.
    pub renew_before: u64,
    /// Roots before issuers.
    pub authorities: Vec<ImageAuthority>,
    /// Who joined.
    pub members: Vec<ImageMember>,
    /// What is revoked.
    pub revocations: Vec<ImageRevocation>,
}

/// A root, an issuer or a key for JWT-SVIDs.
#[derive(Serialize, Deserialize)]
pub struct ImageAuthority {
    /// In the database that it comes from.
    pub id: i64,
    /// "root", "issuer" or "jwt".
    pub kind: String,
    /// Where it was in its life.
    pub state: String,
    /// The root of an issuer.
    pub root_id: i64,
    /// DER; of a key for JWT-SVIDs, its JWK.
    pub cert: Vec<u8>,
    /// DER; empty for none.
    pub cross: Vec<u8>,
    /// The root of `cross`.
    pub cross_root_id: i64,
    /// PKCS#8, open in an encrypted backup; sealed when it is written. Empty for none.
    pub key: Vec<u8>,
    /// Nothing that depends on it lives longer.
    pub signed_until: u64,
}

impl std::fmt::Debug for ImageAuthority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ImageAuthority")
            .field("kind", &self.kind)
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}

impl Drop for ImageAuthority {
    fn drop(&mut self) {
        zeroize::Zeroize::zeroize(&mut self.key);
    }
}

/// A member.
#[derive(Debug, Serialize, Deserialize)]
pub struct ImageMember {
    /// "service" or "node".
    pub kind: String,
    /// The name inside the role.
    pub name: String,
    /// What a node may host.
    pub may_host: Vec<HostPattern>,
    /// Seconds since the Unix epoch.
    pub joined_at: u64,
    /// How it proved who it is.
    #[serde(default = "by_token")]
    pub attested: String,
}

/// Backups from before there was anything else.
fn by_token() -> String {
    "join-token".into()
}

/// A revocation.
#[derive(Debug, Serialize, Deserialize)]
pub struct ImageRevocation {
    /// A SPIFFE ID or a serial.
    pub target: String,
    /// Of an identity.
    pub valid_from: u64,
    /// The operator's words.
    pub reason: String,
    /// Seconds since the Unix epoch.
    pub created_at: u64,
    /// Nothing is left that it could meet.
    pub until: u64,
}

impl Db {
    /// Reads everything but keys, which stay sealed in what it answers.
    pub async fn image(&self, trust: &StoredTrust, now: u64) -> Result<Image, StoreError> {
        let rows =
            sqlx::query("SELECT kind, name, may_host, joined_at, attested FROM members ORDER BY kind, name")
                .fetch_all(self.store.pool())
                .await
                .map_err(|e| self.error(&e))?;
        let member = |row: &sqlx::any::AnyRow| -> sqlx::Result<ImageMember> {
            Ok(ImageMember {
                kind: row.try_get("kind")?,
                name: row.try_get("name")?,
                may_host: super::patterns_from(row.try_get("may_host")?)?,
                joined_at: super::unsigned(row.try_get("joined_at")?),
                attested: row.try_get("attested")?,
            })
        };
        let members: sqlx::Result<Vec<_>> = rows.iter().map(member).collect();
        let roots = trust.roots.iter().map(|r| ImageAuthority {
            id: r.id,
            kind: "root".into(),
            state: r.state.as_str().into(),
            root_id: 0,
            cert: r.cert.to_vec(),
            cross: Vec::new(),
            cross_root_id: 0,
            key: r.sealed_key.clone().unwrap_or_default(),
            signed_until: r.signed_until,
        });
        let issuers = trust.issuers.iter().map(|i| ImageAuthority {
            id: i.id,
            kind: "issuer".into(),
            state: i.state.as_str().into(),
            root_id: i.root_id,
            cert: i.cert.to_vec(),
            cross: i.cross.as_ref().map(|c| c.cert.to_vec()).unwrap_or_default(),
            cross_root_id: i.cross.as_ref().map_or(0, |c| c.root_id),
            key: i.sealed_key.clone().unwrap_or_default(),
            signed_until: i.signed_until,
        });
        let jwt_keys = trust.jwt_keys.iter().map(|k| ImageAuthority {
            id: k.id,
            kind: "jwt".into(),
            state: k.state.as_str().into(),
            root_id: 0,
            cert: k.jwk.clone(),
            cross: Vec::new(),
            cross_root_id: 0,
            key: k.sealed_key.clone().unwrap_or_default(),
            signed_until: k.signed_until,
        });
        let revocations = trust.revocations.iter().map(|r| ImageRevocation {
            target: r.target.text(),
            valid_from: r.valid_from,
            reason: r.reason.clone(),
            created_at: r.created_at,
            until: r.until,
        });
        Ok(Image {
            trust_domain: trust.trust_domain.clone(),
            made_at: now,
            bundle_version: trust.bundle_version,
            renew_before: trust.renew_before,
            authorities: roots.chain(issuers).chain(jwt_keys).collect(),
            members: members.map_err(|e| self.error(&e))?,
            revocations: revocations.collect(),
        })
    }

    /// Writes it, with its keys sealed; false when the database is not empty.
    pub async fn restore(&self, image: &Image, now: u64) -> Result<bool, StoreError> {
        let mut tx = self.begin().await?;
        match write(&mut tx, image, now).await {
            Ok(true) => self.commit(tx).await.map(|()| true),
            Ok(false) => Ok(false),
            Err(e) => Err(self.error(&e)),
        }
    }
}

async fn write(tx: &mut Tx, image: &Image, now: u64) -> sqlx::Result<bool> {
    let made = sqlx::query(
        "INSERT INTO trust (id, trust_domain, bundle_version, renew_before, newest_own) \
         VALUES (1, $1, $2, $3, $4) ON CONFLICT (id) DO NOTHING",
    )
    .bind(image.trust_domain.as_str())
    .bind(int(image.bundle_version))
    .bind(int(image.renew_before))
    .bind(int(now))
    .execute(&mut **tx)
    .await?;
    if made.rows_affected() == 0 {
        return Ok(false);
    }
    let mut ids = std::collections::HashMap::from([(0, 0)]);
    for it in &image.authorities {
        let of = |id: i64| ids.get(&id).copied().ok_or(sqlx::Error::RowNotFound);
        let id: i64 = sqlx::query_scalar(
            "INSERT INTO authorities (kind, cert_der, sealed_key, created_at, state, root_id, cross_der, \
             cross_root_id, signed_until) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) RETURNING id",
        )
        .bind(it.kind.as_str())
        .bind(it.cert.clone())
        .bind(it.key.clone())
        .bind(int(now))
        .bind(it.state.as_str())
        .bind(of(it.root_id)?)
        .bind(it.cross.clone())
        .bind(of(it.cross_root_id).unwrap_or(0))
        .bind(int(it.signed_until))
        .fetch_one(&mut **tx)
        .await?;
        ids.insert(it.id, id);
    }
    for it in &image.members {
        sqlx::query(
            "INSERT INTO members (kind, name, may_host, joined_at, attested) VALUES ($1, $2, $3, $4, $5)",
        )
        .bind(it.kind.as_str())
        .bind(it.name.as_str())
        .bind(patterns_json(&it.may_host))
        .bind(int(it.joined_at))
        .bind(it.attested.as_str())
        .execute(&mut **tx)
        .await?;
    }
    for it in &image.revocations {
        let target = match it.target.parse() {
            Ok(id) => Target::Identity(id),
            Err(_) => Target::Serial(it.target.clone()),
        };
        let revocation = Revocation {
            target,
            valid_from: it.valid_from,
            reason: it.reason.clone(),
            created_at: it.created_at,
            until: it.until,
        };
        revocations::put(tx, &revocation).await?;
    }
    Ok(true)
}
