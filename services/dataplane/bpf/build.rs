//! Compiles the BPF programs when clang and the headers are there; otherwise the object that is
//! committed beside the sources is used. A test keeps the two the same.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

/// The release with which `prebuilt/weft.bpf.o` is made, tried first.
const REFERENCE: &str = "clang-16";
const SOURCE: &str = "src/weft.bpf.c";

fn main() {
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default());
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default()).join("weft.bpf.o");
    let prebuilt = root.join("prebuilt/weft.bpf.o");

    println!("cargo::rerun-if-changed=prebuilt/weft.bpf.o");
    for file in sources(&root) {
        println!("cargo::rerun-if-changed={file}");
    }
    println!("cargo::rerun-if-env-changed=WEFT_BPF_PREBUILT");

    let compiler = match env::var_os("WEFT_BPF_PREBUILT") {
        Some(_) => None,
        None => find_compiler(),
    };
    match compiler {
        Some(clang) => {
            if let Err(reason) = compile(&clang, &root, &out) {
                println!("cargo::error=cannot compile {SOURCE}: {reason}");
            }
            println!("cargo::rustc-env=WEFT_BPF_BUILT_BY={clang}");
        }
        None => {
            if let Err(error) = fs::copy(&prebuilt, &out) {
                println!("cargo::error=cannot copy {}: {error}", prebuilt.display());
            }
            println!("cargo::rustc-env=WEFT_BPF_BUILT_BY=prebuilt");
        }
    }
}

/// The C sources. One that is new is noticed through the one that includes it.
fn sources(root: &Path) -> Vec<String> {
    let entries = fs::read_dir(root.join("src")).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.contains(".bpf."))
        .map(|name| format!("src/{name}"))
        .collect()
}

/// A clang that can make BPF objects here: it needs libbpf's and the kernel's headers too.
fn find_compiler() -> Option<String> {
    let headers = Path::new("/usr/include/bpf/bpf_helpers.h").exists();
    if !headers || !asm_headers().join("asm/types.h").exists() {
        return None;
    }
    [REFERENCE, "clang"].into_iter().map(String::from).find(|clang| {
        Command::new(clang)
            .args([
                "-target",
                "bpf",
                "-mcpu=v3",
                "-E",
                "-x",
                "c",
                "/dev/null",
                "-o",
                "/dev/null",
            ])
            .output()
            .is_ok_and(|output| output.status.success())
    })
}

/// Debian keeps `asm/` in a folder named for the machine; clang's BPF target doesn't look there.
fn asm_headers() -> PathBuf {
    let arch = env::var("HOST").unwrap_or_default();
    let arch = arch.split('-').next().unwrap_or_default();
    let multiarch = PathBuf::from(format!("/usr/include/{arch}-linux-gnu"));
    if multiarch.exists() {
        multiarch
    } else {
        PathBuf::from("/usr/include")
    }
}

fn compile(clang: &str, root: &Path, out: &Path) -> Result<(), String> {
    let output = Command::new(clang)
        .current_dir(root)
        .args(["-O2", "-g", "-Wall", "-Werror", "-target", "bpf", "-mcpu=v3"])
        // BTF names its sources: relative, so that the object is the same wherever it is built.
        .args(["-fdebug-compilation-dir=.", "-c", "-o"])
        .arg(out)
        .arg("-I")
        .arg(asm_headers())
        .arg(SOURCE)
        .output()
        .map_err(|error| error.to_string())?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).replace('\n', " | "));
    }
    // DWARF goes, BTF stays. Without the tool the object is only larger.
    for strip in [clang.replace("clang", "llvm-strip"), "llvm-strip".to_string()] {
        if Command::new(strip)
            .arg("-g")
            .arg(out)
            .status()
            .is_ok_and(|status| status.success())
        {
            break;
        }
    }
    Ok(())
}
