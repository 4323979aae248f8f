//! `--check-health`: what a supervisor without a shell or curl asks a running process, as Docker's
//! HEALTHCHECK in an image that holds nothing else.

use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    time::Duration,
};

/// Supervisors ask every few seconds.
const PATIENCE: Duration = Duration::from_secs(3);
/// More lines than any process has parts.
const MOST: u64 = 64 * 1024;

/// Asks `/healthz` of the process that serves at `address`: whether it is ready, and its own words.
pub(crate) fn ask(mut address: SocketAddr) -> Result<(bool, String), String> {
    // Where it listens everywhere it listens here.
    if address.ip().is_unspecified() {
        address.set_ip(match address {
            SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    if address.port() == 0 {
        return Err("the port of /healthz is chosen at each start; name one with --metrics-listen".into());
    }
    let answer =
        exchange(address).map_err(|e| format!("nothing answers at http://{address}/healthz: {e}"))?;
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .ok_or_else(|| format!("http://{address}/healthz is not served by Weft"))?;
    let status = head.split(' ').nth(1).unwrap_or_default();
    Ok((status == "200", body.to_owned()))
}

fn exchange(address: SocketAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let request = format!("GET /healthz HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.take(MOST).read_to_string(&mut answer)?;
    Ok(answer)
}
