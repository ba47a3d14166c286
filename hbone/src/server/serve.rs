//! Serves one connection: the task that drives TLS and HTTP/2, and starts a handler per request.

use std::{
    cell::RefCell,
    future::{Future, poll_fn},
    pin::{Pin, pin},
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, SystemTime},
};

use h2::Reason;
use identity::{peer_expiry, peer_identity};
use rustls::ServerConfig;
use tokio::{
    task::JoinSet,
    time::{Instant, Sleep, sleep_until, timeout_at},
};

use super::{
    Arrival, Ends, Limits, ServeError, Served,
    arrival::{Origin, Resets},
};
use crate::{
    Settings, Transport,
    chunk::Chunk,
    keepalive::{Heard, Keepalive},
    tls,
    transport::Link,
};

/// Serves one connection to its end: TLS, then CONNECT streams, each given to `handler` in a task of
/// its own. When `drain` resolves the caller is told to go elsewhere (GOAWAY), and the streams that
/// are there are served to their end. Must run inside a `LocalSet`. Dropping it ends all.
pub async fn serve<T, D, H, F>(
    transport: T,
    ends: Ends,
    config: Arc<ServerConfig>,
    limits: &Limits,
    drain: D,
    handler: H,
) -> Result<Served, ServeError>
where
    T: Transport,
    D: Future<Output = ()>,
    H: Fn(Arrival) -> F + 'static,
    F: Future<Output = ()> + 'static,
{
    let remote = ends.remote;
    let settings = &limits.settings;
    let after = settings.handshake_timeout;
    let deadline = Instant::now() + after;
    let late = |_elapsed| ServeError::HandshakeTimeout { remote, after };
    let handshaken = timeout_at(deadline, tls::accept(transport.into_link(), config))
        .await
        .map_err(late)?
        .map_err(|fault| ServeError::Handshake { remote, reason: fault.to_string() })?;
    let peer = peer_identity(&handshaken.chain)
        .map_err(|error| ServeError::NoIdentity { remote, reason: error.to_string() })?;
    let stream = handshaken.stream;
    let broken = |reason: String| ServeError::Broken { remote, peer: peer.clone(), reason };
    let h2 = timeout_at(deadline, open(stream.clone(), settings))
        .await
        .map_err(late)?
        .map_err(|error| broken(error.to_string()))?;
    let origin = Origin {
        peer: peer.clone(),
        ends,
        socket: stream.socket(),
        resets: RefCell::new(Resets::new(limits.reset_window)),
    };
    let mut server = Server {
        keepalive: Keepalive::new(None, settings),
        idle: None,
        expiry: Box::pin(sleep_until(expiry(&handshaken.chain))),
        h2,
        stream,
        origin: Rc::new(origin),
        handlers: JoinSet::new(),
        streams: 0,
        draining: false,
        limits,
    };
    server.keepalive = Keepalive::new(server.h2.ping_pong(), settings);
    let mut drain = pin!(drain);
    let outcome = poll_fn(|cx| {
        if !server.draining && drain.as_mut().poll(cx).is_ready() {
            server.drain();
        }
        server.poll(cx, &handler)
    })
    .await;
    // The streams learn of the end by this; their handlers still finish their records.
    let (mut handlers, streams) = server.close();
    while handlers.join_next().await.is_some() {}
    outcome.map(|()| Served { peer: peer.clone(), streams }).map_err(broken)
}

/// HTTP/2 as hbone.md has it: the caller's preface, our SETTINGS.
async fn open<L: Link>(
    stream: tls::Stream<L>,
    settings: &Settings,
) -> Result<h2::server::Connection<tls::Stream<L>, Chunk>, h2::Error> {
    let mut builder = h2::server::Builder::new();
    builder
        .initial_window_size(settings.stream_window)
        .initial_connection_window_size(settings.connection_window)
        .max_frame_size(settings.max_frame)
        .max_header_list_size(settings.server_header_list)
        .max_concurrent_streams(settings.max_streams)
        .max_send_buffer_size(settings.send_buffer)
        .max_concurrent_reset_streams(settings.max_streams as usize)
        .max_pending_accept_reset_streams(settings.max_streams as usize);
    let mut handshake = pin!(builder.handshake::<_, Chunk>(stream.clone()));
    poll_fn(|cx| {
        let opened = handshake.as_mut().poll(cx);
        // Our SETTINGS do not wait for the caller's preface.
        match stream.poll_drain(cx) {
            Poll::Ready(Err(error)) if opened.is_pending() => Poll::Ready(Err(h2_io(error))),
            _ => opened,
        }
    })
    .await
}

fn h2_io(error: std::io::Error) -> h2::Error {
    // h2 has no public way to wrap an I/O error; its text is what is reported anyway.
    tracing::debug!(%error, "the tunnel broke before its preface");
    Reason::CANCEL.into()
}

