//! Which identity answers on a listener: the pod's own, or one of several that SNI chooses.

use arc_swap::ArcSwap;
use rustls::{
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use sha2::{Digest, Sha256};
use std::{collections::HashMap, sync::Arc};
use weft_model::SpiffeId;
use weft_tls::SvidCell;

/// The server name that asks for an identity: a digest, because app-ids have characters, lengths
/// and letter cases that DNS names do not. Only chooses; the certificate proves.
pub fn sni_of(id: &SpiffeId) -> String {
    let digest = Sha256::digest(id.as_str().as_bytes());
    format!("{}.id.weft", hex::encode(&digest[..16]))
}

/// Who answers on a listener.
#[derive(Debug, Clone)]
pub enum Local {
    /// The one workload whose namespace it is in.
    One(SvidCell),
    /// Several workloads of the node: SNI says which.
    Shared(SharedIdentities),
}

impl Local {
    pub(crate) fn cell(&self, sni: Option<&str>) -> Option<SvidCell> {
        match self {
            Self::One(cell) => Some(cell.clone()),
            Self::Shared(all) => all.get(sni?),
        }
    }
}

impl ResolvesServerCert for Local {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.cell(hello.server_name())?
            .get()
            .map(|svid| svid.certified_key())
    }
}

/// The identities behind one shared listener. Clones share.
#[derive(Debug, Clone, Default)]
pub struct SharedIdentities(Arc<ArcSwap<HashMap<String, SvidCell>>>);

impl SharedIdentities {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Answers for `id` with the certificates of `cell`.
    pub fn insert(&self, id: &SpiffeId, cell: SvidCell) {
        let name = sni_of(id);
        self.0.rcu(|all| {
            let mut all = HashMap::clone(all);
            all.insert(name.clone(), cell.clone());
            all
        });
    }

    /// Answers for `id` no more.
    pub fn remove(&self, id: &SpiffeId) {
        let name = sni_of(id);
        self.0.rcu(|all| {
            let mut all = HashMap::clone(all);
            all.remove(&name);
            all
        });
    }

    fn get(&self, sni: &str) -> Option<SvidCell> {
        self.0.load().get(sni).cloned()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn names_are_legal_and_differ() {
        let long = format!("spiffe://cluster.local/ns/{}/{}", "n".repeat(63), "A_".repeat(32));
        let (a, b): (SpiffeId, SpiffeId) = (
            long.parse().unwrap(),
            "spiffe://cluster.local/ns/default/cart".parse().unwrap(),
        );
        assert_ne!(sni_of(&a), sni_of(&b));
        for id in [a, b] {
            assert!(rustls_pki_types::ServerName::try_from(sni_of(&id)).is_ok());
        }
    }

    #[test]
    fn identities_come_and_go() {
        let id: SpiffeId = "spiffe://cluster.local/ns/default/cart".parse().unwrap();
        let shared = SharedIdentities::new();
        shared.insert(&id, SvidCell::new());
        let local = Local::Shared(shared.clone());
        assert!(local.cell(Some(&sni_of(&id))).is_some());
        assert!(local.cell(Some("other.id.weft")).is_none());
        assert!(local.cell(None).is_none());
        shared.remove(&id);
        assert!(local.cell(Some(&sni_of(&id))).is_none());
    }
}
