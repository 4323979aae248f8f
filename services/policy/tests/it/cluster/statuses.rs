//! What became of objects, written where they are.

use super::{MANIFESTS, accepted, rig, services, until};
use crate::{api_server::ApiServer, rig::Rig};
use serde_json::{Value, json};
use weft_proto::weft::policy::v1::{self as pb, resources_client::ResourcesClient};
use weft_resources::Kind;

async fn shown(rig: &Rig, kind: Kind) -> Vec<Value> {
    let mut client = ResourcesClient::new(rig.channel("/weft/admin/ops"));
    let request = pb::ListRequest {
        kind: kind.name().into(),
        objects: true,
        ..Default::default()
    };
    let list = client.list(request).await.unwrap().into_inner();
    let all = list.resources.iter().filter(|r| r.accepted);
    all.map(|r| serde_json::from_slice(&r.object_json).unwrap())
        .collect()
}

/// Without times, which differ.
fn timeless(mut value: Value) -> Value {
    fn strip(value: &mut Value) {
        match value {
            Value::Object(fields) => {
                fields.remove("lastTransitionTime");
                fields.values_mut().for_each(strip);
            }
            Value::Array(items) => items.iter_mut().for_each(strip),
            _ => {}
        }
    }
    strip(&mut value);
    value
}

fn condition(status: &Value, kind: &str) -> (String, String) {
    let all = status["conditions"].as_array().cloned().unwrap_or_default();
    let one = all.into_iter().find(|c| c["type"] == kind).unwrap_or_default();
    let text = |name: &str| one[name].as_str().unwrap_or_default().to_owned();
    (text("status"), text("reason"))
}

