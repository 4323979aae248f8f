//! `GatewayClass`.

use super::text::bounded;
use crate::fields::{Object, Problems};

/// Who serves the Gateways of a class.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GatewayClass {
    /// `io.cilium/gateway-controller`, for example.
    pub controller: String,
    /// Whether it names parameters; none are known here.
    pub has_parameters: bool,
}

pub(crate) fn read(object: &mut Object<'_>, problems: &mut Problems) -> Option<GatewayClass> {
    let mut spec = object.need("spec", problems)?.object(problems)?;
    let controller = spec.need("controllerName", problems).and_then(|f| {
        let text = bounded(&f, 1..=253, problems)?;
        let (domain, path) = text.split_once('/').unwrap_or_default();
        let legal = |b: u8| b.is_ascii_alphanumeric() || b"/-._~%!$&'()*+,;=:".contains(&b);
        if weft_model::check_name(domain).is_err() || path.is_empty() || !path.bytes().all(legal) {
            f.fail(
                problems,
                format_args!("{text:?} is no controller's name such as example.com/gateway-controller"),
            );
            return None;
        }
        Some(text)
    });
    let parameters = spec.take("parametersRef");
    if let Some(mut reference) = parameters.as_ref().and_then(|f| f.object(problems)) {
        for name in ["group", "kind", "name"] {
            reference.need(name, problems).and_then(|f| f.text(problems));
        }
        reference.take("namespace").and_then(|f| f.text(problems));
        reference.finish(problems);
    }
    if let Some(f) = spec.take("description") {
        bounded(&f, 0..=64, problems);
    }
    spec.finish(problems);
    Some(GatewayClass {
        controller: controller?,
        has_parameters: parameters.is_some(),
    })
}
