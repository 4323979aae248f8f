//! What `weft dev` looks at before it starts anything: mistakes of the command line are then said in
//! its own words, in one line, and nothing has to be taken down again.

use anyhow::{Context, Result, anyhow, bail};
use std::{
    fs, io,
    net::{Ipv4Addr, TcpListener},
    os::unix::{ffi::OsStrExt, net::UnixStream},
    path::Path,
};

/// Longest path of a socket that the kernel takes, without the zero byte.
const SOCKET_PATH: usize = 107;

/// Makes the folders of state and sockets; looks whether somebody else serves in them.
pub fn folders(state: &Path, run: &Path, resources: Option<&Path>) -> Result<()> {
    make(state, "--state-dir")?;
    make(run, "--run-dir")?;
    let socket = run.join("identity.sock");
    if socket.as_os_str().as_bytes().len() > SOCKET_PATH {
        bail!(
            "{} is too long for a socket, {SOCKET_PATH} bytes are the limit; choose a shorter folder with --run-dir",
            socket.display()
        );
    }
    if UnixStream::connect(&socket).is_ok() {
        bail!(
            "another `weft dev` or weft-identity serves {}; stop it, or let both live: --state-dir, --run-dir, \
             --ephemeral-ports and --rootless",
            socket.display()
        );
    }
    if let Some(folder) = resources {
        fs::read_dir(folder).with_context(|| {
            format!(
                "manifests can not be read from {}; name a folder with --resources",
                folder.display()
            )
        })?;
    }
    Ok(())
}

fn make(folder: &Path, flag: &str) -> Result<()> {
    fs::create_dir_all(folder).map_err(|e| {
        anyhow!(
            "cannot make folder {}: {e}; choose another with {flag}",
            folder.display()
        )
    })
}

/// Looks whether the services' ports are free. Whoever takes one from now on is named by the service.
pub fn ports(ports: &[u16]) -> Result<()> {
    for port in ports {
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, *port));
        if taken.is_err_and(|e| e.kind() == io::ErrorKind::AddrInUse) {
            bail!(
                "port {port} is in use, maybe by another `weft dev`; stop who has it (`ss -ltnp` says who), \
                 or let the kernel choose with --ephemeral-ports"
            );
        }
    }
    Ok(())
}
