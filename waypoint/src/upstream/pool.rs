//! Connections to endpoints that are kept for the next request of the same caller: of HTTP/1 the idle ones, of HTTP/2
//! one for all.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    net::SocketAddr,
    rc::Rc,
    time::Duration,
};

use ::http::{Request, Response, StatusCode};
use hyper::{
    body::Incoming,
    client::conn::{TrySendError, http1, http2},
};
use hyper_util::rt::{TokioIo, TokioTimer};
use identity::assertion::Claims;
use tokio::{
    io::AsyncWriteExt,
    sync::oneshot,
    time::{Instant, timeout},
};

use super::{Endpoint, Same, SendError, Unsent, Upstream, connect::Io};
use crate::{
    arrival::Call,
    body::{Body, Rewind},
    http::{Handover, LocalExecutor},
    request::Version,
};

/// Connections of HTTP/1 kept of one caller to one endpoint: as many as callers that ask at the same time are likely to
/// be, since each that is not kept is dialled anew.
const IDLE_EACH: usize = 1024;
/// Connections of HTTP/1 kept in all, and callers and endpoints with something kept; beyond it what was idle the longest
/// goes, so that no caller's remains are in another's way.
const MOST_IDLE: usize = 16 << 10;
const MOST_KEYS: usize = 8192;
/// Windows of HTTP/2 towards a backend: of a stream, of a connection. The second is for as many answers as wait at a time,
/// since a backend serves those that wait for it in no fair order.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;
/// The longest head of an answer, in bytes.
const MOST_HEAD: usize = 64 << 10;
/// How long a backend may take to close its side once we have closed ours.
const LINGER: Duration = Duration::from_secs(1);
/// How often a backend of HTTP/2 is asked whether it is still there, and how long it may take to say so.
const PING_EVERY: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// What connections are shared by: the caller, what it called, and the endpoint.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    claims: Claims,
    /// The endpoint was told who calls.
    asserted: bool,
    endpoint: SocketAddr,
    /// TLS as one policy wants it, or none: what is of one is never used for another.
    tls: Option<Same>,
}

impl Key {
    fn new(call: &Call, target: &Endpoint) -> Self {
        let (claims, asserted) = (call.claims.clone(), call.assertion.is_some());
        Self { claims, asserted, endpoint: target.address, tls: target.tls.clone() }
    }
}

/// All that is kept by one worker.
pub(super) struct Pools {
    kept: RefCell<HashMap<Key, Kept>>,
    /// Connections of HTTP/1 in all of them.
    ones: Cell<usize>,
    idle: Duration,
    most_idle: usize,
    most_keys: usize,
}

#[derive(Default)]
struct Kept {
    /// The oldest first.
    ones: Vec<One>,
    /// So many of them nobody has needed since the last sweep.
    spare: usize,
    two: Option<Two>,
}

/// A connection that speaks HTTP/1.
struct One {
    sender: http1::SendRequest<Body>,
    since: Instant,
    /// The connection itself, if it is to speak something else from its first answer on.
    parts: Option<oneshot::Receiver<Rewind<Io>>>,
}

/// A connection that speaks HTTP/2.
struct Two {
    sender: http2::SendRequest<Body>,
    used: Instant,
}

impl Pools {
    pub(super) fn new(idle: Duration) -> Self {
        Self {
            kept: RefCell::default(),
            ones: Cell::new(0),
            idle,
            most_idle: MOST_IDLE,
            most_keys: MOST_KEYS,
        }
    }

    fn take_one(&self, key: &Key) -> Option<One> {
        let mut kept = self.kept.borrow_mut();
        let Kept { ones, spare, .. } = kept.get_mut(key)?;
        // The newest first: the others may grow old and go. What is not ready may have a request's body to send still.
        let usable = |one: &One| one.sender.is_ready() && one.since.elapsed() < self.idle;
        let one = ones.remove(ones.iter().rposition(usable)?);
        *spare = (*spare).min(ones.len());
        self.ones.set(self.ones.get() - 1);
        Some(one)
    }

    fn put_one(&self, key: Key, one: One) {
        if one.sender.is_closed() || !self.has_room(&key) {
            return;
        }
        let mut kept = self.kept.borrow_mut();
        let ones = &mut kept.entry(key).or_default().ones;
        if ones.len() < IDLE_EACH {
            ones.push(one);
            self.ones.set(self.ones.get() + 1);
        }
    }

