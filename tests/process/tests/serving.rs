//! What every service offers to operators, and how it ends.
#![allow(clippy::unwrap_used, missing_docs)]

use std::{
    fs,
    time::{Duration, Instant},
};
use tokio_stream::StreamExt;
use tonic::transport::Channel;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic_reflection::pb::{v1, v1alpha};
use weft_process_tests::{Ended, Mesh, SERVICES, SOON, run};
use weft_proto::weft::policy::v1 as policy;

fn package(name: &str) -> &str {
    match name {
        "weft-agent" => "dataplane",
        _ => name.trim_start_matches("weft-"),
    }
}

async fn v1_services(channel: Channel) -> Vec<String> {
    use v1::{server_reflection_request::MessageRequest, server_reflection_response::MessageResponse};
    let request = v1::ServerReflectionRequest {
        message_request: Some(MessageRequest::ListServices(String::new())),
        ..Default::default()
    };
    let mut client = v1::server_reflection_client::ServerReflectionClient::new(channel);
    let mut reply = client
        .server_reflection_info(tokio_stream::once(request))
        .await
        .unwrap()
        .into_inner();
    match reply.message().await.unwrap().unwrap().message_response {
        Some(MessageResponse::ListServicesResponse(list)) => {
            list.service.into_iter().map(|s| s.name).collect()
        }
        other => panic!("{other:?}"),
    }
}

async fn v1alpha_services(channel: Channel) -> Vec<String> {
    use v1alpha::{server_reflection_request::MessageRequest, server_reflection_response::MessageResponse};
    let request = v1alpha::ServerReflectionRequest {
        message_request: Some(MessageRequest::ListServices(String::new())),
        ..Default::default()
    };
    let mut client = v1alpha::server_reflection_client::ServerReflectionClient::new(channel);
    let mut reply = client
        .server_reflection_info(tokio_stream::once(request))
        .await
        .unwrap()
        .into_inner();
    match reply.message().await.unwrap().unwrap().message_response {
        Some(MessageResponse::ListServicesResponse(list)) => {
            list.service.into_iter().map(|s| s.name).collect()
        }
        other => panic!("{other:?}"),
    }
}

async fn healthy(channel: Channel) {
    let request = HealthCheckRequest::default();
    let reply = HealthClient::new(channel)
        .check(request)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(reply.status(), ServingStatus::Serving);
}

#[tokio::test(flavor = "multi_thread")]
async fn health_reflection_and_metrics_are_on_every_service() {
    let mut mesh = Mesh::whole();
    let operator = mesh.operator();
    for name in SERVICES {
        let channel = operator.channel(&mesh, name);
        healthy(channel.clone()).await;
        let prefix = format!("weft.{}.v1.", package(name));
        for services in [
            v1_services(channel.clone()).await,
            v1alpha_services(channel.clone()).await,
        ] {
            assert!(
                services.iter().any(|s| s.starts_with(&prefix)),
                "{name}: {services:?}"
            );
            assert!(
                services.contains(&"grpc.health.v1.Health".into()),
                "{name}: {services:?}"
            );
        }
        let (status, health) = mesh.get(name, "/healthz");
        assert_eq!(status, 200, "{name}: {health}");
        assert!(
            health.lines().count() > 0 && health.lines().all(|l| l.starts_with("ok ")),
            "{health}"
        );
        let (status, metrics) = mesh.get(name, "/metrics");
        assert_eq!(status, 200);
        let own = format!("weft_{}_", package(name));
        assert!(
            metrics.contains(&format!("{own}build_info{{version=\"")),
            "{name}: {metrics}"
        );
        let samples = metrics
            .lines()
            .filter(|l| l.starts_with(&own) && !l.contains("build_info"));
        assert!(
            samples.count() > 0,
            "{name} measures nothing of its own:\n{metrics}"
        );
        assert!(metrics.ends_with("# EOF\n"), "{metrics}");
        assert_eq!(mesh.get(name, "/elsewhere").0, 404);
    }
    for name in ["weft-agent", "weft-placement", "weft-policy", "weft-identity"] {
        mesh.stop(name);
    }
}

