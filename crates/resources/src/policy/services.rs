//! `toServices`: Services by name or by their labels.

use super::{ServiceRule, Services};
use crate::{
    fields::{Field, Problems},
    selector::selector,
};
use weft_model::{check_dns_label, check_name};

pub(super) fn read(field: &Field<'_>, problems: &mut Problems) -> Option<ServiceRule> {
    let mut object = field.object(problems)?;
    let [named, labelled] = ["k8sService", "k8sServiceSelector"].map(|name| object.take(name));
    object.finish(problems);
    let (named, f) = match (named, labelled) {
        (Some(f), None) => (true, f),
        (None, Some(f)) => (false, f),
        _ => {
            field.fail(problems, "must have one of k8sService and k8sServiceSelector");
            return None;
        }
    };
    let mut object = f.object(problems)?;
    let which = if named {
        let name = object.need("serviceName", problems);
        name.and_then(|f| f.checked(problems, check_name))
            .map(Services::Named)
    } else {
        let labels = object.need("selector", problems);
        labels
            .and_then(|f| selector(&f, problems))
            .map(Services::Labelled)
    };
    let namespace = match object.take("namespace") {
        None => None,
        Some(f) => Some(f.checked(problems, check_dns_label)?),
    };
    object.finish(problems);
    Some(ServiceRule {
        namespace,
        which: which?,
    })
}
