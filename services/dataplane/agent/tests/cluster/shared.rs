//! Apps without a runtime of their own: shared endpoints, and Services that are invoked by their name.

use crate::{
    flows::Verdict,
    support::{Agent, App, Mesh, eventually, serve_app},
};
use weft_flows::Kind;
use weft_proto::weft::dataplane::v1::{AddRequest, WorkloadSpec};

fn service(name: &str, selector: &str, port: u16) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec:\n  selector: {{app: {selector}}}\n  \
         ports: [{{name: http, port: 80, targetPort: {port}}}]\n---\n"
    )
}

fn shared(app: &str, remote: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: {app}-dapr\n  annotations:\n    \
         weft.dev/shared-app: {app}\n    weft.dev/strategy: deployment\n    weft.dev/remote: \"{remote}\"\n\
         spec:\n  ports: [{{name: http, port: 3500}}]\n---\n"
    )
}

/// An app with a label and no app-id.
async fn plain(agent: &Agent, name: &str, port: u16) {
    let spec = WorkloadSpec {
        namespace: "default".into(),
        name: name.into(),
        labels: [("app".to_owned(), name.to_owned())].into(),
        app_port: port.into(),
        ..Default::default()
    };
    let request = AddRequest { spec: Some(spec) };
    agent.workloads().add(request).await.unwrap();
}

async fn answers(who: &App, app: &str, method: &str, wanted: &str) {
    eventually(wanted, async || {
        let answer = who.invoke(app, method).await;
        (answer.status == 200 && answer.body == wanted).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_is_called_by_its_shared_endpoint_and_by_its_services_name() {
    let (function, other) = (serve_app("function").await, serve_app("other").await);
    let policy = format!(
        "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {{name: function}}\nspec:\n  \
         endpointSelector: {{matchLabels: {{app: function}}}}\n  ingress:\n  - fromEndpoints:\n    \
         - matchLabels: {{dapr.io/app-id: fn}}\n    - matchLabels: {{dapr.io/app-id: clerk}}\n    \
         toPorts: [{{ports: [{{port: \"{function}\", protocol: TCP}}]}}]\n"
    );
    let manifests = service("function", "function", function)
        + &shared("fn", "http://function.default.svc")
        + &shared("ext", &format!("http://127.0.0.1:{other}"))
        + &shared("gone", "http://nobody")
        + &policy;
    let mesh = Mesh::new(&[("all.yaml", &manifests)]).await;
    let agent = mesh.agent("n1", [127, 0, 0, 1]).await;
    let clerk = agent.add("clerk", serve_app("clerk").await).await;
    let orders = agent.add("orders", serve_app("orders").await).await;
    plain(&agent, "function", function).await;

    answers(&orders, "fn", "x?id=1", "function /x?id=1 by orders of default").await;
    // Judged as the shared app on its port, and written down.
    let flow = agent.flow("/x", "ingress").await;
    let (source, destination) = (flow.source.unwrap(), flow.destination.unwrap());
    assert_eq!(
        (source.workload.as_str(), destination.workload.as_str()),
        ("orders", "fn-shared-n1")
    );
    assert_eq!((destination.port, flow.kind.as_str()), (50002, "invoke"));
    let flows = agent.flows().await;
    let beyond = flows
        .iter()
        .rfind(|f| f.path == "/x" && f.kind == "http")
        .unwrap();
    let (source, destination) = (
        beyond.source.clone().unwrap(),
        beyond.destination.clone().unwrap(),
    );
    assert_eq!(
        (source.workload.as_str(), destination.workload.as_str()),
        ("fn-shared-n1", "function")
    );
    assert_eq!(
        (destination.port, beyond.caller_proof.as_str()),
        (function.into(), "agent")
    );
    assert!(beyond.rule.contains("default/function"), "{beyond:?}");

    // By the Service's own name: as who calls, on the port. One thing differs: who.
    answers(&clerk, "function", "y", "function /y by clerk of default").await;
    assert_eq!(orders.invoke("function", "z").await.status, 403);
    let mut dropped = agent.flows().await.into_iter().filter(|f| f.path == "/z");
    let dropped = dropped.find(|f| f.verdict() == Verdict::Dropped).unwrap();
    assert_eq!(dropped.destination.unwrap().port, u32::from(function));
    assert!(dropped.rule.contains("default/function"), "{}", dropped.rule);

    // Outside the mesh, and nobody.
    answers(&orders, "ext", "out", "other /out by orders of default").await;
    let answer = orders.invoke("gone", "x").await;
    assert_eq!(answer.status, 500);
    assert!(answer.body.contains("there is no such Service"), "{answer:?}");

    // What callers claim is overwritten, and told.
    let forged = [("dapr-caller-app-id", "admin"), ("x-forwarded-for", "1.2.3.4")];
    let answer = orders.invoke_with("fn", "forged", &forged).await;
    assert_eq!(answer.body, "function /forged by orders of default");
    let recorded = agent.handle.flows().past();
    let invoked = recorded
        .iter()
        .find(|r| &*r.flow.path == "/forged" && r.flow.kind == Kind::Invoke);
    assert_eq!(
        &*invoked.unwrap().flow.forged,
        ["dapr-caller-app-id", "x-forwarded-for"]
    );
    let honest = recorded
        .iter()
        .find(|r| &*r.flow.path == "/out" && r.flow.kind == Kind::Invoke);
    assert!(honest.unwrap().flow.forged.is_empty());
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_with_routes_is_invoked_by_them_and_a_circle_ends() {
    let (one, two) = (serve_app("one").await, serve_app("two").await);
    let route = |name: &str, filters: &str, backend: &str, port: u16| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: {name}}}\nspec:\n  \
             parentRefs: [{{group: \"\", kind: Service, name: {name}}}]\n  rules:\n  \
             - {filters}backendRefs: [{{name: {backend}, port: {port}}}]\n---\n"
        )
    };
    let rewrite = "filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplaceFullPath, \
                   replaceFullPath: /v1.0/invoke/ring/method/x}}}]\n    ";
    let manifests = service("one", "one", one)
        + &service("two", "two", two)
        + &route("one", "", "two", 80)
        + &shared("ring", "http://ring-dapr:3500")
        + &route("ring-dapr", rewrite, "ring-dapr", 3500);
    let mesh = Mesh::new(&[("all.yaml", &manifests)]).await;
    let agent = mesh.agent("n1", [127, 0, 0, 1]).await;
    let orders = agent.add("orders", serve_app("orders").await).await;
    // It has the app-id too: the Service's routes come first.
    agent.add("one", one).await;
    plain(&agent, "two", two).await;
    answers(&orders, "one", "x", "two /x by orders of default").await;

    let answer = eventually("the shared app", async || {
        let answer = orders.invoke("ring", "x").await;
        answer.body.contains("circle").then_some(answer)
    })
    .await;
    assert_eq!(answer.status, 500);
    agent.stop().await;
}
