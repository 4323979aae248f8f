//! What a connection takes of the agent's memory that has served a request and now waits.

use crate::{
    rows::{Row, spread},
    sample::rss_mib,
    walkthrough::pods::WHOAMI,
};
use anyhow::{Context, Result, bail, ensure};
use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    process::{Command, Stdio},
    time::Duration,
};
use weft_testnet::{Namespace, Spawn};

/// Nearly as many as one workload may have open.
const COUNT: usize = 4000;
/// KiB of one.
const MOST: f64 = 24.0;
const PATIENCE: Duration = Duration::from_secs(20);
/// Bytes of the backend's answer.
const ANSWER: usize = 1024;

/// Opens connections, uses each once, says so, and keeps them until its input ends.
///
/// `weft-bench idle <address> <count>`.
pub fn main(arguments: &[String]) -> Result<()> {
    let [address, count] = arguments else {
        bail!("weft-bench idle <address> <count>");
    };
    let count: usize = count.parse()?;
    let mut kept = Vec::with_capacity(count);
    for _ in 0..count {
        let mut stream = TcpStream::connect((address.as_str(), 80))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(b"GET /items/1 HTTP/1.1\r\nhost: whoami\r\n\r\n")?;
        let mut answer = Vec::new();
        let mut piece = [0; 4096];
        while !is_complete(&answer) {
            let n = stream.read(&mut piece)?;
            ensure!(n > 0, "the connection ended");
            answer.extend_from_slice(&piece[..n]);
        }
        ensure!(answer.starts_with(b"HTTP/1.1 200"), "no good answer");
        kept.push(stream);
    }
    println!("open");
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

fn is_complete(answer: &[u8]) -> bool {
    let head = answer.windows(4).position(|w| w == b"\r\n\r\n");
    head.is_some_and(|at| answer.len() >= at + 4 + ANSWER)
}

/// The agent's memory with many of them beside its memory without, per connection: the most of some
/// rounds, as what one round gave back the next may use again.
pub async fn measure(from: (&Namespace, &Spawn), agent: i32, rounds: usize) -> Result<Row> {
    let mut taken = Vec::new();
    for _ in 0..rounds.max(1) {
        let (namespace, spawn) = (from.0.clone(), from.1.clone());
        let (kib, grown) = tokio::task::spawn_blocking(move || one(&namespace, &spawn, agent)).await??;
        eprintln!("{COUNT} idle connections: {grown:.1} MiB more than before, {kib:.1} KiB each");
        taken.push(kib);
    }
    let value = taken.iter().copied().fold(0.0, f64::max);
    Ok(Row {
        name: "idle-connection/memory".into(),
        unit: "KiB",
        value,
        spread: spread(&taken),
        peer: None,
        ratio: None,
        target: Some(format!("at most {MOST}")),
        holds: Some(value <= MOST),
    })
}

fn one(namespace: &Namespace, spawn: &Spawn, agent: i32) -> Result<(f64, f64)> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["idle", WHOAMI, &COUNT.to_string()]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let before = rss_mib(agent);
    let mut process = namespace.spawn(command, spawn)?;
    let out = process.stdout.take().context("no output")?;
    let mut line = String::new();
    BufReader::new(out).read_line(&mut line)?;
    ensure!(line.trim() == "open", "connections were not opened: {line}");
    let grown = rss_mib(agent) - before;
    drop(process.stdin.take());
    process.wait()?;
    Ok((grown * 1024.0 / COUNT as f64, grown))
}
