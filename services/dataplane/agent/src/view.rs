//! What the runtime asks on every request, answered from memory: who is there, who may call whom;
//! and the sockets it needs, made where the workload is.

use crate::{
    channels::Channels,
    host::Host,
    locals::Locals,
    mesh::{Compiled, Mesh},
};
use futures::future::BoxFuture;
use std::{
    io,
    net::SocketAddr,
    sync::{Arc, OnceLock},
};
use tokio::net::TcpStream;
use weft_flows::{Direction, DropReason, Party};
use weft_model::NumericIdentity;
use weft_policy_engine::{OnConnection, PeerRef, RequestFacts, Verdict};
use weft_proto::weft::policy::v1::WorkloadKind;
use weft_runtime::{
    AppContext, AppDialer, Channel, Decision, Directory, Endpoint, Judge, Place, Question, RequestJudge,
    RequestLine, Target,
};
use weft_tls::PeerIdentity;

/// IANA number of TCP.
const TCP: u8 = 6;

/// The runtime's surroundings. Clones share.
#[derive(Debug, Clone)]
pub struct View {
    /// The mesh as seen from here.
    pub mesh: Mesh,
    /// The workloads of this node.
    pub locals: Locals,
    /// Makes sockets.
    pub host: Host,
    /// The ways to apps by the proxy; set at the start.
    pub channels: Arc<OnceLock<Channels>>,
}

impl Directory for View {
    fn resolve(&self, caller: &str, namespace: &str, app_id: &str) -> Option<Arc<Target>> {
        self.mesh.read(|endpoints| {
            let found = endpoints.target(namespace, app_id);
            if found.is_none() && !endpoints.knows(namespace) {
                let known = |name: &str| endpoints.knows(name);
                self.mesh.interest.add(namespace, caller, known);
            }
            found
        })
    }

    fn app_service(
        &self,
        caller: &Arc<AppContext>,
        namespace: &str,
        app_id: &str,
        other: bool,
    ) -> Option<Arc<dyn Channel>> {
        self.service_of(caller, namespace, app_id, other)
    }

    fn local(&self, workload: &str) -> Option<Arc<Endpoint>> {
        self.mesh.read(|e| e.local(workload))
    }

    fn tunnel_peer(&self, peer: &PeerIdentity, claimed: Option<&str>) -> Option<Arc<Party>> {
        // Only tunnel certificates name a node; one that was given to a workload opens nothing.
        let node = peer.node.as_deref()?;
        // Its gateways; the identity service gives this name to nobody else.
        if peer.id.trust_domain().ingress(node).is_ok_and(|id| id == peer.id) {
            return Some(crate::gateways::party(node, &peer.id, None));
        }
        self.mesh.read(|endpoints| {
            let mut holders = endpoints.holders(peer.id.as_str()).peekable();
            if holders.peek().is_none() {
                let stranger = unknown(peer, node);
                if !endpoints.knows(&stranger.namespace) {
                    let known = |name: &str| endpoints.knows(name);
                    self.mesh.interest.add(&stranger.namespace, node, known);
                }
                return Some(stranger);
            }
            let here: Vec<_> = holders.filter(|(_, party)| &*party.node == node).collect();
            // Known, and not there: a node goes on with the name of what has left it.
            let (_, first) = here.first()?;
            if let Some((_, claimed)) = here.iter().find(|(id, _)| Some(*id) == claimed) {
                return Some(Arc::clone(claimed));
            }
            // Which of them calls is not told; what they have in common is what counts.
            if here.iter().all(|(_, party)| party.identity == first.identity) {
                return Some(Arc::clone(first));
            }
            Some(unknown(peer, node))
        })
    }
}

/// In the cluster by its certificate; the registry's word of it has not come yet.
fn unknown(peer: &PeerIdentity, node: &str) -> Arc<Party> {
    let (namespace, app_id) = match peer.id.principal() {
        weft_model::Principal::Workload { namespace, name } => (namespace, name),
        _ => Default::default(),
    };
    Arc::new(Party {
        namespace: namespace.into(),
        workload: "".into(),
        app_id: app_id.into(),
        identity: NumericIdentity::CLUSTER_UNKNOWN,
        spiffe_id: peer.id.as_str().into(),
        address: None,
        node: node.into(),
    })
}

