//! What each node may host, as the identity service's join tokens say: a registration outside of it is
//! refused, so that a node that was taken over can not put itself into other namespaces.
//!
//! The last good copy is kept in a file, so that a restart while the identity service is away refuses nobody
//! who was permitted, and permits nobody who was not.

use prost::Message;
use std::{
    collections::HashMap,
    fs::OpenOptions,
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::sync::watch;
use weft_drain::Watcher;
use weft_model::match_pattern;
use weft_proto::weft::identity::v1::{self as pb, members_client::MembersClient};
use weft_rpc::FollowError;
use weft_tls::{Expect, SvidCell, Trust};

/// A node that just joined may register before this copy knows it.
const PATIENCE: Duration = Duration::from_secs(1);
/// Far above any cluster.
const MAX_NODES: usize = 100_000;
/// The first message holds all nodes, each with up to 64 patterns.
const MAX_MESSAGE: usize = 256 * 1024 * 1024;

type Nodes = HashMap<String, Vec<pb::HostPattern>>;

/// The copy. Clones share.
#[derive(Debug, Clone)]
pub struct Hosts {
    // `None` until the first snapshot.
    state: Arc<watch::Sender<Option<Nodes>>>,
}

/// Why a node may not host a workload.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum HostError {
    #[error(
        "the identity service has not been reached yet, so it is not known what nodes may host; see \
         identity_addr and the policy service's log"
    )]
    NotKnown,
    #[error(
        "node {node:?} may not host {namespace}/{name}: none of its {patterns} host patterns matches; join it \
         with a token that permits it (weft identity join-token create --kind node --name {node} --may-host \
         {namespace}/{name})"
    )]
    NotPermitted {
        node: String,
        namespace: String,
        name: String,
        patterns: usize,
    },
}

/// Why a message of the identity service is not taken over.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HostsError {
    /// A change before the first snapshot.
    #[error("the first message about nodes is no snapshot")]
    NoSnapshot,
    /// More than this copy takes.
    #[error("there are more than {MAX_NODES} nodes")]
    TooMany,
}

impl Default for Hosts {
    fn default() -> Self {
        Self {
            state: Arc::new(watch::Sender::new(None)),
        }
    }
}

fn permits(nodes: &Nodes, node: &str, namespace: &str, name: &str) -> bool {
    let patterns = nodes.get(node).into_iter().flatten();
    patterns
        .into_iter()
        .any(|p| match_pattern(&p.namespace, namespace) && match_pattern(&p.app_id, name))
}

impl Hosts {
    /// Takes over a message of the identity service's watch.
    pub fn apply(&self, change: pb::WatchNodesResponse) -> Result<(), HostsError> {
        let mut verdict = Ok(());
        self.state.send_if_modified(|state| {
            let held = match state {
                _ if change.snapshot => 0,
                Some(nodes) => nodes.len(),
                None => {
                    verdict = Err(HostsError::NoSnapshot);
                    return false;
                }
            };
            if held.saturating_add(change.upserts.len()) > MAX_NODES {
                verdict = Err(HostsError::TooMany);
                return false;
            }
            if change.snapshot {
                *state = None;
            }
            let nodes = state.get_or_insert_default();
            nodes.extend(change.upserts.into_iter().map(|n| (n.name, n.may_host)));
            for name in &change.removed_names {
                nodes.remove(name);
            }
            true
        });
        verdict
    }

    /// Whether `node` may host this workload. A no is only said after a moment, in which a join that
    /// permits it would have become known.
    pub(crate) async fn check(&self, node: &str, namespace: &str, name: &str) -> Result<(), HostError> {
        let mut watch = self.state.subscribe();
        let permitted = watch.wait_for(|s| s.as_ref().is_some_and(|n| permits(n, node, namespace, name)));
        if matches!(tokio::time::timeout(PATIENCE, permitted).await, Ok(Ok(_))) {
            return Ok(());
        }
        match self.state.borrow().as_ref() {
            None => Err(HostError::NotKnown),
            Some(nodes) => Err(HostError::NotPermitted {
                node: node.to_owned(),
                namespace: namespace.to_owned(),
                name: name.to_owned(),
                patterns: nodes.get(node).map_or(0, Vec::len),
            }),
        }
    }

