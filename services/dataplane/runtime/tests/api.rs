//! The HTTP API as one app sees it, with a callee on the same node.

#![allow(clippy::unwrap_used, missing_docs)]

mod world;

use proptest::{prelude::*, strategy::ValueTree, test_runner::TestRunner};
use serde_json::json;
use std::sync::atomic::Ordering;
use weft_flows::{Direction, DropReason, Proof, Verdict, Via};
use world::{Agent, Workload, World, echo, exchange, get};

async fn one_node() -> (
    World,
    Agent,
    Workload,
    std::sync::Arc<std::sync::atomic::AtomicUsize>,
) {
    let mut world = World::new();
    let agent = world.agent("n1");
    let (port, served) = echo().await;
    let shop = world.workload(&agent, "shop", 0).await;
    world.workload(&agent, "cart", port).await;
    (world, agent, shop, served)
}

#[tokio::test]
async fn every_form_of_address_reaches_the_app_with_the_right_path() {
    let (_world, _agent, shop, _) = one_node().await;
    for (target, headers, want) in [
        ("/v1.0/invoke/cart/method/checkout", "", "/checkout"),
        ("/v1.0/invoke/cart/method//a?b=1", "", "/a?b=1"),
        ("/v1.0/invoke/cart/method//", "", "/"),
        ("/v1.0/invoke/cart/method/", "", "/"),
        ("/v1.0/invoke/cart/method", "", "/"),
        ("/v1.0/invoke/cart/method?x=%20y", "", "/?x=%20y"),
        ("/v1.0/invoke/cart/method/something", "", "/something"),
        ("/v1.0/invoke/cart/method//something", "", "/something"),
        ("/v1.0/invoke/cart/method/a//b/", "", "/a//b/"),
        ("/v1.0/invoke/cart/method/a/../b", "", "/a/../b"),
        ("/v1.0/invoke/cart/method/a%2Fb%00", "", "/a%2Fb%00"),
        ("/v1.0/invoke/cart.default/method/a", "", "/a"),
        ("/v1.0/invoke/c%61rt/method/a", "", "/a"),
        ("/v1.0/invoke/cart/method/a?", "", "/a?"),
        ("http://localhost:3500/v1.0/invoke/cart/method/a", "", "/a"),
        ("/any//path?q", "dapr-app-id: cart\r\n", "/any//path?q"),
        ("/any", "dapr-app-id: cart.default\r\n", "/any"),
        // The header comes before the path.
        (
            "/v1.0/invoke/other/method/a",
            "dapr-app-id: cart\r\n",
            "/v1.0/invoke/other/method/a",
        ),
        // Basic ZGFwci1hcHAtaWQ6Y2FydA== is dapr-app-id:cart.
        (
            "/basic",
            "authorization: Basic ZGFwci1hcHAtaWQ6Y2FydA==\r\n",
            "/basic",
        ),
    ] {
        let answer = get(shop.api, target, headers).await;
        assert_eq!(answer.status, 200, "{target}: {answer:?}");
        assert_eq!(answer.line("request").unwrap(), format!("GET {want}"), "{target}");
        assert_eq!(answer.line("authorization"), None);
    }
}

