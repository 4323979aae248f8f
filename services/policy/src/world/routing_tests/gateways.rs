//! What is said of classes, Gateways and listeners.

use super::*;

#[test]
fn a_gateway_is_accepted_or_it_is_said_why_not() {
    let (there, status) = gateway(BASE);
    assert_eq!(condition(&status, "Accepted"), pair("True", "Accepted"));
    assert_eq!(listeners(&there), ["http"]);
    let spec = |more: &str| {
        with(
            BASE,
            "  gatewayClassName: cilium",
            &format!("  gatewayClassName: cilium\n  {more}"),
        )
    };
    let second = |more: &str| {
        with(
            BASE,
            "  listeners:\n",
            &format!("  listeners:\n    - {{name: b, {more}}}\n"),
        )
    };
    for (text, expected, served) in [
        (
            with(BASE, "cilium", "weft"),
            pair("True", "Accepted"),
            vec!["http"],
        ),
        (with(BASE, "cilium", "nginx"), pair("Unknown", "Pending"), vec![]),
        (
            spec("infrastructure: {parametersRef: {group: a.test, kind: A, name: a}}"),
            pair("False", "InvalidParameters"),
            vec![],
        ),
        (
            spec("infrastructure: {labels: {a: b}}"),
            pair("True", "Accepted"),
            vec!["http"],
        ),
        (
            spec("addresses: [{type: Hostname, value: a.test}]"),
            pair("False", "UnsupportedAddress"),
            vec![],
        ),
        (
            spec("addresses: [{value: 10.96.0.9}]"),
            pair("True", "Accepted"),
            vec!["http"],
        ),
        (
            with(BASE, "protocol: HTTP", "protocol: TCP").replace("      hostname: '*.example.com'\n", ""),
            pair("False", "ListenersNotValid"),
            vec![],
        ),
        (
            second("port: 9000, protocol: TCP"),
            pair("True", "ListenersNotValid"),
            vec!["http"],
        ),
        (
            second("port: 81, protocol: HTTP"),
            pair("True", "Accepted"),
            vec!["b", "http"],
        ),
        (
            second("port: 80, protocol: HTTP"),
            pair("True", "Accepted"),
            vec!["b", "http"],
        ),
        (
            second("port: 80, protocol: TCP"),
            pair("False", "ListenersNotValid"),
            vec![],
        ),
    ] {
        let (world, status) = gateway(&text);
        assert_eq!(condition(&status, "Accepted"), expected, "{text}");
        assert_eq!(listeners(&world), served, "{text}");
        let service = world.objects.service("infra", "cilium-gateway-gw");
        assert_eq!(service.is_some(), !served.is_empty(), "{text}");
    }
}

