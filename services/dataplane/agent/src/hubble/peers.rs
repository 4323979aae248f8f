//! `peer.Peer`: the nodes of the mesh, as this one sees them.

use super::Place;
use crate::{agent::Shared, mesh::Mesh};
use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};
use weft_drain::Watcher;
use weft_proto::hubble::peer::{
    ChangeNotification, ChangeNotificationType as Change, NotifyRequest, Tls, peer_server::Peer,
};

/// What every node's certificate names for those who know nothing of SPIFFE.
const SERVER_NAME: &str = "weft-agent";
/// Callers at once.
const MAX_STREAMS: usize = 64;
/// Changes that come together are told together.
const SETTLE: Duration = Duration::from_millis(200);

/// Clones share.
#[derive(Debug, Clone)]
pub struct Peers {
    node: Arc<str>,
    mesh: Mesh,
    place: Place,
    drain: Watcher,
    streams: Arc<Semaphore>,
}

/// Addresses of observers by node.
type Addresses = BTreeMap<String, String>;

impl Peers {
    pub fn new(shared: &Shared, place: Place) -> Self {
        Self {
            node: shared.node.as_str().into(),
            mesh: shared.view.mesh.clone(),
            place,
            drain: shared.drain.clone(),
            streams: Arc::new(Semaphore::new(MAX_STREAMS)),
        }
    }

    /// All nodes, this one too, with the address of each one's observer.
    pub fn all(&self) -> Addresses {
        let mut all: Addresses = self
            .mesh
            .nodes()
            .into_iter()
            .filter_map(|node| Some((node.name, self.observer(node.addresses.first()?.parse().ok()?))))
            .collect();
        // What it says of itself is known before it has come back from the policy service.
        if let Some(address) = self.place.addresses.first() {
            all.insert(self.node.to_string(), self.observer(*address));
        }
        all
    }

    /// What the certificates are checked for; none without TLS.
    pub fn server_name(&self) -> Option<String> {
        self.place.tls.then(|| SERVER_NAME.to_owned())
    }

    fn observer(&self, address: IpAddr) -> String {
        SocketAddr::new(address, self.place.port).to_string()
    }

    fn notification(&self, name: &str, address: &str, change: Change) -> ChangeNotification {
        ChangeNotification {
            name: name.into(),
            address: address.into(),
            r#type: change.into(),
            tls: self.server_name().map(|server_name| Tls { server_name }),
        }
    }

    fn changes(&self, before: &Addresses, now: &Addresses) -> Vec<ChangeNotification> {
        let gone = before.iter().filter(|(name, _)| !now.contains_key(*name));
        let gone = gone.map(|(name, address)| self.notification(name, address, Change::PeerDeleted));
        let here = now.iter().filter_map(|(name, address)| {
            let change = match before.get(name) {
                None => Change::PeerAdded,
                Some(old) if old != address => Change::PeerUpdated,
                Some(_) => return None,
            };
            Some(self.notification(name, address, change))
        });
        gone.chain(here).collect()
    }
}

#[tonic::async_trait]
impl Peer for Peers {
    type NotifyStream = ReceiverStream<Result<ChangeNotification, Status>>;

    async fn notify(&self, _: Request<NotifyRequest>) -> Result<Response<Self::NotifyStream>, Status> {
        let Ok(place) = self.streams.clone().try_acquire_owned() else {
            return Err(Status::resource_exhausted(format!(
                "{MAX_STREAMS} callers follow the nodes already"
            )));
        };
        let (send, stream) = mpsc::channel(16);
        let peers = self.clone();
        tokio::spawn(async move {
            let _place = place;
            let mut drain = peers.drain.clone();
            let telling = async {
                let mut changed = peers.mesh.subscribe();
                let mut told = Addresses::new();
                loop {
                    changed.mark_unchanged();
                    let now = peers.all();
                    for change in peers.changes(&told, &now) {
                        if send.send(Ok(change)).await.is_err() {
                            return;
                        }
                    }
                    told = now;
                    if changed.changed().await.is_err() {
                        return;
                    }
                    tokio::time::sleep(SETTLE).await;
                }
            };
            tokio::select! {
                () = telling => {}
                () = send.closed() => {}
                () = drain.draining() => {}
            }
        });
        Ok(Response::new(stream.into()))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use weft_proto::weft::policy::v1 as pb;

    fn peers() -> (Peers, weft_drain::Trigger) {
        let (trigger, drain) = weft_drain::channel();
        let place = Place {
            started: std::time::SystemTime::now(),
            addresses: vec!["10.0.0.1".parse().unwrap()],
            port: 4244,
            tls: true,
        };
        let peers = Peers {
            node: "n1".into(),
            mesh: Mesh::new("n1", 15008),
            place,
            drain,
            streams: Arc::new(Semaphore::new(1)),
        };
        (peers, trigger)
    }

    fn update(peers: &Peers, nodes: &[(&str, &str)], removes: &[&str]) {
        let key = |name: &str| pb::ResourceKey {
            kind: "node".into(),
            name: name.into(),
        };
        let node = |(name, address): &(&str, &str)| pb::Resource {
            key: Some(key(name)),
            body: Some(pb::resource::Body::Node(pb::Node {
                name: (*name).into(),
                addresses: vec![(*address).into()],
                ..Default::default()
            })),
        };
        let problems = peers.mesh.apply(pb::SubscribeResponse {
            version: 1,
            epoch: "e".into(),
            snapshot: false,
            upserts: nodes.iter().map(node).collect(),
            removes: removes.iter().map(|r| key(r)).collect(),
        });
        assert!(problems.is_empty(), "{problems:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn all_nodes_then_each_change() {
        use futures::StreamExt;
        let (peers, _trigger) = peers();
        update(&peers, &[("n2", "fd00::2")], &[]);
        let mut stream = peers
            .notify(Request::new(NotifyRequest {}))
            .await
            .unwrap()
            .into_inner();
        // There was one place.
        let refused = peers.notify(Request::new(NotifyRequest {})).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::ResourceExhausted);
        let mut next = async || {
            let told = stream.next().await.unwrap().unwrap();
            assert_eq!(told.tls.as_ref().unwrap().server_name, "weft-agent");
            (told.r#type(), told.name, told.address)
        };
        let told = |change, name: &str, address: &str| (change, name.to_owned(), address.to_owned());
        assert_eq!(next().await, told(Change::PeerAdded, "n1", "10.0.0.1:4244"));
        assert_eq!(next().await, told(Change::PeerAdded, "n2", "[fd00::2]:4244"));
        update(&peers, &[("n2", "10.0.0.2"), ("n3", "10.0.0.3")], &[]);
        assert_eq!(next().await, told(Change::PeerUpdated, "n2", "10.0.0.2:4244"));
        assert_eq!(next().await, told(Change::PeerAdded, "n3", "10.0.0.3:4244"));
        update(&peers, &[], &["n2"]);
        assert_eq!(next().await, told(Change::PeerDeleted, "n2", "10.0.0.2:4244"));
    }
}
