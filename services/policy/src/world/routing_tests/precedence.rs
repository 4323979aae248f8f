//! What changes with other objects, and with time.

use super::*;

#[test]
fn a_backend_that_is_not_permitted_is_sent_without_a_target_until_it_is() {
    let two = "[{name: cart, port: 80, weight: 9}, {name: far, namespace: else, port: 80}]";
    let text = with(BASE, "[{name: cart, port: 80}]", two);
    let mut world = world(&text);
    let targets = |world: &World| -> Vec<(bool, u32)> {
        let route = wire_route(world);
        let backends = route.rules[0].backends.iter();
        backends.map(|b| (b.target.is_some(), b.weight)).collect()
    };
    assert_eq!(targets(&world), [(true, 9), (false, 1)]);
    apply(&mut world, GRANT.trim_start_matches("---\n"));
    assert_eq!(targets(&world), [(true, 9), (true, 1)]);
    world.set_object(&key(Of::ReferenceGrant, "else", "g"), None);
    world.settle();
    assert_eq!(targets(&world), [(true, 9), (false, 1)]);
    world.set_object(&key(Of::Service, "shop", "cart"), None);
    world.settle();
    assert_eq!(targets(&world), [(false, 9), (false, 1)]);
}

#[test]
fn hostnames_are_cut_down_to_the_listeners_and_mean_nothing_to_services() {
    let parents = "[{name: gw, namespace: infra}, {group: '', kind: Service, name: cart}]";
    let text = with(BASE, "[{name: gw, namespace: infra}]", parents);
    let text = with(
        &text,
        "[shop.example.com]",
        "[shop.example.com, example.org, '*.shop.example.com']",
    );
    let route = wire_route(&world(&text));
    assert_eq!(
        route.attachments[0].hostnames,
        ["shop.example.com", "*.shop.example.com"]
    );
    let pb::attachment::Parent::Listener(parent) = route.attachments[0].parent.clone().unwrap() else {
        panic!("{route:?}")
    };
    assert_eq!(
        (
            parent.gateway_namespace.as_str(),
            parent.gateway.as_str(),
            parent.listener.as_str()
        ),
        ("infra", "gw", "http")
    );
    assert!(route.attachments[1].hostnames.is_empty());
    assert_eq!(route.created, 100);
}

#[test]
fn times_of_conditions_and_objects_are_kept() {
    let mut world = world(BASE);
    let since = |world: &World| {
        let object = world.show(&key(Of::HttpRoute, "shop", "cart")).unwrap();
        let parent = &object["status"]["parents"][0]["conditions"][0];
        let text = |v: &Value| v.as_str().unwrap().to_owned();
        (
            text(&object["metadata"]["creationTimestamp"]),
            object["metadata"]["generation"].as_u64().unwrap(),
            text(&parent["lastTransitionTime"]),
            text(&parent["reason"]),
        )
    };
    let at = |seconds: u64| format!("1970-01-01T00:{:02}:{:02}Z", seconds / 60, seconds % 60);
    assert_eq!(since(&world), (at(100), 1, at(100), "Accepted".into()));
    // The same again, later: nothing changes.
    world.set_time(200);
    apply(&mut world, BASE);
    assert_eq!(since(&world), (at(100), 1, at(100), "Accepted".into()));
    // Refused, and with another reason for it: the time is of the change to False.
    let own = BASE.rsplit("---").next().unwrap();
    apply(&mut world, &with(own, "[shop.example.com]", "[shop.example.org]"));
    assert_eq!(
        since(&world),
        (at(100), 2, at(200), "NoMatchingListenerHostname".into())
    );
    world.set_time(300);
    let gateway = BASE.split("---").next().unwrap();
    apply(&mut world, &with(gateway, "{from: All}", "{from: Same}"));
    assert_eq!(
        since(&world),
        (at(100), 2, at(200), "NotAllowedByListeners".into())
    );
    apply(&mut world, BASE);
    assert_eq!(since(&world), (at(100), 3, at(300), "Accepted".into()));
}

#[test]
fn of_an_http_and_a_grpc_route_with_the_same_host_the_older_one_attaches() {
    let grpc = |host: &str, name: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: GRPCRoute\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{parentRefs: [{{name: gw, namespace: infra}}], hostnames: ['{host}'], rules: [{{backendRefs: [{{name: cart, port: 80}}]}}]}}"
        )
    };
    let of = |world: &World, kind: Of, name: &str| {
        let object = world.show(&key(kind, "shop", name)).unwrap();
        let all = object["status"]["parents"][0]["conditions"].as_array().unwrap();
        all.iter().find(|c| c["type"] == "Accepted").unwrap()["reason"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    let mut world = world(BASE);
    let http = |world: &World| of(world, Of::HttpRoute, "cart");
    let rpc = |world: &World| of(world, Of::GrpcRoute, "rpc");
    world.set_time(200);
    for (host, expected) in [
        ("shop.example.com", "HostnameConflict"),
        ("*.example.com", "HostnameConflict"),
        ("rpc.example.com", "Accepted"),
        ("*.shop.example.com", "Accepted"),
        ("shop.example.com", "HostnameConflict"),
    ] {
        apply(&mut world, &grpc(host, "rpc"));
        assert_eq!(
            (http(&world), rpc(&world)),
            ("Accepted".into(), expected.into()),
            "{host}"
        );
    }
    // The older one goes elsewhere, comes back, goes away.
    let own = BASE.rsplit("---").next().unwrap();
    apply(&mut world, &with(own, "shop.example.com", "other.example.com"));
    assert_eq!(rpc(&world), "Accepted");
    apply(&mut world, own);
    assert_eq!(rpc(&world), "HostnameConflict");
    world.set_object(&key(Of::HttpRoute, "shop", "cart"), None);
    world.settle();
    assert_eq!(rpc(&world), "Accepted");
    // Back, now it is the younger one.
    world.seen_writes();
    world.set_time(300);
    apply(&mut world, own);
    assert_eq!(
        (http(&world), rpc(&world)),
        ("HostnameConflict".into(), "Accepted".into())
    );
    // Of the same age: the first by name.
    world.set_object(&key(Of::GrpcRoute, "shop", "rpc"), None);
    world.settle();
    world.seen_writes();
    apply(&mut world, &grpc("shop.example.com", "a"));
    assert_eq!(
        (http(&world), of(&world, Of::GrpcRoute, "a")),
        ("HostnameConflict".into(), "Accepted".into())
    );
}
