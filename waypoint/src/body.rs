//! Bodies and streams as hyper wants them.

pub(crate) mod kept;

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    future::Future as _,
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use ::http::HeaderMap;
use bytes::{Buf, Bytes};
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;
use runtime::record::{Flag, Request as Record};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Sleep,
};

use crate::{trace::Attempt, upstream::Hold};

/// A record that both bodies of a request fill; it is written when the last of them is gone.
pub(crate) type SharedRecord = Rc<RefCell<Record>>;

/// The body of a request or an answer.
pub(crate) enum Body {
    Empty,
    /// Of our own making.
    Full(Option<Bytes>),
    /// Another's request, on its way to a backend.
    Request {
        inner: Incoming,
        record: SharedRecord,
    },
    /// The same, kept for a further try or a copy.
    Kept(kept::Reader),
    /// A copy of another's request.
    Copied(VecDeque<Bytes>, Option<HeaderMap>),
    /// A backend's answer, on its way to the caller.
    Answer(Box<Answer>),
}

/// Why a body breaks off.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BodyError {
    #[error(transparent)]
    Caller(#[from] hyper::Error),
    #[error("the request is sent again")]
    Superseded,
    #[error("the time that the route gives it is over")]
    Late,
}

/// A backend's answer.
pub(crate) struct Answer {
    pub(crate) inner: Incoming,
    pub(crate) record: SharedRecord,
    /// Goes after what it is read from.
    pub(crate) _hold: Hold,
    pub(crate) ended: bool,
    /// The span of the try that it answers.
    pub(crate) attempt: Option<Box<Attempt>>,
    /// When the route's patience ends.
    pub(crate) end: Option<Pin<Box<Sleep>>>,
    /// How it broke off, to be told next.
    pub(crate) broken: Option<BodyError>,
}

/// A backend counts as busy while one lives.
pub(crate) struct Busy(Rc<Cell<u32>>);

impl Busy {
    pub(crate) fn with(count: &Rc<Cell<u32>>) -> Self {
        count.set(count.get() + 1);
        Self(count.clone())
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.set(self.0.get().saturating_sub(1));
    }
}

impl Body {
    pub(crate) fn text(text: impl Into<Bytes>) -> Self {
        Self::Full(Some(text.into()))
    }
}

impl Answer {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some(error) = self.broken.take() {
            return Poll::Ready(Some(Err(error)));
        }
        if self.is_late(cx) {
            let reason = "the backend's answer did not end in time";
            return self.break_off(cx, BodyError::Late, Flag::Timeout, "timeout", reason);
        }
        match ready!(Pin::new(&mut self.inner).poll_frame(cx)) {
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    self.record.borrow_mut().sent(data);
                } else if let Some(status) = frame.trailers_ref().and_then(grpc_status) {
                    self.record.borrow_mut().grpc_status(status);
                    self.attempt.iter_mut().for_each(|attempt| attempt.grpc_status(status));
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err(error)) => {
                let reason = format!("the backend ended in the middle of its answer: {error}");
                self.break_off(cx, BodyError::Caller(error), Flag::BackendReset, "reset", &reason)
            }
            None => {
                self.ended = true;
                Poll::Ready(None)
            }
        }
    }

    fn is_late(&mut self, cx: &mut Context<'_>) -> bool {
        !self.ended && self.end.as_mut().is_some_and(|end| end.as_mut().poll(cx).is_ready())
    }

    /// It ends before its time. That is told at the next turn only: hyper drops what it has not written yet, and what
    /// came before the break, be it the head alone, is to arrive.
    fn break_off<T>(
        &mut self,
        cx: &mut Context<'_>,
        error: BodyError,
        flag: Flag,
        kind: &'static str,
        reason: &str,
    ) -> Poll<T> {
        self.ended = true;
        self.record.borrow_mut().flag(flag, reason);
        self.attempt.iter_mut().for_each(|attempt| attempt.failed(kind, reason));
        self.broken = Some(error);
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        if self.ended || self.inner.is_end_stream() {
            self.attempt.iter_mut().for_each(|attempt| attempt.finished());
        } else {
            self.record.borrow_mut().flag(Flag::CallerReset, "the caller left before the answer had ended");
        }
    }
}

/// The status of a call of gRPC.
pub(crate) fn grpc_status(headers: &HeaderMap) -> Option<u16> {
    headers.get("grpc-status")?.to_str().ok()?.parse().ok()
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let polled = match self.get_mut() {
            Self::Kept(reader) => return Pin::new(reader).poll_frame(cx),
            Self::Answer(answer) => return answer.poll_frame(cx),
            Self::Copied(frames, trailers) => {
                let frame = frames.pop_front().map(Frame::data);
                return Poll::Ready(frame.or_else(|| trailers.take().map(Frame::trailers)).map(Ok));
            }
            Self::Empty => Poll::Ready(None),
            Self::Full(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Request { inner, record } => {
                let polled = Pin::new(inner).poll_frame(cx);
                if let Poll::Ready(Some(Ok(frame))) = &polled
                    && let Some(data) = frame.data_ref()
                {
                    record.borrow_mut().received(data);
                }
                polled
            }
        };
        polled.map(|frame| frame.map(|frame| frame.map_err(BodyError::Caller)))
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Full(bytes) => bytes.is_none(),
            Self::Request { inner, .. } => inner.is_end_stream(),
            Self::Kept(reader) => reader.is_end_stream(),
            Self::Copied(frames, trailers) => frames.is_empty() && trailers.is_none(),
            Self::Answer(answer) => answer.broken.is_none() && answer.inner.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Full(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Self::Request { inner, .. } => inner.size_hint(),
            Self::Kept(reader) => reader.size_hint(),
            Self::Copied(frames, _) => {
                SizeHint::with_exact(frames.iter().map(|frame| frame.len() as u64).sum())
            }
            Self::Answer(answer) => answer.inner.size_hint(),
        }
    }
}

/// A stream of which some bytes were read already.
pub(crate) struct Rewind<S> {
    said: Bytes,
    inner: S,
}

impl<S> Rewind<S> {
    pub(crate) fn new(said: Bytes, inner: S) -> Self {
        Self { said, inner }
    }

    pub(crate) fn inner_mut(&mut self) -> &mut S {
        &mut self.inner
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Rewind<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.said.is_empty() {
            return Pin::new(&mut this.inner).poll_read(cx, out);
        }
        let count = this.said.len().min(out.remaining());
        out.put_slice(&this.said[..count]);
        this.said.advance(count);
        if this.said.is_empty() {
            this.said = Bytes::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Rewind<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(cx)
    }
}