    fn take_two(&self, key: &Key) -> Option<http2::SendRequest<Body>> {
        let mut kept = self.kept.borrow_mut();
        let two = kept.get_mut(key)?.two.as_mut().filter(|two| !two.sender.is_closed())?;
        two.used = Instant::now();
        Some(two.sender.clone())
    }

    fn put_two(&self, key: Key, sender: http2::SendRequest<Body>) {
        if self.has_room(&key) {
            let mut kept = self.kept.borrow_mut();
            kept.entry(key).or_default().two = Some(Two { sender, used: Instant::now() });
        }
    }

    /// Whether one more has a place; where there is none, it is made.
    fn has_room(&self, key: &Key) -> bool {
        let is_full = || {
            let kept = self.kept.borrow();
            self.ones.get() >= self.most_idle || (kept.len() >= self.most_keys && !kept.contains_key(key))
        };
        if is_full() {
            self.push_out();
            return !is_full();
        }
        true
    }

    /// Lets go of the eighth that was idle the longest: many at a time, since all are looked through for it.
    fn push_out(&self) {
        let mut kept = self.kept.borrow_mut();
        let times = kept.values().flat_map(|kept| {
            kept.ones.iter().map(|one| one.since).chain(kept.two.iter().map(|two| two.used))
        });
        let mut times: Vec<Instant> = times.collect();
        if times.is_empty() {
            return;
        }
        let eighth = times.len() / 8;
        let (_, last, _) = times.select_nth_unstable(eighth);
        let last = *last;
        retain(&mut kept, |one| one.since > last, |two| two.used > last);
        self.count(&kept);
    }

    fn count(&self, kept: &HashMap<Key, Kept>) {
        self.ones.set(kept.values().map(|kept| kept.ones.len()).sum());
    }

    /// Lets go of what was idle for too long, and of half of what was not needed since the last time: what a burst has
    /// left takes no room from others, here or at the backend. So does what cannot be used: a backend may have answered
    /// before a request's body was over, and whoever sends the rest slowly is to keep no place with it. What runs on a
    /// connection that goes is served to the end.
    pub(super) fn sweep(&self) {
        let fresh = |since: Instant| since.elapsed() < self.idle;
        let mut kept = self.kept.borrow_mut();
        for kept in kept.values_mut() {
            kept.ones.drain(..(kept.spare / 2).min(kept.ones.len()));
        }
        retain(
            &mut kept,
            |one| fresh(one.since) && !one.sender.is_closed() && one.sender.is_ready(),
            |two| fresh(two.used) && !two.sender.is_closed(),
        );
        kept.values_mut().for_each(|kept| kept.spare = kept.ones.len());
        self.count(&kept);
    }
}

fn retain(kept: &mut HashMap<Key, Kept>, ones: impl Fn(&One) -> bool, twos: impl Fn(&Two) -> bool) {
    kept.retain(|_, kept| {
        kept.ones.retain(&ones);
        kept.two.take_if(|two| !twos(two));
        kept.spare = kept.spare.min(kept.ones.len());
        !kept.ones.is_empty() || kept.two.is_some()
    });
}

/// A connection of HTTP/1 whose answer is being read: once that is gone it is kept for the next request.
pub(crate) struct Lease {
    pools: Rc<Pools>,
    held: Option<(Key, One)>,
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some((key, mut one)) = self.held.take() {
            one.since = Instant::now();
            self.pools.put_one(key, one);
        }
    }
}

/// Sends a request over HTTP/1, by a connection that was kept or a new one.
pub(super) async fn one(
    upstream: &Upstream,
    call: &Rc<Call>,
    target: &Endpoint,
    mut request: Request<Body>,
    handover: Option<&Handover>,
) -> Result<(Response<Incoming>, Option<Lease>), Unsent> {
    let key = Key::new(call, target);
    loop {
        // What may speak something else afterwards has a connection of its own.
        let held = if handover.is_none() { upstream.pools.take_one(&key) } else { None };
        let reused = held.is_some();
        let mut connection = match held {
            Some(held) => held,
            // On the heap: few requests dial, and all would have the room for it.
            None => match Box::pin(dial_one(upstream, call, target)).await {
                Ok(dialled) => dialled,
                Err(reason) => return Err(Unsent { body: Some(request.into_body()), reason }),
            },
        };
        match connection.sender.try_send_request(request).await {
            Ok(response) => {
                if response.status() == StatusCode::SWITCHING_PROTOCOLS {
                    take_over(connection, handover).await;
                    return Ok((response, None));
                }
                // Nobody waits for what is left of the connection: once it ends it is closed at once. It may have ended.
                if let Some(left) = connection.parts.take().and_then(|mut parts| parts.try_recv().ok()) {
                    tokio::task::spawn_local(close(left));
                }
                let lease = Lease { pools: upstream.pools.clone(), held: Some((key, connection)) };
                return Ok((response, Some(lease)));
            }
            Err(mut failed) => match failed.take_message() {
                // The connection had ended before it was used.
                Some(unsent) if reused => request = unsent,
                unsent => return Err(failure(unsent, &failed)),
            },
        }
    }
}

