//! Identity, policy and placement over mTLS, in this process.

use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};
use weft_drain::Trigger;
use weft_identity::{CaConfig, HostPattern, Kind};
use weft_model::TrustDomain;
use weft_telemetry::Metrics;

/// Tokens are used at once. A root that they pin stays in the bundle as long as they are good.
const TOKEN_TTL: Duration = Duration::from_secs(60);
/// The folder of the identity service's local socket, in that of the control plane.
pub const IDENTITY_SOCKETS: &str = "identity-run";

/// The control services of a mesh.
pub struct Control {
    identity: (weft_identity::Handle, Trigger),
    policy: (weft_policy::Handle, Trigger),
    placement: (weft_placement::Handle, Trigger),
}

impl Control {
    /// With state and manifests (`resources`) in `folder`, on ports of `address`.
    pub async fn start(folder: &Path, address: IpAddr, ca: CaConfig) -> Self {
        let loopback = SocketAddr::new(address, 0);
        let (identity_trigger, drain) = weft_drain::channel();
        let config = weft_identity::Config {
            listen: loopback,
            state_dir: folder.join("identity"),
            run_dir: Some(folder.join(IDENTITY_SOCKETS)),
            ca,
            ..weft_identity::Config::default()
        };
        let mut identity = weft_identity::start(config, drain.clone()).await.unwrap();

        let (policy_trigger, policy_drain) = weft_drain::channel();
        let member = member(&identity, folder, "policy", &policy_drain).await;
        let config = weft_policy::Config {
            listen: loopback,
            insecure_loopback: address.is_loopback(),
            resources: Some(folder.join("resources")),
            state_dir: folder.join("policy"),
            run_dir: None,
            identity_addr: identity.address().to_string(),
            shared_move_seconds: 1,
            ..weft_policy::Config::default()
        };
        let metrics = Metrics::new("policy");
        let policy = weft_policy::start(config, member.svid, member.trust, policy_drain.clone(), &metrics);
        let mut policy = policy.await.unwrap();
        policy.follow_identity(identity.address().to_string(), policy_drain);
        identity.follow_policy(policy.address().to_string(), drain);

        let (placement_trigger, drain) = weft_drain::channel();
        let member = self::member(&identity, folder, "placement", &drain).await;
        let listener = weft_placement::bind(loopback).await.unwrap();
        let database = folder.join("placement").join("placement.db");
        let options = weft_placement::Options::new(listener, database, member.svid, member.trust);
        let placement = weft_placement::start(options, drain).await.unwrap();
        Self {
            identity: (identity, identity_trigger),
            policy: (policy, policy_trigger),
            placement: (placement, placement_trigger),
        }
    }

    /// Of identity, policy and placement.
    pub fn addresses(&self) -> [String; 3] {
        [
            self.identity.0.address().to_string(),
            self.policy.0.address().to_string(),
            self.placement.0.address().to_string(),
        ]
    }

    /// For a node that may host everything.
    pub async fn node_token(&self, name: &str) -> String {
        let may_host = vec![HostPattern {
            namespace: "*".into(),
            app_id: "*".into(),
        }];
        let token = self
            .identity
            .0
            .create_join_token(Kind::Node, name, may_host, TOKEN_TTL);
        token.await.unwrap().reveal().to_string()
    }

    /// Ends all three.
    pub async fn stop(self) {
        let limit = Duration::from_secs(5);
        self.policy.1.drain(limit).await;
        self.policy.0.wait().await.unwrap();
        self.placement.1.drain(limit).await;
        self.placement.0.ended().await.unwrap();
        self.identity.1.drain(limit).await;
        self.identity.0.wait().await.unwrap();
    }
}

async fn member(
    identity: &weft_identity::Handle,
    folder: &Path,
    name: &str,
    drain: &weft_drain::Watcher,
) -> weft_enroll::Member {
    let state: PathBuf = folder.join(name);
    std::fs::create_dir_all(&state).unwrap();
    let token = identity
        .create_join_token(Kind::Service, name, Vec::new(), TOKEN_TTL)
        .await
        .unwrap();
    let id = TrustDomain::default().service(name).unwrap();
    let address = identity.address().to_string();
    weft_enroll::Enrollment::new(id, state.join("member"), address)
        .token(weft_enroll::TokenSource::Given(token))
        .enroll(drain.clone())
        .await
        .unwrap()
}
