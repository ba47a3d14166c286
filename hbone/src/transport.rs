//! What a tunnel or a copy runs over: a TCP socket, or in simulations a pipe in memory.

use std::{
    cell::RefCell,
    fmt,
    future::{Future, pending},
    io::{self, IoSlice},
    os::fd::{AsFd, BorrowedFd},
    pin::Pin,
    rc::{Rc, Weak},
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, DuplexStream, Interest, ReadBuf},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
};

/// Something that a tunnel or a copy can run over.
pub trait Transport: 'static {
    /// What the bytes flow through.
    type Link: Link;
    /// Takes the transport over.
    fn into_link(self) -> Self::Link;
}

/// A two-way byte stream that can be reset.
pub trait Link: AsyncRead + AsyncWrite + Unpin + 'static {
    /// Ready when a read is worth a buffer: bytes, an end or an error are there. A link that cannot
    /// tell is always ready.
    fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// Makes the coming drop a reset (TCP RST) rather than an orderly end.
    fn reset_on_drop(&mut self);

    /// Resolves when the other end resets the stream. Asked for once, after the end of what there is
    /// to read: from then on only writes would notice.
    fn watch_reset(&mut self) -> Pin<Box<dyn Future<Output = io::Error>>>;

    /// The socket, where there is one.
    fn fd(&self) -> Option<BorrowedFd<'_>>;
}

/// A handle on a tunnel's own TCP socket, for its statistics. It does not keep the tunnel open.
#[derive(Clone)]
pub struct Socket {
    owner: Weak<RefCell<dyn OwnsSocket>>,
}

/// What a [`Socket`] points into.
pub(crate) trait OwnsSocket {
    fn fd(&self) -> Option<BorrowedFd<'_>>;
}

impl Socket {
    pub(crate) fn of(owner: Rc<RefCell<dyn OwnsSocket>>) -> Self {
        Self { owner: Rc::downgrade(&owner) }
    }

    /// Lends the socket to `use_it`; `None` once the tunnel is gone, and in simulations.
    pub fn with_fd<R>(&self, use_it: impl FnOnce(BorrowedFd<'_>) -> R) -> Option<R> {
        let owner = self.owner.upgrade()?;
        let owner = owner.try_borrow().ok()?;
        owner.fd().map(use_it)
    }
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Socket").field("open", &(self.owner.strong_count() > 0)).finish()
    }
}

/// Every write is worth its packet: let it have TCP_NODELAY, which an accepted socket has from its listener.
impl Transport for TcpStream {
    type Link = TcpLink;

    fn into_link(self) -> TcpLink {
        let (read, write) = self.into_split();
        TcpLink { read: Some(read), write: Some(write) }
    }
}

/// A TCP socket whose reset can be watched while the other direction is written.
pub struct TcpLink {
    /// `None` once it watches for a reset.
    read: Option<OwnedReadHalf>,
    /// `None` only while it is dropped.
    write: Option<OwnedWriteHalf>,
}

impl TcpLink {
    fn tcp(&self) -> Option<&TcpStream> {
        self.write.as_ref().map(AsRef::as_ref)
    }
}

fn gone() -> io::Error {
    io::ErrorKind::NotConnected.into()
}

impl Drop for TcpLink {
    fn drop(&mut self) {
        // A dropped half would send a FIN of its own accord; closing the socket does what is right.
        if let Some(write) = self.write.take() {
            write.forget();
        }
    }
}

impl AsyncRead for TcpLink {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.read {
            Some(read) => Pin::new(read).poll_read(cx, out),
            None => Poll::Ready(Ok(())),
        }
    }
}

impl AsyncWrite for TcpLink {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.write {
            Some(write) => Pin::new(write).poll_write(cx, bytes),
            None => Poll::Ready(Err(gone())),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.write {
            Some(write) => Pin::new(write).poll_write_vectored(cx, slices),
            None => Poll::Ready(Err(gone())),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.write {
            Some(write) => Pin::new(write).poll_shutdown(cx),
            None => Poll::Ready(Ok(())),
        }
    }
}

impl Link for TcpLink {
    fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.tcp().map_or(Poll::Ready(Err(gone())), |tcp| tcp.poll_read_ready(cx))
    }

    fn reset_on_drop(&mut self) {
        if let Some(tcp) = self.tcp() {
            // Fails only on a socket that is reset already.
            let _ = tcp.set_zero_linger();
        }
    }

    fn watch_reset(&mut self) -> Pin<Box<dyn Future<Output = io::Error>>> {
        let Some(read) = self.read.take() else { return Box::pin(pending()) };
        Box::pin(async move {
            if let Err(error) = read.ready(Interest::ERROR).await {
                return error;
            }
            let tcp: &TcpStream = read.as_ref();
            match tcp.take_error() {
                Ok(Some(error)) | Err(error) => error,
                Ok(None) => io::ErrorKind::ConnectionReset.into(),
            }
        })
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.tcp().map(AsFd::as_fd)
    }
}

/// Pipes end in order only; a simulation that wants resets brings a link of its own.
impl Transport for DuplexStream {
    type Link = Self;
    fn into_link(self) -> Self {
        self
    }
}

impl Link for DuplexStream {
    fn poll_readable(&self, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn reset_on_drop(&mut self) {}
    fn watch_reset(&mut self) -> Pin<Box<dyn Future<Output = io::Error>>> {
        Box::pin(pending())
    }
    fn fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}
