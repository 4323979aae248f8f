//! The certificate authority: certificates per second of one core, the time one takes at a steady
//! rate, memory. Asked as members ask, by gRPC over mTLS, with P-256 and the audit record on the
//! disk before each answer.
//!
//! The service is a process of its own on core 1, whoever asks is on core 0. There is no peer: the
//! others sign without a durable record.

use crate::{
    Options,
    rows::{Row, median, spread},
    sample::{cpu_seconds, pin, rss_mib},
};
use anyhow::{Context, Result, bail};
use std::{
    process::Stdio,
    time::{Duration, Instant},
};
use tokio::{process::Command, task::JoinSet};
use tonic::transport::Channel;
use weft_enroll::{Enrollment, TokenSource};
use weft_model::TrustDomain;
use weft_proto::weft::identity::v1::{
    CreateJoinTokenRequest, ListAuditRequest, RenewRequest, admin_client::AdminClient,
    certificates_client::CertificatesClient,
};
use weft_tls::{Expect, new_key_and_csr};

const START: Duration = Duration::from_secs(30);
/// Members, each with a connection of its own.
const MEMBERS: usize = 4;
/// Calls of each member that run at once at full load.
const CALLS: usize = 48;
/// Certificates per second at the steady rate.
const STEADY: u32 = 500;
/// Workloads that all ask at the same moment, of a service that has just started at first: its
/// memory is looked at when they have got what they asked for.
const COLD: u64 = 10_000;
/// What one member may ask for is limited; here a few ask for many.
const SETTINGS: &str = "limits: {member_burst: 4000000000, member_per_second: 4000000000}\n";

/// One member's way to the service.
#[derive(Clone)]
struct Asker {
    client: CertificatesClient<Channel>,
    csr: Vec<u8>,
}

impl Asker {
    async fn ask(&mut self) -> Result<()> {
        let csr_der = self.csr.clone();
        let reply = self.client.renew(RenewRequest { csr_der }).await?.into_inner();
        let chain = reply.svid.unwrap_or_default().chain_der;
        if chain.len() < 2 {
            bail!("a chain of {} certificates", chain.len());
        }
        Ok(())
    }
}