#[tokio::test]
async fn what_names_no_app_is_answered_in_daprs_form() {
    let (_world, agent, shop, served) = one_node().await;
    for (target, headers, status, code) in [
        ("/", "", 404, "ERR_DIRECT_INVOKE"),
        ("/v1.0/nothing", "", 404, "ERR_DIRECT_INVOKE"),
        ("/v1.0/invoke/cart", "", 404, "ERR_DIRECT_INVOKE"),
        ("/v1.0/invoke/cart/methods/x", "", 404, "ERR_DIRECT_INVOKE"),
        ("//v1.0/invoke/cart/method/x", "", 404, "ERR_DIRECT_INVOKE"),
        ("/v1.0/invoke/cart%2Fx/method/a", "", 400, "ERR_DIRECT_INVOKE"),
        (
            "/v1.0/invoke/cart%2edefault/method/a",
            "",
            400,
            "ERR_DIRECT_INVOKE",
        ),
        ("/v1.0/invoke/cart%00/method/a", "", 400, "ERR_DIRECT_INVOKE"),
        ("/v1.0/invoke/../method/a", "", 400, "ERR_DIRECT_INVOKE"),
        ("/x", "dapr-app-id: a/b\r\n", 400, "ERR_DIRECT_INVOKE"),
        (
            "/x",
            "dapr-app-id: cart\r\ndapr-app-id: shop\r\n",
            400,
            "ERR_MALFORMED_REQUEST",
        ),
        ("/v1.0/invoke/nobody/method/a", "", 500, "ERR_DIRECT_INVOKE"),
        ("/v1.0/invoke/cart.other/method/a", "", 500, "ERR_DIRECT_INVOKE"),
        (
            "/v1.0/state/store/key?",
            "",
            500,
            "ERR_STATE_STORE_NOT_CONFIGURED",
        ),
    ] {
        let answer = get(shop.api, target, headers).await;
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (status, code),
            "{target}: {answer:?}"
        );
    }
    assert_eq!(served.load(Ordering::SeqCst), 0);
    let nobody = get(shop.api, "/v1.0/invoke/nobody/method/a", "").await;
    assert_eq!(
        nobody.json()["message"],
        "failed to invoke, id: nobody, err: couldn't find service: nobody"
    );
    let flow = agent.flows().pop().unwrap();
    assert_eq!(
        (flow.verdict, flow.drop_reason),
        (Verdict::Error, Some(DropReason::NoEndpoint))
    );
    assert_eq!(
        (&*flow.destination.app_id, &*flow.path, flow.status),
        ("nobody", "/a", 500)
    );
}

#[tokio::test]
async fn health_and_metadata() {
    let (_world, _agent, shop, _) = one_node().await;
    assert_eq!(get(shop.api, "/v1.0/healthz", "").await.status, 204);
    assert_eq!(get(shop.api, "/v1.0/healthz?appid=shop", "").await.status, 204);
    let other = get(shop.api, "/v1.0/healthz?appid=cart", "").await;
    assert_eq!(
        (other.status, other.code().as_str()),
        (500, "ERR_HEALTH_APPID_NOT_MATCH")
    );
    shop.health.set_app(false);
    let not_ready = get(shop.api, "/v1.0/healthz", "").await;
    assert_eq!(
        (not_ready.status, not_ready.code().as_str()),
        (500, "ERR_HEALTH_NOT_READY")
    );
    assert_eq!(get(shop.api, "/v1.0/healthz/outbound", "").await.status, 204);
    shop.health.set_outbound(false);
    let outbound = get(shop.api, "/v1.0/healthz/outbound", "").await;
    assert_eq!(
        (outbound.status, outbound.code().as_str()),
        (500, "ERR_OUTBOUND_HEALTH_NOT_READY")
    );

    let put = "PUT /v1.0/metadata/my%20key HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 5\r\n\r\nvalue";
    assert_eq!(exchange(shop.api, put.as_bytes()).await.unwrap().status, 204);
    let metadata = get(shop.api, "/v1.0/metadata?", "").await;
    assert_eq!(metadata.status, 200);
    let metadata = metadata.json();
    assert_eq!(metadata["id"], "shop");
    assert_eq!(metadata["extended"], json!({ "my key": "value" }));
    let mut keys: Vec<&str> = metadata.as_object().unwrap().keys().map(String::as_str).collect();
    keys.sort_unstable();
    let expected = [
        "actorRuntime",
        "actors",
        "appConnectionProperties",
        "components",
        "enabledFeatures",
        "extended",
        "httpEndpoints",
        "id",
        "runtimeVersion",
        "scheduler",
        "subscriptions",
        "workflows",
    ];
    assert_eq!(keys, expected);
    let post = "POST /v1.0/metadata HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
    assert_eq!(exchange(shop.api, post.as_bytes()).await.unwrap().status, 405);
}

