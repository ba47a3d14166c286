//! Socket ↔ tunnel.
//!
//! *Up* (socket to tunnel): when the socket has bytes, ask HTTP/2 for window, borrow a buffer, read
//! into it, and give that very buffer to HTTP/2. Window is asked for only when there is something to
//! send, since what one stream reserves no other can use. *Down*: take a frame, write it to the
//! socket, and only then give its window back.

use std::{
    future::{Future, poll_fn},
    io,
    pin::{Pin, pin},
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use h2::Reason;
use tokio::io::ReadBuf;

use super::{End, Meter, TURNS, local, poll_read, yield_now};
use crate::{
    Transport, Tunnel,
    buffer::{Buffer, Class},
    chunk::Chunk,
    transport::Link,
};

/// The biggest frame: 64 KiB. The receiving end allocates each frame anew, and beyond this its memory
/// comes back from the kernel page by page; a small stream waits for no more than this, too.
const MOST: Class = Class::Medium;

/// Copies between a socket and a tunnel until both directions have ended, one is reset, or `stop`
/// resolves.
pub async fn relay<T, S>(tcp: T, tunnel: Tunnel, meter: &Meter, stop: S) -> End
where
    T: Transport,
    S: Future<Output = ()>,
{
    let mut relay = Relay {
        link: tcp.into_link(),
        tunnel,
        up: Up { ended: false, unheard: false, class: Class::Small, watch: None },
        down: Down { ended: false, frame: Bytes::new() },
        finished: false,
    };
    meter.add_sent(relay.tunnel.early);
    let mut stop = pin!(stop);
    poll_fn(|cx| {
        if stop.as_mut().poll(cx).is_ready() {
            return Poll::Ready(End::Stopped);
        }
        relay.poll(cx, meter)
    })
    .await
}

struct Relay<L: Link> {
    link: L,
    tunnel: Tunnel,
    up: Up,
    down: Down,
    finished: bool,
}

/// Whatever is not finished is reset, on both sides. Left to itself, a server's half-ended stream would be
/// dropped with NO_ERROR, which is no reset to its peer.
impl<L: Link> Drop for Relay<L> {
    fn drop(&mut self) {
        if !self.finished {
            self.link.reset_on_drop();
            self.tunnel.send.send_reset(Reason::CANCEL);
        }
    }
}

impl<L: Link> Relay<L> {
    fn poll(&mut self, cx: &mut Context<'_>, meter: &Meter) -> Poll<End> {
        let before = (meter.sent(), meter.received());
        let down = self.down.poll(&mut self.link, &mut self.tunnel, self.up.ended, cx, meter);
        if let Poll::Ready(Err(end)) = down {
            return Poll::Ready(end);
        }
        let up = self.up.poll(&mut self.link, &mut self.tunnel, cx, meter);
        if let Poll::Ready(Err(end)) = up {
            return Poll::Ready(end);
        }
        let moved = (meter.sent() - before.0) + (meter.received() - before.1);
        if moved > 0 {
            meter.touch();
            if let Some(seat) = &self.tunnel.seat {
                seat.moved(moved);
            }
        }
        if up.is_ready() && down.is_ready() {
            self.finished = true;
            return Poll::Ready(End::Finished);
        }
        self.poll_resets(cx)
    }

    /// Resets that neither a read nor a write would meet.
    fn poll_resets(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        if let Some(watch) = &mut self.up.watch
            && let Poll::Ready(error) = watch.as_mut().poll(cx)
        {
            return Poll::Ready(local(error));
        }
        if !self.up.unheard && (self.down.ended || !self.down.frame.is_empty()) {
            match ready!(self.tunnel.send.poll_reset(cx)) {
                Ok(Reason::NO_ERROR) => self.up.unheard = true,
                Ok(_reason) => return Poll::Ready(End::ResetByRemote),
                Err(error) => return Poll::Ready(stream_end(&error)),
            }
        }
        if self.up.unheard && self.down.ended { self.poll_unheard(cx) } else { Poll::Pending }
    }

    /// The peer has said all and hears no more: as a socket that was closed, it answers more bytes with a
    /// reset, and an end with nothing.
    fn poll_unheard(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        if let Err(error) = ready!(self.link.poll_readable(cx)) {
            return Poll::Ready(local(error));
        }
        let mut byte = [0];
        let mut read = ReadBuf::new(&mut byte);
        if let Err(error) = ready!(Pin::new(&mut self.link).poll_read(cx, &mut read)) {
            return Poll::Ready(local(error));
        }
        if !read.filled().is_empty() {
            return Poll::Ready(End::ResetByRemote);
        }
        self.finished = true;
        Poll::Ready(End::Finished)
    }
}

/// A reset with NO_ERROR is no failure: it follows a complete answer, of which nothing may be discarded,
/// and asks us to send no more (RFC 9113, section 8.1). Envoy says so when its upstream has closed.
fn is_enough(error: &h2::Error) -> bool {
    error.is_reset() && error.is_remote() && error.reason() == Some(Reason::NO_ERROR)
}

/// What an error of the stream says about its end.
fn stream_end(error: &h2::Error) -> End {
    if error.is_reset() && error.is_remote() {
        End::ResetByRemote
    } else {
        End::Failed(io::Error::other(format!("the tunnel broke: {error}")))
    }
}

struct Up {
    ended: bool,
    /// The peer hears no more, though the socket has not ended.
    unheard: bool,
    class: Class,
    /// Since the socket's end has been read.
    watch: Option<Pin<Box<dyn Future<Output = io::Error>>>>,
}

impl Up {
    fn poll<L: Link>(
        &mut self,
        link: &mut L,
        tunnel: &mut Tunnel,
        cx: &mut Context<'_>,
        meter: &Meter,
    ) -> Poll<Result<(), End>> {
        for _ in 0..TURNS {
            if self.ended {
                return Poll::Ready(Ok(()));
            }
            if self.unheard {
                return Poll::Pending;
            }
            ready!(link.poll_readable(cx)).map_err(local)?;
            let Some(window) = ready!(poll_window(tunnel, self.class.size(), cx))? else {
                self.unheard = true;
                continue;
            };
            let mut buffer = Buffer::take(self.class);
            let room = window.min(buffer.len());
            let outcome = poll_read(link, cx, &mut buffer[..room]);
            let used = if let Poll::Ready(Ok(read)) = &outcome { read.count } else { 0 };
            if used < room {
                // What this stream does not use is for the others of the tunnel.
                tunnel.send.reserve_capacity(used);
            }
            let read = ready!(outcome).map_err(local)?;
            if read.end {
                self.ended = true;
                self.watch = Some(link.watch_reset());
            }
            let chunk = if read.count == 0 {
                Chunk::empty()
            } else {
                self.class = self.class.adapted(read.count).min(MOST);
                meter.add_sent(read.count);
                Chunk::new(buffer, read.count)
            };
            let sent = tunnel.send.send_data(chunk, read.end);
            sent.map_err(|error| stream_end(&error))?;
        }
        yield_now(cx)
    }
}

/// Bytes that may be sent now: at least one, at most `wanted` have been reserved. `None` when the peer
/// hears no more.
fn poll_window(tunnel: &mut Tunnel, wanted: usize, cx: &mut Context<'_>) -> Poll<Result<Option<usize>, End>> {
    tunnel.send.reserve_capacity(wanted);
    loop {
        match tunnel.send.capacity() {
            0 => {}
            window => return Poll::Ready(Ok(Some(window))),
        }
        match ready!(tunnel.send.poll_capacity(cx)) {
            Some(Ok(_)) => {}
            Some(Err(error)) if is_enough(&error) => return Poll::Ready(Ok(None)),
            Some(Err(error)) => return Poll::Ready(Err(stream_end(&error))),
            // The stream takes no more: it was reset, or its connection is gone.
            None => {
                let end = match tunnel.send.poll_reset(cx) {
                    Poll::Ready(Ok(Reason::NO_ERROR)) => return Poll::Ready(Ok(None)),
                    Poll::Ready(Ok(_reason)) => End::ResetByRemote,
                    Poll::Ready(Err(error)) => stream_end(&error),
                    Poll::Pending => End::Failed(io::ErrorKind::BrokenPipe.into()),
                };
                return Poll::Ready(Err(end));
            }
        }
    }
}

struct Down {
    ended: bool,
    /// Received and not yet written.
    frame: Bytes,
}

impl Down {
    /// `last`: the other direction has ended.
    fn poll<L: Link>(
        &mut self,
        link: &mut L,
        tunnel: &mut Tunnel,
        last: bool,
        cx: &mut Context<'_>,
        meter: &Meter,
    ) -> Poll<Result<(), End>> {
        if self.ended {
            return Poll::Ready(Ok(()));
        }
        for _ in 0..TURNS {
            if self.frame.is_empty() {
                match ready!(tunnel.recv.poll_data(cx)) {
                    Some(Ok(frame)) => self.frame = frame,
                    Some(Err(error)) if !is_enough(&error) => return Poll::Ready(Err(stream_end(&error))),
                    Some(Err(_)) | None => {
                        // Where the other direction has ended, the socket is closed now, which says it as well.
                        if !last {
                            ready!(Pin::new(link).poll_shutdown(cx)).map_err(local)?;
                        }
                        self.ended = true;
                        return Poll::Ready(Ok(()));
                    }
                }
            }
            while !self.frame.is_empty() {
                let socket = Pin::new(&mut *link);
                let written = if tunnel.recv.is_end_stream() {
                    socket.poll_write_last(cx, &self.frame)
                } else {
                    socket.poll_write(cx, &self.frame)
                };
                let written = ready!(written).map_err(local)?;
                if written == 0 {
                    return Poll::Ready(Err(End::Failed(io::ErrorKind::WriteZero.into())));
                }
                self.frame.advance(written);
                meter.add_received(written);
                tunnel.recv.flow_control().release_capacity(written).map_err(|error| stream_end(&error))?;
            }
            // Give the memory back now: an idle connection holds no buffer.
            self.frame = Bytes::new();
        }
        yield_now(cx)
    }
}
