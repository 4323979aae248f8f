//! A database that can not be written, or holds what this service can not have written.

use crate::mesh::{Mesh, hello, host, message};
use sqlx::{Connection, SqliteConnection, sqlite::SqliteConnectOptions};
use std::time::Duration;
use tonic::Code;
use weft_placement::Clock;
use weft_proto::weft::placement::v1::{
    self as pb, join_request::Message as Up, join_response::Message as Down,
};

async fn intruder(mesh: &Mesh) -> SqliteConnection {
    let options = SqliteConnectOptions::new().filename(mesh.database());
    SqliteConnection::connect_with(&options).await.unwrap()
}

#[tokio::test]
async fn what_is_not_written_is_told_to_nobody() {
    let clock = Clock::manual();
    let mesh = Mesh::with_clock(clock.clone());
    let service = mesh.serve().await;
    let mut node = mesh.raw(&service, "n1", hello(&["a"])).await;
    node.renew().await;
    let mut rpc = mesh.rpc(&service, "/weft/node/n1");
    let lookup = pb::LookupRequest {
        namespace: "default".into(),
        actor_type: "Cart".into(),
        actor_id: "1".into(),
    };
    let before = rpc.lookup(lookup.clone()).await.unwrap().into_inner();

    // Somebody holds the database's lock.
    let mut intruder = intruder(&mesh).await;
    sqlx::query("BEGIN IMMEDIATE")
        .execute(&mut intruder)
        .await
        .unwrap();
    node.send(Up::HostUp(message(&host("b")))).await;
    assert_eq!(node.renew().await, [], "told of what is not written");
    let refused = rpc.lookup(lookup.clone()).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    assert!(refused.message().contains("locked"), "{refused}");

    sqlx::query("ROLLBACK").execute(&mut intruder).await.unwrap();
    clock.advance(Duration::from_secs(1)).await;
    let told = node.renew().await;
    assert!(
        matches!(&told[..], [Down::Delta(d)] if d.moves.len() == 2048),
        "{told:?}"
    );
    let after = rpc.lookup(lookup).await.unwrap().into_inner();
    assert_eq!(after.slot, before.slot);
    service.stop().await;
}

#[tokio::test]
async fn damaged_rows_are_named_and_not_served() {
    let mesh = Mesh::new();
    let service = mesh.serve().await;
    mesh.raw(&service, "n1", hello(&["a"])).await.renew().await;
    service.stop().await;
    for (damage, repair, named) in [
        (
            "UPDATE slots SET owners = substr(owners, 1, 700) WHERE chunk = 3",
            "UPDATE slots SET owners = (SELECT owners FROM slots WHERE chunk = 4) WHERE chunk = 3",
            "slots of default/Cart",
        ),
        (
            "UPDATE types SET slots = 1000",
            "UPDATE types SET slots = 4096",
            "type default/Cart",
        ),
        (
            "UPDATE types SET version = -1",
            "UPDATE types SET version = 1",
            "version",
        ),
    ] {
        let mut intruder = intruder(&mesh).await;
        sqlx::query(damage).execute(&mut intruder).await.unwrap();
        let error = mesh.try_serve().await.err().unwrap().to_string();
        assert!(error.contains("placement.db") && error.contains(named), "{error}");
        sqlx::query(repair).execute(&mut intruder).await.unwrap();
    }
    mesh.serve().await.stop().await;
}
