//! A connection to an endpoint: by HBONE with the caller's assertion, or plain TCP where it speaks no HBONE.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use hbone::{
    Stream,
    client::{Connect, Key},
};
use mesh::{HBONE_PORT, Tunnel};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::client::TlsStream;

use super::{Endpoint, Upstream, ahead::Plain};
use crate::{
    arrival::{Call, Failure},
    request::Version,
    vault::Asserted,
};

/// What the bytes flow through.
pub(crate) enum Io {
    Tunnel(Stream),
    Plain(Plain),
    /// Within one of the others.
    Tls(Box<TlsStream<Io>>),
}

pub(super) async fn open(
    upstream: &Upstream,
    call: &Call,
    target: &Endpoint,
    version: Option<Version>,
) -> Result<Io, Failure> {
    let shared = &upstream.shared;
    shared.metrics.backends_dialled.inc();
    let ip = target.address.ip().to_canonical();
    if ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() {
        // A ServiceEntry may name any address: this waypoint's own servers are nobody's backend.
        return Err(Failure::NoBackend(ip));
    }
    match target.workload.tunnel {
        Tunnel::None => {
            let to = target.address;
            let dialled = timeout(shared.settings.dial_timeout, TcpStream::connect(to)).await;
            let dialled = dialled.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
            let stream = dialled.and_then(|stream| stream.set_nodelay(true).map(|()| stream));
            // Of HTTP/1 the reads are as long as they can be.
            let ahead = version == Some(Version::Two);
            stream
                .map(|stream| Io::Plain(Plain::new(stream, ahead)))
                .map_err(|source| Failure::Dial { to, source })
        }
        Tunnel::Hbone => {
            let peer = SocketAddr::new(target.address.ip(), HBONE_PORT);
            let patience = target.is_hasty.then(|| shared.peers.patience(peer.ip()));
            let any: IpAddr =
                if peer.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
            let names = target.service.iter().flat_map(|service| service.subject_alt_names.iter().cloned());
            let expected = std::iter::once(target.workload.identity()).chain(names).collect::<Arc<[_]>>();
            let key = Key { source: shared.settings.identity.clone(), source_ip: any, peer, expected };
            let connect = Connect {
                authority: target.address.to_string(),
                source: call.source,
                service_host: target.service.as_ref().map(|service| service.key.hostname.to_string()),
                baggage: None,
                traceparent: None,
                // Who has brought none is judged here, and there as this waypoint.
                assertion: call.assertion.as_deref().map(Asserted::header),
            };
            let dial = async move || {
                let stream = TcpStream::connect(peer).await?;
                stream.set_nodelay(true)?;
                Ok(stream)
            };
            let (tunnel, _) = upstream.tunnels.open_with(&key, dial, &connect, &mut |_| 0, patience).await?;
            Ok(Io::Tunnel(tunnel.into_stream()))
        }
    }
}

impl AsyncRead for Io {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tunnel(stream) => Pin::new(stream).poll_read(cx, out),
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, out),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, out),
        }
    }
}

impl AsyncWrite for Io {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tunnel(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tunnel(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Tunnel(stream) => stream.is_write_vectored(),
            Self::Plain(stream) => stream.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tunnel(stream) => Pin::new(stream).poll_flush(cx),
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tunnel(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
