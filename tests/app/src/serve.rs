//! The server: one port per behaviour, all counted from one base.

use std::{
    io,
    net::{Ipv6Addr, SocketAddr},
    rc::Rc,
};

use anyhow::{Context, Result};
use clap::Args;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    task::LocalSet,
};

use crate::pattern::Pattern;

/// What the server says first on the banner's port.
pub(crate) const BANNER: &[u8] = b"220 app ready\r\n";
/// The bytes read and written at a time.
pub(crate) const CHUNK: usize = 256 * 1024;

/// The behaviours, in the order of their ports.
const BEHAVIOURS: [Behaviour; 8] = [
    Behaviour::Echo,
    Behaviour::Sink,
    Behaviour::Source,
    Behaviour::Banner,
    Behaviour::Count,
    Behaviour::Reset,
    Behaviour::Peer,
    Behaviour::Once,
];

/// Serve every behaviour: echo on PORT, sink on PORT+1, source +2, banner +3, count +4, reset +5, peer +6, once +7;
/// datagrams are echoed on PORT.
#[derive(Debug, Args)]
pub(crate) struct Serve {
    /// The first port.
    #[arg(long, default_value_t = 9000)]
    port: u16,
    /// Connections waiting to be accepted, at most.
    #[arg(long, default_value_t = 16_384)]
    backlog: i32,
}

/// What a server does with a connection.
#[derive(Debug, Clone, Copy)]
enum Behaviour {
    /// Sends back what it gets; its end follows the client's end.
    Echo,
    /// Reads a header (seed, length), then compares the stream with the pattern; answers one line.
    Sink,
    /// Reads a header (seed, length), then sends the pattern and closes its side.
    Source,
    /// Speaks first, then echoes.
    Banner,
    /// Reads to the end and then answers with the count: works only where half-close does.
    Count,
    /// Reads one byte and answers with RST.
    Reset,
    /// Says whom it sees and as whom it was called, then echoes.
    Peer,
    /// Sends back what it gets at once, and is the first to close.
    Once,
}

impl Serve {
    pub(crate) async fn run(self) -> Result<()> {
        let local = LocalSet::new();
        for (offset, behaviour) in (0..).zip(BEHAVIOURS) {
            let port = self.port + offset;
            let listener = listen(port, self.backlog).with_context(|| format!("listen on port {port}"))?;
            local.spawn_local(accept(listener, behaviour));
        }
        let datagrams =
            datagrams(self.port).with_context(|| format!("take datagrams on port {}", self.port))?;
        local.spawn_local(echo_datagrams(datagrams));
        println!("ready");
        local.await;
        Ok(())
    }
}

/// Listens for IPv4 and IPv6 on one socket.
pub(crate) fn listen(port: u16, backlog: i32) -> io::Result<TcpListener> {
    let socket = bound(port, Type::STREAM, Protocol::TCP)?;
    socket.listen(backlog)?;
    TcpListener::from_std(socket.into())
}

fn datagrams(port: u16) -> io::Result<UdpSocket> {
    UdpSocket::from_std(bound(port, Type::DGRAM, Protocol::UDP)?.into())
}

fn bound(port: u16, kind: Type, protocol: Protocol) -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV6, kind, Some(protocol))?;
    socket.set_only_v6(false)?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)).into())?;
    Ok(socket)
}

async fn echo_datagrams(socket: UdpSocket) {
    let mut buffer = vec![0; 65_536];
    loop {
        let echoed = match socket.recv_from(&mut buffer).await {
            Ok((length, peer)) => socket.send_to(&buffer[..length], peer).await.map(drop),
            Err(error) => Err(error),
        };
        if let Err(error) = echoed {
            // Word of a client that is gone.
            eprintln!("datagram: {error}");
        }
    }
}