impl Judge for View {
    fn judge(&self, question: &Question<'_>) -> Decision {
        self.decide(question, None)
    }

    fn judge_request(&self, question: &Question<'_>, request: &RequestLine<'_>) -> Decision {
        self.decide(question, Some(request))
    }

    fn requests(&self, question: &Question<'_>) -> Option<Arc<dyn RequestJudge>> {
        let policy = self.mesh.policy_of(question.workload)?;
        let (direction, peer) = asked(question);
        let connection = policy.set().on_connection(direction, peer, TCP, question.port);
        Some(Arc::new(Ruled {
            connection,
            policy,
            direction,
            authenticated: question.authenticated,
            is_remote: self.is_called_by_remote(question),
            is_audited: self.mesh.is_audited(question.workload),
        }))
    }
}

/// The side of a question, and who is at its other end.
fn asked(question: &Question<'_>) -> (weft_policy_engine::Direction, PeerRef) {
    let (direction, other) = match question.direction {
        Direction::Egress => (weft_policy_engine::Direction::Egress, question.destination),
        Direction::Ingress => (weft_policy_engine::Direction::Ingress, question.source),
    };
    let peer = PeerRef {
        identity: other.identity,
        address: other.address,
    };
    (direction, peer)
}

fn facts<'a>(line: &RequestLine<'a>) -> RequestFacts<'a> {
    RequestFacts {
        method: line.method,
        path: line.path,
        host: line.host,
        headers: line.headers,
    }
}

/// What the rules of one policy say of the requests of one question.
struct Ruled {
    connection: OnConnection,
    policy: Arc<Compiled>,
    direction: weft_policy_engine::Direction,
    authenticated: bool,
    is_remote: bool,
    is_audited: bool,
}

impl RequestJudge for Ruled {
    fn judge(&self, request: &RequestLine<'_>) -> Decision {
        let verdict = self.policy.set().judge_on(&self.connection, &facts(request));
        let decision = decision(&self.policy, self.direction, self.authenticated, &verdict);
        excused(decision, || self.is_remote, || self.is_audited)
    }
}

/// What a verdict comes to, and by which rule.
fn decision(
    policy: &Compiled,
    direction: weft_policy_engine::Direction,
    authenticated: bool,
    verdict: &Verdict,
) -> Decision {
    let rule = policy.text(verdict.rule());
    match verdict {
        Verdict::Allowed { redirect: true, .. } => Decision::by_request(rule),
        Verdict::Allowed { auth: true, .. } if !authenticated => {
            Decision::refuse(DropReason::AuthRequired, rule)
        }
        Verdict::Allowed { .. } => Decision::allow(rule),
        Verdict::Denied { .. } => {
            let rule = rule.or_else(|| policy.selected_by(direction));
            Decision::refuse(DropReason::PolicyDenied, rule)
        }
    }
}

/// A refusal that does not count for whom the app itself calls, or that is only told under audit.
fn excused(decision: Decision, is_remote: impl Fn() -> bool, is_audited: impl Fn() -> bool) -> Decision {
    match decision.refused {
        Some(_) if is_remote() => Decision::allow(Some("annotation weft.dev/remote: the app itself".into())),
        Some(_) if is_audited() => decision.under_audit(),
        _ => decision,
    }
}

/// A question of a workload of this node to a resolver.
#[derive(Debug, Clone, Copy)]
pub struct Query<'a> {
    /// Who asks.
    pub workload: &'a str,
    /// The resolver.
    pub resolver: &'a Party,
    /// Where it is.
    pub at: SocketAddr,
    /// IANA number of the protocol.
    pub protocol: u8,
    /// What is asked for, in lower case and without the dot at the end.
    pub name: &'a str,
}

impl Query<'_> {
    fn peer(&self) -> PeerRef {
        PeerRef {
            identity: self.resolver.identity,
            address: Some(self.at.ip()),
        }
    }
}

