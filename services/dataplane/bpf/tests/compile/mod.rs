//! Kernel programs as another release may have them: compiled from the same sources but for a line or two.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};

/// The object of the sources with these changes: file, what is there, what comes in its place.
pub fn compile(sources: &Path, changes: &[(&str, &str, &str)]) -> Vec<u8> {
    let folder = tempfile();
    for entry in fs::read_dir(sources).unwrap().flatten() {
        let name = entry.file_name().into_string().unwrap();
        if !name.contains(".bpf.") {
            continue;
        }
        let mut text = fs::read_to_string(entry.path()).unwrap();
        for (_, from, to) in changes.iter().filter(|(file, ..)| *file == name) {
            assert_eq!(text.matches(from).count(), 1, "{name}: {from}");
            text = text.replace(from, to);
        }
        fs::write(folder.join(name), text).unwrap();
    }
    let headers = format!("/usr/include/{}-linux-gnu", std::env::consts::ARCH);
    let clang = ["clang-16", "clang"].into_iter().find(|name| {
        let version = Command::new(name).arg("--version").output();
        version.is_ok_and(|output| output.status.success())
    });
    let output = Command::new(clang.expect("clang is needed: cargo xtask setup"))
        .current_dir(&folder)
        .args(["-O2", "-g", "-target", "bpf", "-mcpu=v3", "-I", &headers])
        .args(["-c", "weft.bpf.c", "-o", "other.o"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let object = fs::read(folder.join("other.o")).unwrap();
    fs::remove_dir_all(&folder).unwrap();
    object
}

/// A folder of this test's own.
fn tempfile() -> std::path::PathBuf {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let folder = std::env::temp_dir().join(format!("weft-build-{}-{number}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    folder
}