#[tokio::test]
async fn a_token_is_asked_for_and_goes_no_further() {
    let mut world = World::new();
    let agent = world.agent("n1");
    let (port, served) = echo().await;
    let shop = world.workload_with(&agent, "shop", 0, Some("s3cret")).await;
    world.workload(&agent, "cart", port).await;
    let target = "/v1.0/invoke/cart/method/a";
    for wrong in [
        "",
        "dapr-api-token: s3cre\r\n",
        "dapr-api-token: s3cret2\r\n",
        "dapr-api-token:\r\n",
    ] {
        assert_eq!(get(shop.api, target, wrong).await.status, 401, "{wrong}");
        assert_eq!(get(shop.api, "/v1.0/metadata", wrong).await.status, 401);
        assert_eq!(get(shop.api, "/v1.0/healthz", wrong).await.status, 204);
        assert_eq!(get(shop.api, "/v1.0/healthz/outbound", wrong).await.status, 204);
    }
    assert_eq!(served.load(Ordering::SeqCst), 0);
    let right = get(shop.api, target, "dapr-api-token: s3cret\r\n").await;
    assert_eq!(right.status, 200);
    assert_eq!(right.line("dapr-api-token"), None);
    // Known by a port and a token only, which is no authentication.
    assert!(
        agent
            .rules
            .asked
            .lock()
            .iter()
            .all(|(.., authenticated)| !authenticated)
    );
    assert_eq!(agent.flows()[0].caller_proof, Some(Proof::PortToken));
}

const FORGED: &str = "dapr-caller-app-id: admin\r\ndapr-caller-app-id: root\r\ndapr-caller-namespace: kube-system\r\n\
    dapr-callee-app-id: other\r\nx-forwarded-for: 1.2.3.4\r\nx-forwarded-for: 5.6.7.8\r\nx-forwarded-host: evil\r\n\
    x-forwarded-proto: https\r\nx-real-ip: 1.2.3.4\r\nforwarded: for=1.2.3.4\r\nconnection: x-mine\r\nx-mine: 1\r\n\
    keep-alive: 1\r\nproxy-authorization: x\r\nx-kept: yes\r\n";

#[tokio::test]
async fn the_app_sees_who_really_called() {
    let (_world, _agent, shop, _) = one_node().await;
    let answer = get(shop.api, "/v1.0/invoke/cart/method/a", FORGED).await;
    let line = |name| answer.line(name);
    assert_eq!(line("dapr-caller-app-id").as_deref(), Some("shop"));
    assert_eq!(line("dapr-caller-namespace").as_deref(), Some("default"));
    assert_eq!(line("dapr-callee-app-id").as_deref(), Some("cart"));
    assert_eq!(line("x-forwarded-for").as_deref(), Some("10.0.0.0"));
    assert_eq!(line("x-forwarded-host").as_deref(), Some("shop-0"));
    assert_eq!(line("forwarded").as_deref(), Some("for=10.0.0.0;host=shop-0"));
    assert_eq!(line("x-forwarded-proto").as_deref(), Some("http"));
    assert_eq!(line("x-kept").as_deref(), Some("yes"));
    assert!(line("host").unwrap().starts_with("127.0.0.1:"));
    for gone in [
        "x-mine",
        "x-real-ip",
        "keep-alive",
        "proxy-authorization",
        "connection",
    ] {
        assert_eq!(line(gone), None, "{gone}");
    }
    assert_eq!(line("traceparent").unwrap().len(), 55);
    let trace = "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\n";
    let answer = get(shop.api, "/v1.0/invoke/cart/method/a", trace).await;
    assert_eq!(
        answer.line("traceparent").unwrap(),
        trace["traceparent: ".len()..].trim_end()
    );
}