async fn accept(listener: TcpListener, behaviour: Behaviour) {
    let listener = Rc::new(listener);
    loop {
        match listener.accept().await {
            // A connection that fails is the client's to report; the server has nobody to tell.
            Ok((stream, peer)) => {
                drop(tokio::task::spawn_local(async move { behaviour.serve(stream, peer).await }))
            }
            Err(error) => {
                eprintln!("accept: {error}");
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
        }
    }
}

impl Behaviour {
    async fn serve(self, mut stream: TcpStream, peer: SocketAddr) -> io::Result<()> {
        stream.set_nodelay(true)?;
        match self {
            Self::Echo => echo(&mut stream).await,
            Self::Sink => sink(&mut stream).await,
            Self::Source => source(&mut stream).await,
            Self::Banner => {
                stream.write_all(BANNER).await?;
                echo(&mut stream).await
            }
            Self::Count => count(&mut stream).await,
            Self::Reset => {
                stream.read_u8().await?;
                reset(stream)
            }
            Self::Peer => {
                let local = stream.local_addr()?;
                stream.write_all(format!("{} {}\n", plain(peer), plain(local)).as_bytes()).await?;
                echo(&mut stream).await
            }
            Self::Once => once(&mut stream).await,
        }
    }
}

/// An IPv4 address without its IPv6 coat.
fn plain(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

async fn echo(stream: &mut TcpStream) -> io::Result<()> {
    // Small until the connection is used in earnest: ten thousand idle ones must fit.
    let mut buffer = vec![0; 2048];
    loop {
        let length = stream.read(&mut buffer).await?;
        if length == 0 {
            return stream.shutdown().await;
        }
        stream.write_all(&buffer[..length]).await?;
        if length == buffer.len() && length < CHUNK {
            buffer.resize(length * 4, 0);
        }
    }
}

async fn once(stream: &mut TcpStream) -> io::Result<()> {
    let mut buffer = [0; 2048];
    let length = stream.read(&mut buffer).await?;
    stream.write_all(&buffer[..length]).await?;
    stream.shutdown().await?;
    // The client's end, so that ours is a FIN and no RST.
    stream.read(&mut buffer).await.map(drop)
}

async fn header(stream: &mut TcpStream) -> io::Result<(Pattern, u64)> {
    let seed = stream.read_u64().await?;
    let length = stream.read_u64().await?;
    Ok((Pattern::new(seed), length))
}

async fn sink(stream: &mut TcpStream) -> io::Result<()> {
    let (pattern, length) = header(stream).await?;
    let answer = match compare(stream, pattern, length, |_| async { Ok(()) }).await {
        Ok(read) => format!("exact {read}\n"),
        Err(error) => format!("{error}\n"),
    };
    stream.write_all(answer.as_bytes()).await?;
    stream.shutdown().await
}

async fn source(stream: &mut TcpStream) -> io::Result<()> {
    let (pattern, length) = header(stream).await?;
    send(stream, pattern, length).await?;
    stream.shutdown().await?;
    // The client's end; whatever it says before is not expected.
    let mut rest = [0; 1];
    stream.read(&mut rest).await.map(drop)
}

async fn count(stream: &mut TcpStream) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    let mut total: u64 = 0;
    loop {
        let length = stream.read(&mut buffer).await?;
        if length == 0 {
            break;
        }
        total += length as u64;
    }
    stream.write_all(format!("{total}\n").as_bytes()).await?;
    stream.shutdown().await
}

/// Closes with RST.
pub(crate) fn reset(stream: TcpStream) -> io::Result<()> {
    SockRef::from(&stream).set_linger(Some(std::time::Duration::ZERO))?;
    drop(stream);
    Ok(())
}

/// Writes `length` bytes of the pattern.
pub(crate) async fn send(stream: &mut TcpStream, pattern: Pattern, length: u64) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    let mut at = 0;
    while at < length {
        let size = (length - at).min(CHUNK as u64) as usize;
        pattern.fill(at, &mut buffer[..size]);
        stream.write_all(&buffer[..size]).await?;
        at += size as u64;
    }
    Ok(())
}

/// Reads `length` bytes and compares each with the pattern; `pause` is awaited after each read.
pub(crate) async fn compare<P: Future<Output = io::Result<()>>>(
    stream: &mut TcpStream,
    pattern: Pattern,
    length: u64,
    mut pause: impl FnMut(usize) -> P,
) -> io::Result<u64> {
    let mut buffer = vec![0; CHUNK];
    let mut scratch = Vec::new();
    let mut at: u64 = 0;
    while at < length {
        let limit = (length - at).min(CHUNK as u64) as usize;
        let size = stream.read(&mut buffer[..limit]).await?;
        if size == 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!("ended after {at} of {length} bytes"),
            ));
        }
        if let Some(wrong) = pattern.first_difference(at, &buffer[..size], &mut scratch) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("byte {wrong} is not as it was sent"),
            ));
        }
        at += size as u64;
        pause(size).await?;
    }
    Ok(at)
}
