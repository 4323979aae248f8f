//! `weft uninstall`: takes away what a node left in the kernel and on the machine, also when its
//! weft-node is dead. Shows what it would do, and does it with `--yes`.
//!
//! Only what is below the node's own folders is touched: its pins, its cgroups, its sockets, and the
//! bpf file system when weft-node mounted it. Processes of workloads are left alone, and so is state
//! (keys, databases).

use crate::{connect::AgentArgs, output::print_text};
use anyhow::{Context, Result, bail};
use clap::Args;
use nix::fcntl::{Flock, FlockArg};
use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

/// The folder below bpffs and cgroup v2 in which nodes are.
const WEFT: &str = "weft";
/// weft-node's own cgroup.
const OWN: &str = "_node";
/// What weft-node and its agent leave in the folder of sockets.
const SOCKETS: [&str; 5] = ["agent.sock", "hubble.sock", "node.sock", "agent.pid", "pods"];
/// How long killed processes may take to go.
const REAP_WITHIN: Duration = Duration::from_secs(5);

/// Remove what a node left in the kernel and on this machine.
///
/// Without --yes it only says what it would remove.
#[derive(Debug, Args)]
pub struct Uninstall {
    /// The node to remove
    #[arg(long, env = "WEFT_NODE", value_name = "NAME", required_unless_present = "all")]
    node: Option<String>,
    /// Every node of this machine
    #[arg(long, conflicts_with = "node")]
    all: bool,
    /// Do it
    #[arg(long)]
    yes: bool,
    /// The bpf file system with the node's pins
    #[arg(long, env = "WEFT_BPFFS", value_name = "PATH", default_value = "/sys/fs/bpf")]
    bpffs: PathBuf,
    /// The node's subtree of cgroup v2 [default: <cgroup2>/weft/<node>]
    #[arg(long, env = "WEFT_CGROUP_ROOT", value_name = "PATH", conflicts_with = "all")]
    cgroup_root: Option<PathBuf>,
    #[command(flatten)]
    agent: AgentArgs,
}

impl Uninstall {
    /// Shows or does it.
    pub fn run(self) -> Result<ExitCode> {
        if !nix::unistd::geteuid().is_root() {
            bail!("only root sees and removes what a node has; use sudo");
        }
        let mounted = weft_bpf::find_cgroup2().ok();
        let nodes: BTreeSet<String> = match &self.node {
            Some(node) => {
                weft_model::check_name(node).context("--node")?;
                [node.clone()].into()
            }
            None => {
                let mut all = names(&self.bpffs.join(WEFT), true);
                all.extend(mounted.iter().flat_map(|root| names(&root.join(WEFT), false)));
                all.into_iter().collect()
            }
        };
        let mut steps = Vec::new();
        for node in &nodes {
            let pins = weft_bpf::pin_dir(&self.bpffs, node);
            if pins.exists() {
                steps.push(Step::Pins(pins));
            }
            let root = self.cgroup_root.clone();
            let root = root.or_else(|| Some(mounted.as_ref()?.join(WEFT).join(node)));
            // At the root of the hierarchy its folders are apart from everybody's.
            let root = match (root, &mounted) {
                (Some(root), Some(mounted)) if root == *mounted => Some(mounted.join(WEFT).join(node)),
                (root, _) => root,
            };
            if let Some(root) = root.filter(|root| root.exists()) {
                if is_served(&root)? {
                    bail!(
                        "weft-node of {node} runs ({}): stop it first (SIGTERM), which removes everything",
                        root.display()
                    );
                }
                steps.push(Step::Cgroups(root));
            }
        }
        let run = self.agent.dir();
        let left = SOCKETS.map(|name| run.join(name)).into_iter();
        steps.extend(left.filter(|path| path.exists()).map(Step::File));
        if let Some(bpffs) = weft_bpf::mounted_by_weft(&run) {
            steps.push(Step::Bpffs(bpffs, run.clone()));
        }
        self.carry_out(&steps)
    }