#[tokio::test]
async fn a_refusal_names_its_rule_to_the_operator_only() {
    let (world, agent, shop, served) = one_node().await;
    let (port, _) = echo().await;
    let other = world.workload(&agent, "other", port).await;
    agent.deny(
        Direction::Ingress,
        "shop",
        "cart",
        "CiliumNetworkPolicy default/cart ingressDeny[0]",
    );
    agent.deny(
        Direction::Egress,
        "other",
        "shop",
        "CiliumNetworkPolicy default/other egressDeny[0]",
    );

    let refused = get(shop.api, "/v1.0/invoke/cart/method/pay", "").await;
    assert_eq!(
        (refused.status, refused.code().as_str()),
        (403, "ERR_DIRECT_INVOKE")
    );
    assert!(refused.text().contains("PermissionDenied") && !refused.text().contains("CiliumNetworkPolicy"));
    assert_eq!(served.load(Ordering::SeqCst), 0);
    let flows = agent.flows();
    let [ingress, egress] = &flows[..] else {
        panic!("{flows:?}")
    };
    assert_eq!(
        (ingress.direction, ingress.verdict),
        (Direction::Ingress, Verdict::Dropped)
    );
    assert_eq!(ingress.drop_reason, Some(DropReason::PolicyDenied));
    assert_eq!(
        ingress.rule.as_deref(),
        Some("CiliumNetworkPolicy default/cart ingressDeny[0]")
    );
    assert_eq!(
        (
            &*ingress.source.app_id,
            &*ingress.destination.app_id,
            ingress.status
        ),
        ("shop", "cart", 403)
    );
    assert_eq!(
        (egress.direction, egress.verdict, egress.status),
        (Direction::Egress, Verdict::Forwarded, 403)
    );

    // The twin: another caller, all else the same.
    let allowed = get(other.api, "/v1.0/invoke/cart/method/pay", "").await;
    assert_eq!(allowed.status, 200);
    let flows = agent.flows();
    let [.., ingress, egress] = &flows[..] else {
        panic!()
    };
    assert_eq!(
        (ingress.verdict, egress.verdict),
        (Verdict::Forwarded, Verdict::Forwarded)
    );
    assert_eq!(
        (&*ingress.path, ingress.method.as_str(), ingress.status),
        ("/pay", "GET", 200)
    );
    assert_eq!(
        (ingress.via, ingress.caller_proof),
        (Some(Via::SameNode), Some(Proof::PodListener))
    );
    assert_eq!(
        (ingress.destination_port, ingress.trace_id),
        (50002, egress.trace_id)
    );

    let egress_refused = get(other.api, "/v1.0/invoke/shop/method/x", "").await;
    assert_eq!(egress_refused.status, 403);
    let flow = agent.flows().pop().unwrap();
    assert_eq!(
        (flow.direction, flow.verdict),
        (Direction::Egress, Verdict::Dropped)
    );
    assert_eq!(
        flow.rule.as_deref(),
        Some("CiliumNetworkPolicy default/other egressDeny[0]")
    );
    // Each side was asked about its own workload, as TCP 50002.
    let asked = agent.rules.asked.lock();
    assert!(
        asked
            .iter()
            .all(|(.., port, authenticated)| *port == 50002 && *authenticated)
    );
    assert!(asked.contains(&(Direction::Egress, "n1/default/shop-0/1".into(), 50002, true)));
    assert!(asked.contains(&(Direction::Ingress, "n1/default/cart-1/1".into(), 50002, true)));
}