/// A stream that would go on for ever does not hold up the end of its server, and what was there
/// is there again.
#[tokio::test(flavor = "multi_thread")]
async fn services_end_in_order_with_open_streams_and_start_again() {
    let mut mesh = Mesh::whole();
    // Who is called comes after who calls: started again, it is at another address.
    for name in ["weft-agent", "weft-placement", "weft-policy", "weft-identity"] {
        let operator = mesh.operator();
        let channel = operator.channel(&mesh, name);
        // Each server's health can be watched; the stream has no end of its own.
        let mut watch = HealthClient::new(channel.clone())
            .watch(HealthCheckRequest::default())
            .await
            .unwrap()
            .into_inner();
        let first = watch.message().await.unwrap().unwrap();
        assert_eq!(first.status(), ServingStatus::Serving);
        let mut registry = None;
        if name == "weft-policy" {
            let mut client = policy::registry_client::RegistryClient::new(channel);
            let stream = client.watch(policy::WatchRequest::default()).await;
            registry = stream.ok().map(tonic::Response::into_inner);
        }
        let begun = std::time::Instant::now();
        mesh.stop(name);
        let took = begun.elapsed();
        // The deadline of a drain is 30 s.
        assert!(took < Duration::from_secs(20), "{name} took {took:?} to end");
        let end = async { while let Some(Ok(_)) = watch.next().await {} };
        tokio::time::timeout(SOON, end).await.unwrap();
        drop(registry);
        mesh.start(name);
        healthy(mesh.operator().channel(&mesh, name)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_manifest_stops_no_good_one() {
    let mut mesh = Mesh::new();
    let folder = mesh.home.at("resources");
    fs::create_dir(&folder).unwrap();
    let component = |name: &str| {
        format!(
            "apiVersion: dapr.io/v1alpha1\nkind: Component\nmetadata:\n  name: {name}\nspec:\n  \
             type: state.in-memory\n  version: v1\n"
        )
    };
    let put = |name: &str, text: &str| {
        let beside = mesh.home.file("beside", text);
        fs::rename(beside, folder.join(name)).unwrap();
    };
    put("good.yaml", &component("good"));
    put(
        "bad.yaml",
        "apiVersion: dapr.io/v1alpha1\nkind: Component\nmetadata:\n  name: bad\nspec:\n  typo: x\n",
    );
    put("worse.yaml", "this: [is no manifest\n");
    mesh.start("weft-policy");
    let process = &mesh.processes["weft-policy"];
    // The file, the line, and the field.
    process.heard("bad.yaml", |l| {
        (l.contains("bad.yaml") && l.contains("typo")).then_some(())
    });
    process.heard("worse.yaml", |l| l.contains("worse.yaml").then_some(()));
    let operator = mesh.operator();
    let mut resources =
        policy::resources_client::ResourcesClient::new(operator.channel(&mesh, "weft-policy"));
    let mut accepted = async || {
        let reply = resources
            .list(policy::ListRequest::default())
            .await
            .unwrap()
            .into_inner();
        let accepted = reply.resources.into_iter().filter(|r| r.accepted);
        accepted.map(|r| r.name).collect::<Vec<_>>()
    };
    assert_eq!(accepted().await, ["good"]);
    // One that was good keeps its last good state when it goes bad.
    let put = |name: &str, text: &str| {
        let beside = mesh.home.file("beside", text);
        fs::rename(beside, folder.join(name)).unwrap();
    };
    put(
        "good.yaml",
        "apiVersion: dapr.io/v1alpha1\nkind: Component\nmetadata: {name: good}\nspec: {tipe: x}\n",
    );
    put("late.yaml", &component("late"));
    let process = &mesh.processes["weft-policy"];
    process.heard("good.yaml", |l| {
        (l.contains("good.yaml") && l.contains("tipe")).then_some(())
    });
    let both = async {
        loop {
            let listed = accepted().await;
            if listed.contains(&"late".to_owned()) {
                return listed;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let listed = tokio::time::timeout(SOON, both).await.unwrap();
    assert!(listed.contains(&"good".to_owned()), "{listed:?}");

    // On every node the status says it first, and by its exit code.
    mesh.start("weft-placement");
    mesh.start("weft-agent");
    let status = || {
        let mut command = mesh.home.bare("weft");
        run(command.args(["status", "--run-dir"]).arg(mesh.home.path()))
    };
    let told = until("the status tells of three files", status, |s| {
        s.stdout.starts_with("3 MANIFEST FILES ARE NOT IN FORCE")
    });
    assert_eq!(told.code, Some(3), "{told:?}");
    for (file, instead) in [
        ("bad", "never good"),
        ("good", "still holds"),
        ("worse", "never good"),
    ] {
        let file = format!("/{file}.yaml: ");
        let line = told
            .stdout
            .lines()
            .find(|l| l.contains(&file) && !l.contains("yaml:1"));
        assert!(line.unwrap().contains(instead), "{told:?}");
    }
    assert!(told.stdout.contains("typo"), "{told:?}");
    for name in ["good.yaml", "bad.yaml", "worse.yaml"] {
        let beside = mesh
            .home
            .file("beside", &component(name.trim_end_matches(".yaml")));
        fs::rename(beside, folder.join(name)).unwrap();
    }
    let told = until("the status tells of none", status, |s| s.code == Some(0));
    assert!(told.stdout.starts_with("Node n1"), "{told:?}");
}

/// Asks until it is so.
fn until(what: &str, ask: impl Fn() -> Ended, wanted: impl Fn(&Ended) -> bool) -> Ended {
    let begun = Instant::now();
    loop {
        let ended = ask();
        if wanted(&ended) {
            return ended;
        }
        assert!(begun.elapsed() < SOON, "never: {what}; {ended:#?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The end of the listener and that of the streams race: neither may be lost, so many times.
#[tokio::test(flavor = "multi_thread")]
async fn open_streams_never_hold_up_the_end() {
    let mut mesh = Mesh::new();
    for round in 0..20 {
        let channel = mesh.operator().channel(&mesh, "weft-identity");
        let mut watch = HealthClient::new(channel.clone())
            .watch(HealthCheckRequest::default())
            .await
            .unwrap()
            .into_inner();
        watch.message().await.unwrap().unwrap();
        // Somebody who asked for descriptors once and might ask again.
        let asking = v1::ServerReflectionRequest {
            message_request: Some(v1::server_reflection_request::MessageRequest::ListServices(
                String::new(),
            )),
            ..Default::default()
        };
        let asking = tokio_stream::once(asking).chain(tokio_stream::pending());
        let mut reflection = v1::server_reflection_client::ServerReflectionClient::new(channel)
            .server_reflection_info(asking)
            .await
            .unwrap()
            .into_inner();
        reflection.message().await.unwrap().unwrap();
        let begun = std::time::Instant::now();
        mesh.stop("weft-identity");
        assert!(begun.elapsed() < Duration::from_secs(20), "round {round}");
        mesh.start("weft-identity");
    }
}
