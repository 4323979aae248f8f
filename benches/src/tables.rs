//! What the kernel's tables cost: memory of an endpoint that shares its policy set with others.

use crate::rows::Row;
use anyhow::{Context, Result};
use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::{AsRawFd, OwnedFd},
};
use weft_bpf::{Address, Datapath, Endpoint, Kernel, Options, Workload, pin_dir};
use weft_testnet::Testnet;

/// Tables in which an endpoint has entries of its own.
const TABLES: [&str; 7] = [
    "workloads",
    "shares",
    "namespaces",
    "interfaces",
    "endpoint_addresses",
    "endpoints",
    "addresses",
];
const ENDPOINTS: u32 = 2000;
/// Bytes of one more endpoint.
const MOST: f64 = 1024.0;
const SET: u32 = 1;

/// One table: what the kernel says it takes, how many entries it may have, whether that is for all of
/// them from the start.
struct Usage {
    bytes: f64,
    max_entries: f64,
    preallocated: bool,
}

fn usage(map: &OwnedFd) -> Result<Usage> {
    const NO_PREALLOC: u32 = 1;
    let text = fs::read_to_string(format!("/proc/self/fdinfo/{}", map.as_raw_fd()))?;
    let field = |name: &str| {
        let line = text.lines().find_map(|l| l.strip_prefix(name));
        line.map(str::trim)
            .with_context(|| format!("no {name} in {text}"))
    };
    let flags = u32::from_str_radix(field("map_flags:")?.trim_start_matches("0x"), 16)?;
    Ok(Usage {
        bytes: field("memlock:")?.parse()?,
        max_entries: field("max_entries:")?.parse()?,
        preallocated: flags & NO_PREALLOC == 0,
    })
}

/// Adds pods of two addresses to a node that has one policy set, and says what each took.
pub fn memory() -> Result<Row> {
    let net = Testnet::new()?;
    let node = net.node("tables")?;
    fs::create_dir_all(node.cgroup())?;
    let kernel = Kernel::load(&Options::new(node.cgroup(), pin_dir(&net.bpffs()?, "tables")))?;
    let maps = TABLES
        .iter()
        .map(|name| Ok(kernel.share_map(name, true)?))
        .collect::<Result<Vec<_>>>()?;
    let all = || maps.iter().map(usage).collect::<Result<Vec<_>>>();
    let before = all()?;
    let datapath = kernel.datapath()?;
    for number in 1..=ENDPOINTS {
        add(&kernel, &datapath, number)?;
    }
    let after = all()?;
    let mut each = 0.0;
    for ((name, before), after) in TABLES.iter().zip(&before).zip(&after) {
        let bytes = if after.preallocated {
            // Taken at once for all; an endpoint uses one entry.
            after.bytes / after.max_entries
        } else {
            (after.bytes - before.bytes) / f64::from(ENDPOINTS)
        };
        eprintln!("{name}: {bytes:.0} bytes");
        each += bytes;
    }
    Ok(Row {
        name: "memory/endpoint-sharing-a-set".into(),
        unit: "bytes",
        value: each,
        spread: (each, each),
        peer: None,
        ratio: None,
        target: Some(format!("at most {MOST}")),
        holds: Some(each <= MOST),
    })
}

fn add(kernel: &Kernel, datapath: &Datapath, number: u32) -> Result<()> {
    let addresses: [IpAddr; 3] = [
        Ipv4Addr::from(0x0a00_0000 + number).into(),
        Ipv6Addr::from((0xfd00 << 112) + u128::from(number)).into(),
        Ipv6Addr::from((0xfe80 << 112) + u128::from(number)).into(),
    ];
    let identity = 256 + number;
    kernel.add_workload(
        u64::from(number) << 32,
        Workload {
            index: number,
            identity,
        },
    )?;
    kernel.add_namespace(u64::from(number) << 32, number)?;
    kernel.interfaces()?.set(1_000_000 + number, number)?;
    let endpoint = Endpoint {
        identity,
        set: SET,
        ..Endpoint::default()
    };
    datapath.endpoints.set(number, endpoint)?;
    for address in addresses {
        kernel.sources()?.add(number, address)?;
    }
    // Link-local ones are nobody's in the address cache.
    for address in &addresses[..2] {
        let of = Address {
            identity,
            local: true,
            endpoint: number,
            ..Address::default()
        };
        datapath.addresses.set((*address).into(), of)?;
    }
    Ok(())
}