impl View {
    /// Whether a workload may ask this.
    pub fn judge_query(&self, query: &Query<'_>) -> Decision {
        let Some(policy) = self.mesh.policy_of(query.workload) else {
            return unknown_policy();
        };
        let verdict = policy
            .set()
            .judge_query(query.peer(), query.protocol, query.at.port(), query.name);
        let rule = policy.text(verdict.rule());
        let decision = match verdict {
            // Nothing proves who answers.
            Verdict::Allowed { auth: true, .. } => Decision::refuse(DropReason::AuthRequired, rule),
            Verdict::Allowed { .. } => Decision::allow(rule),
            Verdict::Denied { .. } => {
                let egress = weft_policy_engine::Direction::Egress;
                Decision::refuse(
                    DropReason::PolicyDenied,
                    rule.or_else(|| policy.selected_by(egress)),
                )
            }
        };
        if decision.refused.is_some() && self.mesh.is_audited(query.workload) {
            return decision.under_audit();
        }
        decision
    }

    /// Whether what a workload asks there is judged name by name.
    pub fn judges_queries(&self, query: &Query<'_>) -> bool {
        let policy = self.mesh.policy_of(query.workload);
        policy.is_some_and(|p| {
            p.set()
                .judges_queries(query.peer(), query.protocol, query.at.port())
        })
    }
}

/// Not here yet, or not usable: closed.
fn unknown_policy() -> Decision {
    Decision::refuse(
        DropReason::PolicyDenied,
        Some("the workload's policy is not known yet".into()),
    )
}

impl View {
    fn is_called_by_remote(&self, question: &Question<'_>) -> bool {
        question.direction == Direction::Ingress
            && self.is_remote_of(question.workload, question.port, question.source)
    }

    fn decide(&self, question: &Question<'_>, request: Option<&RequestLine<'_>>) -> Decision {
        let Some(policy) = self.mesh.policy_of(question.workload) else {
            return unknown_policy();
        };
        let (direction, peer) = asked(question);
        let set = policy.set();
        let verdict = match request {
            None => set.judge(direction, peer, TCP, question.port),
            Some(line) => set.judge_request(direction, peer, TCP, question.port, &facts(line)),
        };
        let decision = decision(&policy, direction, question.authenticated, &verdict);
        excused(
            decision,
            || self.is_called_by_remote(question),
            || self.mesh.is_audited(question.workload),
        )
    }
}

impl View {
    /// With addresses of its own, or sharing the node's.
    pub(crate) fn kind(&self, workload: &str) -> io::Result<WorkloadKind> {
        match self.locals.get(workload) {
            Some(local) => Ok(local.kind),
            None => Err(io::Error::new(
                io::ErrorKind::NotFound,
                format!("workload {workload} is not on this node any more"),
            )),
        }
    }
}

impl AppDialer for View {
    fn remote(&self, endpoint: &Endpoint, from: &Party) -> Option<Arc<dyn Channel>> {
        self.remote_of(endpoint, from)
    }

    fn connect(&self, endpoint: Arc<Endpoint>) -> BoxFuture<'static, io::Result<TcpStream>> {
        let view = self.clone();
        Box::pin(async move {
            let Place::Local { app_port } = *endpoint.place() else {
                return Err(io::Error::other("the app is on another node"));
            };
            if app_port == 0 {
                return Err(io::Error::new(
                    io::ErrorKind::ConnectionRefused,
                    format!("{} takes no calls: it has no app port", endpoint.party().workload),
                ));
            }
            let kind = view.kind(endpoint.workload())?;
            view.host.connect_app(endpoint.workload(), kind, app_port).await
        })
    }
}

impl weft_tunnel::Dialer for View {
    /// From the node's own namespace and address: a workload, whose packets have another source,
    /// can then be kept from the tunnels' port altogether. Whose tunnel it is, its certificate says.
    fn dial(&self, to: SocketAddr) -> BoxFuture<'static, io::Result<TcpStream>> {
        Box::pin(TcpStream::connect(to))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::endpoints::party;
    use weft_policy_engine::{DirectionPolicy, Entry, Peers, PolicySet, Ports, RuleRef};
    use weft_proto::weft::policy::v1::{self as pb, resource::Body};

