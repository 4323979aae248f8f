//! Hubble's API, as its clients meet it: flows of calls that were made, who may not be reached without
//! TLS, and the file for log shippers.

use crate::{
    invocation::CART_FOR_ORDERS,
    support::{Agent, Mesh, eventually, serve_app},
};
use serde_json::Value;
use tonic::{Code, transport::Channel};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use weft_agent::{AgentConfig, AgentError};
use weft_proto::hubble::{
    flow::{Flow, FlowFilter, L7FlowType, Verdict, layer7::Record},
    observer::{
        GetAgentEventsRequest, GetFlowsRequest, GetNamespacesRequest, GetNodesRequest, ServerStatusRequest,
        get_flows_response::ResponseTypes, observer_client::ObserverClient,
    },
    peer::{ChangeNotificationType, NotifyRequest, peer_client::PeerClient},
};

fn socket(agent: &Agent) -> Channel {
    let path = agent.handle.local_socket().with_file_name("hubble.sock");
    weft_rpc::channel_local(path).unwrap()
}

async fn flows(channel: &Channel, filter: FlowFilter) -> Vec<Flow> {
    let request = GetFlowsRequest {
        whitelist: vec![filter],
        ..Default::default()
    };
    let mut client = ObserverClient::new(channel.clone());
    let mut stream = client.get_flows(request).await.unwrap().into_inner();
    let mut flows = Vec::new();
    while let Some(response) = stream.message().await.unwrap() {
        assert_eq!(response.node_name, "n1");
        if let Some(ResponseTypes::Flow(flow)) = response.response_types {
            flows.push(flow);
        }
    }
    flows
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_are_told_with_who_what_and_why() {
    let mesh = Mesh::new(&[("cart.yaml", CART_FOR_ORDERS)]).await;
    let agent = mesh.agent("n1", [127, 0, 0, 2]).await;
    agent.add("cart", serve_app("cart").await).await;
    let orders = agent.add("orders", serve_app("orders").await).await;
    let thief = agent.add("thief", serve_app("thief").await).await;
    eventually("an allowed call", async || {
        (orders.invoke("cart", "checkout").await.status == 200).then_some(())
    })
    .await;
    assert_eq!(thief.invoke("cart", "steal").await.status, 403);

    let channel = socket(&agent);
    let on_path = |path: &str| FlowFilter {
        http_path: vec![format!("^/{path}$")],
        traffic_direction: vec![weft_proto::hubble::flow::TrafficDirection::Ingress.into()],
        ..Default::default()
    };
    let told = flows(&channel, on_path("checkout")).await;
    let allowed: Vec<&Flow> = told
        .iter()
        .filter(|f| f.verdict() == Verdict::Forwarded)
        .collect();
    let kinds: Vec<L7FlowType> = allowed.iter().map(|f| f.l7.as_ref().unwrap().r#type()).collect();
    assert!(
        kinds.ends_with(&[L7FlowType::Request, L7FlowType::Response]),
        "{kinds:?}"
    );
    let (asked, answer) = (allowed[allowed.len() - 2], allowed[allowed.len() - 1]);
    let (source, destination) = (
        asked.source.as_ref().unwrap(),
        asked.destination.as_ref().unwrap(),
    );
    assert_eq!((&*source.namespace, &*source.pod_name), ("default", "orders"));
    assert!(
        source.labels.contains(&"k8s:dapr.io/app-id=orders".to_owned()),
        "{source:?}"
    );
    assert_eq!(destination.workloads[0].name, "cart");
    assert_eq!(asked.ingress_allowed_by[0].name, "cart", "{asked:?}");
    assert_eq!((asked.is_reply, answer.is_reply), (Some(false), Some(true)));
    match answer.l7.as_ref().unwrap().record.as_ref().unwrap() {
        Record::Http(http) => assert_eq!((http.code, &*http.method), (200, "GET")),
        Record::Dns(dns) => panic!("{dns:?}"),
    }
    assert_eq!(asked.weft.as_ref().unwrap().caller_proof, "port-token");

    // The twin that may not; it differs in its name only.
    let told = flows(&channel, on_path("steal")).await;
    let [refused] = &told[..] else { panic!("{told:#?}") };
    assert_eq!(refused.verdict(), Verdict::Dropped);
    assert_eq!(refused.drop_reason, 133);
    assert_eq!(refused.ingress_denied_by[0].name, "cart", "{refused:?}");
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_namespaces_and_state_are_told_and_what_is_not_served_is_said() {
    let mesh = Mesh::new(&[]).await;
    let agent = mesh.agent("n1", [127, 0, 0, 2]).await;
    agent.add("cart", serve_app("cart").await).await;
    let channel = socket(&agent);
    let mut client = ObserverClient::new(channel.clone());
    let port = agent.handle.hubble_address().unwrap().port();

    let status = client
        .server_status(ServerStatusRequest {})
        .await
        .unwrap()
        .into_inner();
    assert_eq!(status.max_flows, 4095);
    assert!(
        status.uptime_ns > 0 && status.version.starts_with("weft v"),
        "{status:?}"
    );
    let nodes = client
        .get_nodes(GetNodesRequest {})
        .await
        .unwrap()
        .into_inner()
        .nodes;
    assert_eq!(
        (&*nodes[0].name, &*nodes[0].address),
        ("n1", &*format!("127.0.0.2:{port}"))
    );
    eventually("the namespace", async || {
        let known = client
            .get_namespaces(GetNamespacesRequest {})
            .await
            .unwrap()
            .into_inner()
            .namespaces;
        (known.len() == 1 && known[0].namespace == "default").then_some(())
    })
    .await;
    let mut peers = PeerClient::new(channel.clone());
    let mut stream = peers.notify(NotifyRequest {}).await.unwrap().into_inner();
    let told = stream.message().await.unwrap().unwrap();
    assert_eq!(
        (told.r#type(), &*told.name),
        (ChangeNotificationType::PeerAdded, "n1")
    );
    assert_eq!(told.tls.unwrap().server_name, "weft-agent");

    let mut health = HealthClient::new(channel.clone());
    for (name, expected) in [
        ("hubble.server.Observer", Ok(ServingStatus::Serving)),
        ("nobody", Err(Code::NotFound)),
    ] {
        let request = HealthCheckRequest { service: name.into() };
        let checked = health.check(request).await.map(|r| r.into_inner().status());
        assert_eq!(checked.map_err(|s| s.code()), expected, "{name}");
    }

    let refused = client
        .get_agent_events(GetAgentEventsRequest::default())
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::Unimplemented);
    assert!(refused.message().contains("weft status"), "{refused}");
    let mut request = GetFlowsRequest {
        whitelist: vec![FlowFilter {
            http_path: vec!["(".into()],
            ..Default::default()
        }],
        ..Default::default()
    };
    let refused = client.get_flows(request.clone()).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().contains("http_path"), "{refused}");
    request.whitelist[0].http_path = vec!["()".into()];
    assert!(client.get_flows(request).await.is_ok());
    // Streams of those who stay hold up no drain.
    let follow = GetFlowsRequest {
        follow: true,
        ..Default::default()
    };
    let _following = client.get_flows(follow).await.unwrap();
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_tls_only_this_machine_is_answered() {
    let mesh = Mesh::new(&[]).await;
    let plain = |listen: &str| {
        let listen = listen.to_owned();
        move |config: &mut AgentConfig| {
            config.hubble_listen = listen;
            config.hubble_plaintext = true;
        }
    };
    let refused = mesh.try_agent("n1", [127, 0, 0, 2], plain("0.0.0.0:0")).await;
    assert!(
        matches!(refused, Err(AgentError::Plaintext(_))),
        "{:?}",
        refused.err()
    );
    let agent = mesh
        .try_agent("n1", [127, 0, 0, 2], plain("127.0.0.1:0"))
        .await
        .unwrap();
    let address = agent.handle.hubble_address().unwrap();
    let channel = Channel::from_shared(format!("http://{address}"))
        .unwrap()
        .connect()
        .await
        .unwrap();
    let mut client = ObserverClient::new(channel);
    assert!(client.server_status(ServerStatusRequest {}).await.is_ok());
    agent.stop().await;

    // With TLS the same client is no client.
    let agent = mesh.agent("n1", [127, 0, 0, 2]).await;
    let address = agent.handle.hubble_address().unwrap();
    let channel = Channel::from_shared(format!("http://{address}"))
        .unwrap()
        .connect_lazy();
    let refused = ObserverClient::new(channel)
        .server_status(ServerStatusRequest {})
        .await;
    assert!(refused.is_err());
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn flows_are_exported_as_configured() {
    let mesh = Mesh::new(&[]).await;
    let path = mesh.folder.path().join("events.log");
    let to = path.clone();
    let agent = mesh
        .try_agent("n1", [127, 0, 0, 2], move |config| {
            config.hubble_export.file_path = Some(to);
            config.hubble_export.denylist = r#"{"reply":[true]}"#.into();
            config.hubble_export.fieldmask = vec!["l7.http.url".into(), "source.pod_name".into()];
        })
        .await
        .unwrap();
    let cart = agent.add("cart", serve_app("cart").await).await;
    agent.add("orders", serve_app("orders").await).await;
    eventually("an exported flow", async || {
        cart.invoke("orders", "exported").await;
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        let mut lines = text.lines().filter_map(|l| serde_json::from_str::<Value>(l).ok());
        let line = lines.find(|l| l["flow"]["l7"]["http"]["url"] == "http://orders.default/exported")?;
        assert_eq!(
            (&line["flow"]["source"]["pod_name"], &line["node_name"]),
            (&"cart".into(), &"n1".into())
        );
        assert!(
            line["flow"].get("verdict").is_none(),
            "it is not among the fields: {line}"
        );
        assert!(!text.contains("RESPONSE"), "{text}");
        Some(())
    })
    .await;
    agent.stop().await;
}
