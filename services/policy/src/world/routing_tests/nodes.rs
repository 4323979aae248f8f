//! What nodes get of it, in which order, and what they confirm.

use super::*;

#[test]
fn a_gateway_is_programmed_when_every_node_that_is_there_confirmed_it() {
    let mut world = world(BASE);
    let programmed = |world: &mut World| {
        world.note_programmed();
        let status = world.show(&key(Of::Gateway, "infra", "gw")).unwrap()["status"].clone();
        let whole = condition(&status, "Programmed");
        assert_eq!(condition(&status["listeners"][0], "Programmed"), whole);
        whole
    };
    let (yes, no) = (pair("True", "Programmed"), pair("False", "Pending"));
    assert_eq!(programmed(&mut world), no, "nobody serves it");
    let mut one = connect(&mut world, "n1", 1);
    assert_eq!(programmed(&mut world), no, "not confirmed");
    one.take(&mut world, "n1");
    assert_eq!(programmed(&mut world), yes);
    let mut two = connect(&mut world, "n2", 2);
    assert_eq!(programmed(&mut world), no, "one of two");
    two.take(&mut world, "n2");
    assert_eq!(programmed(&mut world), yes);
    // A change of it has to be confirmed again, one of something else has not.
    apply(
        &mut world,
        "apiVersion: v1\nkind: Service\nmetadata: {name: x, namespace: z}\nspec: {ports: [{port: 1}]}",
    );
    assert_eq!(programmed(&mut world), yes);
    let changed = with(
        BASE.split("---").next().unwrap(),
        "'*.example.com'",
        "'*.example.org'",
    );
    apply(&mut world, &changed);
    world.note_programmed();
    let status = |world: &World| world.show(&key(Of::Gateway, "infra", "gw")).unwrap()["status"].clone();
    let said = |status: &Value| {
        let all = status["conditions"].as_array().unwrap();
        let one = all.iter().find(|c| c["type"] == "Programmed").unwrap();
        (
            one["status"].as_str().unwrap().to_owned(),
            one["observedGeneration"].as_u64().unwrap(),
        )
    };
    assert_eq!(said(&status(&world)), ("False".into(), 2));
    one.take(&mut world, "n1");
    let refused = two.updates.try_recv().unwrap().version;
    world.nack("n2", 2, refused, vec!["no".into()]);
    world.note_programmed();
    assert_eq!(said(&status(&world)).0, "False", "one refused it");
    world.disconnect("n2", 2);
    world.note_programmed();
    assert_eq!(said(&status(&world)).0, "True", "who is away serves what it had");
}

#[test]
fn a_gateway_has_the_address_of_its_service_or_it_is_said_why_not() {
    let (_, status) = gateway(BASE);
    let address = status["addresses"][0]["value"].as_str().unwrap().to_owned();
    assert!(address.starts_with("10."), "{status}");
    let spec = |value: &str| {
        with(
            BASE,
            "  gatewayClassName: cilium",
            &format!("  gatewayClassName: cilium\n  addresses: [{{value: {value}}}]"),
        )
    };
    let (_, status) = gateway(&spec("10.96.0.9"));
    assert_eq!(status["addresses"][0]["value"], "10.96.0.9");
    assert_eq!(condition(&status, "Programmed").1, "Pending");
    // Another Service has it already.
    let taken = with(
        &spec("10.96.0.9"),
        "{selector: {app: cart},",
        "{clusterIP: 10.96.0.9, selector: {app: cart},",
    );
    let (_, status) = gateway(&taken);
    assert_eq!(
        condition(&status, "Programmed"),
        pair("False", "AddressNotUsable")
    );
    // Somebody wrote the Service himself.
    let own = "---\napiVersion: v1\nkind: Service\nmetadata: {name: cilium-gateway-gw, namespace: infra}\nspec: {ports: [{port: 80}]}\n";
    let (mut world, status) = gateway(&format!("{BASE}{own}"));
    assert_eq!(
        condition(&status, "Programmed"),
        pair("False", "AddressNotAssigned")
    );
    world.set_object(&key(Of::Service, "infra", "cilium-gateway-gw"), None);
    world.settle();
    world.note_programmed();
    let status = world.show(&key(Of::Gateway, "infra", "gw")).unwrap()["status"].clone();
    assert_eq!(condition(&status, "Programmed").1, "Pending");
    assert_eq!(status["addresses"][0]["value"], address.as_str());
}

#[test]
fn long_and_dotted_names_make_names_of_services() {
    use super::routing::service_name;
    assert_eq!(service_name("default-gateway"), "cilium-gateway-default-gateway");
    for name in ["a.b", "a-b.c", &"g".repeat(63), &"g".repeat(64)] {
        let made = service_name(name);
        assert!(
            weft_model::check_dns_label(&made).is_ok() && made.starts_with("cilium-gateway-"),
            "{made}"
        );
        assert!(weft_model::check_app_id(&made).is_ok(), "{made}");
    }
    assert_ne!(service_name("a.b"), service_name("a-b"));
    assert_ne!(service_name(&"g".repeat(63)), service_name(&"g".repeat(64)));
}

