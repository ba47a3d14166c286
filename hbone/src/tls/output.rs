//! What goes out: writes fill a record, full records are sealed in place, the socket takes them in one
//! call.

use std::{
    io::IoSlice,
    pin::Pin,
    task::{Context, Poll, ready},
};

use rustls::AlertDescription;

use super::{
    Fault,
    record::{Content, HEADER, Keys, MAX_PLAINTEXT, TRAILER},
    stream::Rekey,
};
use crate::{
    buffer::{Buffer, Class},
    transport::Link,
};

/// The biggest buffer for output; beyond it writers wait for the socket.
const BIGGEST: Class = Class::Large;
/// `KeyUpdate { update_not_requested }` (RFC 8446 section 4.6.3).
const KEY_UPDATE: [u8; 5] = [24, 0, 0, 1, 0];
/// What a key update needs in the buffer.
const KEY_UPDATE_ROOM: usize = HEADER + KEY_UPDATE.len() + TRAILER;
const WARNING: u8 = 1;
const FATAL: u8 = 2;

pub(super) struct Output {
    keys: Keys,
    buffer: Option<Buffer>,
    /// Not sent yet: sealed records, up to the open one.
    start: usize,
    end: usize,
    /// Where the record begins that is being filled.
    open: Option<usize>,
    update_due: bool,
    closed: bool,
    /// A writer waits for room.
    pub(super) blocked: bool,
}

impl Output {
    pub(super) fn new(keys: Keys) -> Self {
        Self {
            keys,
            buffer: None,
            start: 0,
            end: 0,
            open: None,
            update_due: false,
            closed: false,
            blocked: false,
        }
    }

    /// The peer asked for new keys: before the next record.
    pub(super) fn update_keys_soon(&mut self) {
        self.update_due = true;
    }

    /// Takes as much as fits; 0 means that the socket must take some first.
    pub(super) fn push(&mut self, slices: &[IoSlice<'_>], rekey: &mut dyn Rekey) -> Result<usize, Fault> {
        let mut coming: usize = slices.iter().map(|slice| slice.len()).sum();
        let offered = coming;
        for slice in slices {
            let mut bytes = &slice[..];
            while !bytes.is_empty() {
                let Some(open) = self.open_record(coming, rekey)? else { return Ok(offered - coming) };
                let Some(buffer) = &mut self.buffer else { return Ok(offered - coming) };
                let limit = (open + HEADER + MAX_PLAINTEXT).min(buffer.len() - TRAILER);
                let count = bytes.len().min(limit - self.end);
                buffer[self.end..self.end + count].copy_from_slice(&bytes[..count]);
                self.end += count;
                coming -= count;
                bytes = &bytes[count..];
                if self.end == limit {
                    self.seal()?;
                }
            }
        }
        Ok(offered - coming)
    }

    /// The record to write to: a new one if there is none, and room for at least one byte. A buffer
    /// that is nearly full takes no more: a short record costs as much as a full one.
    fn open_record(&mut self, coming: usize, rekey: &mut dyn Rekey) -> Result<Option<usize>, Fault> {
        if self.open.is_some() {
            return Ok(self.open);
        }
        if (self.update_due || self.keys.worn()) && !self.update_keys(rekey)? {
            return Ok(None);
        }
        let whole = HEADER + coming.min(MAX_PLAINTEXT) + TRAILER;
        if self.room(whole, coming) >= whole {
            self.open = Some(self.end);
            self.end += HEADER;
        }
        Ok(self.open)
    }

    /// Room behind `end`, after a first or a larger buffer has been taken as needed. Only while no
    /// record is open.
    fn room(&mut self, wanted: usize, coming: usize) -> usize {
        match &mut self.buffer {
            None => {
                let class = if coming > MAX_PLAINTEXT { BIGGEST } else { Class::Small };
                self.buffer = Some(Buffer::take(class));
                (self.start, self.end) = (0, 0);
            }
            Some(buffer) if buffer.len() - self.end < wanted && buffer.class() < BIGGEST => {
                *buffer = Buffer::with(BIGGEST, &buffer[self.start..self.end]);
                (self.start, self.end) = (0, self.end - self.start);
            }
            Some(_) => {}
        }
        self.buffer.as_ref().map_or(0, |buffer| buffer.len() - self.end)
    }

    /// Seals the record that is being filled, if there is one.
    fn seal(&mut self) -> Result<(), Fault> {
        if let (Some(open), Some(buffer)) = (self.open.take(), &mut self.buffer) {
            self.end += TRAILER;
            self.keys.seal(&mut buffer[open..self.end], Content::Data)?;
        }
        Ok(())
    }

    /// One small record that is not data; `false` if there is no room for it now.
    fn control(&mut self, content: Content, payload: &[u8]) -> Result<bool, Fault> {
        self.seal()?;
        let size = HEADER + payload.len() + TRAILER;
        if self.room(size, 0) < size {
            return Ok(false);
        }
        if let Some(buffer) = &mut self.buffer {
            let start = self.end;
            self.end += size;
            buffer[start + HEADER..start + HEADER + payload.len()].copy_from_slice(payload);
            self.keys.seal(&mut buffer[start..self.end], content)?;
        }
        Ok(true)
    }

    /// Announces new keys under the old ones, and takes them; `false` if there is no room for it now.
    fn update_keys(&mut self, rekey: &mut dyn Rekey) -> Result<bool, Fault> {
        if self.room(KEY_UPDATE_ROOM, 0) < KEY_UPDATE_ROOM
            || !self.control(Content::Handshake, &KEY_UPDATE)?
        {
            return Ok(false);
        }
        self.keys = Keys::new(rekey.send()?)?;
        self.update_due = false;
        Ok(true)
    }

    /// Says `close_notify`, once.
    pub(super) fn close(&mut self, rekey: &mut dyn Rekey) -> Result<(), Fault> {
        if !self.closed {
            if self.keys.worn() {
                self.update_keys(rekey)?;
            }
            // Without room it is left out: the socket is stuck, and its end tells the peer as well.
            self.control(Content::Alert, &[WARNING, AlertDescription::CloseNotify.into()])?;
            self.closed = true;
        }
        Ok(())
    }

    /// Says why this is the end.
    pub(super) fn alert(&mut self, alert: AlertDescription) -> Result<(), Fault> {
        if !self.closed {
            self.closed = true;
            self.control(Content::Alert, &[FATAL, alert.into()])?;
        }
        Ok(())
    }

    /// Sends all there is; an empty buffer is given back.
    pub(super) fn poll_drain<L: Link>(
        &mut self,
        link: &mut L,
        rekey: &mut dyn Rekey,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Fault>> {
        self.seal()?;
        if self.update_due {
            self.update_keys(rekey)?;
        }
        let Some(buffer) = &self.buffer else { return Poll::Ready(Ok(())) };
        while self.start < self.end {
            let sent = ready!(Pin::new(&mut *link).poll_write(cx, &buffer[self.start..self.end]))?;
            if sent == 0 {
                return Poll::Ready(Err(std::io::Error::from(std::io::ErrorKind::WriteZero).into()));
            }
            self.start += sent;
        }
        self.buffer = None;
        Poll::Ready(Ok(()))
    }
}
