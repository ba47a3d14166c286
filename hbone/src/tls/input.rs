//! What comes in: bytes from the socket, records opened in place, payload handed on.

use std::{
    io,
    ops::Range,
    pin::Pin,
    task::{Context, Poll},
};

use rustls::AlertDescription;
use tokio::io::ReadBuf;

use super::{
    Fault,
    record::{Content, HEADER, Keys, length},
};
use crate::{
    buffer::{Buffer, Class},
    transport::Link,
};

pub(super) enum Next {
    /// Payload is ready to be given.
    Data,
    /// A handshake message, or a part of one, was appended to `messages`.
    Message,
    /// The peer said `close_notify`.
    Closed,
    Incomplete,
}

pub(super) struct Input {
    pub(super) keys: Keys,
    /// Opened during the handshake.
    early: Vec<u8>,
    buffer: Option<Buffer>,
    class: Class,
    /// Unopened bytes.
    start: usize,
    end: usize,
    /// Opened bytes not yet given; they lie before `start`.
    plain: Range<usize>,
    /// Handshake messages that came after the handshake, perhaps not complete.
    pub(super) messages: Vec<u8>,
    /// Key updates since the last data.
    pub(super) updates: u32,
    pub(super) received: u64,
    closed: bool,
}

impl Input {
    pub(super) fn new(keys: Keys, early: Vec<u8>, rest: &[u8]) -> Self {
        let class = if rest.len() > Class::Small.size() { Class::Large } else { Class::Small };
        let buffer = Buffer::with(class, rest);
        Self {
            keys,
            early,
            buffer: Some(buffer),
            class,
            start: 0,
            end: rest.len(),
            plain: 0..0,
            messages: Vec::new(),
            updates: 0,
            received: 0,
            closed: false,
        }
    }

    /// Hands opened bytes on.
    pub(super) fn give(&mut self, out: &mut ReadBuf<'_>) {
        if !self.early.is_empty() {
            let count = self.early.len().min(out.remaining());
            out.put_slice(&self.early[..count]);
            self.early.drain(..count);
        }
        if let Some(buffer) = &self.buffer
            && !self.plain.is_empty()
        {
            let count = self.plain.len().min(out.remaining());
            out.put_slice(&buffer[self.plain.start..self.plain.start + count]);
            self.plain.start += count;
        }
    }

    /// Opens the next record, if it is complete.
    pub(super) fn open_next(&mut self) -> Result<Next, Fault> {
        if self.closed {
            return Ok(Next::Closed);
        }
        let Some(buffer) = &mut self.buffer else { return Ok(Next::Incomplete) };
        let Some(length) = length(&buffer[self.start..self.end])? else { return Ok(Next::Incomplete) };
        let record = self.start..self.start + length;
        let (content, size) = self.keys.open(&mut buffer[record.clone()])?;
        self.start = record.end;
        let payload = record.start + HEADER..record.start + HEADER + size;
        if content != Content::Handshake && !self.messages.is_empty() {
            return Err(Fault::Record("a handshake message that is interrupted"));
        }
        match content {
            Content::Data => {
                self.plain = payload;
                self.updates = 0;
                Ok(Next::Data)
            }
            Content::Handshake => {
                self.messages.extend_from_slice(&buffer[payload]);
                Ok(Next::Message)
            }
            Content::Alert => match buffer[payload] {
                [_, CLOSE_NOTIFY] => {
                    self.closed = true;
                    Ok(Next::Closed)
                }
                [_, USER_CANCELED] => Ok(Next::Data),
                [_, alert] => Err(Fault::Alert(AlertDescription::from(alert))),
                _ => Err(Fault::Record("an alert of odd length")),
            },
        }
    }

    /// Reads once from the socket; gives the buffer back when nothing is in it and nothing comes.
    pub(super) fn poll_fill<L: Link>(
        &mut self,
        link: &mut L,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        if self.start == self.end {
            (self.start, self.end, self.plain) = (0, 0, 0..0);
            if link.poll_readable(cx)?.is_pending() {
                self.buffer = None;
                return Poll::Pending;
            }
            if self.buffer.as_ref().is_none_or(|buffer| buffer.class() != self.class) {
                self.buffer = Some(Buffer::take(self.class));
            }
        } else if self.start > 0 {
            // The rest of a record moves to the front: less than one record, once per read.
            let rest = self.end - self.start;
            if let Some(buffer) = &mut self.buffer {
                if self.class > buffer.class() {
                    *buffer = Buffer::with(self.class, &buffer[self.start..self.end]);
                } else {
                    buffer.copy_within(self.start..self.end, 0);
                }
            }
            (self.start, self.end, self.plain) = (0, rest, 0..0);
        }
        let buffer = self.buffer.get_or_insert_with(|| Buffer::take(Class::Large));
        let room = buffer.len() - self.end;
        let mut read = ReadBuf::new(&mut buffer[self.end..]);
        match Pin::new(link).poll_read(cx, &mut read) {
            Poll::Ready(Ok(())) => {
                let count = read.filled().len();
                self.end += count;
                self.received += count as u64;
                self.class = if count == room { grown(self.class) } else { self.class.adapted(count) };
                Poll::Ready(Ok(count))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => {
                if self.end == 0 {
                    self.buffer = None;
                }
                Poll::Pending
            }
        }
    }
}

fn grown(class: Class) -> Class {
    class.adapted(class.size())
}

const CLOSE_NOTIFY: u8 = 0;
const USER_CANCELED: u8 = 90;
