//! One tunnel of the pool: its seats, its load, and the task that drives it.

use std::{
    cell::{Cell, RefCell},
    future::{Future, poll_fn},
    net::SocketAddr,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::{Duration, SystemTime},
};

use h2::client::SendRequest;
use identity::Certified;
use mesh::Identity;
use tokio::{
    sync::Notify,
    time::{Instant, Sleep, sleep_until},
};

use super::{OpenError, Peers};
use crate::{
    Settings, Socket,
    chunk::Chunk,
    keepalive::{Heard, Keepalive},
    tls,
    transport::Link,
};

/// `max_send_streams` of HTTP/2 until the peer's SETTINGS are here. No peer means this number.
pub(super) const UNSETTLED: usize = usize::MAX - 77;

/// A tunnel is taken for bulk while more than this has moved lately…
const BULK: u64 = 4 << 20;
/// …where what has moved is forgotten at this rate, in bytes per second.
const FORGOTTEN: f64 = (16 << 20) as f64;

/// A peer that has said something in so much time is there.
const LATELY: Duration = Duration::from_secs(1);

/// A tunnel, shared by the pool, its driver and its streams.
pub(super) struct Connection {
    pub(super) peer: SocketAddr,
    pub(super) identity: Identity,
    pub(super) socket: Socket,
    pub(super) since: Instant,
    pub(super) settled: Notify,
    certified: Arc<Certified>,
    /// `None` once it takes no new streams; without it and without streams HTTP/2 closes.
    sender: RefCell<Option<SendRequest<Chunk>>>,
    seated: Cell<usize>,
    most: usize,
    is_settled: Cell<bool>,
    failure: RefCell<Option<OpenError>>,
    load: Cell<Load>,
    /// Something has moved since the driver has looked: an answer may be waited for.
    stirred: Cell<bool>,
    /// Bytes that were received, as the driver has seen it last.
    received: Cell<u64>,
    looked: Cell<Looked>,
    /// The peer is not heard any more. Told to those who wait for its answer.
    silent: Cell<bool>,
    hushed: Notify,
    driver: RefCell<Option<Waker>>,
    /// What the pool does when it has ended.
    farewell: RefCell<Option<Farewell>>,
}

type Farewell = Box<dyn FnOnce(&Connection)>;

#[derive(Clone, Copy)]
struct Load {
    level: u64,
    fresh: u64,
    at: Instant,
}

/// What somebody saw who looked whether the peer was heard.
#[derive(Clone, Copy)]
struct Looked {
    at: Instant,
    received: u64,
    /// Something was received after that.
    heard_after: Instant,
}

/// One stream's place in a tunnel, given back on drop.
pub(crate) struct Seat {
    connection: Rc<Connection>,
}

impl Drop for Seat {
    fn drop(&mut self) {
        let connection = &self.connection;
        connection.seated.set(connection.seated.get() - 1);
        if connection.seated.get() == 0 {
            connection.wake_driver();
        }
    }
}

impl Seat {
    /// Bytes that the stream has moved; the tunnel is bulk while there are many.
    pub(crate) fn moved(&self, bytes: u64) {
        self.connection.stirred.set(true);
        let mut load = self.connection.load.get();
        load.fresh += bytes;
        // The clock is read once per 256 KiB only.
        if load.fresh >= 256 << 10 {
            load = load.decayed(Instant::now());
        }
        self.connection.load.set(load);
    }

    pub(super) fn connection(&self) -> &Rc<Connection> {
        &self.connection
    }
}

impl Load {
    fn decayed(self, now: Instant) -> Self {
        let forgotten = (now.duration_since(self.at).as_secs_f64() * FORGOTTEN) as u64;
        Self {
            level: self.level.saturating_sub(forgotten).saturating_add(self.fresh).min(2 * BULK),
            fresh: 0,
            at: now,
        }
    }
}

impl Connection {
    pub(super) fn new(
        peer: SocketAddr,
        identity: Identity,
        socket: Socket,
        certified: Arc<Certified>,
        sender: SendRequest<Chunk>,
        settings: &Settings,
    ) -> Rc<Self> {
        let now = Instant::now();
        Rc::new(Self {
            peer,
            identity,
            socket,
            since: now,
            settled: Notify::new(),
            certified,
            sender: RefCell::new(Some(sender)),
            seated: Cell::new(0),
            most: settings.max_streams as usize,
            is_settled: Cell::new(false),
            failure: RefCell::new(None),
            load: Cell::new(Load { level: 0, fresh: 0, at: now }),
            stirred: Cell::new(false),
            received: Cell::new(0),
            looked: Cell::new(Looked { at: now, received: 0, heard_after: now }),
            silent: Cell::new(false),
            hushed: Notify::new(),
            driver: RefCell::new(None),
            farewell: RefCell::new(None),
        })
    }

    /// A place for one stream, if there is one: within the peer's limit and ours.
    pub(super) fn seat(self: &Rc<Self>) -> Option<Seat> {
        let (usable, free) = {
            let mut sender = self.sender.borrow_mut();
            let sender = sender.as_mut()?;
            // An error after a GOAWAY, or when stream numbers have run out. Nothing is pending in this
            // handle, so that it never waits.
            let usable =
                !matches!(sender.poll_ready(&mut Context::from_waker(Waker::noop())), Poll::Ready(Err(_)));
            (usable, self.seated.get() < self.most.min(sender.current_max_send_streams()))
        };
        if !usable {
            self.retire();
        }
        (usable && free).then(|| {
            self.seated.set(self.seated.get() + 1);
            Seat { connection: self.clone() }
        })
    }

    pub(super) fn sender(&self) -> Option<SendRequest<Chunk>> {
        self.sender.borrow().clone()
    }