/// When the caller's proof expires: it may finish what runs, nothing new rides on it.
fn expiry(chain: &[rustls::pki_types::CertificateDer<'_>]) -> Instant {
    const FAR: Duration = Duration::from_secs(30 * 24 * 3600);
    let left = peer_expiry(chain).and_then(|at| at.duration_since(SystemTime::now()).ok());
    Instant::now() + left.unwrap_or(FAR).min(FAR)
}

struct Server<'a, L: Link> {
    h2: h2::server::Connection<tls::Stream<L>, Chunk>,
    stream: tls::Stream<L>,
    origin: Rc<Origin>,
    handlers: JoinSet<()>,
    streams: u64,
    keepalive: Keepalive,
    idle: Option<Pin<Box<Sleep>>>,
    expiry: Pin<Box<Sleep>>,
    draining: bool,
    limits: &'a Limits,
}

impl<L: Link> Server<'_, L> {
    /// Drops HTTP/2, and with it the socket.
    fn close(self) -> (JoinSet<()>, u64) {
        (self.handlers, self.streams)
    }

    /// GOAWAY: no new streams; HTTP/2 closes with the last one.
    fn drain(&mut self) {
        if !self.draining {
            self.draining = true;
            self.h2.graceful_shutdown();
        }
    }

    fn poll<H, F>(&mut self, cx: &mut Context<'_>, handler: &H) -> Poll<Result<(), String>>
    where
        H: Fn(Arrival) -> F,
        F: Future<Output = ()> + 'static,
    {
        while let Poll::Ready(Some(ended)) = self.handlers.poll_join_next(cx) {
            if let Err(error) = ended {
                // A handler that panics costs its stream only.
                tracing::error!(%error, "a handler of a tunnel failed");
            }
        }
        if self.is_idle(cx) || self.expiry.as_mut().poll(cx).is_ready() {
            self.drain();
        }
        loop {
            let accepted = self.poll_accept(cx, handler);
            if let Poll::Ready(outcome) = accepted {
                // Last words, as far as the socket takes them.
                let _ = self.stream.poll_drain(cx);
                return Poll::Ready(outcome);
            }
            match self.stream.poll_drain(cx) {
                Poll::Ready(Ok(true)) => {}
                Poll::Ready(Ok(false)) | Poll::Pending => break,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error.to_string())),
            }
        }
        match self.keepalive.poll(cx, self.stream.received(), None) {
            Heard::Dead(after) => Poll::Ready(Err(format!("no answer to a PING within {after:?}"))),
            Heard::Unchanged | Heard::Silent(_) | Heard::Again => Poll::Pending,
        }
    }

    /// Drives HTTP/2 and starts a handler for each request.
    fn poll_accept<H, F>(&mut self, cx: &mut Context<'_>, handler: &H) -> Poll<Result<(), String>>
    where
        H: Fn(Arrival) -> F,
        F: Future<Output = ()> + 'static,
    {
        let quiet = self.streams > 0 && self.handlers.is_empty() && !self.h2.has_streams();
        loop {
            let (request, mut respond) = match self.h2.poll_accept(cx) {
                Poll::Ready(Some(Ok(accepted))) => accepted,
                // Whoever is gone while nothing was carried has just gone.
                Poll::Ready(Some(Err(error)))
                    if quiet && error.is_io() && self.stream.fault().is_none_or(|fault| fault.is_io()) =>
                {
                    return Poll::Ready(Ok(()));
                }
                Poll::Ready(Some(Err(error))) => {
                    let reason =
                        self.stream.fault().map_or_else(|| error.to_string(), |fault| fault.to_string());
                    return Poll::Ready(Err(reason));
                }
                Poll::Ready(None) => return Poll::Ready(Ok(())),
                Poll::Pending => return Poll::Pending,
            };
            self.streams += 1;
            // Handlers may outlive their streams (a dial that is being given up): they are bounded.
            if self.handlers.len() >= 2 * self.limits.settings.max_streams as usize {
                respond.send_reset(Reason::REFUSED_STREAM);
                continue;
            }
            if self.origin.resets.borrow().count() > self.limits.resets {
                tracing::warn!(peer = %self.origin.peer, "too many requests given up; the tunnel is closed");
                self.h2.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
                continue;
            }
            if let Some(arrival) = Arrival::new(request, respond, &self.origin) {
                self.handlers.spawn_local(handler(arrival));
            }
        }
    }

    /// No streams for too long.
    fn is_idle(&mut self, cx: &mut Context<'_>) -> bool {
        if !self.handlers.is_empty() || self.h2.has_streams() {
            self.idle = None;
            return false;
        }
        let after = self.limits.settings.server_idle;
        let timer = self.idle.get_or_insert_with(|| Box::pin(sleep_until(Instant::now() + after)));
        timer.as_mut().poll(cx).is_ready()
    }
}
