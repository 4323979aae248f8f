//! Secrets, configuration and locks, over HTTP and gRPC.

use crate::{
    grpc::client,
    stage::{App, Stage, until},
    world::{Answer, get, send},
};
use serde_json::json;
use std::net::SocketAddr;
use tonic::Code;
use tonic_types::StatusExt;
use weft_flows::Kind;
use weft_proto::dapr::runtime::v1 as pb;

fn told(response: &Answer) -> (u16, String, String) {
    let message = response.json()["message"].as_str().unwrap_or_default().to_owned();
    (response.status, response.code(), message)
}

fn secret(store: &str, key: &str) -> pb::GetSecretRequest {
    pb::GetSecretRequest {
        store_name: store.into(),
        key: key.into(),
        ..Default::default()
    }
}

#[tokio::test]
async fn secrets_are_an_apps_own_and_what_its_configuration_lets_it_see() {
    let stage = Stage::new();
    let app = App::new(&[]).await;
    let none = stage.app("early", &app).await;
    let refused = get(none.api, "/v1.0/secrets/env/a", "").await;
    let wanted = (
        500,
        "ERR_SECRET_STORES_NOT_CONFIGURED".into(),
        "secret store is not configured".into(),
    );
    assert_eq!(told(&refused), wanted);

    stage.component("env", "secretstores.local.env", &[], &[]);
    stage.component(
        "file",
        "secretstores.local.file",
        &[("secretsFile", "secrets.json")],
        &["cart"],
    );
    let folder = stage.files.path().join("default/cart");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(
        folder.join("secrets.json"),
        r#"{"redis": {"password": "p"}, "b": "2"}"#,
    )
    .unwrap();
    stage.manifest(
        "strict",
        &json!({"kind": "Configuration", "spec": {"secrets": {"scopes": [
            {"storeName": "env", "defaultAccess": "deny", "allowedSecrets": ["A"]},
            {"storeName": "file", "deniedSecrets": ["b"]},
        ]}}}),
    );
    let env = ("dapr.io/env", "A=1,B=2,DAPR_API_TOKEN=x");
    let cart = stage.annotated("cart", &app, &[env]).await;
    let strict = stage
        .annotated("strict", &app, &[env, ("dapr.io/config", "strict")])
        .await;
    let lost = stage
        .annotated("lost", &app, &[env, ("dapr.io/config", "nowhere")])
        .await;

    let all = get(cart.api, "/v1.0/secrets/env/bulk", "").await;
    assert_eq!(
        (all.status, all.json()),
        (200, json!({"A": {"A": "1"}, "B": {"B": "2"}}))
    );
    assert_eq!(
        get(cart.api, "/v1.0/secrets/env/A", "").await.json(),
        json!({"A": "1"})
    );
    let nested = get(
        cart.api,
        "/v1.0/secrets/file/redis%3Apassword?metadata.version_id=1",
        "",
    )
    .await;
    assert_eq!(nested.json(), json!({"redis:password": "p"}));
    let missing = get(cart.api, "/v1.0/secrets/file/none", "").await;
    let message = "failed getting secret with key none from secret store file: secret none not found";
    assert_eq!(told(&missing), (500, "ERR_SECRET_GET".into(), message.into()));
    let nowhere = get(cart.api, "/v1.0/secrets/nowhere/a", "").await;
    let message = "failed finding secret store with key nowhere";
    assert_eq!(
        told(&nowhere),
        (401, "ERR_SECRET_STORE_NOT_FOUND".into(), message.into())
    );
    // In scope for another app only, and no file of its own.
    let other = get(none.api, "/v1.0/secrets/file/b", "").await;
    assert_eq!(other.status, 401);
    assert_eq!(
        send(cart.api, "POST", "/v1.0/secrets/env/A", "", "").await.status,
        405
    );

    // The same with a Configuration that scopes it.
    let allowed = get(strict.api, "/v1.0/secrets/env/A", "").await;
    assert_eq!((allowed.status, allowed.json()), (200, json!({"A": "1"})));
    let denied = get(strict.api, "/v1.0/secrets/env/B", "").await;
    let message = "access denied by policy to get \"B\" from \"env\"";
    assert_eq!(
        told(&denied),
        (403, "ERR_PERMISSION_DENIED".into(), message.into())
    );
    let bulk = get(strict.api, "/v1.0/secrets/env/bulk", "").await;
    assert_eq!(
        bulk.json(),
        json!({"A": {"A": "1"}}),
        "what it may not see is left out"
    );
    // One that is named and not known here closes.
    assert_eq!(get(lost.api, "/v1.0/secrets/env/A", "").await.status, 403);
    stage.manifest("nowhere", &json!({"kind": "Configuration", "spec": {}}));
    assert_eq!(get(lost.api, "/v1.0/secrets/env/A", "").await.status, 200);

    let mut dapr = client(&strict).await;
    let got = dapr.get_secret(secret("env", "A")).await.unwrap().into_inner();
    assert_eq!(got.data, [("A".to_owned(), "1".to_owned())].into());
    let bulk = pb::GetBulkSecretRequest {
        store_name: "env".into(),
        ..Default::default()
    };
    let bulk = dapr.get_bulk_secret(bulk).await.unwrap().into_inner().data;
    assert_eq!((bulk.len(), bulk["A"].secrets["A"].as_str()), (1, "1"));
    let denied = dapr.get_secret(secret("env", "B")).await.unwrap_err();
    assert_eq!(
        (denied.code(), denied.message()),
        (Code::PermissionDenied, message_of_b())
    );
    assert_eq!(
        denied.get_details_error_info().unwrap().reason,
        "ERR_PERMISSION_DENIED"
    );
    let nowhere = dapr.get_secret(secret("nowhere", "B")).await.unwrap_err();
    assert_eq!(nowhere.code(), Code::InvalidArgument);

    let flows = stage.agent.flows();
    let flow = |status| {
        flows
            .iter()
            .find(|f| f.kind == Kind::Secret && f.status == status)
            .unwrap()
            .clone()
    };
    let told = flow(403);
    assert_eq!((told.method.as_str(), &*told.path), ("get", "/env/B"));
    assert_eq!(flow(200).drop_reason, None);
}