#[test]
fn a_changed_route_is_one_resource_and_what_it_names_comes_before_it() {
    let text = format!("{BASE}{GRANT}");
    let mut world = world(&text);
    host(&mut world, "n2", "shop", "cart");
    host(&mut world, "n3", "else", "far");
    // It hosts nothing, and serves the gateway all the same.
    let mut stream = connect(&mut world, "n1", 1);
    let first = stream.take(&mut world, "n1");
    let kinds: Vec<_> = named(&first[0]);
    let at = |what: &str| kinds.iter().position(|k| k.starts_with(what)).unwrap();
    assert!(
        kinds.iter().any(|k| k == "endpoint n2/shop/cart/1") && !kinds.iter().any(|k| k.contains("far")),
        "{kinds:?}"
    );
    assert!(
        at("identity") < at("endpoint") && at("endpoint") < at("service shop/cart"),
        "{kinds:?}"
    );
    assert!(
        at("service shop/cart") < at("gateway") && at("gateway") < at("route"),
        "{kinds:?}"
    );
    // Another weight: one resource.
    let of = |backends: &str| {
        with(
            BASE.rsplit("---").next().unwrap(),
            "[{name: cart, port: 80}]",
            backends,
        )
    };
    apply(&mut world, &of("[{name: cart, port: 80, weight: 3}]"));
    let delta = stream.take(&mut world, "n1");
    assert_eq!(
        (delta.len(), named(&delta[0])),
        (1, vec!["route HTTPRoute/shop/cart".to_owned()])
    );
    // Another backend: that one with its endpoint and identity, in front.
    apply(&mut world, &of("[{name: far, namespace: else, port: 80}]"));
    let delta = stream.take(&mut world, "n1");
    let names = named(&delta[0]);
    assert_eq!(
        names[1..5],
        [
            "endpoint n3/else/far/1",
            "service else/far",
            "route HTTPRoute/shop/cart",
            "-service shop/cart"
        ]
        .map(str::to_owned),
        "{names:?}"
    );
    assert!(
        names[0].starts_with("identity")
            && names[5] == "-endpoint n2/shop/cart/1"
            && names[6].starts_with("-identity"),
        "{names:?}"
    );
    // Gone: nothing of it is left but the gateway.
    world.set_object(&key(Of::HttpRoute, "shop", "cart"), None);
    world.settle();
    let delta = stream.take(&mut world, "n1");
    let names = named(&delta[0]);
    assert_eq!(names[0], "-route HTTPRoute/shop/cart");
    assert_eq!(names.len(), 4, "{names:?}");
}

#[test]
fn routes_of_services_reach_only_who_knows_their_namespace() {
    let parent = "parentRefs: [{name: gw, namespace: infra}]";
    let text = with(
        BASE,
        parent,
        "parentRefs: [{group: '', kind: Service, name: cart}]",
    );
    let text = with(
        &text,
        "[{name: cart, port: 80}]",
        "[{name: far, namespace: else, port: 80}]",
    );
    let mut world = world(&format!("{text}{GRANT}"));
    host(&mut world, "n1", "shop", "cart");
    host(&mut world, "n2", "other", "web");
    host(&mut world, "n3", "else", "far");
    let has = |world: &World, node: &str, kind: Kind, name: &str| {
        let (node, _) = &world.nodes[node];
        node.desired.contains_key(&Key::new(kind, name))
    };
    let (mut one, mut two) = (connect(&mut world, "n1", 1), connect(&mut world, "n2", 2));
    one.take(&mut world, "n1");
    two.take(&mut world, "n2");
    for (kind, name) in [
        (Kind::Route, "HTTPRoute/shop/cart"),
        (Kind::Service, "else/far"),
        (Kind::Endpoint, "n3/else/far/1"),
    ] {
        assert!(has(&world, "n1", kind, name), "{name}");
        assert!(!has(&world, "n2", kind, name), "{name}");
    }
    // Whoever asks for the namespace gets them too.
    world.ask_for("n2", vec!["shop".into()]);
    world.settle();
    assert!(
        has(&world, "n2", Kind::Route, "HTTPRoute/shop/cart")
            && has(&world, "n2", Kind::Endpoint, "n3/else/far/1")
    );
    world.ask_for("n2", vec![]);
    world.settle();
    assert!(
        !has(&world, "n2", Kind::Route, "HTTPRoute/shop/cart")
            && !has(&world, "n2", Kind::Endpoint, "n3/else/far/1")
    );
    assert!(
        has(&world, "n2", Kind::Gateway, "infra/gw")
            && has(&world, "n2", Kind::Service, "infra/cilium-gateway-gw")
    );
}

