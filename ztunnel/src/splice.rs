//! The splice: two apps of one node, once ztunnel has said that they may talk, hand each other their bytes
//! inside the kernel. Off unless the agent switches it on (`--splice`).
//!
//! The copy goes on beside it and carries whatever the kernel does not take: the first bytes, those beyond
//! a grant's limit, both ends and every reset. A grant says to the kernel: *if* this app has sent no more
//! than the bytes that were copied, what it sends now may go straight into its peer's queue. It is given
//! only after the peer has read every one of those, so bytes cannot overtake each other; it is for a bounded
//! number of bytes, since the straight way has no back-pressure; and it dies with ztunnel's socket.

use std::{
    io, mem,
    net::SocketAddr,
    os::fd::BorrowedFd,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use capture::{AppSocket, Splices};
use hbone::copy::{Aside, Ends};
use tokio::time::{Instant, Sleep, sleep_until};

use crate::{
    live::{Carried, Path},
    pods::Pod,
    shared::Shared,
};

/// What one grant lets past, as the kernel charges it: as much memory as a receiver that does not read may hold.
const GRANT: u64 = 4 << 20;

/// Between two looks at a receiver that has not read everything yet: doubled from the first to the last.
const FIRST_LOOK: Duration = Duration::from_millis(1);
const LAST_LOOK: Duration = Duration::from_secs(1);

/// Looks in a row, with nothing but the other tasks in between: an app reads within microseconds, and then
/// talks on, so that whoever looks once a millisecond finds it busy each time.
const LOOKS: u32 = 16;

/// How often the bytes that went past are counted while nothing else happens.
const COUNT_EVERY: Duration = Duration::from_secs(5);

/// The socket of an app of this node, as the app sees it.
#[derive(Clone)]
pub(crate) struct App {
    pub(crate) pod: Arc<Pod>,
    pub(crate) local: SocketAddr,
    pub(crate) remote: SocketAddr,
}

impl App {
    fn socket(&self) -> Option<AppSocket> {
        self.pod.cookie.map(|cookie| AppSocket::new(cookie, self.local, self.remote))
    }

    /// Whether all `copied` bytes that we wrote into `sink` have come to the app, and it has read them.
    fn has_read_all(&self, copied: u64, sink: BorrowedFd<'_>) -> io::Result<bool> {
        // In this order: what came is what is asked about. An acknowledgement may wait for the app's next
        // segment, which a spliced app does not send, so the app's own count decides where there is none.
        let arrived = capture::unsent(sink)? == 0;
        self.pod.ask(|diag| {
            let came = arrived || diag.received(self.local, self.remote)? == Some(copied);
            Ok(came && diag.unread(self.local, self.remote)? == Some(0))
        })
    }
}

/// Takes an app's socket out of the splice for good: its connection goes another way.
pub(crate) fn release(shared: &Shared, app: &App) {
    if let (Some(splices), Some(socket)) = (shared.pods.splices(), app.socket()) {
        splices.release(&socket);
    }
}

/// The splice of one connection.
pub(crate) struct Splice<'a> {
    shared: &'a Shared,
    carried: &'a Carried,
    splices: Arc<Splices>,
    caller: App,
    callee: App,
    /// From the caller to the callee, and back; `None` before it is known where the callee's socket is.
    ways: Option<[Way; 2]>,
    wake: Pin<Box<Sleep>>,
    /// A connection that ends before this is not worth a splice.
    from: Instant,
    /// The ways are of the apps' very sockets, and not only of their addresses.
    met: bool,
    /// Both have spoken, by the copy. A connection of one question and one answer is to end as it does without
    /// a splice: an answer that goes past the copy comes before the end, which does not, and a caller that
    /// closes first keeps the port (TIME_WAIT).
    talked: bool,
    spliced: bool,
    released: bool,
}

