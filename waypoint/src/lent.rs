//! A connection that is lent to who speaks HTTP/2 on it, and had back once that has ended: what is dropped then is not
//! reset with the end of an answer still on its way.

use std::{
    cell::RefCell,
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// One of the two hands that have a connection: one reads and writes at a time.
#[derive(Debug)]
pub(crate) struct Lent<T>(Rc<RefCell<T>>);

/// The connection in both hands.
pub(crate) fn lend<T>(stream: T) -> (Lent<T>, Lent<T>) {
    let stream = Rc::new(RefCell::new(stream));
    (Lent(stream.clone()), Lent(stream))
}

impl<T> Lent<T> {
    /// Lends it to `use_it`, which is not to poll what has the other hand.
    pub(crate) fn with<R>(&self, use_it: impl FnOnce(&mut T) -> R) -> R {
        use_it(&mut self.0.borrow_mut())
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Lent<T> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0.borrow_mut()).poll_read(cx, buffer)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Lent<T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.0.borrow_mut()).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.0.borrow_mut()).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.borrow().is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0.borrow_mut()).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0.borrow_mut()).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, convert::Infallible};

    use ::http::Response;
    use bytes::Bytes;
    use http_body_util::Full;
    use hyper::{server::conn::http2, service::service_fn};
    use hyper_util::rt::TokioIo;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex},
        task::{LocalSet, spawn_local},
    };

    use super::*;
    use crate::http::LocalExecutor;

    /// A tunnel's stream: one that is dropped before both of its directions have ended is reset.
    struct Tunnel {
        inner: DuplexStream,
        has_heard_all: bool,
        has_said_all: bool,
        reset: Rc<Cell<bool>>,
    }

    impl Drop for Tunnel {
        fn drop(&mut self) {
            self.reset.set(!(self.has_heard_all && self.has_said_all));
        }
    }

    impl AsyncRead for Tunnel {
        fn poll_read(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            buffer: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            let before = buffer.filled().len();
            let polled = Pin::new(&mut self.inner).poll_read(cx, buffer);
            self.has_heard_all |= polled.is_ready() && buffer.filled().len() == before;
            polled
        }
    }

    impl AsyncWrite for Tunnel {
        fn poll_write(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            Pin::new(&mut self.inner).poll_write(cx, bytes)
        }

        fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.inner).poll_flush(cx)
        }

        fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.has_said_all = true;
            Pin::new(&mut self.inner).poll_shutdown(cx)
        }
    }

    /// A caller that asks once, says that it will not ask again (GOAWAY), and closes its side once ours is closed.
    async fn ask(mut stream: DuplexStream) -> Vec<u8> {
        let said: [&[u8]; 4] = [
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            // SETTINGS; HEADERS of `GET / http web` by HPACK's static table, with both ends; GOAWAY.
            &[0, 0, 0, 4, 0, 0, 0, 0, 0],
            &[0, 0, 8, 1, 5, 0, 0, 0, 1, 0x82, 0x86, 0x84, 0x41, 3, b'w', b'e', b'b'],
            &[0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        ];
        stream.write_all(&said.concat()).await.unwrap();
        let mut heard = Vec::new();
        stream.read_to_end(&mut heard).await.unwrap();
        heard
    }

    /// Serves HTTP/2 until that has ended.
    async fn serve<T: AsyncRead + AsyncWrite + Unpin + 'static>(stream: T) {
        let answer = |_| async { Ok::<_, Infallible>(Response::new(Full::new(Bytes::from("all")))) };
        let connection = http2::Builder::new(LocalExecutor);
        connection.serve_connection(TokioIo::new(stream), service_fn(answer)).await.expect("an end in order");
    }

    #[tokio::test]
    async fn what_http2_is_done_with_is_not_reset_before_it_was_closed() {
        let run = async |is_lent: bool| {
            let (caller, ours) = duplex(64 << 10);
            let reset = Rc::new(Cell::new(false));
            let tunnel =
                Tunnel { inner: ours, has_heard_all: false, has_said_all: false, reset: reset.clone() };
            let caller = spawn_local(ask(caller));
            if is_lent {
                let (lent, mut kept) = lend(tunnel);
                serve(lent).await;
                assert_eq!(Rc::strong_count(&kept.0), 1, "hyper has let go of it");
                assert!(!reset.get(), "the end of the answer is still on its way");
                kept.shutdown().await.unwrap();
                kept.read_to_end(&mut Vec::new()).await.unwrap();
            } else {
                serve(tunnel).await;
            }
            assert!(caller.await.unwrap().windows(3).any(|heard| heard == b"all"));
            reset.get()
        };
        let both = async { (run(true).await, run(false).await) };
        // Without it hyper drops the stream itself, and with that resets it.
        assert_eq!(LocalSet::new().run_until(both).await, (false, true));
    }
}
