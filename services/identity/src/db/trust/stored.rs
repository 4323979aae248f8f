//! What is stored of the authority, and the steps that change it.

use crate::db::revocations::{Revocation, Target};
use rustls_pki_types::CertificateDer;

/// Where a root or an issuer is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Given to verifiers, signs nothing.
    Prepared,
    /// In use.
    Active,
    /// Signs nothing any more; what it signed still lives.
    Retired,
}

impl State {
    pub(super) const ALL: [Self; 3] = [Self::Prepared, Self::Active, Self::Retired];

    /// As the database and the protocol write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Prepared => "prepared",
            Self::Active => "active",
            Self::Retired => "retired",
        }
    }
}

/// A root as stored.
#[derive(Debug, Clone)]
pub struct StoredRoot {
    /// Set by the database.
    pub id: i64,
    /// Where it is in its life.
    pub state: State,
    /// DER.
    pub cert: CertificateDer<'static>,
    /// PKCS#8 under the key-encryption key; none when the operator keeps it.
    pub sealed_key: Option<Vec<u8>>,
    /// A join token that lives so long pins it, or it is wanted so long for another reason.
    pub signed_until: u64,
}

/// An issuer's key under an older root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cross {
    /// That root.
    pub root_id: i64,
    /// DER.
    pub cert: CertificateDer<'static>,
}

/// An issuer as stored.
#[derive(Debug, Clone)]
pub struct StoredIssuer {
    /// Set by the database.
    pub id: i64,
    /// Where it is in its life.
    pub state: State,
    /// The root it is under.
    pub root_id: i64,
    /// DER.
    pub cert: CertificateDer<'static>,
    /// The same under an older root.
    pub cross: Option<Cross>,
    /// PKCS#8 under the key-encryption key; none when it was retired.
    pub sealed_key: Option<Vec<u8>>,
    /// No certificate it signed lives longer.
    pub signed_until: u64,
}

/// A key that signs JWT-SVIDs, as stored.
#[derive(Debug, Clone)]
pub struct StoredJwtKey {
    /// Set by the database.
    pub id: i64,
    /// Where it is in its life.
    pub state: State,
    /// The public half, as a JWK in JSON.
    pub jwk: Vec<u8>,
    /// PKCS#8 under the key-encryption key; none when it was retired.
    pub sealed_key: Option<Vec<u8>>,
    /// When it was made.
    pub created_at: u64,
    /// No token it signed lives longer.
    pub signed_until: u64,
}

/// All there is of the authority.
#[derive(Debug, Clone)]
pub struct StoredTrust {
    /// Whose authority it is.
    pub trust_domain: String,
    /// Version of the bundle.
    pub bundle_version: u64,
    /// Rises with each change.
    pub generation: u64,
    /// When the newest certificate of the service itself begins.
    pub newest_own: u64,
    /// Certificates that begin before are to be renewed now.
    pub renew_before: u64,
    /// Oldest first.
    pub roots: Vec<StoredRoot>,
    /// Oldest first.
    pub issuers: Vec<StoredIssuer>,
    /// In no order.
    pub revocations: Vec<Revocation>,
    /// Oldest first.
    pub jwt_keys: Vec<StoredJwtKey>,
}

impl StoredTrust {
    /// The key that signs JWT-SVIDs.
    pub fn active_jwt_key(&self) -> Option<&StoredJwtKey> {
        self.jwt_keys.iter().find(|k| k.state == State::Active)
    }

    /// The root that signs.
    pub fn active_root(&self) -> Option<&StoredRoot> {
        self.roots.iter().find(|r| r.state == State::Active)
    }

    /// The issuer that signs.
    pub fn active_issuer(&self) -> Option<&StoredIssuer> {
        self.issuers.iter().find(|i| i.state == State::Active)
    }
}

/// A root to be added.
#[derive(Debug, Clone)]
pub struct NewRoot {
    /// Its first state.
    pub state: State,
    /// DER.
    pub cert: CertificateDer<'static>,
    /// Sealed PKCS#8.
    pub sealed_key: Option<Vec<u8>>,
    /// Kept at least so long.
    pub wanted_until: u64,
}

/// An issuer to be added.
#[derive(Debug, Clone)]
pub struct NewIssuer {
    /// Its first state.
    pub state: State,
    /// The root it is under; `None` for the one that was added just before.
    pub root_id: Option<i64>,
    /// DER.
    pub cert: CertificateDer<'static>,
    /// The same under an older root.
    pub cross: Option<Cross>,
    /// Sealed PKCS#8.
    pub sealed_key: Vec<u8>,
}

/// A key for JWT-SVIDs to be added.
#[derive(Debug, Clone)]
pub struct NewJwtKey {
    /// Its first state.
    pub state: State,
    /// JSON.
    pub jwk: Vec<u8>,
    /// Sealed PKCS#8.
    pub sealed_key: Vec<u8>,
}

/// One step of a change; all of a change happen or none.
#[derive(Debug, Clone)]
pub enum Op {
    /// A new root.
    AddRoot(NewRoot),
    /// A new issuer.
    AddIssuer(NewIssuer),
    /// A new key for JWT-SVIDs.
    AddJwtKey(NewJwtKey),
    /// A root, issuer or key goes on in its life.
    SetState(i64, State),
    /// The private key is forgotten.
    EraseKey(i64),
    /// A root or issuer is forgotten.
    Drop(i64),
    /// The bundle is another one now.
    NextBundle,
    /// Everything that begins before this is to be renewed.
    RenewBefore(u64),
    /// Something is revoked.
    Revoke(Revocation),
    /// A revocation is no longer needed.
    Forget(Target),
}