/// One direction.
struct Way {
    /// Who sends; the other way's sender is who receives.
    sender: AppSocket,
    /// Bytes copied so far, as of the last round.
    copied: u64,
    /// When to look whether the receiver has read them all, and how long to wait after that.
    look: Option<(Instant, Duration)>,
    /// How often that was looked at in a row.
    looks: u32,
    granted: bool,
}

impl Way {
    fn new(sender: AppSocket, look: Instant) -> Self {
        Self { sender, copied: 0, look: Some((look, FIRST_LOOK)), looks: 0, granted: false }
    }

    /// Takes note of what was copied; says whether that was more than before.
    fn note(&mut self, copied: u64, now: Instant) -> bool {
        let moved = copied != self.copied;
        if moved {
            self.copied = copied;
            self.look.get_or_insert((now + FIRST_LOOK, FIRST_LOOK));
        }
        moved
    }

    /// The receiver has not read everything; says whether to look again at once.
    fn look_later(&mut self, now: Instant, wait: Duration) -> bool {
        self.looks += 1;
        let again = self.looks < LOOKS;
        if again {
            self.look = Some((now, wait));
        } else {
            self.looks = 0;
            self.look = Some((now + wait, (wait * 2).min(LAST_LOOK)));
        }
        again
    }
}

impl<'a> Splice<'a> {
    /// Where the node has no splice, nothing.
    pub(crate) fn new(
        shared: &'a Shared,
        carried: &'a Carried,
        caller: App,
        there: &Arc<Pod>,
        to: SocketAddr,
    ) -> Option<Box<Self>> {
        let splices = shared.pods.splices()?;
        let callee = App { pod: there.clone(), local: to, remote: to };
        let from = Instant::now() + FIRST_LOOK;
        let wake = Box::pin(sleep_until(from));
        let splice = Self {
            shared,
            carried,
            splices,
            caller,
            callee,
            ways: None,
            wake,
            from,
            met: false,
            talked: false,
            spliced: false,
            released: false,
        };
        Some(Box::new(splice))
    }

    /// Announces the socket that the callee will accept, before it is dialled from `from`.
    pub(crate) fn expect(&mut self, from: SocketAddr) {
        if let Some([_, back]) = self.ways.take() {
            // The attempt before this one came to nothing.
            self.splices.release(&back.sender);
        }
        self.callee.remote = from;
        let (Some(caller), Some(callee)) = (self.caller.socket(), self.callee.socket()) else { return };
        match self.splices.expect(&callee) {
            Ok(()) => self.ways = Some([caller, callee].map(|sender| Way::new(sender, self.from))),
            Err(error) => tracing::debug!(%error, "a connection is not spliced"),
        }
    }

    fn forget(&mut self) {
        self.count();
        if mem::replace(&mut self.released, true) {
            return;
        }
        match self.ways.take() {
            Some(ways) => ways.iter().for_each(|way| self.splices.release(&way.sender)),
            // It never came to that; the caller's socket is in since it was connected.
            None => self.caller.socket().iter().for_each(|caller| self.splices.release(caller)),
        }
    }

    /// Counts what went past the copy.
    fn count(&self) {
        if self.spliced
            && let Some([there, back]) = &self.ways
        {
            let past = |way: &Way| self.splices.redirected(&way.sender);
            self.carried.meter.set_aside(past(there), past(back));
        }
    }

    /// Finds the two apps' very sockets; `false` where nothing may be granted, or not yet.
    fn meet(&mut self, ways: &mut [Way; 2], ends: Ends<'_>) -> bool {
        let [there, back] = ways;
        let meet = |app: &AppSocket, own: Option<BorrowedFd<'_>>| self.splices.meet(app, own?);
        let met = meet(&there.sender, ends.first).zip(meet(&back.sender, ends.second));
        if let Some((caller, callee)) = met {
            (there.sender, back.sender) = (caller, callee);
            self.met = true;
        }
        self.met
    }

