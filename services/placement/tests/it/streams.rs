//! What a node's stream brings, by hand: deltas for what is held, little for who reads slowly,
//! a reason for what is refused.

use crate::mesh::{Mesh, Raw, hello, host, message, typed};
use tonic::Code;
use weft_placement::Clock;
use weft_proto::weft::placement::v1::{
    self as pb, join_request::Message as Up, join_response::Message as Down,
};

fn versions(messages: &[Down]) -> Vec<(&'static str, String, u64)> {
    let mut all: Vec<_> = messages
        .iter()
        .map(|m| match m {
            Down::Table(t) => ("table", t.actor_type.clone(), t.version),
            Down::Delta(d) => ("delta", d.actor_type.clone(), d.version),
            Down::Gone(g) => ("gone", g.actor_type.clone(), g.version),
            other => panic!("{other:?}"),
        })
        .collect();
    all.sort();
    all
}

fn held(raw: &Raw, tables: &[(&str, u64)]) -> pb::Hello {
    let held = tables.iter().map(|(t, version)| pb::HeldTable {
        namespace: "default".into(),
        actor_type: (*t).into(),
        version: *version,
    });
    pb::Hello {
        held_epoch: raw.epoch.clone(),
        held: held.collect(),
        ..pb::Hello::default()
    }
}

#[tokio::test]
async fn who_comes_back_gets_what_changed_and_nothing_else() {
    let mesh = Mesh::new();
    let service = mesh.serve().await;
    let mut apps = mesh.raw(&service, "apps", hello(&[])).await;
    for id in ["a", "b", "c", "d"] {
        apps.send(Up::HostUp(message(&typed(id, &["Cart", "Order"]))))
            .await;
        apps.renew().await;
    }
    let mut node = mesh.raw(&service, "n1", hello(&[])).await;
    let first = node.renew().await;
    let (cart, order) = match &versions(&first)[..] {
        [("table", c, cart), ("table", o, order)] if c == "Cart" && o == "Order" => (*cart, *order),
        other => panic!("{other:?}"),
    };
    drop(node);

    // The same versions: nothing at all.
    let mut node = mesh
        .raw(&service, "n1", held(&apps, &[("Cart", cart), ("Order", order)]))
        .await;
    assert_eq!(node.renew().await, []);
    drop(node);
    // One type changed meanwhile: one delta.
    apps.send(Up::HostUp(message(&typed("e", &["Cart"])))).await;
    apps.renew().await;
    let known = [("Cart", cart), ("Order", order), ("Unknown", 3)];
    let mut node = mesh.raw(&service, "n1", held(&apps, &known)).await;
    let changed = node.renew().await;
    let expected = [("delta", "Cart".into(), cart + 1), ("gone", "Unknown".into(), 0)];
    assert_eq!(versions(&changed), expected);
    drop(node);
    // Versions of another database mean nothing.
    let mut stranger = held(&apps, &[("Cart", cart), ("Order", order)]);
    stranger.held_epoch = "another".into();
    let mut node = mesh.raw(&service, "n1", stranger).await;
    let expected = [
        ("table", "Cart".into(), cart + 1),
        ("table", "Order".into(), order),
    ];
    assert_eq!(versions(&node.renew().await), expected);
    // The last host of a type leaves.
    for id in ["a", "b", "c", "d"] {
        apps.send(Up::HostUp(message(&host(id)))).await;
    }
    apps.renew().await;
    let changed = node.renew().await;
    let Some(("gone", gone, _)) = versions(&changed).last().cloned() else {
        panic!("{changed:?}")
    };
    assert_eq!(gone, "Order");
    service.stop().await;
}

#[tokio::test]
async fn who_does_not_read_costs_nothing_and_catches_up_at_once() {
    const CHANGES: u64 = 300;
    // Time stands still: nobody's lease ends, however long this takes.
    let mesh = Mesh::with_clock(Clock::manual());
    let service = mesh.serve().await;
    let mut apps = mesh.raw(&service, "apps", hello(&["a", "b"])).await;
    let mut slow = mesh.raw(&service, "slow", hello(&[])).await;
    slow.renew().await;
    for i in 0..CHANGES {
        // A host that flaps: every change is a version of its own.
        let report = if i % 2 == 0 {
            Up::HostUp(message(&host("flapping")))
        } else {
            Up::HostDown(pb::HostDown {
                id: "flapping".into(),
            })
        };
        apps.send(report).await;
        apps.renew().await;
    }
    let messages = slow.renew().await;
    let last = match messages.last() {
        Some(Down::Delta(delta)) => delta.version,
        Some(Down::Table(table)) => table.version,
        other => panic!("{other:?}"),
    };
    assert!(last > CHANGES, "version {last} is not up to date");
    // What fits into sockets and flow control came one by one, the rest as one.
    let moves: usize = messages
        .iter()
        .map(|m| if let Down::Delta(d) = m { d.moves.len() } else { 0 })
        .sum();
    println!(
        "{} messages with {moves} moves for {CHANGES} changes",
        messages.len()
    );
    assert!(
        (messages.len() as u64) < CHANGES / 2,
        "{} messages",
        messages.len()
    );
    service.stop().await;
}

