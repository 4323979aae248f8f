//! What the kernel can do, tried; and who else uses the same hooks.

use super::{Check, State};
use std::{collections::BTreeSet, fs, io, path::Path};

/// The oldest kernel that has tcx.
const TCX_SINCE: &str = "Linux 6.6 has it";

pub(super) fn checks(bpffs: &Path, cgroup_root: Option<&Path>) -> Vec<Check> {
    let mut checks: Vec<Check> = weft_bpf::probe(bpffs).into_iter().map(basic).collect();
    checks.push(hierarchy());
    let root = nix::unistd::geteuid().is_root();
    if !root {
        checks.push(
            Check::new(
                "programs and maps",
                State::Unchecked,
                "this user is not root",
                "each kind of program and map that a node uses is tried",
            )
            .remedy("run `weft doctor` as root"),
        );
    } else {
        checks.extend(weft_bpf::trials().into_iter().map(tried));
        checks.extend(others(cgroup_root));
    }
    checks
}

fn basic(found: weft_bpf::Capability) -> Check {
    let root = nix::unistd::geteuid().is_root();
    let (meaning, without) = match found.name {
        "bpf-privileges" => ("weft-node loads programs", State::Unchecked),
        "kernel" => ("the programs' features", State::Missing),
        "btf" => ("the programs know the kernel's types", State::Missing),
        "cgroup2" => ("processes are told apart by their cgroup", State::Missing),
        "cgroup-programs" if root => ("programs at cgroups", State::Missing),
        "cgroup-programs" => ("programs at cgroups", State::Unchecked),
        // weft-node mounts one where there is none.
        "bpffs" => ("programs and maps outlive weft-node", State::Note),
        _ => ("", State::Note),
    };
    // As root, rights that are missing were taken away.
    let without = match without {
        State::Unchecked if root => State::Missing,
        other => other,
    };
    let state = if found.active { State::Good } else { without };
    Check::new(found.name, state, found.reason, meaning)
}

/// Where cgroup v2 is, and whether version 1 is there as well.
fn hierarchy() -> Check {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let kinds: BTreeSet<&str> = mounts
        .lines()
        .filter_map(|line| line.split_ascii_whitespace().nth(2))
        .collect();
    let meaning = "programs need version 2; controllers do not matter";
    let (state, found) = match (kinds.contains("cgroup2"), kinds.contains("cgroup")) {
        (true, false) => (State::Good, "version 2 alone"),
        (true, true) => (State::Good, "hybrid: version 2 beside version 1"),
        (false, true) => (State::Missing, "version 1 alone"),
        (false, false) => (State::Missing, "none"),
    };
    let check = Check::new("cgroup hierarchy", state, found, meaning);
    match state {
        State::Missing => check.remedy("mount -t cgroup2 none /sys/fs/cgroup/unified"),
        _ => check,
    }
}

fn tried(trial: weft_bpf::Trial) -> Check {
    let Err(error) = trial.result else {
        return Check::new(trial.name, State::Good, "tried", trial.purpose);
    };
    let remedy = match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => {
            "give it CAP_SYS_ADMIN, CAP_NET_ADMIN and CAP_BPF; a container must be privileged".to_owned()
        }
        _ if trial.name.contains("tcx") => format!("use a newer kernel: {TCX_SINCE}"),
        _ if trial.name.contains("sock_diag") => {
            "use a kernel with CONFIG_INET_DIAG_DESTROY; without it connections to removed backends end by themselves"
                .to_owned()
        }
        _ => "use a kernel with CONFIG_BPF_SYSCALL, CONFIG_CGROUP_BPF and CONFIG_NET_SCH_INGRESS".to_owned(),
    };
    // Weft works without it, if not as well.
    let state = match trial.name.contains("sock_diag") {
        true => State::Note,
        false => State::Missing,
    };
    Check::new(trial.name, state, error.to_string(), trial.purpose).remedy(remedy)
}

