//! What is read, over pages, watches and lists that begin again.

use super::{MANIFESTS, accepted, errors, rig, services, until, until_services};
use crate::{
    api_server::{ApiServer, Mood},
    rig::{Node, Rig, service},
};
use serde_json::Value;
use weft_proto::weft::policy::v1::{self as pb, resource::Body};
use weft_resources::Kind;

/// What a node gets that hosts the cart.
async fn compiled(rig: &Rig) -> Vec<pb::Resource> {
    let mut node = rig.node("n1").await;
    for name in ["cart", "front"] {
        let workload = node.workload("shop", name, &[("app", name)]);
        node.register(workload).await;
    }
    drop(node);
    let mut node = rig.node("n1").await;
    assert!(node.apply().await.snapshot);
    let mut all: Vec<pb::Resource> = node.state.into_values().collect();
    for resource in &mut all {
        if let Some(Body::Component(component)) = &mut resource.body {
            // What the API server adds to what its author wrote.
            let mut json: Value = serde_json::from_slice(&component.json).unwrap();
            let meta = json["metadata"].as_object_mut().unwrap();
            assert_eq!(meta.remove("uid").is_some(), meta.remove("generation").is_some());
            component.json = json.to_string().into_bytes();
        }
    }
    all
}

#[tokio::test]
async fn the_same_manifests_mean_the_same_from_a_folder_and_from_a_cluster() {
    let folder = Rig::new(&[("all.yaml", MANIFESTS)]).await;
    let from_folder = compiled(&folder).await;
    let server = ApiServer::start().await;
    server.put(MANIFESTS);
    let cluster = rig(&server).await;
    let from_cluster = compiled(&cluster).await;
    assert_eq!(from_cluster, from_folder);
    let kinds = |all: &[pb::Resource]| -> Vec<String> {
        let mut kinds: Vec<String> = all.iter().map(|r| r.key.clone().unwrap().kind).collect();
        kinds.dedup();
        kinds
    };
    assert_eq!(
        kinds(&from_folder),
        [
            "component",
            "endpoint",
            "gateway",
            "identity",
            "policy-set",
            "route",
            "service"
        ]
    );
    assert_eq!(errors(&cluster.list().await), Vec::<String>::new());
    // One difference is one.
    server.put(&MANIFESTS.replace("port: 81", "port: 82"));
    let mut node = cluster.node("n1").await;
    loop {
        node.apply().await;
        if format!("{:?}", node.state.values()).contains("port: 82") {
            break;
        }
    }
}

