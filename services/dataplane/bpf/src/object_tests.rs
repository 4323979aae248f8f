//! Checks of the object itself: the committed one is that of the sources, and its layouts are those
//! of `layout.rs`.

use std::collections::BTreeMap;
use std::mem::{offset_of, size_of};

use object::{Object, ObjectSection, ObjectSymbol};

use crate::kernel::OBJECT;
use crate::layout::packet::*;
use crate::layout::{
    COUNTERS, RawActive, RawAsked, RawAskedKey, RawBackend, RawBackendKey, RawConnected, RawEndpoint,
    RawMember, RawOrigin, RawProcess, RawService, RawServiceKey, RawTuple, RawWorkload,
};

/// What built [`OBJECT`]: the compiler's name, or "prebuilt".
const BUILT_BY: &str = env!("WEFT_BPF_BUILT_BY");
/// The compiler whose output is committed. Others make other code of the same sources.
const REFERENCE: &str = "clang-16";

/// Code, data, maps, types and what ties them together; no debugging aids, no tables' order.
fn essence(bytes: &[u8]) -> BTreeMap<String, (Vec<u8>, Vec<String>)> {
    let file = object::File::parse(bytes).unwrap();
    let skipped = ["", ".strtab", ".symtab", ".shstrtab", ".BTF.ext", ".llvm_addrsig"];
    let mut all = BTreeMap::new();
    for section in file.sections() {
        let name = section.name().unwrap().to_string();
        if skipped.contains(&name.as_str()) || name.starts_with(".rel") {
            continue;
        }
        let relocations = section.relocations().map(|(at, relocation)| {
            let target = match relocation.target() {
                object::RelocationTarget::Symbol(index) => {
                    file.symbol_by_index(index).unwrap().name().unwrap().to_string()
                }
                other => format!("{other:?}"),
            };
            format!("{at}: {target}")
        });
        all.insert(name, (section.data().unwrap().to_vec(), relocations.collect()));
    }
    all
}

