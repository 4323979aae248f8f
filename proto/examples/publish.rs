//! Writes the current descriptors to `proto/published/weft.bin`: `cargo xtask proto publish`.
//! Refuses to unpublish anything unless called with `--breaking`.

use prost::Message;
use prost_types::FileDescriptorSet;
use std::{error::Error, fs, path::Path};
use weft_proto::{WEFT_DESCRIPTORS, compat::breaking_changes};

fn main() -> Result<(), Box<dyn Error>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("published/weft.bin");
    let current = FileDescriptorSet::decode(WEFT_DESCRIPTORS)?;
    let breaking = std::env::args().any(|a| a == "--breaking");
    if let Ok(bytes) = fs::read(&path)
        && !breaking
    {
        let lost = breaking_changes(&FileDescriptorSet::decode(bytes.as_slice())?, &current);
        if !lost.is_empty() {
            return Err(format!(
                "not published, peers would break (`--breaking` insists): {}",
                lost.join("; ")
            )
            .into());
        }
    }
    fs::write(&path, WEFT_DESCRIPTORS)?;
    println!(
        "published {} bytes to proto/published/weft.bin",
        WEFT_DESCRIPTORS.len()
    );
    Ok(())
}