#[tokio::test]
async fn a_newer_stream_of_a_node_ends_the_older() {
    let mesh = Mesh::new();
    let service = mesh.serve().await;
    let mut old = mesh.raw(&service, "n1", hello(&["a"])).await;
    let mut new = mesh.raw(&service, "n1", hello(&["a"])).await;
    let end = loop {
        match old.try_next().await {
            Ok(message) => assert!(message.is_some(), "ended without a reason"),
            Err(status) => break status,
        }
    };
    assert_eq!(end.code(), Code::Aborted);
    new.renew().await;
    service.stop().await;
}

#[tokio::test]
async fn what_is_refused_is_said_with_its_reason() {
    let mesh = Mesh::new();
    let service = mesh.serve().await;
    let mut one = mesh.raw(&service, "n1", hello(&["a"])).await;
    one.renew().await;
    // Another node's host, and a name that is none; the host beside them is taken.
    let mut two = mesh.raw(&service, "n2", hello(&["a", "b"])).await;
    two.send(Up::HostUp(message(&typed("c", &["a/b"])))).await;
    let refused: Vec<_> = two
        .renew()
        .await
        .into_iter()
        .filter_map(|m| {
            if let Down::Refused(r) = m {
                Some((r.id, r.reason))
            } else {
                None
            }
        })
        .collect();
    assert_eq!(refused.len(), 2, "{refused:?}");
    assert!(
        refused[0].0 == "a" && refused[0].1.contains("registered by node n1"),
        "{refused:?}"
    );
    assert!(
        refused[1].0 == "c" && refused[1].1.contains("actor type"),
        "{refused:?}"
    );
    // The node that is named by messages is not believed.
    let mut liar = message(&host("d"));
    liar.node = "n1".into();
    two.send(Up::HostUp(liar)).await;
    two.renew().await;
    // A node can not take down another's.
    two.send(Up::HostDown(pb::HostDown { id: "a".into() })).await;
    two.renew().await;
    let mut rpc = mesh.rpc(&service, "/weft/admin/ops");
    let list = rpc
        .list_hosts(pb::ListHostsRequest {
            namespace: "default".into(),
        })
        .await
        .unwrap();
    let mut nodes: Vec<_> = list
        .into_inner()
        .hosts
        .into_iter()
        .map(|s| s.host.unwrap())
        .map(|h| (h.id, h.node))
        .collect();
    nodes.sort();
    let expected = [("a", "n1"), ("b", "n2"), ("d", "n2")];
    assert_eq!(nodes, expected.map(|(h, n)| (h.to_owned(), n.to_owned())));
    service.stop().await;
}

#[tokio::test]
async fn a_stream_begins_with_one_hello() {
    let mesh = Mesh::new();
    let service = mesh.serve().await;
    let rpc = || mesh.rpc(&service, "/weft/node/n1");
    let refused = Raw::open(rpc(), Up::Renew(pb::Renew { sequence: 1 }))
        .await
        .err()
        .unwrap();
    assert_eq!(refused.code(), Code::InvalidArgument);
    let mut twice = mesh.raw(&service, "n1", hello(&[])).await;
    twice.send(Up::Hello(hello(&[]))).await;
    // The first one's answer may come before.
    let end = loop {
        match twice.try_next().await {
            Ok(Some(Down::Renewed(renewed))) => assert_eq!(renewed.sequence, 0),
            other => break other,
        }
    };
    assert_eq!(end.unwrap_err().code(), Code::InvalidArgument);
    service.stop().await;
}

#[tokio::test]
async fn a_lease_comes_after_all_that_changed_before_it() {
    let mesh = Mesh::new();
    let service = mesh.serve().await;
    let types: Vec<String> = (0..40).map(|i| format!("T{i}")).collect();
    let types: Vec<&str> = types.iter().map(String::as_str).collect();
    let mut apps = mesh.raw(&service, "apps", hello(&[])).await;
    apps.send(Up::HostUp(message(&typed("a", &types)))).await;
    apps.renew().await;
    // Far more than goes out at once: the answer to the hello waits for the last table.
    let mut node = mesh.raw(&service, "n1", hello(&[])).await;
    let mut tables = 0;
    loop {
        match node.next().await.expect("the stream ended") {
            Down::Table(_) => tables += 1,
            Down::Renewed(renewed) => {
                assert_eq!((renewed.sequence, tables), (0, types.len()));
                break;
            }
            other => panic!("{other:?}"),
        }
    }
    // With nothing to tell, it comes at once.
    assert_eq!(node.renew().await, []);
}
