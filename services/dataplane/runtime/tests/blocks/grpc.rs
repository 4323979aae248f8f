//! The building blocks and invocation over gRPC.

use crate::{
    stage::{App, Stage, until},
    world::get,
};
use std::collections::HashMap;
use tonic::{Code, Request, transport::Channel};
use tonic_types::StatusExt;
use weft_proto::dapr::{
    common::v1 as common,
    runtime::v1::{self as pb, dapr_client::DaprClient},
};

pub async fn client(workload: &crate::world::Workload) -> DaprClient<Channel> {
    let endpoint = Channel::from_shared(format!("http://{}", workload.grpc)).unwrap();
    DaprClient::new(endpoint.connect().await.unwrap())
}

fn item(key: &str, value: &str) -> common::StateItem {
    common::StateItem {
        key: key.into(),
        value: value.into(),
        ..Default::default()
    }
}

fn save(items: Vec<common::StateItem>) -> pb::SaveStateRequest {
    pb::SaveStateRequest {
        store_name: "store".into(),
        states: items,
    }
}

fn ask(key: &str) -> pb::GetStateRequest {
    pb::GetStateRequest {
        store_name: "store".into(),
        key: key.into(),
        ..Default::default()
    }
}

#[tokio::test]
async fn state_is_the_same_as_over_http() {
    let stage = Stage::new();
    stage.component("store", "state.in-memory", &[], &[]);
    let app = App::new(&[]).await;
    let cart = stage.app("cart", &app).await;
    let mut dapr = client(&cart).await;
    dapr.save_state(save(vec![item("a", "{\"n\":1}"), item("raw", "no json")]))
        .await
        .unwrap();
    assert_eq!(get(cart.api, "/v1.0/state/store/a", "").await.text(), "{\"n\":1}");
    let got = dapr.get_state(ask("a")).await.unwrap().into_inner();
    assert_eq!((got.data.as_slice(), got.etag.len()), (b"{\"n\":1}".as_ref(), 36));
    assert_eq!(
        dapr.get_state(ask("none")).await.unwrap().into_inner(),
        pb::GetStateResponse::default()
    );
    let bulk = pb::GetBulkStateRequest {
        store_name: "store".into(),
        keys: vec!["raw".into(), "none".into()],
        ..Default::default()
    };
    let bulk = dapr.get_bulk_state(bulk).await.unwrap().into_inner().items;
    assert_eq!(
        (bulk[0].key.as_str(), bulk[0].data.as_slice()),
        ("raw", b"no json".as_ref())
    );
    assert_eq!((bulk[1].key.as_str(), bulk[1].data.len()), ("none", 0));

    let stale = common::StateItem {
        etag: Some(common::Etag {
            value: "stale".into(),
        }),
        ..item("a", "2")
    };
    let refused = dapr.save_state(save(vec![stale.clone()])).await.unwrap_err();
    assert_eq!(refused.code(), Code::Aborted);
    let start = "failed saving state in state store store: possible etag mismatch. error from state store: ";
    assert!(refused.message().starts_with(start), "{refused}");
    assert_eq!(refused.get_details_error_info().unwrap().reason, "ERR_STATE_SAVE");
    let first = common::StateItem {
        options: Some(common::StateOptions {
            concurrency: common::state_options::StateConcurrency::ConcurrencyFirstWrite.into(),
            ..Default::default()
        }),
        ..item("a", "3")
    };
    assert_eq!(
        dapr.save_state(save(vec![first])).await.unwrap_err().code(),
        Code::Aborted
    );

    let operation = |kind: &str, item| pb::TransactionalStateOperation {
        operation_type: kind.into(),
        request: Some(item),
    };
    let transact = |operations| pb::ExecuteStateTransactionRequest {
        store_name: "store".into(),
        operations,
        ..Default::default()
    };
    let whole = transact(vec![
        operation("upsert", item("b", "1")),
        operation("delete", item("raw", "")),
    ]);
    dapr.execute_state_transaction(whole).await.unwrap();
    let broken = transact(vec![
        operation("upsert", item("c", "1")),
        operation("upsert", stale),
    ]);
    assert_eq!(
        dapr.execute_state_transaction(broken).await.unwrap_err().code(),
        Code::Internal
    );
    assert!(
        dapr.get_state(ask("c"))
            .await
            .unwrap()
            .into_inner()
            .data
            .is_empty()
    );
    let unknown = dapr
        .execute_state_transaction(transact(vec![operation("merge", item("c", ""))]))
        .await;
    assert_eq!(unknown.unwrap_err().code(), Code::Unimplemented);
    let delete = pb::DeleteStateRequest {
        store_name: "store".into(),
        key: "b".into(),
        ..Default::default()
    };
    dapr.delete_state(delete).await.unwrap();
    let both = pb::DeleteBulkStateRequest {
        store_name: "store".into(),
        states: vec![item("a", ""), item("none", "")],
    };
    dapr.delete_bulk_state(both).await.unwrap();
    assert!(
        dapr.get_state(ask("a"))
            .await
            .unwrap()
            .into_inner()
            .data
            .is_empty()
    );
}

