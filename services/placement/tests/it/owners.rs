//! Who owns which ids, as two nodes and the service see it.

use crate::mesh::{Mesh, host, hosts_seen, until, until_status};
use std::collections::BTreeMap;
use weft_placement_client::{Client, Placed};
use weft_placement_protocol::{LEASE, LEASE_MARGIN};
use weft_proto::weft::placement::v1 as pb;

fn placed(client: &Client) -> BTreeMap<String, Placed> {
    (0..10_000)
        .map(|i| format!("actor-{i}"))
        .map(|id| (id.clone(), client.lookup("default", "Cart", &id).unwrap()))
        .collect()
}

#[tokio::test]
async fn two_nodes_agree_on_ten_thousand_ids_and_a_killed_hosts_ids_move_alone() {
    let mesh = Mesh::new();
    let service = mesh.serve().await;
    let one = mesh.node(&service, "n1", &["a", "b"]);
    let two = mesh.node(&service, "n2", &["c", "d", "e"]);
    for node in [&one, &two] {
        until(node, |n| hosts_seen(n) == 5).await;
    }
    let before = placed(&one);
    assert_eq!(before, placed(&two));
    let mut per_host: BTreeMap<_, u32> = BTreeMap::new();
    before
        .values()
        .for_each(|p| *per_host.entry(p.host.id.to_string()).or_default() += 1);
    assert_eq!(per_host.len(), 5, "{per_host:?}");
    assert!(
        per_host.values().all(|n| (1700..2300).contains(n)),
        "{per_host:?}"
    );
    // The service says the same.
    let mut rpc = mesh.rpc(&service, "/weft/admin/ops");
    for (id, placed) in before.iter().step_by(997) {
        let request = pb::LookupRequest {
            namespace: "default".into(),
            actor_type: "Cart".into(),
            actor_id: id.clone(),
        };
        let found = rpc.lookup(request).await.unwrap().into_inner();
        let owner = found.owner.unwrap();
        assert_eq!((found.slot, found.epoch), (placed.slot, placed.epoch));
        assert_eq!((&*owner.id, &*owner.node), (&*placed.host.id, &*placed.host.node));
    }

    two.host_down("d").await;
    for node in [&one, &two] {
        until(node, |n| hosts_seen(n) == 4).await;
    }
    let after = placed(&one);
    assert_eq!(after, placed(&two));
    for (id, was) in &before {
        let is = &after[id];
        if &*was.host.id == "d" {
            assert_ne!(&*is.host.id, "d");
            assert_eq!(is.epoch, was.epoch + 1, "{id}");
        } else {
            assert_eq!(is, was, "{id} moved though its host lives");
        }
    }

    // A twin: one that joins takes its share, and only what it takes moves.
    one.host_up(host("f")).await;
    for node in [&one, &two] {
        until(node, |n| hosts_seen(n) == 5).await;
    }
    let joined = placed(&two);
    assert_eq!(joined, placed(&one));
    let moved = after.iter().filter(|(id, was)| joined[*id] != **was).count();
    assert!(
        after
            .iter()
            .all(|(id, was)| joined[id] == *was || &*joined[id].host.id == "f")
    );
    assert!((1700..2300).contains(&moved), "{moved}");
    service.stop().await;
}

#[tokio::test]
async fn a_restart_keeps_owners_and_epochs() {
    let mesh = Mesh::new();
    let service = mesh.serve().await;
    let one = mesh.node(&service, "n1", &["a", "b"]);
    let two = mesh.node(&service, "n2", &["c", "d"]);
    until(&one, |n| hosts_seen(n) == 4).await;
    two.host_down("d").await;
    for node in [&one, &two] {
        until(node, |n| hosts_seen(n) == 3).await;
    }
    let before = placed(&one);
    let table = one.tables().get("default", "Cart").unwrap().clone();
    let streams = one.status().borrow().streams;

    let address = service.address.clone();
    service.stop().await;
    until_status(&one, |s| !s.is_connected()).await;
    // With the service away nothing changes, and the lease still runs.
    assert_eq!(placed(&one), before);
    let status = one.status().borrow().clone();
    assert!(status.lease_holds() && status.lease_left() < LEASE - LEASE_MARGIN);

    let service = mesh.serve_at(&address).await;
    for node in [&one, &two] {
        until_status(node, |s| s.is_connected() && s.streams > streams).await;
    }
    // A host that comes now is the proof that both are up to date.
    one.host_up(host("e")).await;
    for node in [&one, &two] {
        until(node, |n| hosts_seen(n) == 4).await;
    }
    assert_eq!(
        one.tables().get("default", "Cart").unwrap().version(),
        table.version() + 1
    );
    for (id, is) in placed(&two) {
        let was = &before[&id];
        let epoch = was.epoch + u64::from(&*is.host.id == "e");
        assert_eq!(is.epoch, epoch, "{id}");
        assert!(is == *was || &*is.host.id == "e", "{id} moved by the restart");
    }
    service.stop().await;
}
