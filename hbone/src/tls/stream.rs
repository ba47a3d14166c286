//! The stream that HTTP/2 runs over: reads open records in place, writes are corked.
//!
//! HTTP/2 flushes after every frame. Here a write only goes into the record that is being filled, and
//! a flush does nothing: the task that drives the connection calls [`Stream::poll_drain`] once it has
//! nothing more to say, so that the frames of many streams share a record and a system call.

use std::{
    cell::RefCell,
    io::{self, IoSlice},
    os::fd::BorrowedFd,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use rustls::{ConnectionTrafficSecrets, ExtractedSecrets, kernel::KernelConnection};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{
    Fault,
    input::{Input, Next},
    output::Output,
    record::Keys,
};
use crate::{
    Socket,
    transport::{Link, OwnsSocket},
};

/// Key updates that a peer may ask for without sending data in between.
const MAX_IDLE_UPDATES: u32 = 32;
/// Most bytes of one handshake message after the handshake (a session ticket): 64 KiB.
const MAX_MESSAGE: usize = 64 << 10;

type Secrets = Result<(u64, ConnectionTrafficSecrets), rustls::Error>;

/// The next keys of either direction.
pub(super) trait Rekey {
    fn send(&mut self) -> Secrets;
    fn receive(&mut self) -> Secrets;
}

impl<D> Rekey for KernelConnection<D> {
    fn send(&mut self) -> Secrets {
        self.update_tx_secret()
    }
    fn receive(&mut self) -> Secrets {
        self.update_rx_secret()
    }
}

/// A TLS connection. Clones share it: HTTP/2 owns one, the task that drives it another.
pub(crate) struct Stream<L> {
    inner: Rc<RefCell<Inner<L>>>,
}

impl<L> Clone for Stream<L> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone() }
    }
}

struct Inner<L> {
    link: L,
    rekey: Box<dyn Rekey>,
    input: Input,
    output: Output,
    fault: Option<Fault>,
}

impl<L: Link> Stream<L> {
    /// Takes over after a handshake. `early` was opened already, `rest` is not yet.
    pub(super) fn new(
        link: L,
        secrets: ExtractedSecrets,
        rekey: Box<dyn Rekey>,
        early: Vec<u8>,
        rest: &[u8],
    ) -> Result<Self, Fault> {
        let output = Output::new(Keys::new(secrets.tx)?);
        let input = Input::new(Keys::new(secrets.rx)?, early, rest);
        let inner = Inner { link, rekey, input, output, fault: None };
        Ok(Self { inner: Rc::new(RefCell::new(inner)) })
    }

    /// Sends everything that was written. To be called whenever HTTP/2 has been polled. `Ready(true)`
    /// when a writer was told to wait and there is room again: poll HTTP/2 once more.
    pub(crate) fn poll_drain(&self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        let inner = &mut *self.inner.borrow_mut();
        ready!(inner.output.poll_drain(&mut inner.link, &mut *inner.rekey, cx))
            .map_err(|fault| inner.fail(fault))?;
        Poll::Ready(Ok(std::mem::take(&mut inner.output.blocked)))
    }

    /// Why TLS failed, if it did.
    pub(crate) fn fault(&self) -> Option<Fault> {
        self.inner.borrow().fault.clone()
    }

    /// The socket underneath, for its statistics.
    pub(crate) fn socket(&self) -> Socket {
        Socket::of(self.inner.clone())
    }

    /// Bytes received so far: what moves is alive.
    pub(crate) fn received(&self) -> u64 {
        self.inner.borrow().input.received
    }
}

impl<L: Link> Inner<L> {
    /// Remembers what went wrong, and says it in the form of an `io::Error`.
    fn fail(&mut self, fault: Fault) -> io::Error {
        let error = match &fault {
            Fault::Io(error) => io::Error::new(error.kind(), error.to_string()),
            other => io::Error::new(io::ErrorKind::InvalidData, other.to_string()),
        };
        self.fault.get_or_insert(fault);
        error
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<Result<usize, Fault>> {
        let Self { link, rekey, output, .. } = self;
        let mut taken = output.push(slices, &mut **rekey)?;
        if taken == 0 && slices.iter().any(|slice| !slice.is_empty()) {
            if output.poll_drain(link, &mut **rekey, cx)?.is_pending() {
                output.blocked = true;
                return Poll::Pending;
            }
            taken = output.push(slices, &mut **rekey)?;
        }
        Poll::Ready(Ok(taken))
    }

    fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        let Self { link, rekey, output, .. } = self;
        output.close(&mut **rekey)?;
        ready!(output.poll_drain(link, &mut **rekey, cx))?;
        Pin::new(link).poll_shutdown(cx).map_err(Fault::from)
    }