    /// Lets the way's bytes past from now on, if the receiver has read all that were copied.
    fn try_grant(
        &self,
        way: &Way,
        sink: BorrowedFd<'_>,
        (receiver, socket): (&App, AppSocket),
    ) -> io::Result<bool> {
        // What is copied in the meantime makes the grant void.
        if !receiver.has_read_all(way.copied, sink)? {
            return Ok(false);
        }
        let limit = self.splices.charged(&way.sender) + GRANT;
        self.splices.grant(&way.sender, &socket, way.copied, limit).map_err(io::Error::other)?;
        Ok(true)
    }

    /// Notes what was copied and gives what grants it can; says whether to look again at once.
    fn look(&mut self, ends: Ends<'_>, now: Instant) -> bool {
        let Some(mut ways) = self.ways.take() else { return false };
        let (sent, received) = self.carried.meter.copied();
        self.talked |= sent > 0 && received > 0;
        let moved = [ways[0].note(sent, now), ways[1].note(received, now)];
        for (way, moved) in ways.iter_mut().zip(moved) {
            // The sender has sent more than its grant speaks of: it is void, and must not lie there until the
            // count comes round.
            if moved && mem::take(&mut way.granted) {
                self.splices.revoke(&way.sender);
            }
        }
        if !ends.open {
            // With one direction closed, nothing new is let past: a socket that is half closed does not
            // tell the kernel of ztunnel's death.
            ways.iter_mut().for_each(|way| way.look = None);
        }
        if !self.talked {
            self.ways = Some(ways);
            return false;
        }
        // An answer says that the question was read: no need to wait for the time to look.
        let answered = |index: usize| moved[1 - index] && !moved[index] && now >= self.from;
        let due = [0, 1].map(|index| ways[index].look.is_some_and(|(at, _)| at <= now || answered(index)));
        let met = self.met || (due.contains(&true) && self.meet(&mut ways, ends));
        let sinks = [ends.second, ends.first];
        let receivers = [(&self.callee, ways[1].sender), (&self.caller, ways[0].sender)];
        let (mut failed, mut again) = (false, false);
        for (index, way) in ways.iter_mut().enumerate() {
            let (Some((_, wait)), true) = (way.look, due[index]) else { continue };
            let Some(sink) = sinks[index] else {
                way.look = None;
                continue;
            };
            if !met {
                way.look = Some((now + wait, (wait * 2).min(LAST_LOOK)));
                // The agent's cgroup for splicing is not ztunnel's or the app's, say.
                failed |= wait == LAST_LOOK;
                continue;
            }
            match self.try_grant(way, sink, receivers[index]) {
                Ok(true) => {
                    (way.look, way.looks, way.granted) = (None, 0, true);
                    if !self.spliced {
                        self.spliced = true;
                        self.carried.path.set(Path::Spliced);
                        self.shared.metrics.spliced.inc();
                    }
                }
                Ok(false) => again |= way.look_later(now, wait),
                Err(error) => {
                    tracing::debug!(%error, "a connection is spliced no more");
                    failed = true;
                }
            }
        }
        self.ways = Some(ways);
        if failed {
            self.forget();
        }
        again && !failed
    }

    /// When to wake.
    fn next(&self, now: Instant) -> Option<Instant> {
        if !self.talked {
            // The copy's next round comes here.
            return None;
        }
        let looks = self.ways.as_ref()?.iter().filter_map(|way| way.look.map(|(at, _)| at));
        looks.chain(self.spliced.then_some(now + COUNT_EVERY)).min()
    }
}

impl Aside for Splice<'_> {
    fn poll(&mut self, ends: Ends<'_>, cx: &mut Context<'_>) {
        loop {
            let now = Instant::now();
            if self.look(ends, now) {
                cx.waker().wake_by_ref();
                return;
            }
            let Some(next) = self.next(now) else { return };
            self.wake.as_mut().reset(next);
            match self.wake.as_mut().poll(cx) {
                Poll::Pending => return,
                Poll::Ready(()) => self.count(),
            }
        }
    }
}

impl Drop for Splice<'_> {
    fn drop(&mut self) {
        self.forget();
    }
}
