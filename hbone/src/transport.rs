//! What a tunnel or a copy runs over: a TCP socket, or in simulations a pipe in memory.

use std::{
    cell::RefCell,
    fmt,
    future::{Future, pending},
    io::{self, IoSlice, Read},
    os::fd::{AsFd, BorrowedFd},
    pin::{Pin, pin},
    rc::{Rc, Weak},
    task::{Context, Poll, Waker, ready},
};

use socket2::SockRef;
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

    /// The other end has probably spoken already: the first read looks, and does not wait to be told.
    fn expect_bytes(&mut self) {}

    /// Whether the other end is known to have ended: its last bytes may still be there to read. To be asked
    /// when the link is readable.
    fn is_ending(&self) -> bool {
        false
    }

    /// Like `poll_write`, for the last bytes: the end, which follows at once, may travel with them.
    fn poll_write_last(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write(cx, bytes)
    }

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
        TcpLink { read: Some(read), write: Some(write), expecting: false, fresh: true }
    }
}

/// A TCP socket whose reset can be watched while the other direction is written.
pub struct TcpLink {
    /// `None` once it watches for a reset.
    read: Option<OwnedReadHalf>,
    /// `None` only while it is dropped.
    write: Option<OwnedWriteHalf>,
    /// Bytes are expected before the reactor has told of any.
    expecting: bool,
    /// Nothing was written yet: there is room, though the reactor has not told so.
    fresh: bool,
}

impl TcpLink {
    fn tcp(&self) -> Option<&TcpStream> {
        self.write.as_ref().map(AsRef::as_ref)
    }

    /// Sends past the reactor: `None` where that would block.
    fn send_now(&self, bytes: &[u8], flags: i32) -> Option<io::Result<usize>> {
        let socket = SockRef::from(self.tcp()?);
        Some(socket.send_with_flags(bytes, flags | MSG_NOSIGNAL)).filter(|sent| !is_not_now(sent))
    }
}

/// `MSG_MORE` and `MSG_NOSIGNAL` of Linux's `send(2)`; the same number on every architecture.
const MSG_MORE: i32 = 0x8000;
const MSG_NOSIGNAL: i32 = 0x4000;

fn is_not_now(outcome: &io::Result<usize>) -> bool {
    let not_now =
        |error: &io::Error| matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted);
    outcome.as_ref().err().is_some_and(not_now)
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
        if std::mem::take(&mut self.expecting)
            && let Some(tcp) = self.tcp()
        {
            let read = (&*SockRef::from(tcp)).read(out.initialize_unfilled());
            if !is_not_now(&read) {
                return Poll::Ready(read.map(|count| out.advance(count)));
            }
        }
        match &mut self.read {
            Some(read) => Pin::new(read).poll_read(cx, out),
            None => Poll::Ready(Ok(())),
        }
    }
}

impl AsyncWrite for TcpLink {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if std::mem::take(&mut self.fresh)
            && let Some(sent) = self.send_now(bytes, 0)
        {
            return Poll::Ready(sent);
        }
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
        if self.expecting {
            return Poll::Ready(Ok(()));
        }
        self.tcp().map_or(Poll::Ready(Err(gone())), |tcp| tcp.poll_read_ready(cx))
    }

    fn expect_bytes(&mut self) {
        self.expecting = true;
    }

    fn is_ending(&self) -> bool {
        // What the reactor has told so far; it is not waited for.
        let Some(tcp) = self.tcp() else { return false };
        let told = pin!(tcp.ready(Interest::READABLE)).poll(&mut Context::from_waker(Waker::noop()));
        matches!(told, Poll::Ready(Ok(ready)) if ready.is_read_closed())
    }

    fn poll_write_last(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if std::mem::take(&mut self.fresh)
            && let Some(sent) = self.send_now(bytes, MSG_MORE)
        {
            return Poll::Ready(sent);
        }
        let Some(tcp) = self.tcp() else { return Poll::Ready(Err(gone())) };
        loop {
            ready!(tcp.poll_write_ready(cx))?;
            let send = || SockRef::from(tcp).send_with_flags(bytes, MSG_MORE | MSG_NOSIGNAL);
            let sent = tcp.try_io(Interest::WRITABLE, send);
            if !is_not_now(&sent) {
                return Poll::Ready(sent);
            }
        }
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

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::{io::AsyncWriteExt, net::TcpListener};

    use super::*;

    /// A link and the other end of its connection.
    async fn pair() -> (TcpLink, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let there = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (listener.accept().await.unwrap().0.into_link(), there)
    }

    #[tokio::test]
    async fn the_last_bytes_wait_for_the_end_and_go_with_it() {
        let (mut link, there) = pair().await;
        let written = poll_fn(|cx| Pin::new(&mut link).poll_write_last(cx, b"last")).await.unwrap();
        assert_eq!(written, 4);
        there.writable().await.unwrap();
        let mut bytes = [0; 8];
        let early = there.try_read(&mut bytes);
        assert_eq!(early.unwrap_err().kind(), io::ErrorKind::WouldBlock, "held back");
        link.shutdown().await.unwrap();
        there.readable().await.unwrap();
        assert_eq!(there.try_read(&mut bytes).unwrap(), 4);
        let ready = there.ready(Interest::READABLE).await.unwrap();
        assert!(ready.is_read_closed(), "the end came along");
    }

    #[tokio::test]
    async fn an_end_is_known_before_the_last_bytes_are_read() {
        let (link, mut there) = pair().await;
        there.write_all(b"x").await.unwrap();
        poll_fn(|cx| link.poll_readable(cx)).await.unwrap();
        assert!(!link.is_ending());
        there.shutdown().await.unwrap();
        poll_fn(|cx| {
            if link.is_ending() {
                return Poll::Ready(());
            }
            cx.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
    }

    #[tokio::test]
    async fn what_is_expected_is_read_before_the_reactor_tells_of_it() {
        let (mut link, there) = pair().await;
        link.expect_bytes();
        let mut bytes = [0; 8];
        let mut cx = Context::from_waker(Waker::noop());
        assert!(link.poll_readable(&mut cx).is_ready());
        let nothing = Pin::new(&mut link).poll_read(&mut cx, &mut ReadBuf::new(&mut bytes));
        assert!(nothing.is_pending(), "and where there is nothing, it waits as ever");

        link.expect_bytes();
        SockRef::from(&there).send(b"hello").unwrap();
        let mut read = ReadBuf::new(&mut bytes);
        assert!(Pin::new(&mut link).poll_read(&mut cx, &mut read).is_ready());
        assert_eq!(read.filled(), b"hello");
    }
}