fn failure(unsent: Option<Request<Body>>, failed: &TrySendError<Request<Body>>) -> Unsent {
    let reason = SendError::Http(causes(failed.error()));
    Unsent { body: unsent.map(Request::into_body), reason }
}

/// An error and its causes on one line.
fn causes(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        line.push_str(": ");
        line.push_str(&cause.to_string());
        source = cause.source();
    }
    line
}

/// Leaves the connection to whoever has asked for another protocol.
async fn take_over(connection: One, handover: Option<&Handover>) {
    let One { sender, parts, .. } = connection;
    drop(sender);
    if let (Some(handover), Some(parts)) = (handover, parts)
        && let Ok(parts) = parts.await
    {
        *handover.borrow_mut() = Some(parts);
    }
}

async fn dial_one(upstream: &Upstream, call: &Call, target: &Endpoint) -> Result<One, SendError> {
    let io = upstream.open(call, target, Some(Version::One)).await?;
    let (sender, connection) = http1::Builder::new()
        .max_buf_size(MOST_HEAD)
        .handshake(TokioIo::new(io))
        .await
        .map_err(|error| SendError::Http(causes(&error)))?;
    let (leave, parts) = oneshot::channel();
    tokio::task::spawn_local(async move {
        // What breaks it is told to who waits for an answer.
        let Ok(parts) = connection.without_shutdown().await else { return };
        let left = Rewind::new(parts.read_buf, parts.io.into_inner());
        if let Err(unwanted) = leave.send(left) {
            close(unwanted).await;
        }
    });
    Ok(One { sender, since: Instant::now(), parts: Some(parts) })
}

/// Closes a connection that nobody needs in order: one that is dropped before the other end has closed is reset.
async fn close(mut unwanted: Rewind<Io>) {
    let closing = async {
        unwanted.shutdown().await?;
        tokio::io::copy(&mut unwanted, &mut tokio::io::sink()).await
    };
    let _ = timeout(LINGER, closing).await;
}

/// The same over HTTP/2.
pub(super) async fn two(
    upstream: &Upstream,
    call: &Rc<Call>,
    target: &Endpoint,
    mut request: Request<Body>,
) -> Result<Response<Incoming>, Unsent> {
    let key = Key::new(call, target);
    loop {
        let held = upstream.pools.take_two(&key);
        let reused = held.is_some();
        let mut sender = match held {
            Some(held) => held,
            None => match Box::pin(dial_two(upstream, call, target)).await {
                Ok(sender) => {
                    upstream.pools.put_two(key.clone(), sender.clone());
                    sender
                }
                Err(reason) => return Err(Unsent { body: Some(request.into_body()), reason }),
            },
        };
        match sender.try_send_request(request).await {
            Ok(response) => return Ok(response),
            Err(mut failed) => match failed.take_message() {
                Some(unsent) if reused => request = unsent,
                unsent => return Err(failure(unsent, &failed)),
            },
        }
    }
}

async fn dial_two(
    upstream: &Upstream,
    call: &Call,
    target: &Endpoint,
) -> Result<http2::SendRequest<Body>, SendError> {
    let io = upstream.open(call, target, Some(Version::Two)).await?;
    let (sender, connection) = http2::Builder::new(LocalExecutor)
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(MOST_HEAD as u32)
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_TIMEOUT)
        .handshake(TokioIo::new(io))
        .await
        .map_err(|error| SendError::Http(causes(&error)))?;
    tokio::task::spawn_local(async move {
        // What breaks it is told to who waits for an answer.
        let _ = connection.await;
    });
    Ok(sender)
}

#[cfg(test)]
mod tests;