    const CART: &str = "spiffe://cluster.local/ns/default/cart";

    fn view() -> View {
        let folder = tempfile::tempdir().unwrap();
        let address = std::net::IpAddr::from([127, 0, 0, 1]);
        let file = folder.path().join("workloads.state");
        View {
            mesh: Mesh::new("n1", 15008),
            locals: Locals::default(),
            host: Host::Rootless(crate::rootless::Rootless::new("n1", address, file).unwrap()),
            channels: Arc::default(),
        }
    }

    fn resource(kind: &str, name: &str, body: Body) -> pb::Resource {
        let key = pb::ResourceKey {
            kind: kind.into(),
            name: name.into(),
        };
        pb::Resource {
            key: Some(key),
            body: Some(body),
        }
    }

    fn workload(id: &str, node: &str, identity: u32) -> pb::Workload {
        pb::Workload {
            id: id.into(),
            node: node.into(),
            name: id.into(),
            namespace: "default".into(),
            app_id: "cart".into(),
            spiffe_id: CART.into(),
            identity,
            addresses: vec!["10.0.0.1".into()],
            ..Default::default()
        }
    }

    fn send(view: &View, workloads: Vec<pb::Workload>, set: Option<PolicySet>) {
        let policy_set = set.as_ref().map_or_else(String::new, |s| s.id().to_owned());
        let endpoints = workloads.into_iter().map(|w| {
            let id = w.id.clone();
            let endpoint = pb::Endpoint {
                workload: Some(w),
                policy_set: policy_set.clone(),
            };
            resource("endpoint", &id, Body::Endpoint(endpoint))
        });
        let sets = set
            .iter()
            .map(|s| resource("policy-set", s.id(), Body::PolicySet(s.into())));
        let problems = view.mesh.apply(pb::SubscribeResponse {
            version: 1,
            epoch: "e".into(),
            snapshot: true,
            upserts: endpoints.chain(sets).collect(),
            removes: Vec::new(),
        });
        assert!(problems.is_empty(), "{problems:?}");
    }

    fn peer(node: Option<&str>) -> PeerIdentity {
        PeerIdentity {
            id: CART.parse().unwrap(),
            serial: "1".into(),
            node: node.map(str::to_owned),
            not_before: 0,
            not_after: 1,
        }
    }

    #[test]
    fn a_tunnel_is_believed_only_from_the_node_that_hosts_the_identity() {
        let view = view();
        send(
            &view,
            vec![workload("a", "n2", 300), workload("b", "n3", 301)],
            None,
        );
        let who = |node, claimed| view.tunnel_peer(&peer(node), claimed);
        assert_eq!(who(Some("n2"), None).unwrap().identity, NumericIdentity(300));
        assert_eq!(who(Some("n3"), None).unwrap().identity, NumericIdentity(301));
        assert!(who(Some("n4"), None).is_none(), "not hosted there");
        assert!(who(None, None).is_none(), "no tunnel certificate");
        // A claim counts only for what runs on that node.
        assert_eq!(&*who(Some("n2"), Some("b")).unwrap().workload, "a");
    }

    #[test]
    fn gateways_of_a_node_are_ingress_and_of_no_other_node() {
        let view = view();
        let named = |id: &str, node: &str| {
            let peer = PeerIdentity {
                id: id.parse().unwrap(),
                ..peer(Some(node))
            };
            view.tunnel_peer(&peer, None).unwrap().identity
        };
        let n2 = "spiffe://cluster.local/weft/ingress/n2";
        assert_eq!(named(n2, "n2"), NumericIdentity::INGRESS);
        assert_eq!(named(n2, "n3"), NumericIdentity::CLUSTER_UNKNOWN);
        let workload = "spiffe://cluster.local/ns/weft/ingress";
        assert_eq!(named(workload, "n2"), NumericIdentity::CLUSTER_UNKNOWN);
    }

