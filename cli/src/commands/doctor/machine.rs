//! The machine around the kernel: limits, settings, ports, the clock.

use super::{Check, State};
use std::{
    fs, io,
    net::{Ipv4Addr, TcpListener},
    os::unix::net::UnixStream,
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

/// Ports of the node: APIs, admin, metrics, capture, tunnel.
const PORTS: [(u16, &str); 8] = [
    (3500, "Dapr's HTTP API"),
    (50001, "Dapr's gRPC API"),
    (4244, "Hubble's API"),
    (7304, "the agent's administration"),
    (7314, "the agent's metrics"),
    (7315, "weft-node's metrics"),
    (15001, "captured connections"),
    (15008, "tunnels from other nodes"),
];
/// weft-node asks for as many.
const OPEN_FILES: u64 = 1 << 18;
/// A time before this release was made is wrong: 2026-01-01.
const BUILT: u64 = 1_767_225_600;

pub(super) fn checks(run_dir: &Path) -> Vec<Check> {
    let mut checks = vec![open_files(), clock(), synchronised()];
    checks.extend(SETTINGS.iter().map(setting));
    let serves = UnixStream::connect(run_dir.join("agent.sock"));
    // For a user without rights the socket is closed, and there all the same.
    let serves = serves.is_ok_and(|_| true) || run_dir.join("agent.pid").exists();
    checks.push(ports(serves));
    checks
}

fn open_files() -> Check {
    use nix::sys::resource::{Resource, getrlimit};
    let meaning = "listeners and namespaces of many pods are many open files";
    match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok((_, hard)) if hard >= OPEN_FILES || nix::unistd::geteuid().is_root() => {
            Check::new("open files", State::Good, format!("limit {hard}"), meaning)
        }
        Ok((_, hard)) => Check::new("open files", State::Note, format!("limit {hard}"), meaning).remedy(
            format!("`ulimit -Hn {OPEN_FILES}`, or LimitNOFILE= of the service"),
        ),
        Err(error) => Check::new("open files", State::Unchecked, error.to_string(), meaning),
    }
}

fn clock() -> Check {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_secs());
    let meaning = "certificates hold for hours; a clock that is wrong refuses them";
    let found = format!("{now} s since 1970");
    if now >= BUILT {
        Check::new("clock", State::Good, found, meaning)
    } else {
        Check::new("clock", State::Missing, found, meaning).remedy("set the machine's clock")
    }
}

/// Whether something keeps the clock right, as the kernel knows it.
fn synchronised() -> Check {
    let meaning = "clocks of nodes and of the authority must agree within a minute";
    // SAFETY: all zero is a valid value of this plain struct, and mode 0 only reads.
    let status = unsafe {
        let mut state: libc::timex = std::mem::zeroed();
        (libc::adjtimex(&raw mut state) >= 0).then_some(state.status)
    };
    match status {
        Some(status) if status & libc::STA_UNSYNC == 0 => {
            Check::new("clock synchronised", State::Good, "yes", meaning)
        }
        Some(_) => Check::new("clock synchronised", State::Note, "no", meaning)
            .remedy("run chrony or systemd-timesyncd"),
        None => Check::new(
            "clock synchronised",
            State::Unchecked,
            io::Error::last_os_error().to_string(),
            meaning,
        ),
    }
}

/// A kernel setting, what it should be, and what follows otherwise.
struct Setting {
    path: &'static str,
    good: fn(u64) -> bool,
    meaning: &'static str,
    remedy: &'static str,
}

const SETTINGS: [Setting; 4] = [
    Setting {
        path: "kernel/unprivileged_bpf_disabled",
        good: |value| value != 0,
        meaning: "users without rights need not load programs; the agent does not either",
        remedy: "sysctl -w kernel.unprivileged_bpf_disabled=2",
    },
    Setting {
        path: "net/ipv4/ip_forward",
        good: |value| value == 1,
        meaning: "pods with addresses of their own reach others through the node's forwarding",
        remedy: "sysctl -w net.ipv4.ip_forward=1, unless the network plugin does without",
    },
    Setting {
        path: "net/ipv4/conf/all/rp_filter",
        good: |value| value != 1,
        meaning: "strict reverse path filtering drops pods' packets that come by another interface than the route back",
        remedy: "sysctl -w net.ipv4.conf.all.rp_filter=2, if pods' packets vanish",
    },
    Setting {
        path: "net/core/somaxconn",
        good: |value| value >= 4096,
        meaning: "so many connects wait while an agent starts anew",
        remedy: "sysctl -w net.core.somaxconn=4096",
    },
];

fn setting(setting: &Setting) -> Check {
    let name = setting.path.replace('/', ".");
    let read = fs::read_to_string(Path::new("/proc/sys").join(setting.path));
    let value = read
        .as_ref()
        .ok()
        .and_then(|text| text.trim().parse::<u64>().ok());
    match (value, read) {
        (Some(value), _) if (setting.good)(value) => {
            Check::new(name, State::Good, value.to_string(), setting.meaning)
        }
        (Some(value), _) => {
            Check::new(name, State::Note, value.to_string(), setting.meaning).remedy(setting.remedy)
        }
        (None, read) => {
            let why = read.map_or_else(|e| e.to_string(), |text| format!("{:?}", text.trim()));
            Check::new(name, State::Unchecked, why, setting.meaning)
        }
    }
}

/// Ports in the caller's namespace; `serves`: Weft itself has them.
fn ports(serves: bool) -> Check {
    let taken: Vec<String> = PORTS
        .iter()
        .filter(|(port, _)| {
            TcpListener::bind((Ipv4Addr::LOCALHOST, *port))
                .is_err_and(|e| e.kind() == io::ErrorKind::AddrInUse)
        })
        .map(|(port, what)| format!("{port} ({what})"))
        .collect();
    let meaning = "a node listens there";
    match (taken.is_empty(), serves) {
        (true, _) => Check::new("ports", State::Good, "all free", meaning),
        (false, true) => Check::new(
            "ports",
            State::Good,
            format!("{} in use; Weft runs here", taken.join(", ")),
            meaning,
        ),
        (false, false) => Check::new(
            "ports",
            State::Missing,
            format!("in use: {}", taken.join(", ")),
            meaning,
        )
        .remedy("stop who has them; `ss -ltnp` says who"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_judged() {
        let seen = setting(&SETTINGS[3]);
        assert_eq!(seen.name, "net.core.somaxconn");
        assert!(matches!(seen.state, State::Good | State::Note));
        let absent = Setting {
            path: "net/core/no_such_setting",
            ..SETTINGS[3]
        };
        assert_eq!(setting(&absent).state, State::Unchecked);
        let strict = SETTINGS[2].good;
        assert!(!strict(1) && strict(2) && strict(0));
    }
}
