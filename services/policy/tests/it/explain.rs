//! Who may reach whom, and why: asked of a service, answered from the sets that nodes have.

use crate::rig::{Node, Rig};
use tonic::Code;
use weft_policy_engine::{Direction, PeerRef, PolicySet, RequestFacts, Verdict};
use weft_proto::weft::policy::v1::{self as pb, Decision, explain_client::ExplainClient, resource::Body};

const POLICIES: &str = "
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: cart, namespace: shop}
spec:
  endpointSelector: {matchLabels: {app: cart}}
  ingress:
    - fromEndpoints: [{matchLabels: {app: front}}]
      toPorts:
        - ports: [{port: '80', protocol: TCP}]
          rules: {http: [{method: GET, path: '/items.*'}]}
    - fromEndpoints: [{matchLabels: {app: admin}}]
      authentication: {mode: required}
    - fromCIDR: [192.0.2.0/24]
      toPorts: [{ports: [{port: '80', protocol: TCP}]}]
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: no-metrics, namespace: shop}
spec:
  endpointSelector: {}
  ingressDeny: [{fromEntities: [all], toPorts: [{ports: [{port: '9090'}]}]}]
  enableDefaultDeny: {ingress: false}
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: front, namespace: shop}
spec:
  endpointSelector: {matchLabels: {app: front}}
  egress: [{toEndpoints: [{matchLabels: {app: cart}}], toPorts: [{ports: [{port: '80', protocol: TCP}]}]}]
";

struct Scene {
    rig: Rig,
    node: Node,
}

async fn scene() -> Scene {
    let rig = Rig::new(&[("policies.yaml", POLICIES)]).await;
    let mut node = rig.node("n1").await;
    for (name, address) in [("cart", "10.1.0.1"), ("front", "10.1.0.2"), ("admin", "10.1.0.3")] {
        let pod = pb::Workload {
            kind: pb::WorkloadKind::Pod.into(),
            addresses: vec![address.into()],
            ..node.workload("shop", name, &[("app", name)])
        };
        let pod = node.register(pod).await;
        node.until("endpoint", &pod.id).await;
    }
    Scene { rig, node }
}

fn ask(from: &str, to: &str, port: u32, request: Option<(&str, &str)>) -> pb::ExplainRequest {
    pb::ExplainRequest {
        from: from.into(),
        to: to.into(),
        port,
        protocol: 6,
        request: request.map(|(method, path)| pb::ExplainedRequest {
            method: method.into(),
            path: path.into(),
            ..Default::default()
        }),
    }
}

impl Scene {
    async fn explain(&self, asked: pb::ExplainRequest) -> Result<pb::ExplainResponse, tonic::Status> {
        let mut client = ExplainClient::new(self.rig.channel("/weft/admin/ops"));
        client.explain(asked).await.map(tonic::Response::into_inner)
    }

    /// Allowed, what each side decided, and the rules that spoke, as `<name> <path>`.
    async fn told(&self, asked: pb::ExplainRequest) -> (bool, Decision, Decision, Vec<String>) {
        let answer = self.explain(asked).await.unwrap();
        let (egress, ingress) = (answer.egress.unwrap(), answer.ingress.unwrap());
        let rules = egress.rules.iter().chain(&ingress.rules);
        let rules = rules.map(|r| r.rule.as_ref().unwrap());
        let rules = rules.map(|r| format!("{} {}", r.name, r.path)).collect();
        (answer.allowed, egress.decision(), ingress.decision(), rules)
    }

    /// The set that the node was given for a workload.
    fn set(&self, name: &str) -> PolicySet {
        let id = format!("n1/shop/{name}/1");
        let Some(Body::Endpoint(endpoint)) = &self.node.state[&("endpoint".into(), id)].body else {
            panic!("no endpoint {name}");
        };
        let key = ("policy-set".to_owned(), endpoint.policy_set.clone());
        let Some(Body::PolicySet(set)) = &self.node.state[&key].body else {
            panic!("no set of {name}");
        };
        PolicySet::try_from(set).unwrap()
    }
}

