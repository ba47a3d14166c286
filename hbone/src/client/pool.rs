//! Which tunnel a connection takes, and who dials a new one.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    io,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use identity::Store;
use tokio::{
    sync::{oneshot, watch},
    time::timeout,
};

use super::{
    Connect, Key, OpenError, Peers, Seat, TunnelInfo, TunnelSummary,
    connection::Connection,
    dial::dial as dial_tunnel,
    error::READY,
    peers::TRIAL,
    request::{self, Early, Failed},
};
use crate::{Settings, Transport, Tunnel};

/// The tunnels of one worker. Cheap to clone.
#[derive(Clone)]
pub struct Pool {
    inner: Rc<Inner>,
}

struct Inner {
    settings: Rc<Settings>,
    store: Arc<Store>,
    peers: Arc<Peers>,
    slots: RefCell<HashMap<Key, Rc<Slot>>>,
}

/// The tunnels of one key.
#[derive(Default)]
struct Slot {
    tunnels: RefCell<Vec<Rc<Connection>>>,
    /// The dial in flight; its outcome is for all who wait.
    dialing: RefCell<Option<Outcome>>,
    /// It is not in the pool any more: what is being dialled for it is not wanted.
    abandoned: Cell<bool>,
}

type Outcome = watch::Receiver<Option<Result<(), OpenError>>>;

/// What a slot has to offer.
enum Offer {
    Seat(Seat),
    /// Wait for the dial in flight.
    Wait(Outcome),
    /// Nothing: dial. The seat is one in a tunnel that is busy with bulk, if need be.
    Dial(Option<Seat>),
    TooMany,
}

impl Pool {
    /// An empty pool. Must be used inside a `LocalSet`.
    pub fn new(settings: Settings, store: Arc<Store>) -> Self {
        Self::with_peers(settings, store, Arc::default())
    }

    /// The same, which tells `peers` who answers and who does not.
    pub fn with_peers(settings: Settings, store: Arc<Store>, peers: Arc<Peers>) -> Self {
        let settings = Rc::new(settings);
        Self { inner: Rc::new(Inner { settings, store, peers, slots: RefCell::default() }) }
    }

    /// Opens one stream, over a tunnel that is there or a new one that `dial` connects. `dial` is run
    /// at most once; it goes on when the caller gives up, since others may wait for the same tunnel.
    pub async fn open<D, T>(
        &self,
        key: &Key,
        dial: D,
        connect: &Connect,
    ) -> Result<(Tunnel, TunnelInfo), OpenError>
    where
        D: AsyncFnOnce() -> io::Result<T> + 'static,
        T: Transport,
    {
        self.open_with(key, dial, connect, &mut |_| 0, None).await
    }

    /// The same, with bytes that the caller has said already: `early` reads what is there, once, without
    /// waiting, and gives the count (0: none). They are sent along with the request: after its HEADERS,
    /// DATA is the connection's (RFC 9113, section 8.5). When the open fails they are lost with it; but they are not
    /// read before a tunnel is there of which the peer was heard of late, so that nothing is lost with
    /// [`OpenError::unanswered`].
    ///
    /// `patience` is how long a tunnel is waited for; a dial goes on then without the caller.
    pub async fn open_with<D, T>(
        &self,
        key: &Key,
        dial: D,
        connect: &Connect,
        early: &mut dyn FnMut(&mut [u8]) -> usize,
        patience: Option<Duration>,
    ) -> Result<(Tunnel, TunnelInfo), OpenError>
    where
        D: AsyncFnOnce() -> io::Result<T> + 'static,
        T: Transport,
    {
        let head = request::head(connect, key.peer)?;
        let mut early = Early::new(early);
        let mut dial = Some(dial);
        let mut first_failure = None;
        loop {
            let (seat, reused) = match self.seat_within(key, &mut dial, patience).await {
                Ok(seated) => seated,
                // It may be asked of another peer, unless the caller's bytes are with us already.
                Err(error) if error.unanswered().is_some() && !early.was_read() => return Err(error),
                // Without a second way, what happened on the first is what matters.
                Err(error) => return Err(first_failure.unwrap_or(error)),
            };
            let patience = self.inner.settings.connect_timeout;
            match request::send(seat, head.clone(), &mut early, reused, patience).await {
                Ok(opened) => {
                    // Also by a tunnel that was there: somebody else's dial may have failed meanwhile.
                    self.inner.peers.answered(key.peer.ip());
                    return Ok(opened);
                }
                Err(Failed::Unprocessed(error)) if first_failure.is_some() => return Err(error),
                Err(Failed::Unprocessed(error)) => {
                    tracing::debug!(peer = %key.peer, %error, "the request was not looked at; once more");
                    first_failure = Some(error);
                }
                Err(Failed::ForGood(error)) => return Err(error),
            }
        }
    }

