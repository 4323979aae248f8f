//! Workloads without `weft-node`: each gets its own ports on 127.0.0.1 and a token that every call
//! must show. The port says which app is meant, the token proves it.
//!
//! Owns the file of workloads that were added to stay, so that they keep ports and token when the
//! agent starts anew.

use crate::{
    host::{PlaceError, Placement},
    persist::{self, PersistError},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use parking_lot::Mutex;
use prost::Message;
use rand::TryRngCore;
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, HashMap},
    io,
    net::{IpAddr, Ipv4Addr, TcpListener},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};
use weft_flows::Proof;
use weft_proto::weft::{
    dataplane::v1::{WorkloadSpec, workload_spec::Place},
    policy::v1::WorkloadKind,
};

/// Bytes of a token before encoding.
const TOKEN_BYTES: usize = 24;

/// Places workloads on ports of this process. Clones share.
#[derive(Debug, Clone)]
pub struct Rootless(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    node: String,
    address: IpAddr,
    file: PathBuf,
    started: AtomicU64,
    kept: Mutex<BTreeMap<String, Kept>>,
}

/// One workload in the file.
#[derive(Clone, Serialize, Deserialize)]
struct Kept {
    /// `WorkloadSpec`, encoded.
    spec: Vec<u8>,
    http: u16,
    grpc: u16,
    token: String,
    derived: Option<(u32, String)>,
}

impl std::fmt::Debug for Kept {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kept")
            .field("http", &self.http)
            .finish_non_exhaustive()
    }
}

impl Rootless {
    /// By which others reach this node.
    pub fn address(&self) -> IpAddr {
        self.0.address
    }

