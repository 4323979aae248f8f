use super::*;
use http::{HeaderMap, Method};
use weft_proto::weft::policy::v1::attachment::Parent as Attached;
use weft_route::Asked;

/// A route of a Service's port (0 for all) that sends everything below `prefix` to a backend named
/// like it.
fn route(name: &str, port: u32, prefix: &str) -> pb::Route {
    pb::Route {
        kind: "HTTPRoute".into(),
        namespace: "default".into(),
        name: name.into(),
        attachments: vec![pb::Attachment {
            parent: Some(Attached::Service(pb::ServiceParent {
                namespace: "default".into(),
                name: "whoami".into(),
                port,
            })),
            hostnames: Vec::new(),
        }],
        rules: vec![pb::RouteRule {
            matches: vec![pb::RouteMatch {
                path: Some(pb::route_match::Path::Prefix(prefix.into())),
                ..Default::default()
            }],
            ..Default::default()
        }],
        ..Default::default()
    }
}

fn apply(
    routes: &Routes,
    snapshot: bool,
    upserts: &[&pb::Route],
    removes: &[&str],
) -> (Vec<String>, Vec<String>) {
    let upserts = upserts.iter().map(|route| (route.name.as_str(), *route));
    let (problems, services) = routes.apply(snapshot, upserts, removes.iter().copied());
    (problems, services.into_iter().collect())
}

fn found(slot: &Slot, port: u16, path: &str) -> Option<String> {
    let table = slot.table(port)?;
    let asked = Asked {
        host: "whoami",
        method: &Method::GET,
        path,
        query: None,
        headers: &HeaderMap::new(),
    };
    Some(
        table
            .find(&asked)
            .map_or("none".into(), |m| m.route.name.to_string()),
    )
}

fn some(text: &str) -> Option<String> {
    Some(text.to_owned())
}

#[test]
fn a_held_slot_sees_each_change_and_ports_have_their_own() {
    let routes = Routes::default();
    let slot = routes.service("default", "whoami");
    assert_eq!(found(&slot, 80, "/"), None);
    let changed = apply(
        &routes,
        false,
        &[&route("all", 0, "/"), &route("eighty", 80, "/a")],
        &[],
    );
    assert_eq!(changed, (vec![], vec!["default/whoami".into()]));
    assert!(routes.has_service("default", "whoami") && !routes.has_service("default", "other"));
    assert_eq!(found(&slot, 80, "/a"), some("eighty"));
    assert_eq!(found(&slot, 80, "/b"), some("all"));
    assert_eq!(found(&slot, 81, "/a"), some("all"));
    // One goes: nothing is told of the Service, which still has routes.
    assert_eq!(apply(&routes, false, &[], &["eighty"]), (vec![], vec![]));
    assert_eq!(found(&slot, 80, "/a"), some("all"));
    // A snapshot replaces all there was, in one step for those that stay.
    assert_eq!(
        apply(&routes, true, &[&route("new", 80, "/")], &[]),
        (vec![], vec![])
    );
    assert_eq!(found(&slot, 80, "/a"), some("new"));
    assert_eq!(found(&slot, 81, "/a"), None);
    let changed = apply(&routes, false, &[], &["new"]);
    assert_eq!(changed, (vec![], vec!["default/whoami".into()]));
    assert_eq!((found(&slot, 80, "/a"), routes.is_empty()), (None, true));
}

#[test]
fn a_route_that_can_not_be_used_stays_as_it_was() {
    let routes = Routes::default();
    apply(&routes, false, &[&route("all", 0, "/")], &[]);
    let slot = routes.service("default", "whoami");
    let (problems, _) = apply(&routes, false, &[&route("all", 0, "no-path")], &[]);
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(
        problems[0].contains("HTTPRoute/default/all: rules[0].matches[0].prefix"),
        "{problems:?}"
    );
    assert_eq!(found(&slot, 80, "/a"), some("all"));
}