fn message_of_b() -> &'static str {
    "access denied by policy to get \"B\" from \"env\""
}

fn with_secret(field: &str, secret: &str, key: &str) -> serde_json::Value {
    let reference = json!({"name": secret, "key": key});
    json!({"kind": "Component", "auth": {"secretStore": "file"}, "spec": {
        "type": "state.in-memory", "version": "v1", "metadata": [{"name": field, "secretKeyRef": reference}],
    }})
}

async fn status(api: SocketAddr, target: &str) -> u16 {
    get(api, target, "").await.status
}

#[tokio::test]
async fn a_components_metadata_come_out_of_its_secret_store() {
    let stage = Stage::new();
    let folder = stage.files.path().join("default/cart");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(
        folder.join("s.json"),
        r#"{"prefix": {"state": "none"}, "one": "name"}"#,
    )
    .unwrap();
    let file = [("secretsFile", "s.json"), ("multiValued", "true")];
    // The store comes after who needs it.
    stage.manifest("store", &with_secret("keyPrefix", "prefix", "state"));
    stage.manifest("own", &with_secret("keyPrefix", "one", ""));
    stage.manifest("lacks", &with_secret("keyPrefix", "prefix", "other"));
    let app = App::new(&[]).await;
    let cart = stage.app("cart", &app).await;
    assert_eq!(status(cart.api, "/v1.0/state/store/a").await, 500);
    stage.component("file", "secretstores.local.file", &file, &[]);
    until("the store", || async {
        status(cart.api, "/v1.0/state/store/a").await == 204
    })
    .await;
    until("its neighbour", || async {
        status(cart.api, "/v1.0/state/own/a").await == 204
    })
    .await;
    assert_eq!(
        status(cart.api, "/v1.0/state/lacks/a").await,
        400,
        "its secret has no such key"
    );
    // Another app has no such secrets.
    let bill = stage.app("bill", &app).await;
    assert_eq!(status(bill.api, "/v1.0/state/store/a").await, 500);
}