    /// A seat that is there, or one that comes within `patience`.
    async fn seat_within<D, T>(
        &self,
        key: &Key,
        dial: &mut Option<D>,
        patience: Option<Duration>,
    ) -> Result<(Seat, bool), OpenError>
    where
        D: AsyncFnOnce() -> io::Result<T> + 'static,
        T: Transport,
    {
        let Some(patience) = patience else { return self.seat(key, dial).await };
        let slot = self.inner.slots.borrow().get(key).cloned();
        if let Some(Offer::Seat(seat)) = slot.map(|slot| slot.offer(&self.inner)) {
            return Ok((seat, true));
        }
        // On the heap: few wait. What our own certificate takes is no fault of the peer's.
        Box::pin(async {
            self.inner.store.certified(&key.source).await?;
            timeout(patience, self.seat(key, dial))
                .await
                .unwrap_or_else(|_elapsed| self.too_late(key, patience))
        })
        .await
    }

    /// What is to be had of a peer whose new tunnel does not come: a seat in one that carries bulk, or nothing.
    fn too_late(&self, key: &Key, patience: Duration) -> Result<(Seat, bool), OpenError> {
        let slot = self.inner.slots.borrow().get(key).cloned();
        if let Some(Offer::Seat(seat) | Offer::Dial(Some(seat))) = slot.map(|slot| slot.offer(&self.inner)) {
            return Ok((seat, true));
        }
        let error = OpenError::Timeout { peer: key.peer, what: READY, after: patience };
        // In less time nobody can show that he is there.
        if patience >= TRIAL {
            self.inner.peers.lost(key.peer.ip(), &error);
        }
        Err(error)
    }

    /// A seat in some tunnel, and whether the tunnel was there already.
    async fn seat<D, T>(&self, key: &Key, dial: &mut Option<D>) -> Result<(Seat, bool), OpenError>
    where
        D: AsyncFnOnce() -> io::Result<T> + 'static,
        T: Transport,
    {
        let inner = &self.inner;
        loop {
            // Looked up anew each time: a slot that is empty does not stay.
            let slot = inner.slots.borrow_mut().entry(key.clone()).or_default().clone();
            match slot.offer(inner) {
                Offer::Seat(seat) => return Ok((seat, true)),
                Offer::Wait(mut outcome) => {
                    drop(slot);
                    // A sender that is gone without a word was dropped with its runtime.
                    let outcome = outcome.wait_for(Option::is_some).await.ok().and_then(|done| done.clone());
                    outcome.unwrap_or_else(|| Err(aborted(key)))?;
                }
                Offer::Dial(second_best) => {
                    let dialled = match dial.take() {
                        Some(dial) => inner.start_dial(key, slot, dial).await,
                        None => Err(aborted(key)),
                    };
                    return match (dialled, second_best) {
                        (Ok(seat), _) => Ok((seat, false)),
                        (Err(_), Some(seat)) => Ok((seat, true)),
                        (Err(error), None) => Err(error),
                    };
                }
                Offer::TooMany => {
                    let limit = inner.settings.max_tunnels;
                    return Err(OpenError::TooManyTunnels { peer: key.peer, limit });
                }
            }
        }
    }

    /// Retires every tunnel that `keep` does not want: no new stream enters it, and it closes with its
    /// last one. Returns how many. To be called when an identity is released or roots have changed.
    pub fn retain(&self, mut keep: impl FnMut(&Key) -> bool) -> usize {
        let mut retired = 0;
        self.inner.slots.borrow_mut().retain(|key, slot| {
            if keep(key) {
                return true;
            }
            let tunnels = slot.tunnels.borrow();
            retired += tunnels.iter().filter(|tunnel| !tunnel.is_retired()).count();
            tunnels.iter().for_each(|tunnel| tunnel.retire());
            slot.abandoned.set(true);
            false
        });
        retired
    }

    /// All tunnels, for the admin endpoint.
    pub fn summaries(&self) -> Vec<TunnelSummary> {
        let slots = self.inner.slots.borrow();
        let of_slot = |(key, slot): (&Key, &Rc<Slot>)| {
            let summary = |tunnel: &Rc<Connection>| TunnelSummary {
                key: key.clone(),
                peer: tunnel.identity.clone(),
                streams: tunnel.streams(),
                age: tunnel.since.elapsed(),
                bulk: tunnel.is_bulk(),
                retired: tunnel.is_retired(),
            };
            slot.tunnels.borrow().iter().map(summary).collect::<Vec<_>>()
        };
        slots.iter().flat_map(of_slot).collect()
    }
}

fn aborted(key: &Key) -> OpenError {
    OpenError::Broken { peer: key.peer, reason: "the tunnel went away while it was waited for".to_owned() }
}