#[tokio::test]
async fn requests_that_two_readers_could_read_differently_are_refused() {
    let (_world, _agent, shop, served) = one_node().await;
    let start = "POST /v1.0/invoke/cart/method/a HTTP/1.1\r\nhost: x\r\n";
    let smuggled = "GET /v1.0/invoke/cart/method/smuggled HTTP/1.1\r\nhost: x\r\n\r\n";
    for (headers, body) in [
        ("content-length: 6\r\ntransfer-encoding: chunked\r\n", "0\r\n\r\n"),
        ("transfer-encoding: chunked\r\ncontent-length: 6\r\n", "0\r\n\r\n"),
        ("transfer-encoding : chunked\r\n", "0\r\n\r\n"),
        ("transfer-encoding: chunked, identity\r\n", "0\r\n\r\n"),
        ("transfer-encoding: xchunked\r\n", "0\r\n\r\n"),
        ("content-length: 5\r\ncontent-length: 6\r\n", "hello"),
        ("content-length: +5\r\n", "hello"),
        ("content-length: 0x5\r\n", "hello"),
        ("content-length: 5, 6\r\n", "hello"),
        ("content-length : 5\r\n", "hello"),
        ("x: a\r\n folded: b\r\n", ""),
        ("x: a\0b\r\n", ""),
        ("host: y\r\n", ""),
    ] {
        let answer = exchange(
            shop.api,
            format!("{start}{headers}\r\n{body}{smuggled}").as_bytes(),
        )
        .await;
        let status = answer.as_ref().map_or(400, |a| a.status);
        assert_eq!(status, 400, "{headers:?}: {answer:?}");
        let text = answer.map(|a| a.text().to_owned()).unwrap_or_default();
        assert!(!text.contains("smuggled"), "{headers:?}");
    }
    assert_eq!(served.load(Ordering::SeqCst), 0);
    let connect =
        "CONNECT cart:80 HTTP/1.1\r\nhost: cart:80\r\ndapr-app-id: cart\r\nconnection: close\r\n\r\n";
    assert_eq!(exchange(shop.api, connect.as_bytes()).await.unwrap().status, 400);
    // Twins that are sound.
    let ends = "connection: close\r\n";
    for (headers, body) in [
        ("transfer-encoding: chunked\r\n", "5\r\nhello\r\n0\r\n\r\n"),
        ("content-length: 5\r\n", "hello"),
    ] {
        let answer = exchange(shop.api, format!("{start}{ends}{headers}\r\n{body}").as_bytes())
            .await
            .unwrap();
        assert_eq!(
            (answer.status, answer.line("body").as_deref()),
            (200, Some("Ok(5)")),
            "{headers:?}"
        );
    }
}

#[tokio::test]
async fn heads_are_bounded() {
    let (_world, _agent, shop, served) = one_node().await;
    let many = "x: y\r\n".repeat(120);
    let long = format!("x: {}\r\n", "y".repeat(100_000));
    for headers in [many, long] {
        let answer = get(shop.api, "/v1.0/invoke/cart/method/a", &headers).await;
        assert_eq!(answer.status, 431, "{answer:?}");
    }
    assert_eq!(served.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn no_header_can_change_who_calls() {
    let (_world, agent, shop, _) = one_node().await;
    let names = prop_oneof![
        "[a-zA-Z0-9-]{1,20}",
        "(?i)dapr-caller-app-id",
        "(?i)dapr-(caller-namespace|callee-app-id)",
        "(?i)(x-forwarded-(for|host)|forwarded|connection|te|upgrade|expect)",
    ];
    let values = prop_oneof![
        "[ -~]{0,30}",
        "(dapr-caller-app-id|dapr-caller-namespace)(, ?[a-z-]{1,9})?",
        "chunked|close"
    ];
    let strategy = proptest::collection::vec((names, values), 0..8);
    let mut runner = TestRunner::deterministic();
    let (mut passed, mut refused) = (0, 0);
    for _ in 0..150 {
        let headers = strategy.new_tree(&mut runner).unwrap().current();
        let taken = |n: &str| n.eq_ignore_ascii_case("host") || n.eq_ignore_ascii_case("content-length");
        let text: String = headers
            .iter()
            .filter(|(n, _)| !taken(n))
            .map(|(n, v)| format!("{n}: {v}\r\n"))
            .collect();
        let answer = get(shop.api, "/v1.0/invoke/cart/method/a", &text).await;
        if answer.status != 200 {
            assert_eq!(answer.status, 400, "{text}: {answer:?}");
            refused += 1;
            continue;
        }
        passed += 1;
        assert_eq!(
            answer.line("dapr-caller-app-id").as_deref(),
            Some("shop"),
            "{text}"
        );
        assert_eq!(
            answer.line("dapr-caller-namespace").as_deref(),
            Some("default"),
            "{text}"
        );
        assert_eq!(
            answer.line("dapr-callee-app-id").as_deref(),
            Some("cart"),
            "{text}"
        );
        assert_eq!(
            answer.line("x-forwarded-for").as_deref(),
            Some("10.0.0.0"),
            "{text}"
        );
    }
    assert!(passed > 50, "{passed} passed, {refused} were refused");
    assert!(agent.flows().iter().all(|f| &*f.source.app_id == "shop"));
}
