//! Hubble's API while requests come in all the time, as its clients ask: how many, since when, which
//! fields, and on and on; and who is answered on its port.

use crate::{
    control::IDENTITY_SOCKETS,
    support::{Agent, App, LIMIT, Mesh, eventually, serve_app},
};
use std::{
    collections::BTreeSet,
    time::{Duration, SystemTime},
};
use tokio::task::JoinHandle;
use tonic::{Code, transport::Channel};
use weft_model::TrustDomain;
use weft_proto::{
    hubble::{
        flow::{Flow, FlowFilter, L7FlowType, TrafficDirection, Verdict},
        observer::{
            GetFlowsRequest, GetFlowsResponse, ServerStatusRequest, get_flows_response::ResponseTypes,
            observer_client::ObserverClient,
        },
    },
    weft::identity::v1::{
        SignAdminRequest, SignIngressRequest, admin_client::AdminClient,
        certificates_client::CertificatesClient,
    },
};
use weft_tls::{Expect, Svid, SvidCell};

/// Between two requests of the traffic.
const PAUSE: Duration = Duration::from_millis(3);

fn client(agent: &Agent) -> ObserverClient<Channel> {
    let path = agent.handle.local_socket().with_file_name("hubble.sock");
    ObserverClient::new(weft_rpc::channel_local(path).unwrap())
}

/// What the caller's side tells of requests to this path.
fn on_path(path: &str) -> FlowFilter {
    FlowFilter {
        http_path: vec![format!("^/{path}$")],
        traffic_direction: vec![TrafficDirection::Egress.into()],
        ..Default::default()
    }
}

fn asking(path: &str) -> GetFlowsRequest {
    GetFlowsRequest {
        whitelist: vec![on_path(path)],
        ..Default::default()
    }
}

fn flow(response: GetFlowsResponse) -> Flow {
    match response.response_types {
        Some(ResponseTypes::Flow(flow)) => flow,
        other => panic!("no flow: {other:?}"),
    }
}

async fn flows(client: &mut ObserverClient<Channel>, request: GetFlowsRequest) -> Vec<Flow> {
    let mut stream = client.get_flows(request).await.unwrap().into_inner();
    let mut flows = Vec::new();
    while let Some(response) = stream.message().await.unwrap() {
        flows.push(flow(response));
    }
    flows
}

fn time(flow: &Flow) -> SystemTime {
    flow.time.unwrap().try_into().unwrap()
}

fn kind(flow: &Flow) -> L7FlowType {
    flow.l7.as_ref().unwrap().r#type()
}

/// Requests of cart to orders, one after the other, until it is dropped.
struct Traffic(JoinHandle<()>);

