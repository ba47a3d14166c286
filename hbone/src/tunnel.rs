//! One CONNECT stream: two directions of bytes within a tunnel.

use std::fmt;

use h2::{Reason, RecvStream, SendStream};

use crate::{chunk::Chunk, client::Seat};

/// One CONNECT stream. Dropping it before both directions have ended resets it (CANCEL), which the
/// other end carries on as a TCP reset.
pub struct Tunnel {
    pub(crate) send: SendStream<Chunk>,
    pub(crate) recv: RecvStream,
    /// The stream's place in a pooled tunnel; `None` at the server.
    pub(crate) seat: Option<Seat>,
    /// Bytes that were sent with the request.
    pub(crate) early: usize,
}

impl Tunnel {
    pub(crate) fn new(send: SendStream<Chunk>, recv: RecvStream, seat: Option<Seat>) -> Self {
        Self { send, recv, seat, early: 0 }
    }

    /// Resets both directions now.
    pub fn reset(mut self) {
        self.send.send_reset(Reason::CANCEL);
    }
}

impl fmt::Debug for Tunnel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tunnel").field("stream", &self.recv.stream_id().as_u32()).finish_non_exhaustive()
    }
}
