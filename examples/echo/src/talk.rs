//! Talks on one connection for a while.

use crate::{Done, ask::line};
use std::{
    io::Read,
    net::{SocketAddr, TcpStream},
    sync::mpsc::{RecvTimeoutError, channel},
    thread,
    time::Duration,
};

const PAUSE: Duration = Duration::from_millis(10);
const PATIENCE: Duration = Duration::from_secs(10);

/// Until the input is closed. A line without its answer is a failure.
pub fn run(address: &str, word: &str) -> Done {
    let address: SocketAddr = address.parse()?;
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let (ended, end) = channel::<()>();
    thread::spawn(move || {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        drop(ended);
    });
    let mut said: u64 = 0;
    println!("talking");
    loop {
        let saying = format!("{word}-{said}");
        let answer = line(&mut stream, &saying)?;
        if !answer.ends_with(&saying) {
            return Err(format!("{answer:?} for {saying:?}").into());
        }
        said += 1;
        if matches!(end.recv_timeout(PAUSE), Err(RecvTimeoutError::Disconnected)) {
            println!("{said} lines, all answered");
            return Ok(());
        }
    }
}
