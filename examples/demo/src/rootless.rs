//! Without root, or on a machine that does not give root what the story needs: `weft dev` and two
//! apps, each with ports of its own. No namespaces, no kernel.

use crate::{command::wait_for, load::fetch, report::Report, stage::StageOptions};
use anyhow::{Context, Result, ensure};
use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

const START: Duration = Duration::from_secs(60);

/// Ends its process when dropped: first asked, then killed.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        if let Ok(pid) = i32::try_from(self.0.id()) {
            let pid = nix::unistd::Pid::from_raw(pid);
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        }
        for _ in 0..50 {
            if !matches!(self.0.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Plays what works without root.
pub async fn play(options: &StageOptions, report: &mut Report) -> Result<()> {
    report.chapter("weft dev: all services in one process, two apps call each other");
    let dir = tempfile::tempdir()?;
    let weft = |args: &[&str]| {
        let mut command = Command::new(options.bin_dir.join("weft"));
        command
            .args(args)
            .env("WEFT_RUN_DIR", dir.path().join("run"))
            .stdin(Stdio::null());
        command
    };
    let state = dir.path().join("state");
    let mut dev = weft(&["dev", "--ephemeral-ports", "--state-dir"]);
    dev.arg(&state).arg("--rootless");
    let _dev = start(dev, &dir.path().join("dev.log"))?;
    let mut apps = Vec::new();
    let mut ports = Vec::new();
    for name in ["cart", "billing"] {
        let port = free_port()?;
        let app = options.bin_dir.join("weft-example-cart");
        let mut run = weft(&["run", "--app-id", name, "--app-port", &port.to_string(), "--"]);
        run.arg(app).args([name, &port.to_string()]);
        let log = dir.path().join(format!("{name}.log"));
        let running = wait_for(name, START, || {
            let agent = dir.path().join("run/agent.sock");
            let started = if agent.exists() {
                Ok(())
            } else {
                Err(anyhow::anyhow!("weft dev is not up"))
            };
            async move { started }
        })
        .await
        .and_then(|()| start(run, &log));
        let running =
            running.with_context(|| fs::read_to_string(dir.path().join("dev.log")).unwrap_or_default())?;
        apps.push(running);
        ports.push((name, port, log));
    }
    for (from, to) in [(0, 1), (1, 0)] {
        let ((from, port, log), to) = (&ports[from], ports[to].0);
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, *port));
        let reply = wait_for("a good reply", START, || async move {
            let (status, body) = fetch(address, &format!("/call?app={to}&id=r1"), &[]).await?;
            ensure!(status == 200, "{status} {body}");
            Ok(body)
        })
        .await
        .with_context(|| fs::read_to_string(log).unwrap_or_default());
        report.check_result(&format!("{from} calls {to}"), reply, |body| {
            (
                body.contains(&format!("\"caller\":\"{from}\"")),
                body.chars().take(160).collect(),
            )
        });
    }
    Ok(())
}

fn start(mut command: Command, log: &Path) -> Result<Running> {
    let log = fs::File::create(log)?;
    let child = command.stdout(log.try_clone()?).stderr(log).spawn()?;
    Ok(Running(child))
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}
