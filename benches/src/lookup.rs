//! What a policy set's size costs at a packet: the program at a pod's interface, run by the kernel on
//! the same packets with sets of ten, ten thousand and a million entries.

use crate::rows::{Row, median, spread};
use anyhow::{Result, ensure};
use std::{fs, net::Ipv4Addr};
use weft_bpf::{Address, Direction, Endpoint, Entry, Hooked, Kernel, Options, PolicyKey, Set, pin_dir};
use weft_testnet::Testnet;

/// Entries of the set, with the most that a run may take of one with the fewest.
const SIZES: [(u32, Option<f64>); 3] = [(10, None), (10_000, Some(1.1)), (1_000_000, Some(1.2))];
/// Peers whose packets are judged; each has an entry of its own.
const PEERS: u32 = 10;
/// Runs of one packet.
const REPEAT: u32 = 20_000;
/// All kinds of keys in use: every one is looked for.
const SHAPES: u32 = 0b11_1111;
const NUMBER: u32 = 1;
const PORT: u16 = 7001;
const POD: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 1);
/// What a program says of a packet that goes on.
const PASS: i32 = -1;
/// The interface that the runs are said to come from: loopback, which is always there.
const INTERFACE: u32 = 1;

fn peer(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(0x0a02_0000 + number)
}

/// A SYN from a peer, as it comes to the pod's interface.
fn packet(from: Ipv4Addr) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x08, 0x00];
    let mut ip = vec![0x45, 0, 0, 40, 0, 1, 0x40, 0, 64, 6, 0, 0];
    ip.extend(from.octets());
    ip.extend(POD.octets());
    let sum = ip.chunks(2).fold(0u32, |sum, pair| {
        sum + u32::from(pair[0]) * 256 + u32::from(pair[1])
    });
    let sum = !(((sum & 0xffff) + (sum >> 16)) as u16);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    frame.extend(ip);
    frame.extend(40_000u16.to_be_bytes());
    frame.extend(PORT.to_be_bytes());
    frame.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x02, 0xff, 0xff, 0, 0, 0, 0]);
    frame
}

/// A node whose pod has a set of that many entries.
fn node(net: &Testnet, entries: u32) -> Result<Kernel> {
    let node = net.node(&format!("set{entries}"))?;
    fs::create_dir_all(node.cgroup())?;
    let kernel = Kernel::load(&Options::new(node.cgroup(), pin_dir(&net.bpffs()?, node.name())))?;
    let tables = kernel.datapath()?;
    for number in 0..entries {
        let key = PolicyKey {
            set: NUMBER,
            identity: 256 + number,
            direction: Direction::In,
            protocol: 6,
            port: PORT,
        };
        tables.policy.set(
            key,
            Entry {
                rule: number + 1,
                ..Entry::default()
            },
        )?;
    }
    tables.sets.set(
        NUMBER,
        Set {
            shapes_in: SHAPES,
            shapes_out: SHAPES,
            flags: 3,
            generation: 1,
        },
    )?;
    tables.endpoints.set(
        NUMBER,
        Endpoint {
            identity: 255,
            set: NUMBER,
            ..Endpoint::default()
        },
    )?;
    kernel.interfaces()?.set(INTERFACE, NUMBER)?;
    let own = Address {
        identity: 255,
        local: true,
        endpoint: NUMBER,
        ..Address::default()
    };
    tables.addresses.set(std::net::IpAddr::from(POD).into(), own)?;
    for number in 0..PEERS {
        // Spread over the whole set.
        let of = Address {
            identity: 256 + entries / PEERS * number,
            ..Address::default()
        };
        tables
            .addresses
            .set(std::net::IpAddr::from(peer(number)).into(), of)?;
    }
    Ok(kernel)
}

/// Nanoseconds of a run, for each size in turn.
pub fn rows(rounds: usize) -> Result<Vec<Row>> {
    let net = Testnet::new()?;
    let nodes = SIZES
        .iter()
        .map(|(entries, _)| node(&net, *entries))
        .collect::<Result<Vec<_>>>()?;
    let mut taken = [Vec::new(), Vec::new(), Vec::new()];
    for _ in 0..rounds.max(5) {
        for (kernel, taken) in nodes.iter().zip(&mut taken) {
            let mut total = 0.0;
            for number in 0..PEERS {
                let run = kernel.test_run(
                    Hooked::Interface(Direction::In),
                    (INTERFACE, INTERFACE),
                    &packet(peer(number)),
                    REPEAT,
                )?;
                ensure!(run.action == PASS, "a packet that is allowed got {}", run.action);
                total += f64::from(run.nanoseconds);
            }
            taken.push(total / f64::from(PEERS));
        }
    }
    let few = taken[0].clone();
    Ok(SIZES
        .iter()
        .zip(&taken)
        .map(|((entries, most), taken)| {
            let ratios: Vec<f64> = taken.iter().zip(&few).map(|(t, f)| t / f).collect();
            let ratio = median(&ratios);
            Row {
                name: format!("policy-lookup/{entries}-entries"),
                unit: "ns/packet",
                value: median(taken),
                spread: spread(taken),
                peer: most.map(|_| median(&few)),
                ratio: most.map(|_| ratio),
                target: most.map(|m| format!("at most {m} of ten entries")),
                holds: most.map(|m| ratio <= m),
            }
        })
        .collect())
}