#[tokio::test]
async fn configuration_is_read_and_its_changes_are_told() {
    let stage = Stage::new();
    let answers = [
        ("POST /configuration/conf/a", 200, ""),
        ("POST /configuration/conf/c", 200, ""),
    ];
    let mut app = App::new(&answers).await;
    let cart = stage.app("cart", &app).await;
    let refused = get(cart.api, "/v1.0/configuration/conf?key=a", "").await;
    let message = "configuration stores not configured".to_owned();
    assert_eq!(
        told(&refused),
        (500, "ERR_CONFIGURATION_STORE_NOT_CONFIGURED".into(), message)
    );
    let items = |text: &str| stage.component("conf", "configuration.in-memory", &[("items", text)], &[]);
    items(r#"{"a": "1", "b": {"value": "2", "version": "v7"}}"#);
    until("the store", || async {
        status(cart.api, "/v1.0/configuration/conf").await == 200
    })
    .await;
    let other = get(cart.api, "/v1.0-alpha1/configuration/none", "").await;
    let message = "configuration store none not found".to_owned();
    assert_eq!(
        told(&other),
        (400, "ERR_CONFIGURATION_STORE_NOT_FOUND".into(), message)
    );
    let got = get(cart.api, "/v1.0/configuration/conf?key=b&key=x", "").await;
    assert_eq!(got.json(), json!({"b": {"value": "2", "version": "v7"}}));
    let all = get(cart.api, "/v1.0-alpha1/configuration/conf", "").await.json();
    assert_eq!(
        all,
        json!({"a": {"value": "1"}, "b": {"value": "2", "version": "v7"}})
    );
    assert_eq!(status(cart.api, "/v1.0/configuration/conf?key=x").await, 204);

    let subscribed = get(cart.api, "/v1.0/configuration/conf/subscribe?key=a&key=c", "").await;
    let id = subscribed.json()["id"].as_str().unwrap().to_owned();
    let mut dapr = client(&cart).await;
    let ask = |keys: &[&str]| pb::SubscribeConfigurationRequest {
        store_name: "conf".into(),
        keys: keys.iter().map(ToString::to_string).collect(),
        ..Default::default()
    };
    let mut changes = dapr
        .subscribe_configuration_alpha1(ask(&["a"]))
        .await
        .unwrap()
        .into_inner();
    let first = changes.message().await.unwrap().unwrap();
    assert!(!first.id.is_empty() && first.items.is_empty());

    items(r#"{"a": "9", "b": "3", "c": "4"}"#);
    let mut told_of = std::collections::BTreeSet::new();
    while told_of.len() < 2 {
        let got = app.next().await;
        let body = got.json();
        assert_eq!(body["id"], id.as_str());
        assert_eq!(body["items"], json!({"a": {"value": "9"}, "c": {"value": "4"}}));
        told_of.insert(got.path);
    }
    assert_eq!(
        told_of.into_iter().collect::<Vec<_>>(),
        ["/configuration/conf/a", "/configuration/conf/c"]
    );
    let change = changes.message().await.unwrap().unwrap();
    assert_eq!(
        (change.id.as_str(), change.items["a"].value.as_str()),
        (first.id.as_str(), "9")
    );
    assert_eq!(change.items.len(), 1);

    // Both end: one by HTTP, one by gRPC; then another change is told to nobody.
    let end = format!("/v1.0/configuration/conf/{id}/unsubscribe");
    assert_eq!(get(cart.api, &end, "").await.json(), json!({"ok": true}));
    let again = get(cart.api, &end, "").await;
    let message = format!(
        "failed to unsubscribe to configuration request {id}: subscription with id {id} does not exist"
    );
    assert_eq!((again.status, again.json()), (500, json!({"message": message})));
    let unsubscribe = pb::UnsubscribeConfigurationRequest {
        store_name: "conf".into(),
        id: first.id.clone(),
    };
    let ended = dapr
        .unsubscribe_configuration(unsubscribe.clone())
        .await
        .unwrap()
        .into_inner();
    assert!(ended.ok && ended.message.is_empty());
    assert!(changes.message().await.unwrap().is_none(), "the stream ends");
    let ended = dapr
        .unsubscribe_configuration_alpha1(unsubscribe)
        .await
        .unwrap()
        .into_inner();
    assert!(!ended.ok && ended.message.contains("subscription does not exist"));
    items(r#"{"a": "10"}"#);
    until("the change", || async {
        get(cart.api, "/v1.0/configuration/conf?key=a", "").await.json() == json!({"a": {"value": "10"}})
    })
    .await;
    assert!(app.is_quiet());
    let asked = pb::GetConfigurationRequest {
        store_name: "conf".into(),
        keys: vec!["a".into()],
        ..Default::default()
    };
    let got = dapr.get_configuration(asked).await.unwrap().into_inner();
    assert_eq!(got.items["a"].value, "10");
}

#[tokio::test]
async fn a_lock_is_one_apps_and_one_owners() {
    let stage = Stage::new();
    let app = App::new(&[]).await;
    let early = stage.app("early", &app).await;
    let lock = async |api, body: &str| send(api, "POST", "/v1.0-alpha1/lock/locks", "", body).await;
    let unlock = async |api, body: &str| send(api, "POST", "/v1.0-alpha1/unlock/locks", "", body).await;
    let mine = r#"{"resourceId": "r", "lockOwner": "me", "expiryInSeconds": 600}"#;
    let yours = r#"{"resourceId": "r", "lockOwner": "you", "expiryInSeconds": 600}"#;
    let refused = lock(early.api, mine).await;
    let message = "lock store is not configured".to_owned();
    assert_eq!(
        told(&refused),
        (500, "ERR_LOCK_STORE_NOT_CONFIGURED".into(), message)
    );

    stage.component("locks", "lock.in-memory", &[], &[]);
    let (cart, bill) = (stage.app("cart", &app).await, stage.app("bill", &app).await);
    let got = lock(cart.api, mine).await;
    assert_eq!((got.status, got.json()), (200, json!({"success": true})));
    assert_eq!(lock(cart.api, yours).await.json(), json!({"success": false}));
    assert_eq!(
        lock(bill.api, yours).await.json(),
        json!({"success": true}),
        "another app's is another"
    );
    assert_eq!(unlock(cart.api, yours).await.json(), json!({"status": 2}));
    assert_eq!(unlock(cart.api, mine).await.json(), json!({"status": 0}));
    assert_eq!(unlock(cart.api, mine).await.json(), json!({"status": 1}));
    for (body, code, message) in [
        (
            r#"{"resourceId": "r", "lockOwner": "me"}"#,
            "ERR_MALFORMED_REQUEST",
            "ExpiryInSeconds is not positive in lock store locks",
        ),
        (
            r#"{"lockOwner": "me", "expiryInSeconds": 1}"#,
            "ERR_MALFORMED_REQUEST",
            "ResourceId is empty in lock store locks",
        ),
        (
            r#"{"resourceId": "r", "expiryInSeconds": 1}"#,
            "ERR_MALFORMED_REQUEST",
            "LockOwner is empty in lock store locks",
        ),
    ] {
        assert_eq!(
            told(&lock(cart.api, body).await),
            (400, code.into(), message.into())
        );
    }
    let illegal = lock(cart.api, &mine.replace("\"r\"", "\"a||b\"")).await;
    let message = "failed to try acquiring lock: input key/keyPrefix 'a||b' can't contain '||'".to_owned();
    assert_eq!(told(&illegal), (500, "ERR_TRY_LOCK".into(), message));
    let none = send(cart.api, "POST", "/v1.0-alpha1/lock/none", "", mine).await;
    assert_eq!(
        told(&none),
        (
            400,
            "ERR_LOCK_STORE_NOT_FOUND".into(),
            "lock store none not found".into()
        )
    );

    // By gRPC it is the same lock.
    let mut dapr = client(&cart).await;
    let request = |owner: &str| pb::TryLockRequest {
        store_name: "locks".into(),
        resource_id: "r".into(),
        lock_owner: owner.into(),
        expiry_in_seconds: 600,
    };
    assert!(
        dapr.try_lock_alpha1(request("me"))
            .await
            .unwrap()
            .into_inner()
            .success
    );
    assert_eq!(lock(cart.api, yours).await.json(), json!({"success": false}));
    let free = |owner: &str| pb::UnlockRequest {
        store_name: "locks".into(),
        resource_id: "r".into(),
        lock_owner: owner.into(),
    };
    let status = async |owner: &str| {
        dapr.clone()
            .unlock_alpha1(free(owner))
            .await
            .unwrap()
            .into_inner()
            .status()
    };
    assert_eq!(
        status("you").await,
        pb::unlock_response::Status::LockBelongsToOthers
    );
    assert_eq!(status("me").await, pb::unlock_response::Status::Success);
    let wrong = pb::TryLockRequest {
        expiry_in_seconds: 0,
        ..request("me")
    };
    let refused = dapr.try_lock_alpha1(wrong).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert_eq!(
        refused.get_details_error_info().unwrap().reason,
        "ERR_MALFORMED_REQUEST"
    );
}
