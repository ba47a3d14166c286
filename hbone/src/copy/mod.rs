//! The copy loops: socket ↔ tunnel and socket ↔ socket, with ends and resets carried faithfully.
//!
//! An end of one direction (FIN, END_STREAM) is passed on after the last byte and leaves the other
//! direction alone. A reset (RST, RST_STREAM) ends both at once and is passed on as a reset; so is
//! everything that is neither: a copy that is dropped, stopped, or whose tunnel broke never looks
//! like an orderly end. What is read is bounded by what the other side takes.

mod direct;
mod meter;
mod relay;

pub use direct::{Aside, Ends, direct};
pub use meter::Meter;
pub use relay::relay;

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::ReadBuf;

use crate::transport::Link;

/// How a copy ended.
#[derive(Debug)]
pub enum End {
    /// Both directions came to an orderly end.
    Finished,
    /// The first socket was reset by its peer.
    ResetByLocal,
    /// The tunnel stream, or the second socket, was reset by its peer.
    ResetByRemote,
    /// `stop` resolved: both ends were reset.
    Stopped,
    /// Neither: the tunnel's own connection failed, say. Both ends were reset.
    Failed(io::Error),
}

/// Reads (or frames) handled in one go before other tasks of this thread get their turn.
const TURNS: usize = 8;

/// Whether the socket's peer has thrown the connection away.
fn is_reset(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::NotConnected
    )
}

/// An error of the first socket.
fn local(error: io::Error) -> End {
    if is_reset(&error) { End::ResetByLocal } else { End::Failed(error) }
}

/// An error of the second socket.
fn remote(error: io::Error) -> End {
    if is_reset(&error) { End::ResetByRemote } else { End::Failed(error) }
}

/// Gives way to the other tasks of this thread, and comes back.
fn yield_now<T>(cx: &mut Context<'_>) -> Poll<T> {
    cx.waker().wake_by_ref();
    Poll::Pending
}

/// What a read came to.
#[derive(Clone, Copy)]
struct Read {
    count: usize,
    /// Nothing will follow.
    end: bool,
}

/// Reads once; where the other end is known to have ended, to the very end, so that the end can travel with
/// the last bytes: one segment, and one wake-up of the receiver, less.
fn poll_read<L: Link>(link: &mut L, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<Read>> {
    let ending = link.is_ending();
    let mut read = ReadBuf::new(buffer);
    ready!(Pin::new(&mut *link).poll_read(cx, &mut read))?;
    let mut end = read.filled().is_empty();
    while ending && !end && read.remaining() > 0 {
        let count = read.filled().len();
        match Pin::new(&mut *link).poll_read(cx, &mut read) {
            Poll::Ready(Ok(())) => end = read.filled().len() == count,
            Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
            Poll::Pending => break,
        }
    }
    Poll::Ready(Ok(Read { count: read.filled().len(), end }))
}