    fn carry_out(&self, steps: &[Step]) -> Result<ExitCode> {
        if steps.is_empty() {
            print_text("nothing of Weft is here")?;
            return Ok(ExitCode::SUCCESS);
        }
        let mut failed = false;
        for step in steps {
            if !self.yes {
                print_text(&format!("would {}", step.words()))?;
                continue;
            }
            match step.carry_out() {
                Ok(None) => print_text(&format!("done: {}", step.words()))?,
                Ok(Some(but)) => print_text(&format!("done: {}; {but}", step.words()))?,
                Err(error) => {
                    failed = true;
                    eprintln!("weft: could not {}: {error:#}", step.words());
                }
            }
        }
        if !self.yes {
            print_text("nothing was changed; run it again with --yes to do it")?;
        }
        Ok(if failed {
            ExitCode::FAILURE
        } else {
            ExitCode::SUCCESS
        })
    }
}

/// One thing to take away.
#[derive(Debug)]
enum Step {
    Pins(PathBuf),
    Cgroups(PathBuf),
    File(PathBuf),
    Bpffs(PathBuf, PathBuf),
}

impl Step {
    fn words(&self) -> String {
        match self {
            Self::Pins(path) => format!(
                "detach the programs and remove the maps pinned at {}",
                path.display()
            ),
            Self::Cgroups(path) => format!(
                "end what an agent left, and remove the empty cgroups below {}",
                path.display()
            ),
            Self::File(path) => format!("remove {}", path.display()),
            Self::Bpffs(path, _) => format!(
                "unmount the bpf file system {} that weft-node mounted",
                path.display()
            ),
        }
    }

    /// `Some`: done, with something to know.
    fn carry_out(&self) -> Result<Option<String>> {
        match self {
            Self::Pins(path) => {
                weft_bpf::uninstall(path)?;
                // Shared by nodes; only the last one can remove it.
                let _ = path.parent().map(fs::remove_dir);
            }
            Self::Cgroups(root) => return remove_cgroups(root),
            Self::File(path) => {
                match path.is_dir() {
                    true => fs::remove_dir_all(path)?,
                    false => fs::remove_file(path)?,
                }
                let _ = path.parent().map(fs::remove_dir);
            }
            Self::Bpffs(path, run) => {
                if !weft_bpf::unmount_if_unused(path, run)? {
                    return Ok(Some("it stays, for there are pins of others in it".into()));
                }
            }
        }
        Ok(None)
    }
}

/// Nodes that have a folder here. bpffs allows no dots, and names have no underscores.
fn names(folder: &Path, dots: bool) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .filter_map(|entry| entry.file_name().into_string().ok())
        .map(move |name| if dots { name.replace('_', ".") } else { name })
        .filter(|name| weft_model::check_name(name).is_ok())
        .collect()
}

/// A running weft-node holds a lock on its subtree.
fn is_served(root: &Path) -> Result<bool> {
    let folder = fs::File::open(root).with_context(|| root.display().to_string())?;
    match Flock::lock(folder, FlockArg::LockExclusiveNonblock) {
        Ok(_) => Ok(false),
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => Ok(true),
        Err((_, error)) => Err(error).with_context(|| root.display().to_string()),
    }
}

fn populated(cgroup: &Path) -> bool {
    let events = fs::read_to_string(cgroup.join("cgroup.events")).unwrap_or_default();
    events.lines().any(|line| line.trim_end() == "populated 1")
}

/// Ends an agent without a node, and removes every cgroup below that has no processes.
fn remove_cgroups(root: &Path) -> Result<Option<String>> {
    let own = root.join(OWN);
    if populated(&own) {
        fs::write(own.join("cgroup.kill"), "1")?;
        let deadline = Instant::now() + REAP_WITHIN;
        while populated(&own) {
            if Instant::now() > deadline {
                bail!("processes in {} do not end", own.display());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    let mut kept = Vec::new();
    remove_empty(root, &mut kept)?;
    let _ = root
        .parent()
        .filter(|parent| parent.ends_with(WEFT))
        .map(fs::remove_dir);
    Ok((!kept.is_empty()).then(|| format!("there are processes in {}", kept.join(", "))))
}

fn remove_empty(folder: &Path, kept: &mut Vec<String>) -> io::Result<()> {
    for entry in fs::read_dir(folder)?.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_empty(&entry.path(), kept)?;
        }
    }
    match fs::remove_dir(folder) {
        Err(e) if e.kind() == io::ErrorKind::ResourceBusy => {
            let procs = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
            if !procs.is_empty() {
                kept.push(folder.display().to_string());
            }
            Ok(())
        }
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}