#[tokio::test]
async fn errors_have_daprs_codes_and_reasons() {
    let stage = Stage::new();
    stage.component("bus", "pubsub.in-memory", &[("protectedTopics", "secret")], &[]);
    let app = App::new(&[]).await;
    let cart = stage.app("cart", &app).await;
    let mut dapr = client(&cart).await;
    let none = dapr.get_state(ask("a")).await.unwrap_err();
    assert_eq!(
        (none.code(), none.message()),
        (Code::FailedPrecondition, "state store store is not configured")
    );
    assert_eq!(
        none.get_details_error_info().unwrap().reason,
        "DAPR_STATE_NOT_CONFIGURED"
    );
    stage.component("store", "state.in-memory", &[], &[]);
    until("the store", || {
        let mut dapr = dapr.clone();
        async move { dapr.get_state(ask("a")).await.is_ok() }
    })
    .await;
    let illegal = dapr.get_state(ask("other||a")).await.unwrap_err();
    assert_eq!(
        (illegal.code(), illegal.message()),
        (
            Code::InvalidArgument,
            "input key/keyPrefix 'other||a' can't contain '||'"
        )
    );
    let empty = dapr.save_state(save(vec![item("", "x")])).await.unwrap_err();
    assert_eq!(
        (empty.code(), empty.message()),
        (Code::InvalidArgument, "state key cannot be empty")
    );
    let publish = |pubsub: &str, topic: &str| pb::PublishEventRequest {
        pubsub_name: pubsub.into(),
        topic: topic.into(),
        ..Default::default()
    };
    for (pubsub, topic, code, reason) in [
        ("", "t", Code::InvalidArgument, "DAPR_PUBSUB_NAME_EMPTY"),
        ("none", "t", Code::InvalidArgument, "DAPR_PUBSUB_NOT_FOUND"),
        ("bus", "", Code::InvalidArgument, "DAPR_PUBSUB_TOPIC_NAME_EMPTY"),
        ("bus", "secret", Code::PermissionDenied, "DAPR_PUBSUB_FORBIDDEN"),
    ] {
        let refused = dapr.publish_event(publish(pubsub, topic)).await.unwrap_err();
        assert_eq!(refused.code(), code, "{refused}");
        assert_eq!(refused.get_details_error_info().unwrap().reason, reason);
    }
    let binding = pb::InvokeBindingRequest {
        name: "none".into(),
        operation: "create".into(),
        ..Default::default()
    };
    let binding = dapr.invoke_binding(binding).await.unwrap_err();
    assert_eq!(
        (binding.code(), binding.message()),
        (
            Code::Internal,
            "error invoking output binding none: couldn't find output binding none"
        )
    );
    let query = pb::QueryStateRequest {
        store_name: "store".into(),
        ..Default::default()
    };
    let query = dapr.query_state_alpha1(query).await.unwrap_err();
    assert_eq!(
        (query.code(), query.message()),
        (Code::Internal, "state store does not support querying")
    );
}

#[tokio::test]
async fn events_and_files_are_the_same_as_over_http() {
    let stage = Stage::new();
    stage.component("bus", "pubsub.in-memory", &[], &[]);
    stage.component("files", "bindings.localstorage", &[("rootPath", "/")], &[]);
    let subscriptions = r#"[{"pubsubname": "bus", "topic": "orders", "route": "/on-order"}]"#;
    let mut app = App::subscriber(subscriptions, &[("POST /on-order", 200, "")]).await;
    let cart = stage.app("cart", &app).await;
    let mut dapr = client(&cart).await;
    until("the subscription", || {
        let mut dapr = dapr.clone();
        async move {
            dapr.get_metadata(pb::GetMetadataRequest {})
                .await
                .unwrap()
                .into_inner()
                .subscriptions
                .len()
                == 1
        }
    })
    .await;
    let told = dapr
        .get_metadata(pb::GetMetadataRequest {})
        .await
        .unwrap()
        .into_inner();
    assert_eq!(told.id, "cart");
    assert_eq!(told.registered_components.len(), 2);
    assert_eq!(
        told.subscriptions[0].r#type(),
        pb::PubsubSubscriptionType::Programmatic
    );
    let event = pb::PublishEventRequest {
        pubsub_name: "bus".into(),
        topic: "orders".into(),
        data: b"{\"id\":1}".to_vec(),
        data_content_type: "application/json".into(),
        metadata: HashMap::from([("cloudevent.id".into(), "e1".into())]),
    };
    dapr.publish_event(event).await.unwrap();
    let got = app.next().await.json();
    assert_eq!(
        (&got["id"], &got["data"]["id"], &got["source"]),
        (&"e1".into(), &1.into(), &"cart".into())
    );
    let entry = |id: &str| pb::BulkPublishRequestEntry {
        entry_id: id.into(),
        event: id.into(),
        content_type: "text/plain".into(),
        ..Default::default()
    };
    let bulk = |ids: &[&str]| pb::BulkPublishRequest {
        pubsub_name: "bus".into(),
        topic: "orders".into(),
        entries: ids.iter().map(|id| entry(id)).collect(),
        ..Default::default()
    };
    let done = dapr
        .bulk_publish_event(bulk(&["x", "y"]))
        .await
        .unwrap()
        .into_inner();
    assert!(done.failed_entries.is_empty());
    assert_eq!(
        (&app.next().await.json()["data"], &app.next().await.json()["data"]),
        (&"x".into(), &"y".into())
    );
    let twice = dapr
        .bulk_publish_event_alpha1(bulk(&["x", "x"]))
        .await
        .unwrap_err();
    assert_eq!(
        twice.get_details_error_info().unwrap().reason,
        "DAPR_PUBSUB_MARSHAL_EVENTS"
    );
    let file = |operation: &str| pb::InvokeBindingRequest {
        name: "files".into(),
        operation: operation.into(),
        data: b"hello, grpc".to_vec(),
        metadata: HashMap::from([("fileName".into(), "a".into())]),
    };
    dapr.invoke_binding(file("create")).await.unwrap();
    let read = dapr.invoke_binding(file("get")).await.unwrap().into_inner();
    assert_eq!(read.data, b"hello, grpc");
    let set = pb::SetMetadataRequest {
        key: "a".into(),
        value: "b".into(),
    };
    dapr.set_metadata(set).await.unwrap();
    assert_eq!(
        get(cart.api, "/v1.0/metadata", "").await.json()["extended"]["a"],
        "b"
    );
}

