//! Orders of operators: what is applied is in force and stays so, whole or not at all, beside the folder.

use crate::{
    api_server::ApiServer,
    cluster,
    postgres::Postgres,
    rig::{Rig, service},
};
use serde_json::Value;
use tonic::{Code, Status, transport::Channel};
use weft_proto::weft::policy::v1::{
    self as pb, ApplyMode, ApplyRequest, ApplyResponse, DeleteRequest, DeleteResponse, ObjectName, Outcome,
    resources_client::ResourcesClient,
};
use weft_store::DatabaseUrl;

fn client(rig: &Rig) -> ResourcesClient<Channel> {
    ResourcesClient::new(rig.channel("/weft/admin/ops"))
}

fn order(text: &str) -> ApplyRequest {
    ApplyRequest {
        file: "order.yaml".into(),
        content: text.into(),
        ..Default::default()
    }
}

async fn apply(rig: &Rig, text: &str) -> ApplyResponse {
    client(rig).apply(order(text)).await.unwrap().into_inner()
}

async fn delete(rig: &Rig, names: &[(&str, &str)]) -> DeleteResponse {
    let request = DeleteRequest {
        objects: names.iter().map(|(ns, name)| named(ns, name)).collect(),
        dry_run: false,
    };
    client(rig).delete(request).await.unwrap().into_inner()
}

fn named(namespace: &str, name: &str) -> ObjectName {
    ObjectName {
        kind: "Service".into(),
        namespace: namespace.into(),
        name: name.into(),
    }
}

fn outcomes(answer: &ApplyResponse) -> Vec<Outcome> {
    assert_eq!(answer.problems, [""; 0]);
    answer.objects.iter().map(pb::AppliedObject::outcome).collect()
}

fn deleted(answer: &DeleteResponse) -> Vec<Outcome> {
    assert_eq!(answer.problems, [""; 0]);
    answer.objects.iter().map(pb::DeletedObject::outcome).collect()
}

async fn accepted(rig: &Rig) -> Vec<String> {
    let list = rig.list().await;
    let accepted = list.resources.iter().filter(|r| r.accepted);
    accepted.map(|r| format!("{}/{}", r.namespace, r.name)).collect()
}

#[tokio::test]
async fn what_is_applied_reaches_nodes_and_survives_a_restart() {
    let rig = Rig::new(&[]).await;
    let mut node = rig.node("n1").await;
    node.register(node.workload("shop", "cart", &[])).await;
    let both = service("shop", "a") + "---\n" + &service("shop", "b");
    assert_eq!(outcomes(&apply(&rig, &both).await), [Outcome::Created; 2]);
    node.until("service", "shop/a").await;
    node.until("service", "shop/b").await;
    let changed = both.replacen("port: 80", "port: 81", 1);
    assert_eq!(
        outcomes(&apply(&rig, &changed).await),
        [Outcome::Configured, Outcome::Unchanged]
    );
    drop(node);

    let rig = rig.restart().await;
    assert_eq!(accepted(&rig).await, ["shop/a", "shop/b"]);
    assert_eq!(outcomes(&apply(&rig, &changed).await), [Outcome::Unchanged; 2]);
    let mut node = rig.node("n1").await;
    node.until("service", "shop/b").await;
    assert_eq!(
        deleted(&delete(&rig, &[("shop", "b"), ("shop", "nobody")]).await),
        [Outcome::Deleted, Outcome::NotFound]
    );
    while node.names("service") != ["shop/a"] {
        node.apply().await;
    }
    drop(node);
    let rig = rig.restart().await;
    assert_eq!(accepted(&rig).await, ["shop/a"]);
}

#[tokio::test]
async fn a_file_with_a_mistake_changes_nothing_and_all_mistakes_are_told() {
    let rig = Rig::new(&[]).await;
    let bad = service("shop", "a")
        + "---\n"
        + &service("shop", "B")
        + "---\napiVersion: v1\nkind: Service\nmetadata: {name: c}\nspec:\n  ports:\n    - port: 80\n      targetport: 1\n";
    let answer = apply(&rig, &bad).await;
    assert_eq!(answer.objects, []);
    assert_eq!(answer.problems.len(), 2, "{:?}", answer.problems);
    assert!(
        answer.problems[0].starts_with("order.yaml:8: metadata.name: "),
        "{:?}",
        answer.problems
    );
    assert_eq!(
        answer.problems[1],
        "order.yaml:17: spec.ports[0].targetport: unknown field"
    );
    assert_eq!(accepted(&rig).await, [""; 0]);
    // With both mended, all of it.
    let good = bad
        .replace("name: B", "name: b")
        .replace("targetport", "targetPort");
    assert_eq!(outcomes(&apply(&rig, &good).await), [Outcome::Created; 3]);
    assert_eq!(accepted(&rig).await, ["default/c", "shop/a", "shop/b"]);
}

