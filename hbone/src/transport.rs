//! What a tunnel or a copy runs over: a TCP socket, or in tests a pipe in memory.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    rc::Rc,
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, DuplexStream},
    net::TcpStream,
};

/// A two-way byte stream. Implemented for sockets, and for pipes in memory so that both ends can be
/// simulated in one test.
pub trait Transport: AsyncRead + AsyncWrite + Unpin + 'static {
    /// Ready when a read is worth a buffer: bytes, an end or an error are there. A pipe that cannot
    /// tell is always ready.
    fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// Makes the coming drop a reset (TCP RST) rather than an orderly end.
    fn reset_on_drop(&self);

    /// Resolves when the other end has reset the stream while nothing is read or written.
    fn poll_reset(&self, cx: &mut Context<'_>) -> Poll<io::Error>;

    /// The socket itself, to be shared with whoever reads its statistics.
    fn into_shared(self) -> (Self, Option<Socket>)
    where
        Self: Sized;
}

/// A handle on a tunnel's own TCP socket, for its statistics. It does not keep the tunnel open.
#[derive(Debug, Clone)]
pub struct Socket {
    inner: Rc<TcpStream>,
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inner.as_fd()
    }
}

impl Transport for TcpStream {
    fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_read_ready(cx)
    }
    fn reset_on_drop(&self) {}
    fn poll_reset(&self, _cx: &mut Context<'_>) -> Poll<io::Error> {
        Poll::Pending
    }
    fn into_shared(self) -> (Self, Option<Socket>) {
        (self, None)
    }
}

impl Transport for DuplexStream {
    fn poll_readable(&self, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn reset_on_drop(&self) {}
    fn poll_reset(&self, _cx: &mut Context<'_>) -> Poll<io::Error> {
        Poll::Pending
    }
    fn into_shared(self) -> (Self, Option<Socket>) {
        (self, None)
    }
}