    #[test]
    fn what_is_not_told_apart_or_not_known_yet_is_unknown() {
        let view = view();
        let unknown = view.tunnel_peer(&peer(Some("n2")), None).unwrap();
        assert_eq!(unknown.identity, NumericIdentity::CLUSTER_UNKNOWN);
        assert_eq!(&*unknown.app_id, "cart");
        send(
            &view,
            vec![workload("a", "n2", 300), workload("b", "n2", 301)],
            None,
        );
        let who = |claimed| view.tunnel_peer(&peer(Some("n2")), claimed).unwrap().identity;
        assert_eq!(who(None), NumericIdentity::CLUSTER_UNKNOWN);
        assert_eq!(who(Some("b")), NumericIdentity(301));
    }

    #[test]
    fn policy_is_asked_in_its_direction_and_names_its_rule() {
        let view = view();
        let rule = RuleRef {
            kind: "CiliumNetworkPolicy".into(),
            namespace: "default".into(),
            name: "cart".into(),
            path: "ingress[0]".into(),
        };
        let entry = Entry {
            deny: false,
            rule: Arc::new(rule),
            protocol: Some(TCP),
            ports: Ports::Range(50002, 50002),
            redirect: false,
            http: Default::default(),
            dns: Default::default(),
            auth: Default::default(),
            peers: Peers {
                identities: vec![NumericIdentity(400)],
                ..Peers::default()
            },
        };
        let ingress = DirectionPolicy {
            default_deny: true,
            entries: vec![entry],
            ..Default::default()
        };
        let callee = workload("a", "n1", 300);
        send(
            &view,
            vec![callee.clone()],
            Some(PolicySet::new(ingress, DirectionPolicy::default())),
        );
        let caller = |identity| Party {
            identity: NumericIdentity(identity),
            ..(*party(&callee)).clone()
        };
        let ask = |workload, direction, source: &Party, port| {
            view.judge(&Question {
                direction,
                workload,
                source,
                destination: &party(&callee),
                port,
                authenticated: true,
            })
        };
        let allowed = ask("a", Direction::Ingress, &caller(400), 50002);
        assert_eq!(allowed.refused, None);
        assert!(allowed.rule.unwrap().contains("default/cart"));
        // One thing differs each time: who, the port, the direction, the workload.
        let refused = Some(DropReason::PolicyDenied);
        assert_eq!(ask("a", Direction::Ingress, &caller(401), 50002).refused, refused);
        assert_eq!(ask("a", Direction::Ingress, &caller(400), 3500).refused, refused);
        assert_eq!(ask("a", Direction::Egress, &caller(401), 50002).refused, None);
        assert_eq!(ask("b", Direction::Ingress, &caller(400), 50002).refused, refused);
    }

    #[test]
    fn rules_of_requests_close_the_connection_and_open_single_requests() {
        let view = view();
        let rule = RuleRef {
            kind: "CiliumNetworkPolicy".into(),
            namespace: "default".into(),
            name: "cart".into(),
            path: "ingress[0]".into(),
        };
        let entry = Entry {
            deny: false,
            rule: Arc::new(rule),
            protocol: Some(TCP),
            ports: Ports::Range(80, 80),
            redirect: true,
            http: Default::default(),
            dns: Default::default(),
            auth: weft_policy_engine::Authentication::Required,
            peers: Peers::any(),
        };
        let ingress = DirectionPolicy {
            default_deny: true,
            entries: vec![entry],
            ..Default::default()
        };
        let mut wire = pb::PolicySet::from(&PolicySet::new(ingress, DirectionPolicy::default()));
        wire.ingress.as_mut().unwrap().entries[0].http = vec![pb::HttpRule {
            method: "GET".into(),
            path: "/public/.*".into(),
            ..Default::default()
        }];
        let callee = workload("a", "n1", 300);
        send(
            &view,
            vec![callee.clone()],
            Some(PolicySet::try_from(&wire).unwrap()),
        );
        let callee = party(&callee);
        let question = |port, authenticated| Question {
            direction: Direction::Ingress,
            workload: "a",
            source: &callee,
            destination: &callee,
            port,
            authenticated,
        };
        let headers = http::HeaderMap::new();
        let ask = |method, path, port, authenticated| {
            let line = RequestLine {
                method,
                path,
                host: "cart",
                headers: &headers,
            };
            view.judge_request(&question(port, authenticated), &line)
        };
        let whole = view.judge(&question(80, true));
        assert!(whole.by_request && whole.refused.is_some());
        let allowed = ask("GET", "/public/a", 80, true);
        assert_eq!((allowed.refused, allowed.by_request), (None, false));
        assert!(allowed.rule.unwrap().contains("default/cart"));
        // One thing differs each time: method, path, port, proof.
        let denied = Some(DropReason::PolicyDenied);
        assert_eq!(ask("PUT", "/public/a", 80, true).refused, denied);
        assert_eq!(ask("GET", "/secret", 80, true).refused, denied);
        assert_eq!(ask("GET", "/public/a", 81, true).refused, denied);
        assert!(!view.judge(&question(81, true)).by_request);
        assert_eq!(
            ask("GET", "/public/a", 80, false).refused,
            Some(DropReason::AuthRequired)
        );
    }