#[tokio::test]
async fn statuses_are_written_as_they_are_shown_by_one_of_two_and_once() {
    let server = ApiServer::start().await;
    server.put(MANIFESTS);
    let foreign = "
apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: {name: other}
spec: {controllerName: example.com/other}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: other, namespace: shop}
spec: {gatewayClassName: other, listeners: [{name: http, port: 80, protocol: HTTP}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: {name: mine}
spec: {controllerName: weft.dev/gateway-controller}
";
    server.put(foreign);
    let (one, two) = tokio::join!(rig(&server), rig(&server));
    let all = [
        (Kind::GatewayClass, "", "mine"),
        (Kind::Gateway, "shop", "web"),
        (Kind::HttpRoute, "shop", "cart"),
        (Kind::CiliumNetworkPolicy, "shop", "cart"),
        (Kind::CiliumClusterwideNetworkPolicy, "", "all"),
    ];
    let node = async |rig: &Rig| {
        let mut node = rig.node("n1").await;
        node.apply().await;
        node
    };
    let (_first, _second) = (node(&one).await, node(&two).await);
    for (kind, namespace, name) in all {
        let programmed =
            |status: &Value| kind != Kind::Gateway || condition(status, "Programmed").0 == "True";
        until(name, || {
            let status = &server.get(kind, namespace, name)["status"];
            !status.is_null() && programmed(status)
        })
        .await;
        let there = server.get(kind, namespace, name)["status"].clone();
        let shown = shown(&one, kind).await;
        let shown = shown.iter().find(|o| o["metadata"]["name"] == name).unwrap();
        assert_eq!(
            timeless(there),
            timeless(shown["status"].clone()),
            "{kind} {name}"
        );
    }
    // What is somebody else's is left to him.
    assert!(server.get(Kind::GatewayClass, "", "other")["status"].is_null());
    assert!(server.get(Kind::Gateway, "shop", "other")["status"].is_null());

    // A change that is none for the status is followed by no write.
    let before = server.applied().len();
    let labelled = MANIFESTS.replace(
        "metadata: {name: cart, namespace: shop,",
        "metadata: {name: cart, namespace: shop, labels: {x: z},",
    );
    server.put(&labelled);
    services(&server, &["last"]);
    for rig in [&one, &two] {
        rig.list_until(|list| accepted(list).contains(&"Service shop/last".to_owned()))
            .await;
    }
    // One that is one, behind it, is.
    server.put(&labelled.replace("name: cart, port: 80", "name: nobody, port: 80"));
    until("a write", || server.applied().len() > before).await;
    let written = server.applied().split_off(before);
    assert!(written[0].0.ends_with("/httproutes/shop/cart"), "{written:?}");
    // One of them wrote: its lease says who.
    let lease = server.lease();
    assert!(
        lease["spec"]["holderIdentity"]
            .as_str()
            .unwrap()
            .starts_with("weft-policy-")
    );
    assert_eq!(lease["spec"]["leaseTransitions"], 0);
}

#[tokio::test]
async fn who_leads_lets_go_when_it_ends_and_the_other_goes_on() {
    let server = ApiServer::start().await;
    let one = rig(&server).await;
    until("a leader", || !server.lease().is_null()).await;
    let first = server.lease()["spec"]["holderIdentity"].clone();
    let two = rig(&server).await;
    assert_eq!(server.lease()["spec"]["holderIdentity"], first);
    one.stop().await;
    server.put(MANIFESTS);
    until("a status", || {
        condition(
            &server.get(Kind::CiliumNetworkPolicy, "shop", "cart")["status"],
            "Valid",
        )
        .0 == "True"
    })
    .await;
    let second = server.lease();
    assert_ne!(second["spec"]["holderIdentity"], first);
    assert!(second["spec"]["leaseTransitions"].as_u64().unwrap() >= 1);
    drop(two);
}

#[tokio::test]
async fn a_conflict_loses_nobodys_entry() {
    let server = ApiServer::start().await;
    server.put(MANIFESTS);
    let other = json!({
        "parentRef": {"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "theirs"},
        "controllerName": "example.com/other",
        "conditions": [],
    });
    // Written by another one between what was seen and what is applied.
    server.intrude(other.clone());
    let _rig = rig(&server).await;
    let parents = || server.get(Kind::HttpRoute, "shop", "cart")["status"]["parents"].clone();
    until("both entries", || {
        parents().as_array().is_some_and(|p| p.len() == 2)
    })
    .await;
    assert_eq!(parents()[0], other);
    assert_eq!(parents()[1]["controllerName"], "weft.dev/gateway-controller");
    assert_eq!(
        condition(&parents()[1], "Accepted"),
        ("True".into(), "Accepted".into())
    );
}

#[tokio::test]
async fn what_is_wrong_with_an_object_is_in_its_status() {
    let server = ApiServer::start().await;
    server.put(MANIFESTS);
    let rig = rig(&server).await;
    let valid = || {
        condition(
            &server.get(Kind::CiliumNetworkPolicy, "shop", "cart")["status"],
            "Valid",
        )
    };
    until("valid", || valid().0 == "True").await;
    let mut policy = server.get(Kind::CiliumNetworkPolicy, "shop", "cart");
    let good = policy.clone();
    policy["spec"]["ingress"] = json!([{"fromEntities": ["clutser"]}]);
    server.put_object(Kind::CiliumNetworkPolicy, policy);
    let mut route = server.get(Kind::HttpRoute, "shop", "cart");
    route["spec"]["rules"] = json!(1);
    server.put_object(Kind::HttpRoute, route);
    until("invalid", || valid() == ("False".into(), "Invalid".into())).await;
    let status = server.get(Kind::CiliumNetworkPolicy, "shop", "cart")["status"].clone();
    let text = status["conditions"][0]["message"].as_str().unwrap().to_owned();
    assert!(
        text.starts_with("spec.ingress[0].fromEntities[0]: unknown entity \"clutser\""),
        "{text}"
    );
    assert_eq!(status["conditions"][0]["observedGeneration"], 2);
    let parent = || server.get(Kind::HttpRoute, "shop", "cart")["status"]["parents"][0].clone();
    until("refused", || {
        condition(&parent(), "Accepted") == ("False".into(), "UnsupportedValue".into())
    })
    .await;
    // What they said before is in force.
    let list = rig.list().await;
    assert!(accepted(&list).contains(&"CiliumNetworkPolicy shop/cart".to_owned()));
    let rejected = list.resources.iter().filter(|r| !r.accepted).count();
    assert_eq!(rejected, 2, "{list:?}");
    server.put_object(Kind::CiliumNetworkPolicy, good);
    until("valid again", || valid().0 == "True").await;
}