    /// Tells the peer which rule it broke, as far as the socket takes it at once.
    fn last_words(&mut self, fault: &Fault, cx: &mut Context<'_>) {
        if let Some(alert) = fault.alert() {
            let Self { link, rekey, output, .. } = self;
            if output.alert(alert).is_ok() {
                let _ = output.poll_drain(link, &mut **rekey, cx);
            }
        }
    }

    fn poll_read(&mut self, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<Result<(), Fault>> {
        let before = out.filled().len();
        loop {
            self.input.give(out);
            if out.remaining() == 0 {
                return Poll::Ready(Ok(()));
            }
            match self.input.open_next()? {
                Next::Data => {}
                Next::Message => self.message()?,
                Next::Closed => return Poll::Ready(Ok(())),
                // What is there already is handed on before more is asked for.
                Next::Incomplete if out.filled().len() > before => return Poll::Ready(Ok(())),
                Next::Incomplete => match self.input.poll_fill(&mut self.link, cx) {
                    Poll::Ready(Ok(0)) => return Poll::Ready(Ok(())),
                    Poll::Ready(Ok(_)) => {}
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error.into())),
                    Poll::Pending => return Poll::Pending,
                },
            }
        }
    }

    /// Handles complete handshake messages that came after the handshake: tickets are of no use to
    /// us, a key update is done.
    fn message(&mut self) -> Result<(), Fault> {
        while let Some(header) = self.input.messages.first_chunk::<4>() {
            let size = u32::from_be_bytes([0, header[1], header[2], header[3]]) as usize;
            if size > MAX_MESSAGE {
                return Err(Fault::Record("a handshake message of more than 64 KiB"));
            }
            if self.input.messages.len() < 4 + size {
                return Ok(());
            }
            let kind = header[0];
            let first = self.input.messages.get(4).copied();
            self.input.messages.drain(..4 + size);
            match (kind, size, first) {
                (NEW_SESSION_TICKET, _, _) => {}
                (KEY_UPDATE, 1, Some(asked @ 0..=1)) => {
                    if !self.input.messages.is_empty() {
                        return Err(Fault::Record("a key update that is not the last of its record"));
                    }
                    self.input.updates += 1;
                    if self.input.updates > MAX_IDLE_UPDATES {
                        return Err(Fault::Record("key updates without data between them"));
                    }
                    self.input.keys = Keys::new(self.rekey.receive()?)?;
                    if asked == 1 {
                        self.output.update_keys_soon();
                    }
                }
                _ => return Err(Fault::Record("an unexpected handshake message")),
            }
        }
        Ok(())
    }
}

const NEW_SESSION_TICKET: u8 = 4;
const KEY_UPDATE: u8 = 24;

impl<L: Link> OwnsSocket for Inner<L> {
    fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.link.fd()
    }
}

impl<L: Link> AsyncRead for Stream<L> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let inner = &mut *self.inner.borrow_mut();
        match ready!(inner.poll_read(cx, out)) {
            Ok(()) => Poll::Ready(Ok(())),
            Err(fault) => {
                inner.last_words(&fault, cx);
                Poll::Ready(Err(inner.fail(fault)))
            }
        }
    }
}

impl<L: Link> AsyncWrite for Stream<L> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let inner = &mut *self.inner.borrow_mut();
        inner.poll_write(cx, slices).map_err(|fault| inner.fail(fault))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// Corked: see [`Stream::poll_drain`].
    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let inner = &mut *self.inner.borrow_mut();
        inner.poll_shutdown(cx).map_err(|fault| inner.fail(fault))
    }
}
