//! One measurement: wrk for a few seconds, and what the processes under test used meanwhile.

use anyhow::{Context, Result, bail};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::{Pid, SysconfVar, sysconf},
};
use std::{fs, process::Command};
use weft_testnet::{Namespace, Spawn};

/// What one measurement gave.
#[derive(Debug, Clone)]
pub struct Sample {
    /// Requests per second.
    pub rate: f64,
    /// Milliseconds.
    pub p50: f64,
    /// Milliseconds.
    pub p99: f64,
    /// CPU of the processes under test and of softirq beside them, microseconds per request.
    pub cpu: f64,
    /// Resident memory of each process under test, MiB.
    pub rss: Vec<(&'static str, f64)>,
}

/// The core of what is under test; clients and backends have core 0.
pub const PROXY_CORE: usize = 1;

/// Puts a process with all its threads on one core.
pub fn pin(pid: i32, core: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(core)?;
    for task in fs::read_dir(format!("/proc/{pid}/task"))?.flatten() {
        if let Some(tid) = task.file_name().to_str().and_then(|t| t.parse().ok()) {
            // A thread may end while the list is read.
            let _ = sched_setaffinity(Pid::from_raw(tid), &set);
        }
    }
    Ok(())
}

/// User and system time of a process, in seconds.
pub fn cpu_seconds(pid: i32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name in parentheses may hold anything; fields are counted behind it.
    let fields: Vec<&str> = stat
        .rsplit_once(')')
        .context("stat")?
        .1
        .split_whitespace()
        .collect();
    let ticks: u64 = fields
        .get(11..13)
        .context("stat")?
        .iter()
        .filter_map(|f| f.parse::<u64>().ok())
        .sum();
    let per_second = sysconf(SysconfVar::CLK_TCK)?.unwrap_or(100);
    Ok(ticks as f64 / per_second as f64)
}

/// What the proxies' core spent on packets outside of any process that is measured: the kernel's own
/// thread for them, and where the kernel takes such time off the process that was interrupted
/// (CONFIG_IRQ_TIME_ACCOUNTING), that too. Elsewhere it is in the process's own.
pub fn softirq_seconds() -> Result<f64> {
    let name = format!("ksoftirqd/{PROXY_CORE}");
    let thread = fs::read_dir("/proc")?.flatten().find_map(|entry| {
        let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
        let comm = fs::read_to_string(entry.path().join("comm")).ok()?;
        (comm.trim() == name).then_some(pid)
    });
    let own = thread.map_or(Ok(0.0), cpu_seconds)?;
    if !takes_irq_time() {
        return Ok(own);
    }
    let stat = fs::read_to_string("/proc/stat")?;
    let line = stat
        .lines()
        .find_map(|l| l.strip_prefix(&format!("cpu{PROXY_CORE} ")));
    // user nice system idle iowait irq softirq
    let ticks: f64 = line
        .and_then(|l| l.split_whitespace().nth(6))
        .context("/proc/stat")?
        .parse()?;
    let per_second = sysconf(SysconfVar::CLK_TCK)?.unwrap_or(100);
    Ok(own + ticks / per_second as f64)
}

/// Where the configuration can not be read it is counted: rather twice than not at all.
fn takes_irq_time() -> bool {
    static KNOWN: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    *KNOWN.get_or_init(|| {
        let read = Command::new("zcat").arg("/proc/config.gz").output();
        let text = read
            .ok()
            .filter(|read| read.status.success())
            .map(|read| read.stdout);
        let text = text.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        text.is_none_or(|text| text.contains("CONFIG_IRQ_TIME_ACCOUNTING=y"))
    })
}

/// Resident memory of a process.
pub fn rss_mib(pid: i32) -> f64 {
    status_mib(pid, "VmRSS:")
}

/// The part of it that no file backs: what the process has for itself.
pub fn anonymous_mib(pid: i32) -> f64 {
    status_mib(pid, "RssAnon:")
}

fn status_mib(pid: i32, field: &str) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix(field));
    line.and_then(|l| l.split_whitespace().next()?.parse::<f64>().ok())
        .unwrap_or(0.0)
        / 1024.0
}

