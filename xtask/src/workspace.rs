//! Where things are, and which integration tests there are.

use anyhow::{Context, Result};
use std::{
    collections::BTreeSet,
    env, fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::Command,
};

/// The repository and its build output.
#[derive(Debug)]
pub struct Workspace {
    pub root: PathBuf,
    pub target: PathBuf,
}

impl Workspace {
    /// The workspace this program was built from.
    pub fn find() -> Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"))
            .parent()
            .context("the folder of xtask has no parent")?
            .to_owned();
        let target =
            env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), |dir| root.join(dir));
        Ok(Self { root, target })
    }

    /// `cargo` with these arguments, at the root.
    pub fn cargo(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command.args(args).current_dir(&self.root);
        command
    }

    /// Where the binaries of a profile, `debug` or `release`, are.
    pub fn bin_dir(&self, profile: &str) -> PathBuf {
        self.target.join(profile)
    }

    /// The environment with packages from PyPI.
    pub fn venv(&self) -> PathBuf {
        self.target.join("venv")
    }

    /// The Python of that environment.
    pub fn python(&self) -> PathBuf {
        self.venv().join("bin/python")
    }

    /// The folder with packages from npm.
    pub fn node(&self) -> PathBuf {
        self.target.join("node")
    }

    /// Programs that were built from source for tests.
    pub fn tools(&self) -> PathBuf {
        self.target.join("tools")
    }

    /// Names of all integration tests, `tests/<name>.rs`, of all packages.
    pub fn integration_tests(&self) -> Result<BTreeSet<String>> {
        let mut names = BTreeSet::new();
        self.collect(&self.root, &mut names)
            .with_context(|| format!("cannot list the tests below {}", self.root.display()))?;
        Ok(names)
    }

    fn collect(&self, dir: &Path, names: &mut BTreeSet<String>) -> std::io::Result<()> {
        let package = dir.join("Cargo.toml").is_file();
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            let path = entry.path();
            let hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
            if hidden || !entry.file_type()?.is_dir() || path == self.target || entry.file_name() == "target"
            {
                continue;
            }
            // Below the root, `tests` holds packages.
            if package && dir != self.root && entry.file_name() == "tests" {
                for test in fs::read_dir(&path)? {
                    let test = test?.path();
                    let is_file = test.extension().is_some_and(|e| e == "rs");
                    if (is_file || test.join("main.rs").is_file())
                        && let Some(name) = test.file_stem().and_then(|s| s.to_str())
                    {
                        names.insert(name.to_owned());
                    }
                }
            } else {
                self.collect(&path, names)?;
            }
        }
        Ok(())
    }
}

/// The effective user, by the owner of its own entry in /proc.
pub fn user_id() -> u32 {
    fs::metadata("/proc/self").map_or(u32::MAX, |m| m.uid())
}