impl Traffic {
    fn start(cart: &App) -> Self {
        let cart = cart.clone();
        Self(tokio::spawn(async move {
            loop {
                cart.invoke("orders", "busy").await;
                tokio::time::sleep(PAUSE).await;
            }
        }))
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// An agent under traffic, and who makes it.
async fn busy(mesh: &Mesh) -> (Agent, App, Traffic) {
    let agent = mesh.agent("n1", [127, 0, 0, 2]).await;
    let cart = agent.add("cart", serve_app("cart").await).await;
    agent.add("orders", serve_app("orders").await).await;
    let traffic = Traffic::start(&cart);
    let mut client = client(&agent);
    eventually("some traffic", async || {
        (flows(&mut client, asking("busy")).await.len() > 30).then_some(())
    })
    .await;
    (agent, cart, traffic)
}

#[tokio::test(flavor = "multi_thread")]
async fn so_many_since_then_and_only_these_fields() {
    let mesh = Mesh::new(&[]).await;
    let (agent, _, _traffic) = busy(&mesh).await;
    let mut client = client(&agent);
    let mut ask = async |change: fn(&mut GetFlowsRequest)| {
        let mut request = asking("busy");
        change(&mut request);
        flows(&mut client, request).await
    };

    let last = ask(|r| r.number = 7).await;
    let first = ask(|r| (r.number, r.first) = (7, true)).await;
    assert_eq!((last.len(), first.len()), (7, 7));
    let ids = |flows: &[Flow]| flows.iter().map(|f| f.uuid.clone()).collect::<BTreeSet<_>>();
    assert!(
        ids(&first).is_disjoint(&ids(&last)),
        "there are more than fourteen"
    );
    assert!(time(&first[0]) < time(&last[0]));
    assert_eq!(ids(&first), ids(&ask(|r| (r.number, r.first) = (7, true)).await));

    // Requests and their answers, as their readers expect them.
    for asked in last.iter().filter(|f| kind(f) == L7FlowType::Request) {
        assert_eq!(asked.is_reply, Some(false));
        assert_eq!(asked.summary, "HTTP/1.1 GET http://orders.default/busy");
        assert_eq!(asked.source.as_ref().unwrap().pod_name, "cart");
    }
    for answer in last.iter().filter(|f| kind(f) == L7FlowType::Response) {
        assert_eq!(answer.is_reply, Some(true));
        let (begin, end) = ("HTTP/1.1 200 ", "ms (GET http://orders.default/busy)");
        let number = answer
            .summary
            .strip_prefix(begin)
            .and_then(|s| s.strip_suffix(end));
        assert!(
            number.is_some_and(|n| n.parse::<u64>().is_ok()),
            "{}",
            answer.summary
        );
        assert_eq!(answer.source.as_ref().unwrap().pod_name, "orders");
    }
    let kinds: BTreeSet<_> = last.iter().map(|f| kind(f) as i32).collect();
    assert_eq!(kinds.len(), 2, "both kinds are among seven");

    // Since a moment, and until it. Answers have the time at which they came.
    let all = flows(&mut client, asking("busy")).await;
    let moment = time(&all[all.len() / 2]);
    let mut since = asking("busy");
    since.since = Some(moment.into());
    let later = flows(&mut client, since.clone()).await;
    assert!(later.iter().all(|f| time(f) >= moment), "{moment:?}");
    assert!(later.len() >= all.iter().filter(|f| time(f) >= moment).count());
    let mut until = asking("busy");
    until.until = Some(moment.into());
    let earlier = flows(&mut client, until).await;
    assert!(!earlier.is_empty() && earlier.iter().all(|f| time(f) <= moment));
    since.number = 3;
    let three = flows(&mut client, since).await;
    assert_eq!(three.len(), 3);

    let mut masked = asking("busy");
    masked.number = 4;
    let paths = ["time", "source.pod_name", "Summary"];
    masked.field_mask = Some(prost_types::FieldMask {
        paths: paths.map(str::to_owned).to_vec(),
    });
    let masked = flows(&mut client, masked).await;
    assert_eq!(masked.len(), 4);
    for flow in masked {
        let source = flow.source.as_ref().unwrap();
        assert!(!source.pod_name.is_empty() && !flow.summary.is_empty() && flow.time.is_some());
        // The rest is as if it were not there.
        assert_eq!((source.identity, source.namespace.as_str()), (0, ""), "{flow:?}");
        assert_eq!(
            (flow.verdict(), flow.uuid.as_str()),
            (Verdict::Unknown, ""),
            "{flow:?}"
        );
        assert!(flow.destination.is_none() && flow.l7.is_none(), "{flow:?}");
    }
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_follows_gets_each_new_flow_once_and_in_order() {
    let mesh = Mesh::new(&[]).await;
    let (agent, cart, _traffic) = busy(&mesh).await;
    let mut client = client(&agent);
    assert_eq!(cart.invoke("orders", "marked-0").await.status, 200);
    eventually("the first marked one", async || {
        (flows(&mut client, asking("marked-0")).await.len() == 2).then_some(())
    })
    .await;

    let follow = |number| GetFlowsRequest {
        follow: true,
        number,
        ..asking("marked-.*")
    };
    let mut new = client.get_flows(follow(0)).await.unwrap().into_inner();
    let mut with_last = client.get_flows(follow(1)).await.unwrap().into_inner();
    // Both have begun: one has shown what was there before.
    let before = flow(with_last.message().await.unwrap().unwrap());
    assert_eq!(kind(&before), L7FlowType::Response);
    assert!(before.summary.contains("/marked-0)"), "{}", before.summary);
    // The other one's beginning shows in nothing but what it tells.
    eventually("the follower to have begun", async || {
        cart.invoke("orders", "marked-1").await;
        let next = tokio::time::timeout(Duration::from_millis(200), new.message()).await;
        let told = flow(next.ok()?.unwrap().unwrap());
        assert!(
            told.summary.ends_with("/marked-1"),
            "not what was before: {}",
            told.summary
        );
        Some(())
    })
    .await;
    for number in 2..6 {
        assert_eq!(
            cart.invoke("orders", &format!("marked-{number}")).await.status,
            200
        );
    }
    for stream in [&mut new, &mut with_last] {
        let mut told = Vec::new();
        let reading = async {
            while !told
                .iter()
                .any(|s: &String| s.contains("200 ") && s.contains("/marked-5)"))
            {
                told.push(flow(stream.message().await.unwrap().unwrap()).summary);
            }
        };
        tokio::time::timeout(LIMIT, reading).await.unwrap();
        let of = |number: usize| {
            let path = format!("/marked-{number}");
            let of = told.iter().filter(|s| s.trim_end_matches(')').ends_with(&path));
            of.cloned().collect::<Vec<String>>()
        };
        let mut at = 0;
        for number in 2..6 {
            let [asked, answered] = &of(number)[..] else {
                panic!("{number}: {told:?}");
            };
            assert!(asked.starts_with("HTTP/1.1 GET ") && answered.starts_with("HTTP/1.1 200 "));
            let now = told.iter().position(|s| s == asked).unwrap();
            assert!(now >= at, "{told:?}");
            at = now;
        }
    }
    agent.stop().await;
}

/// A certificate of an operator, one of the right root that gives no right, and none.
#[tokio::test(flavor = "multi_thread")]
async fn on_its_port_a_certificate_with_a_role_is_admitted() {
    let mesh = Mesh::new(&[]).await;
    let agent = mesh.agent("n1", [127, 0, 0, 2]).await;
    let address = agent.handle.hubble_address().unwrap().to_string();
    let (trigger, drain) = weft_drain::channel();
    let member = mesh.join("n9", drain).await;
    let status = async |svid: Option<&SvidCell>| {
        let expect = Expect::Id(TrustDomain::default().node("n1").unwrap());
        let channel = weft_rpc::channel(&address, svid, &member.trust, expect).unwrap();
        let mut client = ObserverClient::new(channel);
        let asked = client.server_status(ServerStatusRequest {});
        tokio::time::timeout(LIMIT, asked).await.unwrap()
    };
    let cell = |chain: Vec<Vec<u8>>, key| {
        let chain = chain.into_iter().map(Into::into).collect();
        let cell = SvidCell::new();
        cell.set(Svid::new(chain, &key).unwrap());
        cell
    };

    let made = weft_tls::new_key_and_csr().unwrap();
    let socket = mesh.folder.path().join(IDENTITY_SOCKETS).join("identity.sock");
    let request = SignAdminRequest {
        name: "observer".into(),
        csr_der: made.csr_der,
        ttl_seconds: 60,
    };
    let signed = AdminClient::new(weft_rpc::channel_local(socket).unwrap())
        .sign_admin(request)
        .await
        .unwrap()
        .into_inner();
    let operator = cell(signed.svid.unwrap().chain_der, made.key);
    let told = status(Some(&operator)).await.unwrap().into_inner();
    assert_eq!(told.max_flows, 4095);
    assert!(
        status(Some(&member.svid)).await.is_ok(),
        "nodes may ask each other"
    );

    // As gateways call workloads: it opens no API of Weft.
    let made = weft_tls::new_key_and_csr().unwrap();
    let identity = &mesh.addresses()[0];
    let expect = Expect::Id(TrustDomain::default().service("identity").unwrap());
    let channel = weft_rpc::channel(identity, Some(&member.svid), &member.trust, expect).unwrap();
    let signed = CertificatesClient::new(channel)
        .sign_ingress(SignIngressRequest {
            csr_der: made.csr_der,
        })
        .await
        .unwrap()
        .into_inner();
    let gateway = cell(signed.svid.unwrap().chain_der, made.key);
    let refused = status(Some(&gateway)).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    assert!(refused.message().contains("weft/ingress/n9"), "{refused}");

    // Without one the connection ends: what is told is no answer of the server.
    let refused = status(None).await.unwrap_err();
    let cause = std::error::Error::source(&refused);
    assert!(
        cause.is_some_and(|c| c.is::<tonic::transport::Error>()),
        "{refused:?}"
    );
    agent.stop().await;
    trigger.drain(Duration::from_secs(5)).await;
}