    /// Whether `node` may host this workload, as is known now; `None` while nothing is.
    pub(crate) fn may_host(&self, node: &str, namespace: &str, name: &str) -> Option<bool> {
        let state = self.state.borrow();
        state.as_ref().map(|nodes| permits(nodes, node, namespace, name))
    }

    /// Notified of each change.
    pub(crate) fn changes(&self) -> watch::Receiver<Option<Nodes>> {
        self.state.subscribe()
    }

    /// All of it, as the identity service would say it.
    fn copy(&self) -> Option<pb::WatchNodesResponse> {
        let state = self.state.borrow();
        let nodes = state.as_ref()?.iter();
        let upserts = nodes.map(|(name, may_host)| pb::MemberNode {
            name: name.clone(),
            may_host: may_host.clone(),
        });
        Some(pb::WatchNodesResponse {
            snapshot: true,
            upserts: upserts.collect(),
            removed_names: Vec::new(),
        })
    }
}

/// Follows the identity service at `address` until the drain. While it can not be reached, the last good
/// copy stays.
pub(crate) async fn follow(address: String, svid: SvidCell, trust: Trust, hosts: Hosts, drain: Watcher) {
    let open = || async {
        let identity = trust.trust_domain().service("identity");
        let identity = identity.map_err(|e| FollowError::Told(e.to_string()))?;
        let channel = weft_rpc::channel(&address, Some(&svid), &trust, Expect::Id(identity))?;
        let mut client = MembersClient::new(channel).max_decoding_message_size(MAX_MESSAGE);
        Ok(client.watch_nodes(pb::WatchNodesRequest {}).await?.into_inner())
    };
    let what = ("what nodes may host", &*address);
    weft_rpc::follow(what, drain, open, |change| hosts.apply(change)).await;
}

/// The file of the last good copy.
#[derive(Debug, Clone)]
pub(crate) struct Kept(PathBuf);

impl Kept {
    /// In the service's folder, which must exist when something is kept.
    pub(crate) fn at(folder: &Path) -> Self {
        Self(folder.join("hosts.state"))
    }