    /// For `node`, reached by others at `address`; what stays is kept in `file`.
    pub fn new(node: &str, address: IpAddr, file: PathBuf) -> Result<Self, PersistError> {
        let kept = match persist::read(&file)? {
            Some(content) => serde_json::from_slice(&content).map_err(|_| PersistError::Damaged {
                path: file.clone(),
                what: "not decodable",
            })?,
            None => BTreeMap::new(),
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Ok(Self(Arc::new(Shared {
            node: node.to_owned(),
            address,
            file,
            started: AtomicU64::new(u64::try_from(now.as_millis()).unwrap_or(0)),
            kept: Mutex::new(kept),
        })))
    }

    /// The workloads that were added to stay, on the ports they had. One whose port is taken now is
    /// given up: its app would call somebody else's.
    pub fn restore(&self) -> Vec<Placement> {
        let kept = self.0.kept.lock().clone();
        let mut restored = Vec::new();
        for (id, kept) in kept {
            let spec = WorkloadSpec::decode(kept.spec.as_slice());
            let ports = bind(kept.http).and_then(|http| Ok((http, bind(kept.grpc)?)));
            match (spec, ports) {
                (Ok(spec), Ok(ports)) => {
                    let mut placement = self.placement(id, spec, ports, kept.token);
                    placement.derived = kept.derived;
                    restored.push(placement);
                }
                (_, Err(error)) => {
                    tracing::warn!(workload = id, port = kept.http, %error, "its port is taken; add it again");
                    self.remove(&id);
                }
                (Err(error), _) => {
                    tracing::warn!(workload = id, %error, "kept workload can not be read");
                    self.remove(&id);
                }
            }
        }
        restored
    }

    /// Puts a workload on two free ports.
    pub fn place(&self, spec: WorkloadSpec, attached: bool) -> Result<Placement, PlaceError> {
        if matches!(spec.place, Some(Place::NetnsPath(_) | Place::NetnsPid(_))) {
            return Err(PlaceError::Unsupported(
                "a network namespace can only be entered by weft-node, which needs root; without it only processes of this user can be added",
            ));
        }
        let http = bind(0).map_err(PlaceError::Ports)?;
        let grpc = bind(0).map_err(PlaceError::Ports)?;
        let mut secret = [0; TOKEN_BYTES];
        rand::rngs::OsRng
            .try_fill_bytes(&mut secret)
            .map_err(|e| PlaceError::Ports(io::Error::other(e)))?;
        let token = URL_SAFE_NO_PAD.encode(secret);
        let start = self.0.started.fetch_add(1, Ordering::Relaxed);
        let id = format!("{}/{}/{}/{start}", self.0.node, spec.namespace, spec.name);
        if !attached {
            let port = |l: &TcpListener| l.local_addr().map(|a| a.port()).map_err(PlaceError::Ports);
            let kept = Kept {
                spec: spec.encode_to_vec(),
                http: port(&http)?,
                grpc: port(&grpc)?,
                token: token.clone(),
                derived: None,
            };
            self.0.kept.lock().insert(id.clone(), kept);
            self.write();
        }
        Ok(self.placement(id, spec, (http, grpc), token))
    }

    /// Forgets a workload; its ports close with the placement.
    pub fn remove(&self, id: &str) {
        if self.0.kept.lock().remove(id).is_some() {
            self.write();
        }
    }

    /// Keeps what was derived.
    pub fn derived(&self, id: &str, identity: u32, spiffe_id: &str) {
        let derived = Some((identity, spiffe_id.to_owned()));
        let changed = match self.0.kept.lock().get_mut(id) {
            Some(kept) if kept.derived != derived => {
                kept.derived = derived;
                true
            }
            _ => false,
        };
        if changed {
            self.write();
        }
    }

    fn placement(
        &self,
        id: String,
        spec: WorkloadSpec,
        (http, grpc): (TcpListener, TcpListener),
        token: String,
    ) -> Placement {
        let port = |l: &TcpListener| {
            l.local_addr()
                .map_or_else(|_| String::new(), |a| a.port().to_string())
        };
        let environment = HashMap::from([
            ("DAPR_HTTP_PORT".to_owned(), port(&http)),
            ("DAPR_GRPC_PORT".to_owned(), port(&grpc)),
            ("DAPR_API_TOKEN".to_owned(), token.clone()),
        ]);
        Placement {
            id,
            spec,
            kind: WorkloadKind::Process,
            proof: Proof::PortToken,
            http: vec![http],
            grpc: vec![grpc],
            tunnel: Vec::new(),
            capture: Vec::new(),
            dns: Vec::new(),
            cgroup: None,
            cgroup_id: 0,
            endpoint: 0,
            addresses: vec![self.0.address],
            derived: None,
            token: Some(token),
            environment,
        }
    }

    /// A small file, rarely written: no task of its own.
    fn write(&self) {
        let kept = self.0.kept.lock().clone();
        let written = serde_json::to_vec(&kept)
            .map_err(|e| e.to_string())
            .and_then(|content| persist::write(&self.0.file, &content).map_err(|e| e.to_string()));
        if let Err(error) = written {
            tracing::error!(error, "workloads are not kept for a restart");
        }
    }
}

fn bind(port: u16) -> io::Result<TcpListener> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn spec(name: &str) -> WorkloadSpec {
        WorkloadSpec {
            namespace: "default".into(),
            name: name.into(),
            ..Default::default()
        }
    }

    #[test]
    fn what_was_added_comes_back_on_its_ports_and_what_was_attached_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("workloads.state");
        let new = || Rootless::new("n1", Ipv4Addr::LOCALHOST.into(), file.clone()).unwrap();
        let first = new();
        let stays = first.place(spec("stays"), false).unwrap();
        let _attached = first.place(spec("attached"), true).unwrap();
        first.derived(&stays.id, 300, "spiffe://cluster.local/ns/default/stays");
        let (id, environment) = (stays.id.clone(), stays.environment.clone());
        drop((stays, first));

        let restored = new().restore();
        assert_eq!(restored.len(), 1);
        assert_eq!(restored[0].id, id);
        assert_eq!(restored[0].environment, environment);
        assert_eq!(restored[0].derived.as_ref().unwrap().0, 300);
        // While somebody else has its port, it is given up.
        assert!(new().restore().is_empty());
        drop(restored);
        assert!(new().restore().is_empty());
    }

    #[test]
    fn a_namespace_needs_weft_node() {
        let folder = tempfile::tempdir().unwrap();
        let rootless = Rootless::new("n1", Ipv4Addr::LOCALHOST.into(), folder.path().join("w")).unwrap();
        let pod = WorkloadSpec {
            place: Some(Place::NetnsPid(1)),
            ..spec("pod")
        };
        assert!(matches!(
            rootless.place(pod, false),
            Err(PlaceError::Unsupported(_))
        ));
        // Its twin without a namespace is placed.
        assert!(rootless.place(spec("process"), false).is_ok());
    }
}