impl Slot {
    fn offer(&self, inner: &Inner) -> Offer {
        let now = inner.store.now();
        let tunnels = self.tunnels.borrow();
        let mut busy: Option<&Rc<Connection>> = None;
        let mut bulky = 0;
        for tunnel in tunnels.iter() {
            if tunnel.is_retired() || tunnel.is_silent() {
                continue;
            }
            if !tunnel.is_fresh(now) {
                // Its proof has expired: what runs may run on, nothing new rides on it.
                tunnel.retire();
            } else if !tunnel.is_bulk() {
                if let Some(seat) = tunnel.seat() {
                    return Offer::Seat(seat);
                }
            } else {
                bulky += 1;
                busy = busy.or(Some(tunnel));
            }
        }
        let second_best = || busy.and_then(Connection::seat);
        if let Some(outcome) = self.dialing.borrow().as_ref() {
            return second_best().map_or_else(|| Offer::Wait(outcome.clone()), Offer::Seat);
        }
        if bulky >= inner.settings.max_bulk_tunnels
            && let Some(seat) = second_best()
        {
            return Offer::Seat(seat);
        }
        if tunnels.len() >= inner.settings.max_tunnels {
            return second_best().map_or(Offer::TooMany, Offer::Seat);
        }
        Offer::Dial(second_best())
    }
}

impl Inner {
    /// Dials in a task of its own, and returns the first seat of the new tunnel.
    async fn start_dial<D, T>(self: &Rc<Self>, key: &Key, slot: Rc<Slot>, dial: D) -> Result<Seat, OpenError>
    where
        D: AsyncFnOnce() -> io::Result<T> + 'static,
        T: Transport,
    {
        let (done, outcome) = watch::channel(None);
        let (first, seat) = oneshot::channel();
        *slot.dialing.borrow_mut() = Some(outcome);
        let (inner, key_of_task) = (self.clone(), key.clone());
        tokio::task::spawn_local(async move {
            let outcome = inner.run_dial(&key_of_task, &slot, dial, first).await;
            slot.dialing.borrow_mut().take();
            drop(slot);
            done.send_replace(Some(outcome));
            inner.forget_if_empty(&key_of_task);
        });
        seat.await.unwrap_or_else(|_| Err(aborted(key)))
    }

    async fn run_dial<D, T>(
        self: &Rc<Self>,
        key: &Key,
        slot: &Rc<Slot>,
        dial: D,
        first: oneshot::Sender<Result<Seat, OpenError>>,
    ) -> Result<(), OpenError>
    where
        D: AsyncFnOnce() -> io::Result<T> + 'static,
        T: Transport,
    {
        let connection = match dial_tunnel(key, &self.store, &self.settings, &self.peers, dial).await {
            Ok(connection) => connection,
            Err(error) => {
                if error.unanswered().is_some() {
                    self.peers.lost(key.peer.ip(), &error);
                }
                let _ = first.send(Err(error.clone()));
                return Err(error);
            }
        };
        self.peers.answered(key.peer.ip());
        // The one who dialled goes first, at once: its request rides with our SETTINGS. If it is gone
        // the seat comes back by itself.
        let _ = first.send(connection.seat().ok_or_else(|| aborted(key)));
        // The others wait for the peer's SETTINGS: how many streams it takes, and that it takes our
        // certificate at all (a TLS 1.3 server says no only after the client's handshake is done).
        let settled = connection.settled.notified();
        tokio::pin!(settled);
        settled.as_mut().enable();
        if !connection.is_settled() {
            let after = self.settings.handshake_timeout;
            if tokio::time::timeout(after, settled).await.is_err() {
                connection.retire();
                return Err(OpenError::Timeout { peer: key.peer, what: "send its SETTINGS", after });
            }
        }
        if let Some(failure) = connection.failure() {
            return Err(failure);
        }
        if slot.abandoned.get() {
            connection.retire();
            return Ok(());
        }
        slot.tunnels.borrow_mut().push(connection.clone());
        let (inner, slot, key) = (Rc::downgrade(self), Rc::downgrade(slot), key.clone());
        connection.when_ended(move |connection| {
            if let Some(slot) = slot.upgrade() {
                slot.tunnels.borrow_mut().retain(|tunnel| !std::ptr::eq(Rc::as_ptr(tunnel), connection));
            }
            if let Some(inner) = inner.upgrade() {
                inner.forget_if_empty(&key);
            }
        });
        Ok(())
    }

    /// A key without tunnels and dials leaves nothing behind.
    fn forget_if_empty(&self, key: &Key) {
        let mut slots = self.slots.borrow_mut();
        if let Some(slot) = slots.get(key)
            && slot.tunnels.borrow().is_empty()
            && slot.dialing.borrow().is_none()
        {
            slots.remove(key);
        }
    }
}
