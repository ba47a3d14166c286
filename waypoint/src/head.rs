//! The time that the head of a request may take in HTTP/1. hyper has one time for two things, which begin together:
//! the wait of a kept connection for its next request, which may be long, and the reading of that request's head, which
//! may not, once it has begun. So hyper's timer is told of the first byte.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use hyper::rt::Sleep;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A connection, and a timer that knows when bytes of a head have come.
pub(crate) fn watched<T>(stream: T, patience: Duration) -> (Watched<T>, HeadTimer) {
    let heard = Arc::new(Heard { since: Instant::now(), first: AtomicU64::new(NEVER) });
    (Watched { stream, heard: heard.clone() }, HeadTimer { heard, patience })
}

/// When the first byte came since a head is waited for.
#[derive(Debug)]
struct Heard {
    /// What the moments are counted from.
    since: Instant,
    /// In microseconds, or [`NEVER`].
    first: AtomicU64,
}

const NEVER: u64 = u64::MAX;

impl Heard {
    fn note(&self) {
        let now = u64::try_from(self.since.elapsed().as_micros()).unwrap_or(NEVER - 1);
        // Later ones change nothing.
        let _ = self.first.compare_exchange(NEVER, now, Ordering::Relaxed, Ordering::Relaxed);
    }

    fn first(&self) -> Option<Instant> {
        match self.first.load(Ordering::Relaxed) {
            NEVER => None,
            micros => Some(self.since + Duration::from_micros(micros)),
        }
    }
}

/// A stream whose incoming bytes are noticed.
#[derive(Debug)]
pub(crate) struct Watched<T> {
    stream: T,
    heard: Arc<Heard>,
}

impl<T> Watched<T> {
    pub(crate) fn into_inner(self) -> T {
        self.stream
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Watched<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        if buffer.filled().len() > before {
            self.heard.note();
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Watched<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// hyper's timer for heads, of one connection: it asks for one at the moment from which it waits for a head.
#[derive(Debug)]
pub(crate) struct HeadTimer {
    heard: Arc<Heard>,
    patience: Duration,
}

impl hyper::rt::Timer for HeadTimer {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Sleep>> {
        self.sleep_until(Instant::now() + duration)
    }

    fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn Sleep>> {
        self.heard.first.store(NEVER, Ordering::Relaxed);
        Box::pin(HeadSleep {
            inner: Box::pin(tokio::time::sleep_until(deadline.into())),
            heard: self.heard.clone(),
            patience: self.patience,
            begun: false,
        })
    }
}

/// Ends when there was no request for long enough, or when its head has taken too long.
struct HeadSleep {
    inner: Pin<Box<tokio::time::Sleep>>,
    heard: Arc<Heard>,
    patience: Duration,
    begun: bool,
}

impl Future for HeadSleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if !self.begun
            && let Some(first) = self.heard.first()
        {
            self.begun = true;
            let end = (first + self.patience).into();
            if end < self.inner.deadline() {
                self.inner.as_mut().reset(end);
            }
        }
        self.inner.as_mut().poll(cx)
    }
}

impl Sleep for HeadSleep {}

#[cfg(test)]
mod tests {
    use hyper::rt::Timer as _;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _, duplex},
        time::timeout,
    };

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    #[tokio::test]
    async fn a_head_that_has_begun_ends_soon_and_one_that_has_not_may_be_waited_for() {
        let (mut caller, ours) = duplex(64);
        let (mut stream, timer) = watched(ours, Duration::from_millis(50));
        let mut sleep = timer.sleep(HOUR);
        assert!(timeout(Duration::from_millis(120), &mut sleep).await.is_err(), "nothing has come");
        caller.write_all(b"GET").await.unwrap();
        stream.read_exact(&mut [0; 3]).await.unwrap();
        timeout(Duration::from_secs(5), &mut sleep).await.expect("the head has taken too long");
        // The next one is waited for anew.
        let mut sleep = timer.sleep(HOUR);
        assert!(timeout(Duration::from_millis(120), &mut sleep).await.is_err());
    }
}