/// Runs wrk inside a namespace, as `spawn` says, on core 0 while `under_test` work.
pub async fn measure(
    (from, spawn): (&Namespace, &Spawn),
    url: &str,
    connections: u32,
    seconds: u32,
    under_test: &[(&'static str, i32)],
) -> Result<Sample> {
    let total = || {
        let own = under_test.iter().map(|(_, pid)| cpu_seconds(*pid));
        Ok::<_, anyhow::Error>(own.sum::<Result<f64>>()? + softirq_seconds()?)
    };
    let before = total()?;
    let mut command = Command::new("taskset");
    command.args(["-c", "0", "wrk", "--latency", "-t1"]);
    command.args([
        format!("-c{connections}"),
        format!("-d{seconds}s"),
        url.to_owned(),
    ]);
    let text = capture(from, spawn, command).await?;
    let used = total()? - before;
    let parsed = parse(&text).with_context(|| format!("wrk on {url}: {text}"))?;
    Ok(Sample {
        rate: parsed.rate,
        p50: parsed.p50,
        p99: parsed.p99,
        cpu: used * 1e6 / parsed.requests,
        rss: under_test
            .iter()
            .map(|(name, pid)| (*name, rss_mib(*pid)))
            .collect(),
    })
}

async fn capture(from: &Namespace, spawn: &Spawn, mut command: Command) -> Result<String> {
    command
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped());
    let mut process = from.spawn(command, spawn)?;
    let (out, err) = (process.stdout.take(), process.stderr.take());
    tokio::task::spawn_blocking(move || {
        let text = |pipe: Option<Box<dyn std::io::Read>>| {
            let mut text = String::new();
            pipe.map(|mut p| p.read_to_string(&mut text))
                .transpose()
                .map(|_| text)
        };
        let stdout = text(out.map(|p| Box::new(p) as Box<dyn std::io::Read>))?;
        let stderr = text(err.map(|p| Box::new(p) as Box<dyn std::io::Read>))?;
        if !process.wait()?.success() {
            bail!("wrk failed: {}", stderr.trim());
        }
        Ok(stdout)
    })
    .await?
}

struct Parsed {
    requests: f64,
    rate: f64,
    p50: f64,
    p99: f64,
}

/// What wrk prints. Any error among the replies makes the measurement worthless.
fn parse(text: &str) -> Result<Parsed> {
    for bad in ["Non-2xx", "Socket errors"] {
        if let Some(line) = text.lines().find(|l| l.contains(bad)) {
            bail!("{}", line.trim());
        }
    }
    let after = |key: &str| {
        let line = text.lines().find_map(|l| l.trim().strip_prefix(key));
        line.map(str::trim).with_context(|| format!("no {key:?}"))
    };
    let requests = text
        .lines()
        .find_map(|l| l.trim().split_once(" requests in "))
        .context("no count of requests")?
        .0
        .parse()?;
    Ok(Parsed {
        requests,
        rate: after("Requests/sec:")?.parse()?,
        p50: milliseconds(after("50%")?)?,
        p99: milliseconds(after("99%")?)?,
    })
}

fn milliseconds(text: &str) -> Result<f64> {
    let unit_at = text.find(|c: char| c.is_ascii_alphabetic()).context("no unit")?;
    let number: f64 = text[..unit_at].parse()?;
    Ok(match &text[unit_at..] {
        "us" => number / 1000.0,
        "ms" => number,
        "s" => number * 1000.0,
        other => bail!("unit {other:?}"),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const TEXT: &str = "Running 3s test @ http://127.0.0.1:8080/
  1 threads and 16 connections
  Latency Distribution
     50%  228.00us
     75%  250.00us
     90%    1.20ms
     99%    2.00ms
  177000 requests in 3.00s, 200.00MB read
Requests/sec:  59000.00
Transfer/sec:     66.00MB
";

    #[test]
    fn wrk_is_read() {
        let parsed = parse(TEXT).unwrap();
        assert_eq!(
            (parsed.requests, parsed.rate, parsed.p50, parsed.p99),
            (177_000.0, 59_000.0, 0.228, 2.0)
        );
        assert!(parse(&TEXT.replace("Transfer", "  Non-2xx or 3xx responses: 4\nTransfer")).is_err());
        assert!(parse("").is_err());
    }
}