#[test]
fn the_committed_object_is_that_of_the_sources() {
    if BUILT_BY != REFERENCE {
        // Under CI nothing may be left out.
        assert!(
            std::env::var_os("CI").is_none(),
            "{REFERENCE} with libbpf-dev is needed to compare"
        );
        eprintln!("not compared: the object was made by {BUILT_BY}, the committed one by {REFERENCE}");
        return;
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/prebuilt/weft.bpf.o");
    if std::env::var_os("WEFT_BPF_UPDATE").is_some() {
        std::fs::write(path, OBJECT).unwrap();
    }
    let committed = std::fs::read(path).unwrap();
    let (built, committed) = (essence(OBJECT), essence(&committed));
    assert!(
        built.contains_key("sockops") && built.contains_key(".maps"),
        "{:?}",
        built.keys()
    );
    for (name, section) in &built {
        assert!(
            committed.get(name) == Some(section),
            "section {name} differs: write it anew with WEFT_BPF_UPDATE=1 cargo test -p weft-bpf --lib"
        );
    }
    assert_eq!(built.len(), committed.len());
}

/// A struct's size, and its members with their offsets; or an enum's constants with their values.
type Shape = (usize, Vec<(String, usize)>);

/// The structs and enums in the object's BTF.
fn shapes() -> BTreeMap<String, Shape> {
    let file = object::File::parse(OBJECT).unwrap();
    let btf = file.section_by_name(".BTF").unwrap().data().unwrap();
    let word = |at: usize| u32::from_le_bytes(btf[at..at + 4].try_into().unwrap()) as usize;
    let header = word(4);
    let (types, length, strings) = (header + word(8), word(12), header + word(16));
    let text = |offset: usize| {
        let bytes = &btf[strings + offset..];
        let end = bytes.iter().position(|byte| *byte == 0).unwrap();
        String::from_utf8(bytes[..end].to_vec()).unwrap()
    };
    let mut found = BTreeMap::new();
    let mut at = types;
    while at < types + length {
        let (name, info, size) = (text(word(at)), word(at + 4), word(at + 8));
        let (kind, count, after) = ((info >> 24) & 0x1f, info & 0xffff, at + 12);
        // Sizes of what follows, by kind: see the kernel's documentation of BTF.
        let each = match kind {
            4 | 5 | 15 | 19 => 12,
            6 | 13 => 8,
            _ => 0,
        };
        let fixed = match kind {
            1 | 14 | 17 => 4,
            3 => 12,
            _ => 0,
        };
        let entries = (0..count).map(|index| after + index * each);
        match kind {
            4 => {
                let members = entries
                    .map(|entry| (text(word(entry)), word(entry + 8) / 8))
                    .collect();
                found.insert(name, (size, members));
            }
            6 => {
                let constants = entries
                    .map(|entry| (text(word(entry)), word(entry + 4)))
                    .collect();
                found.insert(name, (size, constants));
            }
            _ => {}
        }
        at = after + count * each + fixed;
    }
    found
}

macro_rules! shape {
    ($type:ty { $($field:ident),* }) => {
        (size_of::<$type>(), vec![$((stringify!($field).to_string(), offset_of!($type, $field))),*])
    };
}

#[test]
fn layouts_agree_between_c_and_rust() {
    let shapes = shapes();
    let workload = shape!(RawWorkload { index, identity });
    assert_eq!(shapes["weft_workload"], workload);
    let origin = shape!(RawOrigin {
        cgroup,
        netns,
        socket,
        daddr,
        target,
        dport,
        tport,
        family,
        flags,
        index,
        service
    });
    assert_eq!(shapes["weft_origin"], origin);

    let expected = [
        (
            "weft_endpoint",
            shape!(RawEndpoint {
                identity,
                set,
                flags,
                generation
            }),
        ),
        (
            "weft_tuple",
            shape!(RawTuple {
                netns,
                saddr,
                daddr,
                sport,
                dport,
                zero
            }),
        ),
        (
            "weft_active",
            shape!(RawActive {
                origin,
                peer,
                tuple,
                pport,
                entries,
                zero
            }),
        ),
        (
            "weft_connected",
            shape!(RawConnected {
                service,
                backend,
                sport,
                bport,
                zero
            }),
        ),
        (
            "weft_asked_key",
            shape!(RawAskedKey {
                netns,
                saddr,
                sport,
                zero
            }),
        ),
        (
            "weft_asked",
            shape!(RawAsked {
                daddr,
                target,
                dport,
                tport,
                index
            }),
        ),
        (
            "weft_process",
            shape!(RawProcess {
                saddr,
                daddr,
                sport,
                dport,
                proto,
                zero
            }),
        ),
        (
            "weft_service_key",
            shape!(RawServiceKey {
                addr,
                port,
                proto,
                zero
            }),
        ),
        (
            "weft_service",
            shape!(RawService {
                id,
                count,
                flags,
                generation
            }),
        ),
        ("weft_backend_key", shape!(RawBackendKey { service, slot })),
        (
            "weft_backend",
            shape!(RawBackend {
                addr,
                port,
                flags,
                endpoint
            }),
        ),
        ("weft_source", shape!(RawSource { endpoint, zero, addr })),
        ("weft_prefix", shape!(RawPrefix { length, addr })),
        (
            "weft_address",
            shape!(RawAddress {
                identity,
                flags,
                endpoint,
                node
            }),
        ),
        (
            "weft_set",
            shape!(RawSet {
                shapes_in,
                shapes_out,
                flags,
                generation
            }),
        ),
        (
            "weft_policy_key",
            shape!(RawPolicyKey {
                set,
                identity,
                port,
                proto,
                dir
            }),
        ),
        (
            "weft_range",
            shape!(RawRange {
                length,
                set,
                identity,
                dir,
                proto,
                port
            }),
        ),
        (
            "weft_policy",
            shape!(RawPolicy {
                verdict,
                flags,
                length,
                zero,
                rule
            }),
        ),
        (
            "weft_connection_key",
            shape!(RawConnectionKey {
                local,
                remote,
                endpoint,
                lport,
                rport,
                proto,
                dir,
                zero
            }),
        ),
        (
            "weft_connection",
            shape!(RawConnection {
                used,
                expires,
                generation,
                identity,
                rule,
                peer,
                proto_state,
                flags,
                zero,
                epoch
            }),
        ),
        (
            "weft_event",
            shape!(RawEvent {
                time,
                kind,
                reason,
                dir,
                verdict,
                endpoint,
                peer,
                src_identity,
                dst_identity,
                rule,
                len,
                ifindex,
                saddr,
                daddr,
                sport,
                dport,
                proto,
                tcp_flags,
                is_reply,
                zero
            }),
        ),
        (
            "weft_member",
            shape!(RawMember {
                addr,
                service,
                port,
                zero
            }),
        ),
    ];
    for (name, shape) in expected {
        assert_eq!(shapes[name], shape, "{name}");
    }
}

#[test]
fn counters_have_the_same_names_in_the_same_order() {
    let constants: Vec<String> = shapes()["weft_counter"]
        .1
        .iter()
        .enumerate()
        .inspect(|(index, (_, value))| assert_eq!(index, value))
        .map(|(_, (name, _))| name.trim_start_matches("WEFT_").to_lowercase())
        .collect();
    let expected: Vec<&str> = COUNTERS.into_iter().chain(["counters"]).collect();
    assert_eq!(constants, expected);
}
