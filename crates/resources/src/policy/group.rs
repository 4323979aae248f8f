//! `cilium.io` CiliumCIDRGroup.

use super::{CidrGroup, parts::net};
use crate::fields::{Object, Problems};

/// More ranges in one group are refused.
const MAX_CIDRS: usize = 10_000;

pub(crate) fn read(object: &mut Object<'_>, problems: &mut Problems) -> Option<CidrGroup> {
    let mut spec = object.need("spec", problems)?.object(problems)?;
    let list = spec.need("externalCIDRs", problems);
    spec.finish(problems);
    let list = list?;
    let items = list.list(problems)?;
    if items.len() > MAX_CIDRS {
        let found = items.len();
        list.fail(
            problems,
            format_args!("has {found} ranges, at most {MAX_CIDRS} are allowed"),
        );
        return None;
    }
    let read = |f: &crate::fields::Field<'_>| f.text(problems).and_then(|text| net(f, &text, problems));
    Some(CidrGroup {
        cidrs: items.iter().filter_map(read).collect(),
    })
}