#[tokio::test]
async fn what_a_file_of_the_folder_has_is_not_for_orders() {
    let rig = Rig::new(&[("a.yaml", &service("shop", "a"))]).await;
    let file = rig.dir.path().join("resources/a.yaml").display().to_string();
    let both = service("shop", "b") + "---\n" + &service("shop", "a");
    let answer = apply(&rig, &both).await;
    assert_eq!(
        answer.problems,
        [format!(
            "order.yaml:6: metadata.name: Service shop/a is in {file}, a file of the policy service's folder: \
             change it there"
        )]
    );
    assert_eq!(accepted(&rig).await, ["shop/a"]);
    let answer = delete(&rig, &[("shop", "a")]).await;
    assert_eq!(
        answer.problems,
        [format!(
            "Service shop/a is in {file}, a file of the policy service's folder: remove it there"
        )]
    );
    assert_eq!(accepted(&rig).await, ["shop/a"]);
    // Out of the file, it can be applied; and the file waits that says it again, over a restart too.
    rig.put("a.yaml", &service("shop", "z"));
    rig.list_until(|l| l.resources.iter().any(|r| r.accepted && r.name == "z"))
        .await;
    assert_eq!(outcomes(&apply(&rig, &both).await), [Outcome::Created; 2]);
    rig.put(
        "c.yaml",
        &(service("shop", "a") + "---\n" + &service("shop", "c")),
    );
    let told = |l: &pb::ListResponse| l.resources.iter().flat_map(|r| r.errors.clone()).next();
    let list = rig.list_until(|l| told(l).is_some()).await;
    let error = told(&list).unwrap();
    assert!(
        error.ends_with("c.yaml:1: metadata.name: Service shop/a was applied; weft delete removes it there"),
        "{error}"
    );
    let rig = rig.restart().await;
    assert_eq!(accepted(&rig).await, ["shop/z", "shop/a", "shop/b"]);
    assert_eq!(deleted(&delete(&rig, &[("shop", "a")]).await), [Outcome::Deleted]);
    assert_eq!(
        accepted(&rig).await,
        ["shop/z", "shop/a", "shop/c", "shop/b"],
        "the file that waited is not in force"
    );
}

#[tokio::test]
async fn a_dry_run_and_a_comparison_change_nothing() {
    let rig = Rig::new(&[("a.yaml", &service("shop", "a"))]).await;
    let mut dry = order(&service("shop", "b"));
    dry.objects = true;
    dry.set_mode(ApplyMode::DryRun);
    let answer = client(&rig).apply(dry.clone()).await.unwrap().into_inner();
    assert_eq!(outcomes(&answer), [Outcome::Created]);
    let json: Value = serde_json::from_slice(&answer.objects[0].object_json).unwrap();
    assert_eq!(json["metadata"]["name"], "b");
    // What could not be applied is refused here too.
    dry.content = service("shop", "a").into();
    let answer = client(&rig).apply(dry).await.unwrap().into_inner();
    assert_eq!(answer.problems.len(), 1);
    // A comparison is of what is there, whoever has it.
    let mut compare = order(&(service("shop", "a").replace("80", "81") + "---\n" + &service("shop", "b")));
    compare.set_mode(ApplyMode::Compare);
    let answer = client(&rig).apply(compare).await.unwrap().into_inner();
    assert_eq!(outcomes(&answer), [Outcome::Configured, Outcome::Created]);
    let live: Value = serde_json::from_slice(&answer.objects[0].live_json).unwrap();
    let new: Value = serde_json::from_slice(&answer.objects[0].object_json).unwrap();
    assert_eq!(
        (
            &live["spec"]["ports"][0]["port"],
            &new["spec"]["ports"][0]["port"]
        ),
        (&80.into(), &81.into())
    );
    assert!(answer.objects[1].live_json.is_empty());
    let gone = DeleteRequest {
        objects: vec![named("shop", "b")],
        dry_run: true,
    };
    apply(&rig, &service("shop", "b")).await;
    let answer = client(&rig).delete(gone).await.unwrap().into_inner();
    assert_eq!(deleted(&answer), [Outcome::Deleted]);
    assert_eq!(accepted(&rig).await, ["shop/a", "shop/b"]);
}