#[tokio::test]
async fn both_sides_are_told_with_every_rule_that_speaks() {
    let scene = scene().await;
    let read = "cart ingress[0].toPorts[0].ports[0]".to_owned();
    let out = "front egress[0].toPorts[0].ports[0]".to_owned();
    assert_eq!(
        scene
            .told(ask("shop/front", "shop/cart", 80, Some(("GET", "/items/1"))))
            .await,
        (
            true,
            Decision::Allowed,
            Decision::Allowed,
            vec![out.clone(), read.clone()]
        )
    );
    // One thing differs each time: the request, the port, who asks, the direction.
    assert_eq!(
        scene
            .told(ask("shop/front", "shop/cart", 80, Some(("PUT", "/items/1"))))
            .await,
        (
            false,
            Decision::Allowed,
            Decision::RequestDenied,
            vec![out.clone(), read.clone()]
        )
    );
    assert_eq!(
        scene.told(ask("shop/front", "shop/cart", 81, None)).await,
        (
            false,
            Decision::DeniedByDefault,
            Decision::DeniedByDefault,
            vec![]
        )
    );
    let (allowed, egress, ingress, rules) = scene.told(ask("shop/admin", "shop/cart", 81, None)).await;
    assert_eq!(
        (allowed, egress, ingress, rules),
        (
            true,
            Decision::Allowed,
            Decision::Allowed,
            vec!["cart ingress[1]".to_owned()]
        )
    );
    let reverse = scene
        .explain(ask("shop/cart", "shop/front", 80, None))
        .await
        .unwrap();
    assert!(reverse.allowed && reverse.egress.unwrap().selected_by.is_empty());
    // Without a request, that some pass is what there is to say.
    assert_eq!(
        scene.told(ask("shop/front", "shop/cart", 80, None)).await,
        (
            true,
            Decision::Allowed,
            Decision::AllowedByRequest,
            vec![out, read]
        )
    );
}

#[tokio::test]
async fn what_refuses_comes_first_and_what_closed_is_named() {
    let scene = scene().await;
    let refused = scene
        .explain(ask("shop/admin", "shop/cart", 9090, None))
        .await
        .unwrap();
    let ingress = refused.ingress.unwrap();
    assert_eq!(
        (refused.allowed, ingress.decision()),
        (false, Decision::DeniedByRule)
    );
    let rules: Vec<_> = ingress
        .rules
        .iter()
        .map(|r| (r.deny, r.rule.as_ref().unwrap().name.as_str()))
        .collect();
    assert_eq!(rules, [(true, "no-metrics"), (false, "cart")]);
    let closed = scene
        .explain(ask("198.51.100.1", "shop/cart", 80, None))
        .await
        .unwrap();
    let ingress = closed.ingress.unwrap();
    assert_eq!(ingress.decision(), Decision::DeniedByDefault);
    let by: Vec<_> = ingress.selected_by.iter().map(|r| r.name.as_str()).collect();
    assert_eq!(by, ["cart"]);
    assert_eq!(closed.egress.unwrap().decision(), Decision::NotJudged);
    // Proof is a condition, and said.
    let proven = scene
        .explain(ask("shop/admin", "shop/cart", 80, None))
        .await
        .unwrap();
    assert!(proven.allowed && proven.ingress.unwrap().authenticated);
}