#[test]
fn what_is_wrong_with_a_listener_is_said_at_it() {
    let all = [
        ("Accepted", "True", "Accepted"),
        ("Conflicted", "False", "NoConflicts"),
        ("ResolvedRefs", "True", "ResolvedRefs"),
        ("Programmed", "False", "Pending"),
    ];
    let check = |text: &str, different: &[(&str, &str, &str)], kinds: &[&str]| {
        let (_, status) = gateway(text);
        let listener = &status["listeners"][0];
        for (kind, status, reason) in all {
            let (status, reason) = different
                .iter()
                .find(|(k, ..)| *k == kind)
                .map_or((status, reason), |(_, s, r)| (s, r));
            assert_eq!(condition(listener, kind), pair(status, reason), "{kind}: {text}");
        }
        let found = listener["supportedKinds"].as_array().unwrap().iter();
        let found: Vec<_> = found.map(|k| k["kind"].as_str().unwrap()).collect();
        assert_eq!(found, kinds, "{text}");
    };
    let both = ["HTTPRoute", "GRPCRoute"];
    check(BASE, &[], &both);
    let kinds = |kinds: &str| {
        with(
            BASE,
            "{from: All}}",
            &format!("{{from: All}}, kinds: [{kinds}]}}"),
        )
    };
    check(&kinds("{kind: HTTPRoute}"), &[], &["HTTPRoute"]);
    let unknown = ("ResolvedRefs", "False", "InvalidRouteKinds");
    check(
        &kinds("{kind: HTTPRoute}, {kind: TCPRoute}"),
        &[unknown],
        &["HTTPRoute"],
    );
    check(
        &kinds("{kind: TCPRoute}"),
        &[unknown, ("Programmed", "False", "Invalid")],
        &[],
    );
    let tcp = with(BASE, "protocol: HTTP", "protocol: TCP").replace("      hostname: '*.example.com'\n", "");
    let invalid = ("Programmed", "False", "Invalid");
    check(
        &tcp,
        &[("Accepted", "False", "UnsupportedProtocol"), invalid],
        &[],
    );
    let https = with(
        BASE,
        "protocol: HTTP",
        "protocol: HTTPS\n      tls: {certificateRefs: [{name: a}]}",
    );
    let secret = ("ResolvedRefs", "False", "InvalidCertificateRef");
    check(
        &https,
        &[("Accepted", "False", "UnsupportedProtocol"), secret, invalid],
        &both,
    );
    let own = with(BASE, "      port: 80\n", "      port: 15008\n");
    check(&own, &[("Accepted", "False", "PortUnavailable"), invalid], &both);
    let conflict = with(
        BASE,
        "  listeners:\n",
        "  listeners:\n    - {name: b, port: 80, protocol: HTTP}\n",
    );
    check(&conflict, &[], &both);
    let conflict = with(
        &conflict,
        "{name: b, port: 80, protocol: HTTP}",
        "{name: b, port: 80, protocol: UDP}",
    );
    let conflicted = ("Conflicted", "True", "ProtocolConflict");
    check(
        &conflict,
        &[("Accepted", "False", "UnsupportedProtocol"), conflicted, invalid],
        &[],
    );
}

#[test]
fn attached_routes_are_counted() {
    let count = |text: &str| gateway(text).1["listeners"][0]["attachedRoutes"].clone();
    assert_eq!(count(BASE), 1);
    assert_eq!(count(&with(BASE, "[shop.example.com]", "[shop.example.org]")), 0);
    // What is wrong with the listener itself does not count.
    let https = with(
        BASE,
        "protocol: HTTP",
        "protocol: HTTPS\n      tls: {certificateRefs: [{name: a}]}",
    );
    assert_eq!(count(&https), 1);
    let second = format!(
        "{BASE}---{}",
        with(
            BASE.rsplit("---").next().unwrap(),
            "name: cart, namespace: shop",
            "name: cart2, namespace: shop"
        )
    );
    assert_eq!(count(&second), 2);
}

#[test]
fn a_class_is_ours_or_somebody_elses() {
    let class = |name: &str, controller: &str, more: &str| {
        let text = format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: GatewayClass\nmetadata: {{name: {name}}}\nspec: {{controllerName: {controller}{more}}}"
        );
        world(&text).show(&key(Of::GatewayClass, "", name)).unwrap()["status"].clone()
    };
    let said = |status: &Value| condition(status, "Accepted");
    assert_eq!(
        said(&class("mine", "io.cilium/gateway-controller", "")),
        pair("True", "Accepted")
    );
    assert_eq!(
        said(&class("mine", "weft.dev/gateway-controller", "")),
        pair("True", "Accepted")
    );
    assert_eq!(
        said(&class("mine", "a.test/gateway-controller", "")),
        pair("Unknown", "Pending")
    );
    let parameters = ", parametersRef: {group: a.test, kind: A, name: a}";
    assert_eq!(
        said(&class("mine", "weft.dev/gateway-controller", parameters)),
        pair("False", "InvalidParameters")
    );
    // Its Gateways follow.
    let text = with(BASE, "gatewayClassName: cilium", "gatewayClassName: mine");
    let mut world = world(&text);
    assert!(listeners(&world).is_empty());
    assert!(
        world.show(&key(Of::HttpRoute, "shop", "cart")).unwrap()["status"]["parents"]
            .as_array()
            .unwrap()
            .is_empty()
    );
    apply(
        &mut world,
        "apiVersion: gateway.networking.k8s.io/v1\nkind: GatewayClass\nmetadata: {name: mine}\nspec: {controllerName: weft.dev/gateway-controller}",
    );
    assert_eq!(listeners(&world), ["http"]);
    assert_eq!(wire_route(&world).attachments.len(), 1);
}