#[tokio::test]
async fn namespaces_are_as_asked_for() {
    let rig = Rig::new(&[]).await;
    let text = "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {ports: [{port: 80}]}\n";
    let mut asked = order(text);
    asked.namespace = "shop".into();
    client(&rig).apply(asked.clone()).await.unwrap();
    assert_eq!(accepted(&rig).await, ["shop/a"]);
    asked.content = service("other", "b").into();
    let answer = client(&rig).apply(asked.clone()).await.unwrap().into_inner();
    assert_eq!(outcomes(&answer), [Outcome::Created]);
    asked.namespace_only = true;
    let answer = client(&rig).apply(asked.clone()).await.unwrap().into_inner();
    assert_eq!(
        answer.problems,
        [
            "order.yaml:3: metadata.namespace: the object is of namespace other, and shop was asked for; leave out one of them"
        ]
    );
    asked.namespace = "Shop".into();
    let refused = client(&rig).apply(asked).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn only_operators_order_and_only_in_bounds() {
    let rig = Rig::new(&[]).await;
    for (path, code) in [
        ("/weft/node/n1", Some(Code::PermissionDenied)),
        ("/weft/service/identity", Some(Code::PermissionDenied)),
        ("/ns/shop/cart", Some(Code::PermissionDenied)),
        ("/weft/admin/ops", None),
    ] {
        let mut client = ResourcesClient::new(rig.channel(path));
        let applied = client.apply(order(&service("shop", "a"))).await;
        assert_eq!(applied.err().map(|s| s.code()), code, "{path}");
        let request = DeleteRequest {
            objects: vec![named("shop", "a")],
            dry_run: false,
        };
        let gone = client.delete(request).await;
        assert_eq!(gone.err().map(|s| s.code()), code, "{path}");
    }
    let refused = |asked: ApplyRequest| async { client(&rig).apply(asked).await.map_err(|s| s.code()).err() };
    let mut large = order(&service("shop", "a"));
    large.content.resize(weft_resources::MAX_FILE_BYTES, b'\n');
    assert_eq!(refused(large.clone()).await, None);
    large.content.push(b'\n');
    assert_eq!(refused(large).await, Some(Code::InvalidArgument));
    let mut unknown = order("");
    unknown.mode = 9;
    assert_eq!(refused(unknown).await, Some(Code::InvalidArgument));
    let many = DeleteRequest {
        objects: vec![named("shop", "a"); weft_resources::MAX_DOCUMENTS + 1],
        dry_run: false,
    };
    let code = |result: Result<_, Status>| result.map(|_: tonic::Response<_>| ()).map_err(|s| s.code());
    assert_eq!(code(client(&rig).delete(many).await), Err(Code::InvalidArgument));
    for wrong in [
        named("", "a"),
        ObjectName {
            kind: "Pod".into(),
            ..named("shop", "a")
        },
    ] {
        let request = DeleteRequest {
            objects: vec![wrong],
            dry_run: true,
        };
        assert_eq!(
            code(client(&rig).delete(request).await),
            Err(Code::InvalidArgument)
        );
    }
}

#[tokio::test]
async fn the_next_owner_of_a_database_has_what_was_applied() {
    let postgres = Postgres::start();
    let url = DatabaseUrl::new(postgres.url()).unwrap();
    let first = Rig::configured(|config| config.database_url = Some(url.clone())).await;
    apply(&first, &service("shop", "a")).await;
    apply(&first, &service("shop", "b")).await;
    delete(&first, &[("shop", "b")]).await;
    first.stop().await;
    let next = Rig::configured(|config| config.database_url = Some(url.clone())).await;
    assert_eq!(accepted(&next).await, ["shop/a"]);
}

#[tokio::test]
async fn what_a_cluster_has_is_written_there() {
    let server = ApiServer::start().await;
    let rig = Rig::configured(cluster::of(&server)).await;
    let refused = client(&rig)
        .apply(order(&service("shop", "a")))
        .await
        .unwrap_err();
    assert_eq!(
        (refused.code(), refused.message()),
        (
            Code::FailedPrecondition,
            "this policy service reads its objects from a Kubernetes cluster: write them there, with kubectl"
        )
    );
    let request = DeleteRequest {
        objects: vec![named("shop", "a")],
        dry_run: false,
    };
    let refused = client(&rig).delete(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
}
