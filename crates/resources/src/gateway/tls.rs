//! `TLSRoute`: connections by the name that their client asks for, as they are.

use super::{
    refs,
    route::{BackendRef, Route, RouteFilters, RouteRule},
    text::{hostname, items, number},
};
use crate::fields::{Field, Object, Problems};
use weft_model::check_name;

/// Why no route of this kind is accepted.
const NOT_DONE: &str = "kind: TLS is not passed on by its server name in this version; use an HTTPRoute";

pub(crate) fn read(object: &mut Object<'_>, problems: &mut Problems) -> Option<Route> {
    let mut spec = object.need("spec", problems)?.object(problems)?;
    let parents = refs::parents(&mut spec, problems);
    let names = spec.take("hostnames");
    let names = items(names, 16, problems);
    let hostnames = names.iter().filter_map(|f| hostname(f, true, problems)).collect();
    let list = spec.need("rules", problems);
    let fields = items(list.clone(), 16, problems);
    if let Some(list) = list.filter(|_| fields.is_empty()) {
        list.fail(problems, "must have an element");
    }
    let rules = fields.iter().filter_map(|field| rule(field, problems)).collect();
    spec.unsupported(&["useDefaultGateways"], problems);
    spec.finish(problems);
    Some(Route {
        parents,
        hostnames,
        rules,
        unsupported: vec![NOT_DONE.to_owned()],
    })
}

fn rule(field: &Field<'_>, problems: &mut Problems) -> Option<RouteRule> {
    let mut object = field.object(problems)?;
    let name = object.take("name").and_then(|f| f.checked(problems, check_name));
    let list = object.need("backendRefs", problems);
    let fields = items(list.clone(), 16, problems);
    if let Some(list) = list.filter(|_| fields.is_empty()) {
        list.fail(problems, "must have an element");
    }
    let backends = fields.iter().filter_map(|f| backend(f, problems)).collect();
    object.finish(problems);
    Some(RouteRule {
        name: name.unwrap_or_default(),
        backends,
        ..RouteRule::default()
    })
}

fn backend(field: &Field<'_>, problems: &mut Problems) -> Option<BackendRef> {
    let mut object = field.object(problems)?;
    let target = refs::backend(&mut object, field.path.clone(), problems);
    let weight = match object.take("weight") {
        Some(f) => number(&f, 0..=1_000_000, problems),
        None => Some(1),
    };
    object.finish(problems);
    Some(BackendRef {
        target: target?,
        weight: weight?,
        filters: RouteFilters::default(),
    })
}
