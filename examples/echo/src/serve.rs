//! Answers.

use crate::Done;
use std::{
    io::{self, BufRead, BufReader, Write},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    thread,
};

/// Serves TCP and UDP at each address until it is ended.
pub fn run(name: &str, addresses: &[&str]) -> Done {
    for address in addresses {
        let address: SocketAddr = address.parse()?;
        let (tcp, udp) = (TcpListener::bind(address)?, UdpSocket::bind(address)?);
        let own = name.to_owned();
        thread::spawn(move || datagrams(&own, &udp));
        let own = name.to_owned();
        thread::spawn(move || connections(&own, &tcp));
    }
    println!("serving");
    loop {
        thread::park();
    }
}

fn answer(name: &str, from: SocketAddr, said: &str) -> String {
    format!("{name} {} {said}", from.ip().to_canonical())
}

fn datagrams(name: &str, socket: &UdpSocket) {
    let mut said = [0; 2048];
    // What is refused on the way back is the client's to notice.
    loop {
        if let Ok((n, from)) = socket.recv_from(&mut said) {
            let text = answer(name, from, &String::from_utf8_lossy(&said[..n]));
            let _ = socket.send_to(text.as_bytes(), from);
        }
    }
}

fn connections(name: &str, listener: &TcpListener) {
    for stream in listener.incoming().flatten() {
        let name = name.to_owned();
        thread::spawn(move || lines(&name, stream));
    }
}

fn lines(name: &str, mut stream: TcpStream) -> io::Result<()> {
    let from = stream.peer_addr()?;
    stream.set_nodelay(true)?;
    for said in BufReader::new(stream.try_clone()?).lines() {
        writeln!(stream, "{}", answer(name, from, &said?))?;
    }
    Ok(())
}
