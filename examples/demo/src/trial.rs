//! Whether this machine has what the whole story needs: tried out, not guessed, and removed again.

use anyhow::{Context, Result};
use weft_bpf::{Kernel, Options};
use weft_testnet::Testnet;

/// Makes a network with one node and one pod, and attaches the node's programs there. An error says
/// what cannot be had, and how it can.
pub fn everything() -> Result<()> {
    let net = Testnet::new()?;
    let node = net.node("trial")?;
    node.pod("pod")?;
    let bpffs = net.bpffs()?;
    std::fs::create_dir_all(node.cgroup()).with_context(|| format!("making {}", node.cgroup().display()))?;
    let pins = weft_bpf::pin_dir(&bpffs, "trial");
    let loaded = Kernel::load(&Options::new(node.cgroup(), &pins)).map(drop);
    // Pins and links go with the network as well; this says when they do not.
    let removed = weft_bpf::uninstall(&pins);
    loaded?;
    Ok(removed?)
}
