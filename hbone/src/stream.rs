//! A tunnel's stream as bytes that are read and written, for who speaks HTTP within it.
//!
//! Ends and resets are carried as by the copy loops: an end of one direction is END_STREAM, and what is dropped
//! before both have ended is reset. Window is given back when the bytes were taken, so that who reads slowly is sent
//! slowly.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use h2::Reason;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::{
    Tunnel,
    buffer::{Buffer, Class},
    chunk::Chunk,
};

/// The most that is written at a time, in bytes: 64 KiB, as the copy loops have it.
const MOST: Class = Class::Medium;
/// Up to here a copy of its own is made in place of a borrowed buffer.
const SMALL: usize = 1024;

/// One CONNECT stream, read and written as a socket is.
pub struct Stream {
    tunnel: Tunnel,
    /// Received, and not yet taken.
    frame: Bytes,
    heard_all: bool,
    said_all: bool,
    /// What is written is gathered here until it is told to go.
    gathered: Option<Gathered>,
}

/// Bytes on their way into one frame. Nothing is borrowed while there are none.
#[derive(Default)]
struct Gathered {
    buffer: Option<Buffer>,
    length: usize,
}

impl Gathered {
    /// A buffer of that many bytes at least, with what is there already.
    fn with_room(&mut self, wanted: usize) -> &mut Buffer {
        let buffer = match self.buffer.take() {
            Some(buffer) if buffer.len() >= wanted => buffer,
            Some(small) => Buffer::with(class_of(wanted), &small[..self.length]),
            None => Buffer::take(class_of(wanted)),
        };
        self.buffer.insert(buffer)
    }
}

impl Tunnel {
    /// The same stream, to be read and written.
    pub fn into_stream(self) -> Stream {
        Stream { tunnel: self, frame: Bytes::new(), heard_all: false, said_all: false, gathered: None }
    }
}

impl Stream {
    /// From now on what is written is gathered, and goes when a buffer is full, or by [`Self::poll_send`]: who writes frame
    /// by frame, and flushes each, would else have each travel by itself.
    pub fn gather(&mut self) {
        self.gathered.get_or_insert_default();
    }

