//! Socket ↔ socket: passthrough, and two pods of one node.

use std::{
    future::{Future, poll_fn},
    io,
    os::fd::BorrowedFd,
    pin::{Pin, pin},
    task::{Context, Poll, ready},
};

use super::{End, Meter, TURNS, local, poll_read, remote, yield_now};
use crate::{
    Transport,
    buffer::{Buffer, Class},
    transport::Link,
};

/// What goes on beside a copy between two sockets: bytes may be sent past it. The copy asks for nothing in
/// return; whoever sends past it keeps the bytes in order.
pub trait Aside {
    /// Called after each round of copying. To be called again at some time, it wakes the task.
    fn poll(&mut self, ends: Ends<'_>, cx: &mut Context<'_>);
}

/// The two sockets of a copy, while it runs.
#[derive(Debug, Clone, Copy)]
pub struct Ends<'a> {
    /// The first socket, where it is one.
    pub first: Option<BorrowedFd<'a>>,
    /// The second.
    pub second: Option<BorrowedFd<'a>>,
    /// Whether both directions are still open.
    pub open: bool,
}

/// Something, or nothing at the price of a pointer.
impl<A: Aside> Aside for Option<Box<A>> {
    fn poll(&mut self, ends: Ends<'_>, cx: &mut Context<'_>) {
        if let Some(aside) = self {
            aside.poll(ends, cx);
        }
    }
}

/// Nothing goes on.
impl Aside for () {
    fn poll(&mut self, _ends: Ends<'_>, _cx: &mut Context<'_>) {}
}

/// Copies between two sockets in the same manner; `a` is the first. `aside` ends before the sockets close.
pub async fn direct<A, B, S>(a: A, b: B, meter: &Meter, stop: S, aside: impl Aside) -> End
where
    A: Transport,
    B: Transport,
    S: Future<Output = ()>,
{
    let mut pair =
        Pair { a: a.into_link(), b: b.into_link(), there: Way::new(), back: Way::new(), finished: false };
    // It has called, so most often it has also said why.
    pair.a.expect_bytes();
    let mut stop = pin!(stop);
    // Declared after the sockets, and so dropped before them.
    let mut aside = aside;
    poll_fn(|cx| {
        if stop.as_mut().poll(cx).is_ready() {
            return Poll::Ready(End::Stopped);
        }
        let end = pair.poll(cx, meter);
        if end.is_pending() {
            aside.poll(pair.ends(), cx);
        }
        end
    })
    .await
}

struct Pair<A: Link, B: Link> {
    a: A,
    b: B,
    there: Way,
    back: Way,
    finished: bool,
}

/// Whatever is not finished is reset on both sides.
impl<A: Link, B: Link> Drop for Pair<A, B> {
    fn drop(&mut self) {
        if !self.finished {
            self.a.reset_on_drop();
            self.b.reset_on_drop();
        }
    }
}

impl<A: Link, B: Link> Pair<A, B> {
    fn ends(&self) -> Ends<'_> {
        let open = [self.there.state, self.back.state].iter().all(|state| *state == State::Open);
        Ends { first: self.a.fd(), second: self.b.fd(), open }
    }

    fn poll(&mut self, cx: &mut Context<'_>, meter: &Meter) -> Poll<End> {
        let before = meter.sent() + meter.received();
        let last = self.back.state == State::Ended;
        let there = self.there.poll(&mut self.a, &mut self.b, last, cx, |count| meter.add_sent(count));
        let last = self.there.state == State::Ended;
        let back = self.back.poll(&mut self.b, &mut self.a, last, cx, |count| meter.add_received(count));
        if meter.sent() + meter.received() > before {
            meter.touch();
        }
        match (there, back) {
            (Poll::Ready(Err(Broken::Source(error))), _) => Poll::Ready(local(error)),
            (Poll::Ready(Err(Broken::Sink(error))), _) => Poll::Ready(remote(error)),
            (_, Poll::Ready(Err(Broken::Source(error)))) => Poll::Ready(remote(error)),
            (_, Poll::Ready(Err(Broken::Sink(error)))) => Poll::Ready(local(error)),
            (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => {
                self.finished = true;
                Poll::Ready(End::Finished)
            }
            (_, _) => {
                if let Poll::Ready(error) = self.there.poll_reset(cx) {
                    return Poll::Ready(local(error));
                }
                self.back.poll_reset(cx).map(remote)
            }
        }
    }
}

enum Broken {
    Source(io::Error),
    Sink(io::Error),
}

/// One direction.
struct Way {
    state: State,
    class: Class,
    /// Read and not yet written; borrowed only while the sink is slower than the source.
    held: Option<(Buffer, usize, usize)>,
    watch: Option<Pin<Box<dyn Future<Output = io::Error>>>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    /// The source has ended, the sink must be told.
    Ending,
    Ended,
}

impl Way {
    fn new() -> Self {
        Self { state: State::Open, class: Class::Small, held: None, watch: None }
    }

    fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        self.watch.as_mut().map_or(Poll::Pending, |watch| watch.as_mut().poll(cx))
    }

    /// `last`: the other direction has ended.
    fn poll<A: Link, B: Link>(
        &mut self,
        source: &mut A,
        sink: &mut B,
        last: bool,
        cx: &mut Context<'_>,
        count: impl Fn(usize),
    ) -> Poll<Result<(), Broken>> {
        for _ in 0..TURNS {
            if let Some((buffer, start, end)) = &mut self.held {
                while start < end {
                    let (sink, bytes) = (Pin::new(&mut *sink), &buffer[*start..*end]);
                    let written = match self.state {
                        State::Open => sink.poll_write(cx, bytes),
                        State::Ending | State::Ended => sink.poll_write_last(cx, bytes),
                    };
                    let written = ready!(written).map_err(Broken::Sink)?;
                    if written == 0 {
                        return Poll::Ready(Err(Broken::Sink(io::ErrorKind::WriteZero.into())));
                    }
                    *start += written;
                    count(written);
                }
                self.held = None;
            }
            match self.state {
                State::Open => ready!(self.poll_fill(source, cx)).map_err(Broken::Source)?,
                // Both sockets are closed now, which says it as well.
                State::Ending if last => self.state = State::Ended,
                State::Ending => {
                    ready!(Pin::new(&mut *sink).poll_shutdown(cx)).map_err(Broken::Sink)?;
                    self.state = State::Ended;
                }
                State::Ended => return Poll::Ready(Ok(())),
            }
        }
        yield_now(cx)
    }

    fn poll_fill<A: Link>(&mut self, source: &mut A, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(source.poll_readable(cx))?;
        let mut buffer = Buffer::take(self.class);
        let read = ready!(poll_read(source, cx, &mut buffer))?;
        if read.end {
            self.state = State::Ending;
            self.watch = Some(source.watch_reset());
        }
        if read.count > 0 {
            self.class = self.class.adapted(read.count);
            self.held = Some((buffer, 0, read.count));
        }
        Poll::Ready(Ok(()))
    }
}