#[tokio::test]
async fn a_call_by_grpc_reaches_an_http_app() {
    let stage = Stage::new();
    let mut app = App::new(&[("PUT /do/it", 200, "done"), ("POST /fail", 404, "no such thing")]).await;
    let cart = stage.app("cart", &app).await;
    let caller = App::new(&[]).await;
    let shop = stage.app("shop", &caller).await;
    let mut dapr = client(&shop).await;
    let invoke = |id: &str, method: &str, verb: common::http_extension::Verb| pb::InvokeServiceRequest {
        id: id.into(),
        message: Some(common::InvokeRequest {
            method: method.into(),
            data: Some(prost_types::Any {
                value: b"body".to_vec(),
                ..Default::default()
            }),
            content_type: "text/plain".into(),
            http_extension: Some(common::HttpExtension {
                verb: verb.into(),
                querystring: "a=1".into(),
            }),
        }),
    };
    use common::http_extension::Verb;
    let mut request = Request::new(invoke("cart", "do/it", Verb::Put));
    request.metadata_mut().insert("x-mine", "yes".parse().unwrap());
    request
        .metadata_mut()
        .insert("dapr-caller-app-id", "forged".parse().unwrap());
    let answer = dapr.invoke_service(request).await.unwrap();
    assert_eq!(answer.metadata().get("dapr-http-status").unwrap(), "200");
    assert_eq!(answer.into_inner().data.unwrap().value, b"done");
    let got = app.next().await;
    assert_eq!(
        (got.method.as_str(), got.path.as_str(), got.body.as_ref()),
        ("PUT", "/do/it", b"body".as_ref())
    );
    assert_eq!(
        (got.header("x-mine"), got.header("content-type")),
        (Some("yes"), Some("text/plain"))
    );
    assert_eq!(got.header("dapr-caller-app-id"), Some("shop"));
    let failed = dapr
        .invoke_service(invoke("cart", "fail", Verb::Post))
        .await
        .unwrap_err();
    assert_eq!((failed.code(), failed.message()), (Code::NotFound, "Not Found"));
    let nobody = dapr
        .invoke_service(invoke("nobody", "x", Verb::Post))
        .await
        .unwrap_err();
    assert_eq!(
        (nobody.code(), nobody.message()),
        (
            Code::Internal,
            "failed to invoke, id: nobody, err: couldn't find service: nobody"
        )
    );
    drop(cart);
}

#[tokio::test]
async fn a_token_is_asked_for_here_too() {
    let stage = Stage::new();
    let app = App::new(&[]).await;
    let cart = stage
        .world
        .workload_with(&stage.agent, "cart", app.port, Some("secret"))
        .await;
    let mut dapr = client(&cart).await;
    let mut ask = async |token: Option<&str>| {
        let mut request = Request::new(pb::GetMetadataRequest {});
        if let Some(token) = token {
            request
                .metadata_mut()
                .insert("dapr-api-token", token.parse().unwrap());
        }
        dapr.get_metadata(request).await
    };
    for (token, why) in [
        (None, "missing api token in request metadata"),
        (Some("wrong"), "authentication error: api token mismatch"),
    ] {
        let refused = ask(token).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unauthenticated);
        assert_eq!(
            refused.get_details_error_info().unwrap().metadata["http.error_message"],
            why
        );
    }
    assert_eq!(ask(Some("secret")).await.unwrap().into_inner().id, "cart");
}
