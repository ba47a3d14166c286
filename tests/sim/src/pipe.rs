//! A bounded two-way pipe in memory that behaves as TCP does at its ends: FIN, RST, silence.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    future::{Future, poll_fn},
    io,
    os::fd::BorrowedFd,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
};

use hbone::{Link, Transport};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A small generator of numbers (splitmix64): the same seed gives the same run.
#[derive(Debug, Clone)]
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From 0 up to but without `end`.
    pub fn below(&mut self, end: usize) -> usize {
        (self.draw() % end.max(1) as u64) as usize
    }

    /// Up to `most` bytes, short ones more often than long ones.
    pub fn bytes(&mut self, most: usize) -> Vec<u8> {
        let scale = self.below(most.max(2).ilog2() as usize + 1);
        let length = self.below((most >> scale).max(1)) + 1;
        let mut bytes = Vec::with_capacity(length + 8);
        while bytes.len() < length {
            bytes.extend_from_slice(&self.draw().to_le_bytes());
        }
        bytes.truncate(length);
        bytes
    }
}

/// One direction.
#[derive(Default)]
struct Half {
    bytes: VecDeque<u8>,
    capacity: usize,
    /// The writer has ended.
    closed: bool,
    /// One of the two has thrown the connection away.
    reset: bool,
    /// Nobody reads any more.
    deaf: bool,
    carried: u64,
    wakers: Vec<Waker>,
}

impl Half {
    fn wake(&mut self) {
        self.wakers.drain(..).for_each(Waker::wake);
    }

    fn wait<T>(&mut self, cx: &Context<'_>) -> Poll<T> {
        if !self.wakers.iter().any(|waker| waker.will_wake(cx.waker())) {
            self.wakers.push(cx.waker().clone());
        }
        Poll::Pending
    }

    fn reset(&mut self) {
        self.reset = true;
        self.bytes.clear();
        self.wake();
    }
}

/// What may be done to a pipe from outside.
#[derive(Clone)]
pub struct Wire {
    halves: [Rc<RefCell<Half>>; 2],
    cut: Rc<Cell<bool>>,
}

impl Wire {
    /// From now on nothing passes, in silence.
    pub fn cut(&self) {
        self.cut.set(true);
    }

    /// What was cut passes again.
    pub fn mend(&self) {
        self.cut.set(false);
        self.halves.iter().for_each(|half| half.borrow_mut().wake());
    }

    /// Both ends see a reset.
    pub fn reset(&self) {
        self.halves.iter().for_each(|half| half.borrow_mut().reset());
    }

    /// Bytes that have entered the pipe, either way.
    pub fn carried(&self) -> u64 {
        self.halves.iter().map(|half| half.borrow().carried).sum()
    }
}

/// One end.
pub struct Pipe {
    read: Rc<RefCell<Half>>,
    write: Rc<RefCell<Half>>,
    cut: Rc<Cell<bool>>,
    /// Reads and writes are cut short at random.
    chop: Option<Rng>,
    reset_on_drop: bool,
}

/// Two ends, and the wire between them; `capacity` bytes may be under way in each direction.
pub fn pipe(capacity: usize, chop: Option<u64>) -> (Pipe, Pipe, Wire) {
    let half = || Rc::new(RefCell::new(Half { capacity, ..Half::default() }));
    let (there, back, cut) = (half(), half(), Rc::new(Cell::new(false)));
    let end = |read: &Rc<RefCell<Half>>, write: &Rc<RefCell<Half>>, salt: u64| Pipe {
        read: read.clone(),
        write: write.clone(),
        cut: cut.clone(),
        chop: chop.map(|seed| Rng::new(seed ^ salt)),
        reset_on_drop: false,
    };
    let (a, b) = (end(&back, &there, 1), end(&there, &back, 2));
    (a, b, Wire { halves: [there, back], cut })
}

impl Pipe {
    /// Throws the connection away: the other end sees a reset.
    pub fn reset(mut self) {
        self.reset_on_drop = true;
    }

    fn chopped(&mut self, most: usize) -> usize {
        match &mut self.chop {
            Some(rng) if most > 1 => {
                let scale = rng.below(most.ilog2() as usize + 1);
                (rng.below(most) >> scale) + 1
            }
            _ => most,
        }
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        let unread = !self.read.borrow().bytes.is_empty();
        if self.reset_on_drop || unread {
            self.write.borrow_mut().reset();
            self.read.borrow_mut().reset();
        }
        let mut write = self.write.borrow_mut();
        write.closed = true;
        write.wake();
        drop(write);
        let mut read = self.read.borrow_mut();
        read.deaf = true;
        read.wake();
    }
}

impl AsyncRead for Pipe {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = self.read.clone();
        let mut half = read.borrow_mut();
        if half.reset {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        if self.cut.get() || (half.bytes.is_empty() && !half.closed) {
            return half.wait(cx);
        }
        let most = half.bytes.len().min(out.remaining());
        let count = if most == 0 { 0 } else { self.chopped(most) };
        for byte in half.bytes.drain(..count) {
            out.put_slice(&[byte]);
        }
        half.wake();
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Pipe {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let write = self.write.clone();
        let mut half = write.borrow_mut();
        if half.reset {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        if half.closed || half.deaf {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let room = half.capacity - half.bytes.len();
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        if room == 0 {
            return half.wait(cx);
        }
        let count = self.chopped(bytes.len().min(room));
        half.bytes.extend(&bytes[..count]);
        half.carried += count as u64;
        if !self.cut.get() {
            half.wake();
        }
        Poll::Ready(Ok(count))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut half = self.write.borrow_mut();
        half.closed = true;
        half.wake();
        Poll::Ready(Ok(()))
    }
}

impl Transport for Pipe {
    type Link = Self;
    fn into_link(self) -> Self {
        self
    }
}

impl Link for Pipe {
    fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut half = self.read.borrow_mut();
        if half.reset || (!self.cut.get() && (half.closed || !half.bytes.is_empty())) {
            return Poll::Ready(Ok(()));
        }
        half.wait(cx)
    }

    fn reset_on_drop(&mut self) {
        self.reset_on_drop = true;
    }

    fn watch_reset(&mut self) -> Pin<Box<dyn Future<Output = io::Error>>> {
        let read = self.read.clone();
        Box::pin(poll_fn(move |cx| {
            let mut half = read.borrow_mut();
            if half.reset { Poll::Ready(io::ErrorKind::ConnectionReset.into()) } else { half.wait(cx) }
        }))
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}
