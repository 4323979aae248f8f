//! The state on a PostgreSQL server.

use crate::{postgres::Postgres, rig::Rig};
use std::time::Duration;
use weft_policy::{Config, ServeError};
use weft_store::{DatabaseUrl, StoreError};

const ROUTE: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: default}\n\
                     spec: {selector: {app: web}, ports: [{port: 80}]}\n";

fn on(postgres: &Postgres) -> impl Fn(&mut Config) + use<> {
    let url = DatabaseUrl::new(postgres.url()).unwrap();
    move |config| config.database_url = Some(url.clone())
}

#[tokio::test]
async fn everything_is_kept_on_a_server_as_in_a_file() {
    let postgres = Postgres::start();
    let rig = Rig::configured(on(&postgres)).await;
    rig.put("web.yaml", ROUTE);
    let mut n1 = rig.node("n1").await;
    let cart = n1.workload("default", "cart", &[("app", "cart")]);
    let cart = n1.register(cart).await;
    let gone = n1.workload("default", "gone", &[("app", "gone")]);
    let gone = n1.register(gone).await;
    n1.registry
        .deregister(weft_proto::weft::policy::v1::DeregisterRequest { id: gone.id.clone() })
        .await
        .unwrap();
    rig.list_until(|list| list.resources.iter().any(|r| r.accepted))
        .await;
    drop(n1);
    let address = postgres.execute("SELECT address FROM service_address WHERE name = 'web'");
    assert!(address.contains("10."), "{address}");

    // A file that turned bad meanwhile goes on meaning what it meant.
    let rig = rig
        .restart_configured(
            |folder| std::fs::write(folder.join("web.yaml"), "kind: [").unwrap(),
            on(&postgres),
        )
        .await;
    let mut n1 = rig.node("n1").await;
    let list = rig.list().await;
    assert!(
        list.resources.iter().any(|r| r.accepted && r.name == "web"),
        "{list:?}"
    );
    assert_eq!(
        postgres.execute("SELECT address FROM service_address WHERE name = 'web'"),
        address
    );
    // The same labels have the same number; what was removed is not back.
    let again = n1.workload("default", "cart", &[("app", "cart")]);
    assert_eq!(n1.register(again).await.identity, cart.identity);
    assert_eq!(
        postgres.execute("SELECT string_agg(id, ',') FROM workload"),
        cart.id
    );
    assert!(!rig.dir.path().join("state/policy.db").exists());
}

#[tokio::test]
async fn who_lost_the_database_writes_nothing_and_ends_with_the_name_of_the_other() {
    let postgres = Postgres::start();
    let first = Rig::configured(on(&postgres)).await;
    let mut n1 = first.node("n1").await;
    let cart = n1.workload("default", "cart", &[]);
    n1.register(cart).await;
    // As after it was stopped for longer than its right lasts.
    postgres.execute("UPDATE weft_lease SET held_until = 0");
    let second = Rig::configured(on(&postgres)).await;
    let late = n1.workload("default", "late", &[]);
    let request = weft_proto::weft::policy::v1::RegisterRequest {
        workload: Some(late),
        ..Default::default()
    };
    n1.registry.register(request).await.unwrap_err();
    let ended = tokio::time::timeout(Duration::from_secs(60), first.ended())
        .await
        .unwrap();
    let Err(ServeError::Store(StoreError::Taken { holder, .. })) = ended else {
        panic!("{ended:?}");
    };
    assert!(holder.starts_with("policy on "), "{holder}");
    assert_eq!(
        postgres.execute("SELECT string_agg(id, ',') FROM workload"),
        "n1/default/cart/1"
    );
    // The other one goes on.
    let mut n2 = second.node("n2").await;
    let pay = n2.workload("default", "pay", &[]);
    n2.register(pay).await;
    assert_eq!(postgres.execute("SELECT count(*) FROM workload"), "2");
}