#[tokio::test]
async fn ends_are_found_by_name_number_and_address() {
    let scene = scene().await;
    let front = scene
        .explain(ask("10.1.0.2", "shop/cart", 80, None))
        .await
        .unwrap()
        .from
        .unwrap();
    assert_eq!((front.name.as_str(), front.node.as_str()), ("shop/front", "n1"));
    assert_eq!(front.labels.get("k8s:app").map(String::as_str), Some("front"));
    for who in ["shop/front", &front.identity.to_string()] {
        let found = scene.explain(ask(who, "shop/cart", 80, None)).await.unwrap();
        assert_eq!(found.from.unwrap(), front, "{who}");
    }
    let name = async |who: &str| {
        let answer = scene.explain(ask(who, "shop/cart", 80, None)).await.unwrap();
        (answer.from.unwrap().name, answer.allowed)
    };
    assert_eq!(name("192.0.2.7").await, ("world (192.0.2.7)".into(), true));
    assert_eq!(name("198.51.100.7").await, ("world (198.51.100.7)".into(), false));
    assert_eq!(name("host").await, ("host".into(), false));
    // Among the node's pods, and nobody's yet.
    assert_eq!(name("10.1.0.77").await.0, "aggregate-cluster");

    let refused = [
        ("shop/nobody", Code::NotFound, "namespace shop has the app-id"),
        ("9999", Code::NotFound, "no identity has the number 9999"),
        ("", Code::InvalidArgument, "from: must be"),
    ];
    for (who, code, text) in refused {
        let error = scene.explain(ask(who, "shop/cart", 80, None)).await.unwrap_err();
        assert_eq!(error.code(), code, "{error:?}");
        assert!(error.message().contains(text), "{error:?}");
    }
    let udp = pb::ExplainRequest {
        protocol: 17,
        ..ask("shop/front", "shop/cart", 80, Some(("GET", "/")))
    };
    assert_eq!(
        scene.explain(udp).await.unwrap_err().code(),
        Code::InvalidArgument
    );
}

#[tokio::test]
async fn a_name_of_workloads_with_different_policies_is_no_answer() {
    let mut scene = scene().await;
    for (name, version) in [("w1", "v1"), ("w2", "v1")] {
        let mut workload = scene.node.workload("shop", name, &[("version", version)]);
        workload.app_id = "whoami".into();
        scene.node.register(workload).await;
    }
    // Two that are alike are one answer.
    assert!(
        scene
            .explain(ask("shop/whoami", "shop/cart", 80, None))
            .await
            .is_ok()
    );
    let mut other = scene.node.workload("shop", "w3", &[("version", "v2")]);
    other.app_id = "whoami".into();
    scene.node.register(other).await;
    let error = scene
        .explain(ask("shop/whoami", "shop/cart", 80, None))
        .await
        .unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition);
    assert!(error.message().contains("shop/w1, shop/w2, shop/w3"), "{error:?}");
}

/// What is explained is what a node decides with the set that it was given.
#[tokio::test]
async fn explanations_are_what_nodes_decide() {
    let scene = scene().await;
    let names = ["cart", "front", "admin"];
    let requests = [("GET", "/items"), ("PUT", "/items"), ("GET", "/")];
    let (mut asked, mut denied) = (0, 0);
    for (from, to) in names.iter().flat_map(|a| names.iter().map(move |b| (*a, *b))) {
        for port in [80, 81, 9090] {
            for (method, path) in requests {
                let question = ask(
                    &format!("shop/{from}"),
                    &format!("shop/{to}"),
                    port,
                    Some((method, path)),
                );
                let answer = scene.explain(question).await.unwrap();
                let judge = |name: &str, direction, peer: &pb::ExplainedParty| {
                    let peer = PeerRef {
                        identity: weft_model::NumericIdentity(peer.identity),
                        address: peer.address.parse().ok(),
                    };
                    let facts = RequestFacts {
                        method,
                        path,
                        host: "",
                        headers: &http::HeaderMap::new(),
                    };
                    let port = u16::try_from(port).unwrap();
                    let verdict = scene.set(name).judge_request(direction, peer, 6, port, &facts);
                    matches!(verdict, Verdict::Allowed { .. })
                };
                let (a, b) = (answer.from.as_ref().unwrap(), answer.to.as_ref().unwrap());
                let both = judge(from, Direction::Egress, b) && judge(to, Direction::Ingress, a);
                assert_eq!(
                    answer.allowed, both,
                    "{from} {to} {port} {method} {path}: {answer:#?}"
                );
                asked += 1;
                denied += usize::from(!both);
            }
        }
    }
    assert!(denied * 4 > asked && denied < asked, "{denied} of {asked}");
}

#[tokio::test]
async fn workloads_and_nodes_may_not_ask() {
    let scene = scene().await;
    for path in ["/weft/node/n1", "/ns/shop/cart"] {
        let mut client = ExplainClient::new(scene.rig.channel(path));
        let error = client
            .explain(ask("shop/front", "shop/cart", 80, None))
            .await
            .unwrap_err();
        assert_eq!(error.code(), Code::PermissionDenied, "{path}: {error:?}");
    }
}
