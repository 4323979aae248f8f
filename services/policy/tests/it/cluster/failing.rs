//! An API server that is overloaded, away or mad, and objects that are wrong.

use super::{MANIFESTS, accepted, errors, of, rig, services, until, until_services};
use crate::{
    api_server::{ApiServer, Mood},
    rig::Rig,
};
use serde_json::{Value, json};
use std::time::Duration;
use weft_proto::weft::policy::v1 as pb;
use weft_resources::Kind;

#[tokio::test]
async fn a_kind_that_fails_keeps_what_it_had_and_the_others_go_on() {
    let server = ApiServer::start().await;
    server.put(MANIFESTS);
    let rig = rig(&server).await;
    let before = accepted(&rig.list().await);
    let line = |event: Value| Mood::Line(event.to_string());
    let moods = [
        (Mood::Garbage, "sent what can not be understood"),
        (
            line(json!({"type": "ADDED", "object": {"metadata": {}}})),
            "missing field `name`",
        ),
        (
            line(json!({"type": "PATCHED", "object": {}})),
            "an event of type \"PATCHED\"",
        ),
        (Mood::Line("{".into()), "sent what can not be understood"),
        (
            Mood::Status(500, None),
            "answered with status 500: it is forbidden",
        ),
        (
            Mood::Status(403, None),
            "the policy service's account needs list and watch on ciliumnetworkpolicies.cilium.io",
        ),
    ];
    for (turn, (mood, text)) in moods.into_iter().enumerate() {
        server.feel(Kind::CiliumNetworkPolicy, mood);
        server.drop_watches();
        let list = rig
            .list_until(|list| errors(list).iter().any(|e| e.contains(text)))
            .await;
        let entry = list.resources.iter().find(|r| !r.accepted).unwrap();
        assert_eq!(
            (entry.kind.as_str(), entry.name.as_str()),
            ("CiliumNetworkPolicy", "")
        );
        assert_eq!(errors(&list).len(), 1, "of others as well: {list:?}");
        assert!(
            entry.errors[0].contains("what was read before stays in force"),
            "{entry:?}"
        );
        assert!(before.iter().all(|b| accepted(&list).contains(b)), "{list:?}");
        let name = format!("turn{turn}");
        services(&server, &[&name]);
        rig.list_until(|list| accepted(list).contains(&format!("Service shop/{name}")))
            .await;
        // And well again.
        server.feel(Kind::CiliumNetworkPolicy, Mood::Fine);
        server.drop_watches();
        let policy = MANIFESTS
            .split("---")
            .find(|m| m.contains("kind: CiliumNetworkPolicy\n"));
        server.put(&policy.unwrap().replace("name: cart,", &format!("name: {name},")));
        let key = format!("CiliumNetworkPolicy shop/{name}");
        rig.list_until(|list| accepted(list).contains(&key) && errors(list).is_empty())
            .await;
    }
}

#[tokio::test]
async fn a_server_with_too_many_requests_is_asked_again_when_it_said() {
    let server = ApiServer::start().await;
    server.feel(Kind::Service, Mood::Status(429, Some(2)));
    services(&server, &["a"]);
    let starting = tokio::spawn({
        let of = of(&server);
        async move { Rig::configured(of).await }
    });
    until("two requests", || server.asked("/api/v1/services?").len() == 2).await;
    server.feel(Kind::Service, Mood::Fine);
    let asked = server.asked("/api/v1/services?");
    assert!(asked[1].0 - asked[0].0 >= Duration::from_secs(2));
    until_services(&starting.await.unwrap(), &["a"]).await;
    // Without such a wish it is sooner.
    let server = ApiServer::start().await;
    server.feel(Kind::Service, Mood::Status(429, None));
    let starting = tokio::spawn({
        let of = of(&server);
        async move { Rig::configured(of).await }
    });
    until("two requests", || server.asked("/api/v1/services?").len() == 2).await;
    let asked = server.asked("/api/v1/services?");
    assert!(asked[1].0 - asked[0].0 < Duration::from_secs(2));
    starting.abort();
}

#[tokio::test]
async fn an_object_that_is_wrong_or_huge_is_named_and_what_it_said_before_holds() {
    let server = ApiServer::start().await;
    services(&server, &["a", "b"]);
    let rig = rig(&server).await;
    let object = |name: &str, port: u64, note: usize| {
        json!({
            "metadata": {"name": name, "namespace": "shop", "annotations": {"note": "x".repeat(note)}},
            "spec": {"ports": [{"port": port}]},
        })
    };
    server.put_object(Kind::Service, object("a", 0, 1));
    // Two that are larger than a page may be, together.
    server.put_object(Kind::Service, object("huge1", 80, 9_000_000));
    server.put_object(Kind::Service, object("huge2", 80, 9_000_000));
    services(&server, &["c"]);
    let wanted = |list: &pb::ListResponse| {
        accepted(list) == ["Service shop/a", "Service shop/b", "Service shop/c"] && errors(list).len() == 3
    };
    let list = rig.list_until(wanted).await;
    let all = errors(&list);
    assert_eq!(
        all[0],
        "Service shop/a: spec.ports[0].port: must be a port number from 1 to 65535"
    );
    assert!(all[1].contains("Service shop/huge1: ") && all[1].contains("above the limit of 1048576"));
    let first = list.resources.iter().find(|r| !r.accepted).unwrap();
    assert_eq!(
        (
            first.kind.as_str(),
            first.namespace.as_str(),
            first.name.as_str(),
            first.origin.as_str()
        ),
        ("Service", "shop", "a", "Service shop/a")
    );
    // The same by lists, page by page, and over a restart.
    let rig = rig.restart_configured(|_| {}, of(&server)).await;
    rig.list_until(wanted).await;
    let small = server.asked("/api/v1/services?limit=62");
    assert!(!small.is_empty(), "the page was not made smaller");
    server.put_object(Kind::Service, object("a", 80, 1));
    server.put_object(Kind::Service, object("huge1", 80, 1));
    server.delete(Kind::Service, "shop", "huge2");
    rig.list_until(|list| errors(list).is_empty() && accepted(list).len() == 4)
        .await;
}

#[tokio::test]
async fn without_an_api_server_what_was_last_good_is_served() {
    let server = ApiServer::start().await;
    services(&server, &["a", "b"]);
    let settings = of(&server);
    let rig = rig(&server).await;
    until_services(&rig, &["a", "b"]).await;
    for kind in Kind::ALL {
        server.feel(kind, Mood::Silent);
    }
    server.delete(Kind::Service, "shop", "a");
    let rig = rig.restart_configured(|_| {}, settings).await;
    let mut node = rig.node("n1").await;
    node.register(node.workload("shop", "cart", &[])).await;
    node.until("service", "shop/a").await;
    node.until("service", "shop/b").await;
}