#[test]
fn a_redirected_address_is_known_to_every_node_and_leads_to_its_own_endpoints() {
    let mut world = world(BASE);
    host(&mut world, "n1", "shop", "cart");
    // It hosts nothing of that namespace.
    host(&mut world, "n2", "else", "web");
    let _streams = [connect(&mut world, "n1", 1), connect(&mut world, "n2", 2)];
    let seen = |world: &World, node: &str| {
        let (node, _) = &world.nodes[node];
        let key = Key::new(Kind::Service, "shop/p-local-redirect");
        let resource = node.desired.get(&key)?;
        match &resource.body {
            Some(pb::resource::Body::Service(s)) => Some((
                s.cluster_ips.clone(),
                (s.ports[0].port, s.ports[0].target_port),
                s.endpoints.clone(),
            )),
            other => panic!("{other:?}"),
        }
    };
    let policy = |ip: &str, app: &str| {
        format!(
            "apiVersion: cilium.io/v2\nkind: CiliumLocalRedirectPolicy\nmetadata: {{name: p, namespace: shop}}\nspec: {{redirectFrontend: {{addressMatcher: {{ip: {ip}, toPorts: [{{port: '53', protocol: UDP}}]}}}}, redirectBackend: {{localEndpointSelector: {{matchLabels: {{app: {app}}}}}, toPorts: [{{port: '5353', protocol: UDP}}]}}}}"
        )
    };
    assert_eq!(seen(&world, "n1"), None);
    let (one, cart) = (
        vec!["169.254.20.10".to_owned()],
        vec!["n1/shop/cart/1".to_owned()],
    );
    apply(&mut world, &policy("169.254.20.10", "cart"));
    assert_eq!(seen(&world, "n1"), Some((one.clone(), (53, 5353), cart.clone())));
    // Nobody is there: calls reach nobody, and not what the address is beside the mesh.
    assert_eq!(seen(&world, "n2"), Some((one.clone(), (53, 5353), vec![])));
    apply(&mut world, &policy("169.254.20.11", "cart"));
    let other = vec!["169.254.20.11".to_owned()];
    assert_eq!(seen(&world, "n1"), Some((other, (53, 5353), cart)));
    apply(&mut world, &policy("169.254.20.10", "web"));
    assert_eq!(seen(&world, "n1"), Some((one, (53, 5353), vec![])));
    world.set_object(&key(Of::CiliumLocalRedirectPolicy, "shop", "p"), None);
    world.settle();
    assert_eq!((seen(&world, "n1"), seen(&world, "n2")), (None, None));
}

#[test]
fn a_local_redirect_leaves_each_node_the_endpoints_of_its_own() {
    let mut world = world(BASE);
    host(&mut world, "n1", "shop", "cart");
    host(&mut world, "n2", "shop", "cart");
    host(&mut world, "n3", "shop", "web");
    let mut streams: Vec<_> = ["n1", "n2", "n3"]
        .iter()
        .zip(1..)
        .map(|(node, n)| (*node, connect(&mut world, node, n)))
        .collect();
    let seen = |world: &World, node: &str| {
        let (node, _) = &world.nodes[node];
        match &node.desired[&Key::new(Kind::Service, "shop/cart")].body {
            Some(pb::resource::Body::Service(s)) => (s.endpoints.clone(), s.ports[0].target_port),
            other => panic!("{other:?}"),
        }
    };
    let (one, two) = ("n1/shop/cart/1".to_owned(), "n2/shop/cart/1".to_owned());
    for node in ["n1", "n2", "n3"] {
        assert_eq!(seen(&world, node), (vec![one.clone(), two.clone()], 80));
    }
    for (node, stream) in &mut streams {
        stream.take(&mut world, node);
    }
    let policy = |namespace: &str, app: &str| {
        format!(
            "apiVersion: cilium.io/v2\nkind: CiliumLocalRedirectPolicy\nmetadata: {{name: p, namespace: {namespace}}}\nspec: {{redirectFrontend: {{serviceMatcher: {{serviceName: cart, namespace: shop}}}}, redirectBackend: {{localEndpointSelector: {{matchLabels: {{app: {app}}}}}, toPorts: [{{port: '3500', protocol: TCP}}]}}}}"
        )
    };
    // One of another namespace has no say.
    apply(&mut world, &policy("else", "cart"));
    assert_eq!(seen(&world, "n1").0.len(), 2);
    apply(&mut world, &policy("shop", "cart"));
    assert_eq!(seen(&world, "n1"), (vec![one.clone()], 3500));
    assert_eq!(seen(&world, "n2"), (vec![two.clone()], 3500));
    // There is none here: calls reach nobody, and nobody elsewhere.
    assert_eq!(seen(&world, "n3"), (vec![], 3500));
    for (node, stream) in &mut streams {
        let delta = stream.take(&mut world, node);
        assert_eq!(
            (delta.len(), named(&delta[0])),
            (1, vec!["service shop/cart".to_owned()]),
            "{node}"
        );
    }
    // It selects others now, and follows who comes and goes.
    apply(&mut world, &policy("shop", "web"));
    assert_eq!((seen(&world, "n1").0.len(), seen(&world, "n3").0.len()), (0, 1));
    host(&mut world, "n1", "shop", "web");
    assert_eq!(seen(&world, "n1").0, ["n1/shop/web/1"]);
    world.deregister("n3/shop/web/1", 1);
    world.settle();
    world.set_object(&key(Of::CiliumLocalRedirectPolicy, "shop", "p"), None);
    world.settle();
    assert_eq!(seen(&world, "n2"), (vec![one, two], 80));
}