#[tokio::test]
async fn pages_are_read_to_the_end_and_again_when_one_has_expired() {
    let server = ApiServer::start().await;
    let names: Vec<String> = (0..12).map(|n| format!("s{n:02}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    services(&server, &names);
    server.page(5);
    server.expire_a_page();
    let rig = rig(&server).await;
    // Already when it begins to serve.
    assert_eq!(accepted(&rig.list().await).len(), 12);
    assert_eq!(server.lists(Kind::Service), 2);
    let pages = server.asked("/api/v1/services?limit=500&continue=");
    assert_eq!(pages.len(), 3, "one that had expired and two: {pages:?}");
    // What comes later comes by the watch.
    services(&server, &["z"]);
    rig.list_until(|list| accepted(list).len() == 13).await;
    server.delete(Kind::Service, "shop", "z");
    until_services(&rig, &names).await;
    assert_eq!(server.lists(Kind::Service), 2);
}

#[tokio::test]
async fn a_watch_that_breaks_goes_on_where_it_was() {
    let server = ApiServer::start().await;
    services(&server, &["a", "b"]);
    let rig = rig(&server).await;
    for round in 0..5 {
        server.drop_watches();
        let name = format!("c{round}");
        services(&server, &[&name]);
        rig.list_until(|list| accepted(list).contains(&format!("Service shop/{name}")))
            .await;
    }
    server.drop_watches();
    server.delete(Kind::Service, "shop", "a");
    rig.list_until(|list| !accepted(list).contains(&"Service shop/a".to_owned()))
        .await;
    assert_eq!(server.lists(Kind::Service), 1, "listed again without need");
}

#[tokio::test]
async fn after_410_the_difference_is_taken_over_and_nothing_goes_before_the_list_is_whole() {
    let server = ApiServer::start().await;
    services(&server, &["a", "b", "c", "d"]);
    let rig = rig(&server).await;
    let mut node = rig.node("n1").await;
    node.register(node.workload("shop", "cart", &[])).await;
    node.until("service", "shop/d").await;
    // What happens while nobody watches is forgotten before he asks again.
    server.page(2);
    server.feel(Kind::Service, Mood::Status(503, None));
    server.drop_watches();
    server.delete(Kind::Service, "shop", "a");
    server.put(&service("shop", "b").replace("port: 80", "port: 81"));
    services(&server, &["e"]);
    server.forget(server.version());
    server.feel(Kind::Service, Mood::Slow);
    // The first page is in force: the rest is as it was.
    until_port(&mut node, "shop/b", 81).await;
    assert_eq!(node.names("service"), ["shop/a", "shop/b", "shop/c", "shop/d"]);
    assert!(accepted(&rig.list().await).contains(&"Service shop/a".to_owned()));
    server.feel(Kind::Service, Mood::Fine);
    until_services(&rig, &["b", "c", "d", "e"]).await;
    while node.names("service") != ["shop/b", "shop/c", "shop/d", "shop/e"] {
        node.apply().await;
    }
    assert_eq!(server.lists(Kind::Service), 2);
}

async fn until_port(node: &mut Node, name: &str, port: u32) {
    loop {
        let service = node.until("service", name).await;
        if format!("{service:?}").contains(&format!("port: {port}")) {
            return;
        }
        node.apply().await;
    }
}

#[tokio::test]
async fn bookmarks_save_the_list() {
    for bookmarks in [true, false] {
        let server = ApiServer::start().await;
        services(&server, &["a"]);
        if bookmarks {
            server.bookmarks();
        }
        let rig = rig(&server).await;
        // Something happens, but not to the Components. With bookmarks their watch gets along.
        services(&server, &["b"]);
        let version = server.version();
        until_services(&rig, &["a", "b"]).await;
        if bookmarks {
            until("a bookmark", || server.is_marked(Kind::Component, version)).await;
        }
        server.forget(version);
        server.drop_watches();
        let component = MANIFESTS.split("---").find(|m| m.contains("kind: Component"));
        server.put(component.unwrap());
        rig.list_until(|list| accepted(list).contains(&"Component shop/state".to_owned()))
            .await;
        let expected = if bookmarks { 1 } else { 2 };
        assert_eq!(server.lists(Kind::Component), expected, "bookmarks: {bookmarks}");
    }
}

#[tokio::test]
async fn a_kind_that_is_installed_later_is_found_and_one_of_an_earlier_version_too() {
    let server = ApiServer::start().await;
    server.uninstall(Kind::Gateway, Kind::Gateway.api_version());
    server.uninstall(Kind::ReferenceGrant, Kind::ReferenceGrant.api_version());
    server.install(Kind::ReferenceGrant, "gateway.networking.k8s.io/v1beta1");
    services(&server, &["a"]);
    let rig = rig(&server).await;
    let list = rig.list().await;
    assert_eq!((accepted(&list).len(), errors(&list).len()), (1, 0), "{list:?}");
    server.install(Kind::Gateway, Kind::Gateway.api_version());
    let gateway = MANIFESTS
        .split("---")
        .find(|m| m.contains("kind: Gateway\n"))
        .unwrap();
    server.put(gateway);
    rig.list_until(|list| accepted(list).contains(&"Gateway shop/web".to_owned()))
        .await;
    assert!(!server.asked("v1beta1/referencegrants?watch=true").is_empty());
    // Removed with all its objects.
    server.uninstall(Kind::Gateway, Kind::Gateway.api_version());
    rig.list_until(|list| !accepted(list).contains(&"Gateway shop/web".to_owned()))
        .await;
}