    pub(super) fn streams(&self) -> usize {
        self.seated.get()
    }

    pub(super) fn is_bulk(&self) -> bool {
        let load = self.load.get().decayed(Instant::now());
        self.load.set(load);
        load.level >= BULK
    }

    /// No new stream enters; it closes with its last one.
    pub(super) fn retire(&self) {
        self.sender.borrow_mut().take();
        self.wake_driver();
    }

    pub(super) fn is_retired(&self) -> bool {
        self.sender.borrow().is_none()
    }

    /// Its peer does not answer PINGs.
    pub(super) fn is_silent(&self) -> bool {
        self.silent.get()
    }

    /// Waits until it is.
    pub(super) async fn silenced(&self) {
        while !self.silent.get() {
            self.hushed.notified().await;
        }
    }

    /// Somebody waits for the peer's answer from now on.
    pub(super) fn stir(&self) {
        self.stirred.set(true);
    }

    /// Whether the peer was certainly heard of late: what is sent to it now reaches somebody.
    pub(super) fn was_heard_lately(&self) -> bool {
        let (now, received, before) = (Instant::now(), self.received.get(), self.looked.get());
        let heard_after = if received > before.received { before.at } else { before.heard_after };
        self.looked.set(Looked { at: now, received, heard_after });
        now.duration_since(heard_after) <= LATELY
    }

    /// What it proves by is still valid.
    pub(super) fn is_fresh(&self, now: SystemTime) -> bool {
        self.certified.is_valid_at(now)
    }

    /// SETTINGS are here, or never will be.
    pub(super) fn is_settled(&self) -> bool {
        self.is_settled.get()
    }

    /// Why it ended, once it has.
    pub(super) fn failure(&self) -> Option<OpenError> {
        self.failure.borrow().clone()
    }

    fn wake_driver(&self) {
        if let Some(waker) = self.driver.borrow().as_ref() {
            waker.wake_by_ref();
        }
    }

    fn settle(&self) {
        if !self.is_settled.replace(true) {
            self.settled.notify_waiters();
        }
    }

    fn end(&self, failure: OpenError) {
        self.failure.borrow_mut().get_or_insert(failure);
        self.sender.borrow_mut().take();
        self.settle();
        let farewell = self.farewell.borrow_mut().take();
        if let Some(farewell) = farewell {
            farewell(self);
        }
    }

    /// Has `farewell` called when the tunnel has ended; at once, if it has.
    pub(super) fn when_ended(&self, farewell: impl FnOnce(&Connection) + 'static) {
        if self.failure.borrow().is_some() {
            farewell(self);
        } else {
            *self.farewell.borrow_mut() = Some(Box::new(farewell));
        }
    }
}

/// Drives one tunnel to its end.
pub(super) async fn drive<L: Link>(
    mut h2: h2::client::Connection<tls::Stream<L>, Chunk>,
    stream: tls::Stream<L>,
    connection: Rc<Connection>,
    settings: Rc<Settings>,
    peers: Arc<Peers>,
) {
    let mut keepalive = Keepalive::new(h2.ping_pong(), &settings);
    let peer = connection.peer;
    let mut idle = Idle { timer: None, after: settings.client_idle };
    let outcome = poll_fn(|cx| {
        if !connection.driver.borrow().as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            *connection.driver.borrow_mut() = Some(cx.waker().clone());
        }
        let mut done = false;
        loop {
            match Pin::new(&mut h2).poll(cx) {
                Poll::Ready(Ok(())) => done = true,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error.to_string())),
                Poll::Pending => {}
            }
            match stream.poll_drain(cx) {
                Poll::Ready(Ok(true)) if !done => {}
                Poll::Ready(Ok(_)) => break,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error.to_string())),
                Poll::Pending => break,
            }
        }
        if done {
            return Poll::Ready(Ok(()));
        }
        if !connection.is_settled() && h2.max_concurrent_send_streams() != UNSETTLED {
            connection.settle();
        }
        connection.received.set(stream.received());
        match keepalive.poll(cx, stream.received(), Some(&connection.stirred)) {
            Heard::Unchanged => {}
            Heard::Silent(after) => {
                peers.lost(peer.ip(), &OpenError::Silent { peer, after });
                connection.silent.set(true);
                connection.hushed.notify_waiters();
            }
            Heard::Again => {
                peers.answered(peer.ip());
                connection.silent.set(false);
            }
            Heard::Dead(after) => return Poll::Ready(Err(format!("no answer to a PING within {after:?}"))),
        }
        if idle.poll(cx, connection.streams()).is_ready() && !connection.is_retired() {
            connection.retire();
        }
        Poll::Pending
    })
    .await;
    let failure = match (stream.fault(), outcome) {
        // Only what says whose fault it is; a reset of the socket is just a broken tunnel.
        (Some(fault @ (tls::Fault::Alert(_) | tls::Fault::Tls(_) | tls::Fault::Record(_))), _) => {
            OpenError::from_fault(peer, &fault)
        }
        (_, Err(reason)) => OpenError::Broken { peer, reason },
        (_, Ok(())) => OpenError::Broken { peer, reason: "the peer closed it".to_owned() },
    };
    tracing::debug!(%peer, identity = %connection.identity, reason = %failure, "tunnel closed");
    connection.end(failure);
}

/// Counts down while there are no streams.
struct Idle {
    timer: Option<Pin<Box<Sleep>>>,
    after: Duration,
}

impl Idle {
    fn poll(&mut self, cx: &mut Context<'_>, streams: usize) -> Poll<()> {
        if streams > 0 {
            self.timer = None;
            return Poll::Pending;
        }
        let after = self.after;
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(Instant::now() + after)));
        timer.as_mut().poll(cx)
    }
}