/// Programs of others at the hooks, and networks that somebody else set up.
fn others(cgroup_root: Option<&Path>) -> Vec<Check> {
    let meaning = "Weft attaches beside others and removes only what is its own";
    let found = cgroup_mount().and_then(|mounted| {
        let own = mounted.join("weft");
        weft_bpf::others(&interfaces()?, cgroup_root.unwrap_or(&own), &mounted)
    });
    let mut checks = match found {
        Ok(found) if found.is_empty() => {
            vec![Check::new("other programs", State::Good, "none", meaning)]
        }
        Ok(found) => found
            .into_iter()
            .map(|at| {
                let names = at.programs.join(", ");
                let who = at.programs.iter().find_map(|name| maker(name));
                let meaning = match who {
                    Some(who) => format!("{who} handles this hook: its programs and Weft's both decide"),
                    None => meaning.to_owned(),
                };
                Check::new(
                    format!("other programs at {}", at.place),
                    State::Note,
                    names,
                    &meaning,
                )
            })
            .collect(),
        Err(error) => vec![Check::new(
            "other programs",
            State::Unchecked,
            error.to_string(),
            meaning,
        )],
    };
    checks.push(network_plugins());
    checks
}

fn cgroup_mount() -> io::Result<std::path::PathBuf> {
    weft_bpf::find_cgroup2().map_err(io::Error::other)
}

fn interfaces() -> io::Result<Vec<(u32, String)>> {
    let all = nix::net::if_::if_nameindex()?;
    Ok(all
        .into_iter()
        .map(|interface| (interface.index(), interface.name().to_string_lossy().into_owned()))
        .collect())
}

/// Who names programs like this.
fn maker(program: &str) -> Option<&'static str> {
    const MAKERS: [(&str, &str); 4] = [
        ("cil_", "Cilium"),
        ("cali_", "Calico"),
        ("calico_", "Calico"),
        ("ztunnel", "Istio"),
    ];
    MAKERS
        .iter()
        .find_map(|(prefix, who)| program.starts_with(prefix).then_some(*who))
}

/// Configurations of CNI plugins, and interfaces that are known to be some plugin's.
fn network_plugins() -> Check {
    const KNOWN: [(&str, &str); 4] = [
        ("cilium_", "Cilium"),
        ("cali", "Calico"),
        ("flannel", "Flannel"),
        ("weave", "Weave Net"),
    ];
    let mut found: BTreeSet<String> = BTreeSet::new();
    for (_, name) in interfaces().unwrap_or_default() {
        let known = KNOWN.iter().find(|(prefix, _)| name.starts_with(prefix));
        found.extend(known.map(|(_, who)| format!("{who} (interface {name})")));
    }
    let folder = fs::read_dir("/etc/cni/net.d").into_iter().flatten().flatten();
    found.extend(folder.map(|file| file.path().display().to_string()));
    let meaning = "Weft works beside a CNI plugin that gives each pod a veth; policy of both is enforced";
    let (state, text) = match found.is_empty() {
        true => (State::Good, "none".to_owned()),
        false => (State::Note, found.into_iter().collect::<Vec<_>>().join(", ")),
    };
    Check::new("network plugins", state, text, meaning)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn makers_are_known_by_their_programs_names() {
        assert_eq!(maker("cil_from_contai"), Some("Cilium"));
        assert_eq!(maker("weft_doctor"), None);
    }

    #[test]
    fn what_fails_comes_with_a_remedy() {
        let trial = |name: &str, error: i32| {
            tried(weft_bpf::Trial {
                name: name.into(),
                purpose: "p",
                result: Err(io::Error::from_raw_os_error(error)),
            })
        };
        let tcx = trial("program tcx ingress", libc::EINVAL);
        assert!(tcx.state == State::Missing && tcx.remedy.contains("6.6"));
        assert!(
            trial("program tcx ingress", libc::EPERM)
                .remedy
                .contains("CAP_NET_ADMIN")
        );
        assert_eq!(trial("sock_diag destroy", libc::EOPNOTSUPP).state, State::Note);
    }
}
