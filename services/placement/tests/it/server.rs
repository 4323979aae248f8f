//! The state on a PostgreSQL server.

use crate::{
    mesh::{Mesh, hello, host, message},
    postgres::Postgres,
};
use std::time::Duration;
use weft_placement::{ServeError, StateError};
use weft_proto::weft::placement::v1::{self as pb, join_request::Message as Up};
use weft_store::{DatabaseUrl, StoreError};

fn mesh(postgres: &Postgres) -> Mesh {
    let mut mesh = Mesh::new();
    mesh.url = Some(DatabaseUrl::new(postgres.url()).unwrap());
    mesh
}

fn ask(id: &str) -> pb::LookupRequest {
    pb::LookupRequest {
        namespace: "default".into(),
        actor_type: "Cart".into(),
        actor_id: id.into(),
    }
}

#[tokio::test]
async fn owners_and_epochs_are_kept_on_a_server_as_in_a_file() {
    let postgres = Postgres::start();
    let mesh = mesh(&postgres);
    let service = mesh.serve().await;
    let mut node = mesh.raw(&service, "n1", hello(&["a"])).await;
    node.renew().await;
    // A second host: half of the slots move, rows are written again, and one host goes.
    node.send(Up::HostUp(message(&host("b")))).await;
    node.renew().await;
    node.send(Up::HostDown(pb::HostDown { id: "a".into() })).await;
    node.renew().await;
    let mut rpc = mesh.rpc(&service, "/weft/node/n1");
    let before = rpc.lookup(ask("1")).await.unwrap().into_inner();
    assert_eq!(before.owner.as_ref().unwrap().id, "b");
    let epoch = node.epoch.clone();
    service.stop().await;
    assert_eq!(postgres.execute("SELECT count(*) FROM slots"), "64");
    assert_eq!(postgres.execute("SELECT id FROM hosts"), "b");

    let service = mesh.serve().await;
    let node = mesh.raw(&service, "n1", hello(&["b"])).await;
    assert_eq!(node.epoch, epoch);
    let mut rpc = mesh.rpc(&service, "/weft/node/n1");
    assert_eq!(rpc.lookup(ask("1")).await.unwrap().into_inner(), before);
    assert!(!mesh.database().exists());
    service.stop().await;
}

#[tokio::test]
async fn who_lost_the_database_renews_no_leases_any_more() {
    let postgres = Postgres::start();
    let mesh = mesh(&postgres);
    let first = mesh.serve().await;
    let mut node = mesh.raw(&first, "n1", hello(&["a"])).await;
    node.renew().await;
    // As after it was stopped for longer than its right lasts.
    postgres.execute("UPDATE weft_lease SET held_until = 0");
    let second = mesh.serve().await;
    let ended = tokio::time::timeout(Duration::from_secs(60), first.ended())
        .await
        .unwrap();
    let Err(ServeError::State(StateError::Store(StoreError::Taken { holder, .. }))) = ended else {
        panic!("{ended:?}");
    };
    assert!(holder.starts_with("placement on "), "{holder}");
    // Its streams are over with it; the other one has what it wrote.
    assert!(node.next().await.is_none());
    let mut rpc = mesh.rpc(&second, "/weft/node/n1");
    let found = rpc.lookup(ask("1")).await.unwrap().into_inner();
    assert_eq!(found.owner.unwrap().id, "a");
    second.stop().await;
}