    #[test]
    fn conditions_that_are_not_met_close() {
        let view = view();
        let named = |path: &str| {
            Arc::new(RuleRef {
                kind: "CiliumNetworkPolicy".into(),
                namespace: "default".into(),
                name: "cart".into(),
                path: path.into(),
            })
        };
        let entry = |port, redirect, auth| Entry {
            deny: false,
            rule: named("ingress[0]"),
            protocol: Some(TCP),
            ports: Ports::Range(port, port),
            redirect,
            http: Default::default(),
            dns: Default::default(),
            auth,
            peers: Peers::any(),
        };
        let ingress = DirectionPolicy {
            default_deny: true,
            selected_by: vec![named("ingress")],
            entries: vec![
                entry(80, false, Default::default()),
                entry(81, true, Default::default()),
                entry(82, false, weft_policy_engine::Authentication::Required),
            ],
        };
        let callee = workload("a", "n1", 300);
        let set = PolicySet::new(ingress, DirectionPolicy::default());
        send(&view, vec![callee.clone()], Some(set.clone()));
        let ask = |port, authenticated| {
            view.judge(&Question {
                direction: Direction::Ingress,
                workload: "a",
                source: &party(&callee),
                destination: &party(&callee),
                port,
                authenticated,
            })
        };
        assert_eq!(ask(80, false).refused, None);
        assert_eq!(ask(81, true).refused, Some(DropReason::PolicyDenied));
        assert_eq!(ask(82, false).refused, Some(DropReason::AuthRequired));
        assert_eq!(ask(82, true).refused, None);
        let by_default = ask(83, true);
        assert_eq!(by_default.refused, Some(DropReason::PolicyDenied));
        let text = by_default.rule.unwrap();
        assert_eq!(&*text, "no rule of CiliumNetworkPolicy/default/cart: ingress");

        // Under audit it passes, and is told: by the node's option, but for the workload's word.
        let audited = View {
            mesh: view.mesh.clone().with_audit(true),
            ..view.clone()
        };
        let ask = |view: &View| {
            view.judge(&Question {
                direction: Direction::Ingress,
                workload: "a",
                source: &party(&callee),
                destination: &party(&callee),
                port: 83,
                authenticated: true,
            })
        };
        let decision = ask(&audited);
        assert_eq!(
            (decision.refused, decision.audited),
            (None, Some(DropReason::PolicyDenied))
        );
        for (annotation, passes) in [("true", true), ("false", false)] {
            let mut callee = callee.clone();
            callee
                .annotations
                .insert("weft.dev/policy-audit-mode".into(), annotation.into());
            send(&view, vec![callee], Some(set.clone()));
            assert_eq!(ask(&view).refused.is_none(), passes);
            assert_eq!(ask(&audited).refused.is_none(), passes);
        }
    }
}