    /// What was kept; nothing where there is no file, or none that can be read.
    pub(crate) fn read(&self) -> Option<pb::WatchNodesResponse> {
        let damaged = |reason: String| {
            let path = self.0.display();
            tracing::warn!(%path, reason, "what nodes may host is not known until the identity service says it");
        };
        let bytes = match std::fs::read(&self.0) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return None,
            Err(e) => {
                damaged(e.to_string());
                return None;
            }
        };
        let copy = pb::WatchNodesResponse::decode(bytes.as_slice());
        copy.map_err(|e| damaged(e.to_string())).ok()
    }

    /// The old copy or the new one, whenever the machine stops.
    fn write(&self, copy: &pb::WatchNodesResponse) -> io::Result<()> {
        let beside = self.0.with_extension("new");
        if let Some(folder) = self.0.parent() {
            std::fs::create_dir_all(folder)?;
        }
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&beside)?;
        file.write_all(&copy.encode_to_vec())?;
        file.sync_all()?;
        std::fs::rename(&beside, &self.0)
    }

    /// Keeps what is known until the drain.
    pub(crate) async fn keep(self, hosts: Hosts, drain: Watcher) {
        let mut changes = hosts.changes();
        let keeping = async {
            while changes.changed().await.is_ok() {
                let Some(copy) = hosts.copy() else { continue };
                let kept = self.clone();
                let written = tokio::task::spawn_blocking(move || kept.write(&copy)).await;
                if let Ok(Err(error)) = written {
                    let path = self.0.display();
                    tracing::error!(%error, %path, "what nodes may host is not kept for a restart");
                }
            }
        };
        drain.until_draining(keeping).await;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn node(name: &str, patterns: &[(&str, &str)]) -> pb::MemberNode {
        let may_host = patterns.iter().map(|(namespace, app_id)| pb::HostPattern {
            namespace: (*namespace).into(),
            app_id: (*app_id).into(),
        });
        pb::MemberNode {
            name: name.into(),
            may_host: may_host.collect(),
        }
    }

    fn told(snapshot: bool, upserts: Vec<pb::MemberNode>, removed: &[&str]) -> pb::WatchNodesResponse {
        pb::WatchNodesResponse {
            snapshot,
            upserts,
            removed_names: removed.iter().map(|n| (*n).into()).collect(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_hosts_what_its_patterns_name() {
        let hosts = Hosts::default();
        assert_eq!(hosts.check("n1", "shop", "cart").await, Err(HostError::NotKnown));
        let early = told(false, vec![node("n1", &[("*", "*")])], &[]);
        assert_eq!(hosts.apply(early), Err(HostsError::NoSnapshot));
        assert_eq!(hosts.check("n1", "shop", "cart").await, Err(HostError::NotKnown));
        let first = vec![node("n1", &[("shop", "cart*")]), node("n2", &[])];
        hosts.apply(told(true, first, &[])).unwrap();
        assert_eq!(hosts.check("n1", "shop", "cart-2").await, Ok(()));
        for (node, namespace, name) in [
            ("n1", "shop", "pay"),
            ("n1", "bank", "cart"),
            ("n2", "shop", "cart"),
            ("n3", "shop", "cart"),
        ] {
            let refused = hosts.check(node, namespace, name).await;
            assert!(
                matches!(refused, Err(HostError::NotPermitted { .. })),
                "{node} {namespace}/{name}: {refused:?}"
            );
        }
        hosts
            .apply(told(false, vec![node("n3", &[("*", "*")])], &["n1"]))
            .unwrap();
        assert_eq!(hosts.check("n3", "bank", "cart").await, Ok(()));
        assert!(hosts.check("n1", "shop", "cart").await.is_err());
        hosts.apply(told(true, vec![], &[])).unwrap();
        assert!(hosts.check("n3", "bank", "cart").await.is_err());
    }

    #[tokio::test]
    async fn the_last_good_copy_outlives_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let kept = Kept::at(&folder.path().join("state"));
        assert!(kept.read().is_none());
        let hosts = Hosts::default();
        let (_trigger, drain) = weft_drain::channel();
        let (watching, keeping) = (hosts.clone(), kept.clone());
        tokio::spawn(async move { keeping.keep(watching, drain).await });
        let one = vec![node("n1", &[("shop", "cart*")])];
        let again = Hosts::default();
        // Told again and again: the first time it may not be listened to yet.
        while kept.read().is_none() {
            hosts.apply(told(true, one.clone(), &[])).unwrap();
            tokio::task::yield_now().await;
        }
        again.apply(kept.read().unwrap()).unwrap();
        assert_eq!(again.check("n1", "shop", "cart-2").await, Ok(()));
        let refused = again.check("n1", "bank", "cart-2").await;
        assert!(
            matches!(refused, Err(HostError::NotPermitted { .. })),
            "{refused:?}"
        );
        // What can not be read says nothing, and nobody may host anything by it.
        std::fs::write(folder.path().join("state").join("hosts.state"), [0xff; 9]).unwrap();
        assert!(kept.read().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_join_that_is_told_late_still_counts() {
        let hosts = Hosts::default();
        hosts.apply(told(true, vec![], &[])).unwrap();
        let later = hosts.clone();
        tokio::spawn(async move {
            tokio::time::sleep(PATIENCE / 2).await;
            later
                .apply(told(false, vec![node("n1", &[("*", "*")])], &[]))
                .unwrap();
        });
        assert_eq!(hosts.check("n1", "shop", "cart").await, Ok(()));
    }
}