/// Measures and returns the rows.
pub async fn run(options: &Options) -> Result<Vec<Row>> {
    let dir = tempfile::tempdir().context("no temporary folder")?;
    let free = std::net::TcpListener::bind("127.0.0.1:0")?;
    let address = free.local_addr()?.to_string();
    drop(free);
    let settings = dir.path().join("identity.yaml");
    std::fs::write(&settings, SETTINGS)?;
    let mut service = Command::new(options.bin_dir.join("weft-identity"))
        .args(["--metrics-listen", "127.0.0.1:0", "--listen", &address])
        .arg("--config")
        .arg(&settings)
        .arg("--state-dir")
        .arg(dir.path().join("state"))
        .arg("--run-dir")
        .arg(dir.path().join("run"))
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .context("weft-identity can not be started")?;
    let pid = i32::try_from(service.id().context("weft-identity ended")?)?;
    let channel = weft_rpc::channel_local(dir.path().join("run/identity.sock"))?;
    let mut admin = AdminClient::new(channel);
    let up = async {
        while admin.list_audit(ListAuditRequest::default()).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(START, up)
        .await
        .context("weft-identity did not start")?;
    pin(i32::try_from(std::process::id())?, 0)?;
    pin(pid, 1)?;
    let fresh = rss_mb(pid);

    let (_trigger, drain) = weft_drain::channel();
    let domain = TrustDomain::default();
    let mut askers = Vec::new();
    for i in 0..MEMBERS {
        let name = format!("n{i}");
        let request = CreateJoinTokenRequest {
            kind: "node".into(),
            name: name.clone(),
            ..Default::default()
        };
        let token = admin.create_join_token(request).await?.into_inner().token;
        let folder = dir.path().join(&name);
        let member = Enrollment::new(domain.node(&name)?, folder, address.clone())
            .token(TokenSource::text(&token)?)
            .enroll(drain.clone())
            .await?;
        let expect = Expect::Id(domain.service("identity")?);
        let channel = weft_rpc::channel(&address, Some(&member.svid), &member.trust, expect)?;
        askers.push(Asker {
            client: CertificatesClient::new(channel),
            // Making keys is the members' work, and not measured.
            csr: new_key_and_csr()?.csr_der,
        });
    }
    for asker in &mut askers {
        asker.ask().await?;
    }
    // Threads that came with the load.
    pin(pid, 1)?;

    let mut colds = vec![cold_start(&askers).await?];
    let mut issued = COLD;
    let first = rss_mb(pid);
    let (mut rates, mut per_core, mut p50s, mut p99s) = (vec![], vec![], vec![], vec![]);
    for round in 1..=options.rounds {
        eprintln!("round {round} of {}", options.rounds);
        if round > 1 {
            colds.push(cold_start(&askers).await?);
            issued += COLD;
        }
        let cpu = cpu_seconds(pid)?;
        let (count, seconds) = full_load(&askers, options.seconds).await?;
        rates.push(count as f64 / seconds);
        per_core.push(count as f64 / (cpu_seconds(pid)? - cpu));
        issued += count;
        let mut times = steady(&askers, options.seconds).await?;
        issued += times.len() as u64;
        times.sort_by(f64::total_cmp);
        let at = |share: f64| {
            times
                .get((times.len() as f64 * share) as usize)
                .copied()
                .unwrap_or(0.0)
        };
        p50s.push(at(0.5));
        p99s.push(at(0.99));
    }
    let last = rss_mb(pid);
    // All of it is in the record.
    let newest = admin
        .list_audit(ListAuditRequest::default())
        .await?
        .into_inner()
        .entries;
    let recorded = newest.first().map_or(0, |e| e.id);
    if recorded < issued {
        bail!("{issued} certificates were given out and {recorded} recorded");
    }
    service.kill().await?;
    let row = |name: &str, unit, values: &[f64], target: Option<(&str, bool)>| Row {
        name: name.into(),
        unit,
        value: median(values),
        spread: spread(values),
        peer: None,
        ratio: None,
        target: target.map(|(text, _)| text.to_owned()),
        holds: target.map(|(_, holds)| holds),
    };
    let (p99, cold) = (median(&p99s), median(&colds));
    Ok(vec![
        row(
            "full-load/rate",
            "certificates/s",
            &rates,
            Some(("at least 5000", median(&rates) >= 5000.0)),
        ),
        row("full-load/per-core-second", "certificates", &per_core, None),
        row("steady-500/p50", "ms", &p50s, None),
        row("steady-500/p99", "ms", &p99s, Some(("under 10", p99 < 10.0))),
        row("cold-start/10000", "s", &colds, Some(("at most 4", cold <= 4.0))),
        row("memory/started", "MB", &[fresh], None),
        row(
            "memory/10000-issued",
            "MB",
            &[first],
            Some(("under 30", first < 30.0)),
        ),
        row(&format!("memory/{issued}-issued"), "MB", &[last], None),
    ])
}

/// Resident memory in units of a million bytes.
fn rss_mb(pid: i32) -> f64 {
    rss_mib(pid) * 1.048_576
}

/// As many as it takes; how many there were in how many seconds.
async fn full_load(askers: &[Asker], seconds: u32) -> Result<(u64, f64)> {
    let begun = Instant::now();
    let end = begun + Duration::from_secs(seconds.into());
    let mut tasks = JoinSet::new();
    for asker in askers {
        for _ in 0..CALLS {
            let mut asker = asker.clone();
            tasks.spawn(async move {
                let mut count = 0;
                while Instant::now() < end {
                    asker.ask().await?;
                    count += 1;
                }
                anyhow::Ok(count)
            });
        }
    }
    let mut count = 0;
    while let Some(done) = tasks.join_next().await {
        count += done??;
    }
    Ok((count, begun.elapsed().as_secs_f64()))
}

/// All at once; seconds until the last is answered.
async fn cold_start(askers: &[Asker]) -> Result<f64> {
    let begun = Instant::now();
    let mut tasks = JoinSet::new();
    for (_, asker) in (0..COLD).zip(askers.iter().cycle()) {
        let mut asker = asker.clone();
        tasks.spawn(async move { asker.ask().await });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    Ok(begun.elapsed().as_secs_f64())
}

/// One every two milliseconds, whether or not the ones before are answered; what each took, in
/// milliseconds from when it was due.
async fn steady(askers: &[Asker], seconds: u32) -> Result<Vec<f64>> {
    let begun = tokio::time::Instant::now();
    let mut tasks = JoinSet::new();
    for (i, asker) in (0..STEADY * seconds).zip(askers.iter().cycle()) {
        let due = begun + Duration::from_secs(1) * i / STEADY;
        tokio::time::sleep_until(due).await;
        let mut asker = asker.clone();
        tasks.spawn(async move {
            asker.ask().await?;
            anyhow::Ok(due.elapsed().as_secs_f64() * 1000.0)
        });
    }
    let mut times = Vec::new();
    while let Some(done) = tasks.join_next().await {
        times.push(done??);
    }
    Ok(times)
}
