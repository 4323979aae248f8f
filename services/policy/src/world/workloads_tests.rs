//! Numbers, names, and what is refused.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::world::{RegisterError, World};
use weft_model::{SvidForm, TrustDomain};

fn workload(node: &str, name: &str, app: &str) -> pb::Workload {
    pb::Workload {
        id: format!("{node}/default/{name}/1"),
        node: node.into(),
        namespace: "default".into(),
        name: name.into(),
        kind: pb::WorkloadKind::Pod.into(),
        labels: [("app".to_owned(), app.to_owned())].into(),
        addresses: vec!["10.0.0.1".into()],
        ..Default::default()
    }
}

fn world() -> World {
    World::new(TrustDomain::default(), "e".into())
}

fn put(world: &mut World, message: pb::Workload, now: u64) -> Result<pb::Workload, RegisterError> {
    let node = message.node.clone();
    let planned = world.plan_registration(&node, message, now)?;
    Ok(world.register(planned, now))
}

#[test]
fn numbers_stand_for_label_sets_and_are_reused_late() {
    let mut world = world();
    let a = put(&mut world, workload("n", "a", "x"), 10).unwrap();
    let same = put(&mut world, workload("n", "b", "x"), 10).unwrap();
    let other = put(&mut world, workload("n", "c", "y"), 10).unwrap();
    assert_eq!((a.identity, same.identity, other.identity), (256, 256, 257));
    world.deregister(&other.id, 20);
    assert_eq!(world.expired_identities(19), []);
    assert_eq!(world.expired_identities(20), [NumericIdentity(257)]);
    // Within the grace period the number is still theirs.
    assert_eq!(
        put(&mut world, workload("n", "c", "y"), 21).unwrap().identity,
        257
    );
    assert_eq!(world.expired_identities(99), []);
    world.deregister(&other.id, 30);
    world.take_back(NumericIdentity(257));
    assert_eq!(
        put(&mut world, workload("n", "c", "y"), 31).unwrap().identity,
        258
    );
}

#[test]
fn the_spiffe_id_is_derived_from_app_id_or_account() {
    let mut world = world();
    let id = |world: &mut World, app_id: &str, account: &str| {
        let app = pb::Workload {
            app_id: app_id.into(),
            service_account: account.into(),
            ..workload("n", "a", "x")
        };
        put(world, app, 0).unwrap().spiffe_id
    };
    assert_eq!(
        id(&mut world, "cart", "sa"),
        "spiffe://cluster.local/ns/default/cart"
    );
    assert_eq!(id(&mut world, "", "sa"), "spiffe://cluster.local/ns/default/sa");
    assert_eq!(
        id(&mut world, "", ""),
        "spiffe://cluster.local/ns/default/default"
    );
}

#[test]
fn the_spiffe_id_may_be_derived_from_the_account_alone() {
    let mut world = world().with_form(SvidForm::ServiceAccount);
    let mut id = |account: &str| {
        let app = pb::Workload {
            app_id: "cart".into(),
            service_account: account.into(),
            ..workload("n", "a", "x")
        };
        put(&mut world, app, 0).unwrap().spiffe_id
    };
    assert_eq!(id("runner"), "spiffe://cluster.local/ns/default/sa/runner");
    assert_eq!(id(""), "spiffe://cluster.local/ns/default/sa/default");
}

#[test]
fn what_is_not_sound_is_refused() {
    let mut world = world();
    put(&mut world, workload("n", "a", "x"), 0).unwrap();
    let field = |change: fn(&mut pb::Workload)| {
        let mut message = workload("n", "b", "x");
        change(&mut message);
        match world.plan_registration("n", message, 0) {
            Err(RegisterError::Invalid { field, .. }) => field,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(field(|w| w.namespace = "A".into()), "namespace");
    assert_eq!(field(|w| w.id = "n/default/b/".into()), "id");
    assert_eq!(field(|w| w.id = "n/other/b/1".into()), "id");
    assert_eq!(field(|w| w.app_id = "a.b".into()), "app_id");
    assert_eq!(field(|w| w.kind = 0), "kind");
    assert_eq!(field(|w| w.addresses = vec!["x".into()]), "addresses");
    for nowhere in [
        "0.0.0.0",
        "::",
        "224.0.0.1",
        "ff02::1",
        "::ffff:224.0.0.1",
        "255.255.255.255",
    ] {
        let mut message = workload("n", "b", "x");
        message.addresses = vec![nowhere.into()];
        let refused = world.plan_registration("n", message, 0);
        assert!(
            matches!(
                refused,
                Err(RegisterError::Invalid {
                    field: "addresses",
                    ..
                })
            ),
            "{nowhere}: {refused:?}"
        );
    }
    let mut sound = workload("n", "b", "x");
    sound.addresses = vec!["127.0.0.1".into(), "fd00::1".into()];
    assert!(world.plan_registration("n", sound, 0).is_ok());
    assert_eq!(field(|w| w.app_protocol = "ftp".into()), "app_protocol");
    assert_eq!(
        field(|w| w.labels = [("a".into(), "x=y,z".into())].into()),
        "labels"
    );
    // An address that another node's pod has.
    let taken = world
        .plan_registration("m", workload("m", "b", "x"), 0)
        .unwrap_err();
    assert!(matches!(taken, RegisterError::AddressInUse { .. }), "{taken}");
    // Another node's workload, by either name.
    for (node, message) in [
        ("m", workload("n", "a", "x")),
        (
            "m",
            pb::Workload {
                node: "m".into(),
                ..workload("n", "a", "x")
            },
        ),
    ] {
        assert!(world.plan_registration(node, message, 0).is_err());
    }
}
