//! What a load speaks: how a connection is opened, and one exchange on it.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
};

use bytes::Bytes;
use h2::client::SendRequest;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpStream, UdpSocket},
};

use crate::{http, pages, pattern::Pattern, serve::BANNER};

/// A datagram of more might be cut into pieces.
const MOST_DATAGRAM: u64 = 1200;

/// The protocols of a load.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Protocol {
    /// HTTP/1.1, of `app http`.
    Http1,
    /// HTTP/2 with prior knowledge, of `app http`.
    H2c,
    /// gRPC, of `app http`.
    Grpc,
    /// Bytes echoed: the first port of `app serve`.
    ClientFirst,
    /// A banner, then bytes echoed: the banner's port of `app serve`.
    ServerFirst,
    /// Datagrams echoed: the first port of `app serve`.
    Udp,
}

/// What an exchange came to.
#[derive(Debug)]
pub(crate) struct Answer {
    /// The first line of the page, which tells who answered.
    pub(crate) page: Option<String>,
    /// Whether the connection may be used again.
    pub(crate) again: bool,
}

impl Answer {
    fn of(page: String) -> Self {
        Self { page: Some(page), again: true }
    }
}

/// An open connection.
pub(crate) enum Open {
    Stream(BufReader<TcpStream>),
    H2(SendRequest<Bytes>),
    Datagrams(UdpSocket),
}

impl Protocol {
    /// Connects, and says what has to be said first.
    pub(crate) async fn open(self, to: SocketAddr) -> io::Result<Open> {
        if self == Self::Udp {
            let any: SocketAddr = if to.is_ipv4() {
                (Ipv4Addr::UNSPECIFIED, 0).into()
            } else {
                (Ipv6Addr::UNSPECIFIED, 0).into()
            };
            let socket = UdpSocket::bind(any).await?;
            socket.connect(to).await?;
            return Ok(Open::Datagrams(socket));
        }
        let stream = TcpStream::connect(to).await?;
        stream.set_nodelay(true)?;
        if !matches!(self, Self::H2c | Self::Grpc) {
            return Ok(Open::Stream(BufReader::new(stream)));
        }
        // It waits for nothing of the other side's.
        let (client, connection) = h2::client::handshake(stream).await.map_err(io::Error::other)?;
        // Its end is seen by who asks next.
        drop(tokio::task::spawn_local(connection));
        Ok(Open::H2(client))
    }

    /// One exchange of `size` bytes, compared; `first` on this connection.
    pub(crate) async fn exchange(
        self,
        open: &mut Open,
        host: &str,
        size: u64,
        first: bool,
    ) -> io::Result<Answer> {
        match open {
            Open::Stream(stream) if self == Self::Http1 => http::get(stream, host, size).await,
            Open::Stream(stream) => {
                if first && self == Self::ServerFirst {
                    let mut banner = [0; BANNER.len()];
                    stream.read_exact(&mut banner).await?;
                    same(&banner, BANNER)?;
                }
                let sent = pattern(size);
                stream.write_all(&sent).await?;
                let mut got = vec![0; sent.len()];
                stream.read_exact(&mut got).await?;
                same(&got, &sent)
            }
            Open::H2(client) if self == Self::Grpc => pages::call(client, host, size).await.map(Answer::of),
            Open::H2(client) => pages::get(client, host, size).await.map(Answer::of),
            Open::Datagrams(socket) => {
                let sent = pattern(size.min(MOST_DATAGRAM));
                socket.send(&sent).await?;
                let mut got = vec![0; sent.len() + 1];
                let length = socket.recv(&mut got).await?;
                same(&got[..length], &sent)
            }
        }
    }
}

impl Open {
    /// Whether the other side has said that it takes nothing more.
    pub(crate) async fn is_over(&self) -> bool {
        match self {
            Self::H2(client) => client.clone().ready().await.is_err(),
            Self::Stream(_) | Self::Datagrams(_) => false,
        }
    }
}

/// The bytes that a load sends where it is to get the same back.
fn pattern(size: u64) -> Vec<u8> {
    let mut bytes = vec![0; size as usize];
    Pattern::new(size).fill(0, &mut bytes);
    bytes
}

fn same(got: &[u8], wanted: &[u8]) -> io::Result<Answer> {
    if got == wanted {
        return Ok(Answer { page: None, again: true });
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, "the bytes are not those that were sent"))
}

#[cfg(test)]
mod tests {
    use tokio::task::LocalSet;

    use super::*;
    use crate::args;

    #[tokio::test]
    async fn every_protocol_is_spoken_and_compared_on_kept_and_new_connections() {
        let local = LocalSet::new();
        local
            .run_until(async {
                // Ports of a range that nobody else of the tests' uses.
                drop(tokio::task::spawn_local(args::<http::Http>(&["--port=28080"]).run()));
                drop(tokio::task::spawn_local(args::<crate::serve::Serve>(&["--port=29000"]).run()));
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                for (protocol, port) in [
                    (Protocol::Http1, 28080),
                    (Protocol::H2c, 28080),
                    (Protocol::Grpc, 28080),
                    (Protocol::ClientFirst, 29000),
                    (Protocol::ServerFirst, 29003),
                    (Protocol::Udp, 29000),
                ] {
                    let mut open = protocol.open(SocketAddr::from(([127, 0, 0, 1], port))).await.unwrap();
                    for (number, size) in [0, 1, 100_000].into_iter().enumerate() {
                        let kept = protocol.exchange(&mut open, "shop", size, number == 0).await;
                        assert!(kept.unwrap().again, "{protocol:?} {size}");
                        assert!(!open.is_over().await);
                    }
                }
                let mut wrong = Protocol::H2c.open(SocketAddr::from(([127, 0, 0, 1], 28080))).await.unwrap();
                let refused = Protocol::H2c.exchange(&mut wrong, "shop", 1 << 40, true).await;
                assert!(refused.unwrap_err().to_string().contains("404"));
            })
            .await;
    }
}
