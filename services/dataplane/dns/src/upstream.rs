//! Asking a resolver in a workload's place: from a port and with a number that nobody else can guess, so that no
//! third party's answer is taken for the resolver's.

use crate::message::{self, Answer, MAX_MESSAGE, Question};
use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    time::timeout,
};

/// A resolver that has not answered by then does not; clients have asked again by themselves.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// How a question came, and is asked on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// In a datagram.
    Udp,
    /// On a connection, each message with its length before it.
    Tcp,
}

/// Asks `resolver` what a workload asked; `bytes` is its message. Answers the resolver's message with the number that
/// the workload gave, and what it says.
pub async fn ask(
    resolver: SocketAddr,
    transport: Transport,
    question: &Question,
    bytes: &[u8],
) -> io::Result<(Vec<u8>, Answer)> {
    let id: u16 = rand::random();
    let mut bytes = bytes.to_vec();
    message::set_id(&mut bytes, id);
    let asked = async {
        match transport {
            Transport::Udp => by_udp(resolver, question, id, &bytes).await,
            Transport::Tcp => by_tcp(resolver, question, id, &bytes).await,
        }
    };
    let (mut said, answer) = timeout(PATIENCE, asked).await??;
    message::set_id(&mut said, question.id);
    Ok((said, answer))
}

async fn by_udp(
    resolver: SocketAddr,
    question: &Question,
    id: u16,
    bytes: &[u8],
) -> io::Result<(Vec<u8>, Answer)> {
    let any: IpAddr = match resolver {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(resolver).await?;
    socket.send(bytes).await?;
    let mut buffer = vec![0; MAX_MESSAGE + 1];
    loop {
        let length = socket.recv(&mut buffer).await?;
        // What does not fit was cut by the kernel.
        let said = buffer.get(..length).filter(|said| said.len() <= MAX_MESSAGE);
        // Others may have sent it: the right one may come still.
        if let Some((said, answer)) = said.and_then(|s| Some((s, question.read_answer(id, s).ok()?))) {
            return Ok((said.to_vec(), answer));
        }
    }
}

async fn by_tcp(
    resolver: SocketAddr,
    question: &Question,
    id: u16,
    bytes: &[u8],
) -> io::Result<(Vec<u8>, Answer)> {
    let mut stream = TcpStream::connect(resolver).await?;
    write(&mut stream, bytes).await?;
    let said = read(&mut stream).await?;
    let said = said.ok_or(io::ErrorKind::UnexpectedEof)?;
    let answer = question.read_answer(id, &said).map_err(io::Error::other)?;
    Ok((said, answer))
}

/// Writes a message with its length before it.
pub async fn write(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut framed = Vec::with_capacity(message.len() + 2);
    framed.extend(length.to_be_bytes());
    framed.extend(message);
    stream.write_all(&framed).await
}

/// Reads one; `None` at the end. On a connection messages may have the full length.
pub async fn read(stream: &mut TcpStream) -> io::Result<Option<Vec<u8>>> {
    let mut length = [0; 2];
    if let Err(error) = stream.read_exact(&mut length).await {
        let ended = error.kind() == io::ErrorKind::UnexpectedEof;
        return if ended { Ok(None) } else { Err(error) };
    }
    let mut message = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut message).await?;
    Ok(Some(message))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::message::tests;

    #[tokio::test]
    async fn an_answer_with_another_number_is_waited_out() {
        let resolver = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = resolver.local_addr().unwrap();
        let bytes = tests::ask("a.test.", 1);
        let question = Question::read(&bytes).unwrap();
        let serving = tokio::spawn(async move {
            let mut buffer = [0; 512];
            let (_, from) = resolver.recv_from(&mut buffer).await.unwrap();
            let id = message::id(&buffer).unwrap();
            let mut answer = tests::answer("a.test.", &[("a.test.", 9, tests::v4(1))]);
            message::set_id(&mut answer, id.wrapping_add(1));
            resolver.send_to(&answer, from).await.unwrap();
            message::set_id(&mut answer, id);
            resolver.send_to(&answer, from).await.unwrap();
        });
        let (said, answer) = ask(address, Transport::Udp, &question, &bytes).await.unwrap();
        serving.await.unwrap();
        assert_eq!((message::id(&said), answer.ttl), (Some(question.id), 9));
    }

    #[tokio::test]
    async fn by_tcp_the_length_comes_first() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let bytes = tests::ask("a.test.", 1);
        let question = Question::read(&bytes).unwrap();
        let serving = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let asked = read(&mut stream).await.unwrap().unwrap();
            let mut answer = tests::answer("a.test.", &[("a.test.", 9, tests::v4(1))]);
            message::set_id(&mut answer, message::id(&asked).unwrap());
            write(&mut stream, &answer).await.unwrap();
            // The asker is done.
            assert_eq!(read(&mut stream).await.unwrap(), None);
        });
        let (_, answer) = ask(address, Transport::Tcp, &question, &bytes).await.unwrap();
        serving.await.unwrap();
        assert_eq!(answer.addresses.len(), 1);
    }
}