    /// Sends what was gathered, as far as the other end has room; it is to be called again when `cx` is woken.
    ///
    /// # Errors
    /// If the stream has ended.
    pub fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(gathered) = &mut self.gathered
            && let Some(buffer) = gathered.buffer.take()
        {
            let length = gathered.length;
            let room = match poll_room(&mut self.tunnel.send, length, cx) {
                Poll::Ready(room) => room?,
                Poll::Pending => {
                    gathered.buffer = Some(buffer);
                    return Poll::Pending;
                }
            };
            if room < length {
                gathered.buffer = Some(Buffer::with(MOST, &buffer[room..length]));
            }
            gathered.length = length - room;
            self.send(Chunk::new(buffer, room), room)?;
        }
        Poll::Ready(Ok(()))
    }

    fn send(&mut self, chunk: Chunk, length: usize) -> io::Result<()> {
        let send = &mut self.tunnel.send;
        send.send_data(chunk, false).map_err(broken)?;
        // What this stream does not use now is for the others of the tunnel.
        send.reserve_capacity(0);
        if let Some(seat) = &self.tunnel.seat {
            seat.moved(length as u64);
        }
        Ok(())
    }

    /// Takes as much as there is room for in one buffer.
    fn poll_gather(
        &mut self,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
        wanted: usize,
    ) -> Poll<io::Result<usize>> {
        if self.gathered.as_ref().is_some_and(|gathered| gathered.length == MOST.size()) {
            ready!(self.poll_send(cx))?;
        }
        let gathered = self.gathered.get_or_insert_default();
        let count = wanted.min(MOST.size() - gathered.length);
        let from = gathered.length;
        let buffer = &mut gathered.with_room(from + count)[from..from + count];
        gather(slices, buffer);
        gathered.length += count;
        Poll::Ready(Ok(count))
    }

    fn take(&mut self, out: &mut ReadBuf<'_>) -> io::Result<()> {
        let count = self.frame.len().min(out.remaining());
        out.put_slice(&self.frame[..count]);
        self.frame.advance(count);
        if self.frame.is_empty() {
            // An idle stream holds no buffer.
            self.frame = Bytes::new();
        }
        self.tunnel.recv.flow_control().release_capacity(count).map_err(broken)?;
        if let Some(seat) = &self.tunnel.seat {
            seat.moved(count as u64);
        }
        Ok(())
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while this.frame.is_empty() && !this.heard_all {
            match ready!(this.tunnel.recv.poll_data(cx)) {
                Some(Ok(frame)) => this.frame = frame,
                Some(Err(error)) if !is_enough(&error) => return Poll::Ready(Err(broken(error))),
                Some(Err(_)) | None => this.heard_all = true,
            }
        }
        Poll::Ready(this.take(out))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    /// All of the slices travel in one frame: what is spoken in the stream has frames with heads of their own.
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.said_all {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let wanted = slices.iter().map(|slice| slice.len()).sum::<usize>().min(MOST.size());
        if wanted == 0 {
            return Poll::Ready(Ok(0));
        }
        if this.gathered.is_some() {
            return this.poll_gather(cx, slices, wanted);
        }
        let room = ready!(poll_room(&mut this.tunnel.send, wanted, cx))?;
        let chunk = if room <= SMALL {
            let mut bytes = vec![0; room].into_boxed_slice();
            gather(slices, &mut bytes);
            Chunk::owned(bytes)
        } else {
            let mut buffer = Buffer::take(class_of(room));
            gather(slices, &mut buffer[..room]);
            Chunk::new(buffer, room)
        };
        this.send(chunk, room)?;
        Poll::Ready(Ok(room))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_send(cx))?;
        if !this.said_all {
            this.said_all = true;
            this.tunnel.send.send_data(Chunk::empty(), true).map_err(broken)?;
        }
        Poll::Ready(Ok(()))
    }
}

/// The buffers that so many bytes are written from: small ones do for most.
fn class_of(length: usize) -> Class {
    if length <= Class::Small.size() { Class::Small } else { MOST }
}

/// Waits until some of `wanted` bytes may be sent: how many.
fn poll_room(
    send: &mut h2::SendStream<Chunk>,
    wanted: usize,
    cx: &mut Context<'_>,
) -> Poll<io::Result<usize>> {
    send.reserve_capacity(wanted);
    loop {
        match send.capacity() {
            0 => {}
            room => return Poll::Ready(Ok(room.min(wanted))),
        }
        match ready!(send.poll_capacity(cx)) {
            Some(Ok(_)) => {}
            Some(Err(error)) if !is_enough(&error) => return Poll::Ready(Err(broken(error))),
            Some(Err(_)) | None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        }
    }
}

/// Fills `out` from the slices, which have at least as much.
fn gather(slices: &[IoSlice<'_>], mut out: &mut [u8]) {
    for slice in slices {
        let count = slice.len().min(out.len());
        let (here, rest) = out.split_at_mut(count);
        here.copy_from_slice(&slice[..count]);
        out = rest;
    }
}

/// What has not ended both ways is reset, and not left to look like an end.
impl Drop for Stream {
    fn drop(&mut self) {
        if !(self.heard_all && self.said_all) {
            self.tunnel.send.send_reset(Reason::CANCEL);
        }
    }
}

/// The peer has said all and needs to hear no more, which is no failure (RFC 9113, section 8.1).
fn is_enough(error: &h2::Error) -> bool {
    error.is_reset() && error.is_remote() && error.reason() == Some(Reason::NO_ERROR)
}

fn broken(error: h2::Error) -> io::Error {
    if error.is_reset() && error.is_remote() {
        io::Error::new(io::ErrorKind::ConnectionReset, "the other end reset the connection")
    } else {
        io::Error::other(format!("the tunnel broke: {error}"))
    }
}
