//! What is not HTTP: bytes from the caller to an endpoint of what it called, or of what a route leads to, and back.

use std::{io, rc::Rc};

use ::http::StatusCode;
use bytes::BytesMut;
use hbone::{Stream, server::Arrival};
use mesh::{
    RouteKey, Target,
    route::{Found, RouteKind, To},
};
use runtime::record::{Bytes as Carried, Connection as Record, Direction, End, Security};
use tokio::io::{AsyncReadExt, copy_bidirectional};

use crate::{
    arrival::{Call, Called, Failure},
    authorize,
    body::Rewind,
    detect::{self, Dialled, MayBe, Spoken},
    upstream::{self, Endpoint, Io, REACHES},
    worker::Worker,
};

/// What a caller has begun with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Begun<'a> {
    /// TLS of its own, which is passed through; with the server that it asks for, where that was read.
    Tls(Option<&'a str>),
    /// Something else, or nothing yet.
    Other,
}

/// A connection to an endpoint.
pub(crate) struct Backend {
    target: Target,
    /// The route that has led to it.
    route: Option<RouteKey>,
    io: Io,
    /// What it has said already.
    said: BytesMut,
}

impl Backend {
    /// Waits until it has said something, or ended.
    pub(crate) async fn listen(&mut self) -> io::Result<()> {
        if self.said.is_empty() {
            self.io.read_buf(&mut self.said).await?;
        }
        Ok(())
    }
}

/// Connects to an endpoint of what was called, or of what the route leads to that is for the connection; in TLS, where a
/// policy says so and the caller has not begun it itself.
pub(crate) async fn dial(worker: &Rc<Worker>, call: &Rc<Call>, begun: Begun<'_>) -> Result<Backend, Failure> {
    let mut reaches = 0;
    loop {
        reaches += 1;
        let (mut endpoint, route) = pick(worker, call, begun).await?;
        endpoint.is_hasty = reaches < REACHES;
        match worker.upstream.open(call, &endpoint, None).await {
            // Nothing was sent to it.
            Err(Failure::Open(silent)) if endpoint.is_hasty && silent.unanswered().is_some() => {
                worker.shared.metrics.chosen_again.inc();
            }
            opened => {
                let target = Target::clone(&endpoint);
                return opened.map(|io| Backend { target, route, io, said: BytesMut::new() });
            }
        }
    }
}

async fn pick(
    worker: &Worker,
    call: &Call,
    begun: Begun<'_>,
) -> Result<(Endpoint, Option<RouteKey>), Failure> {
    let (is_tls, server) = match begun {
        Begun::Tls(server) => (true, server),
        Begun::Other => (false, None),
    };
    let snapshot = worker.shared.mesh.current();
    let called = match &call.called {
        Called::Service(service) => Some(&service.key),
        Called::Workload(_) => None,
    };
    let routes = called.and_then(|service| snapshot.routes(service));
    let namespace = call.namespace(&worker.shared.settings);
    let found = routes.map_or(Found::NoRoute, |routes| routes.find_connection(call.port, namespace, server));
    let matched = match found {
        Found::NoRoute => {
            let mut endpoint = upstream::endpoint_in(worker, call, &snapshot).await?;
            if is_tls {
                endpoint.tls = None;
            }
            return Ok((endpoint, None));
        }
        Found::NoMatch => {
            let (of, server) = (call.claims.behind.clone(), server.map(Into::into));
            return Err(Failure::NoRoute { of, server });
        }
        Found::Rule(matched) => matched,
    };
    let route = matched.route.key.clone();
    let nowhere = |reason: String| Failure::Nowhere { route: route.clone(), reason };
    let backend = matched.rule.backend(rand::random());
    let backend = backend.ok_or_else(|| nowhere("none of its backends has a share".to_owned()))?;
    let (service, port) = match &backend.to {
        To::Nowhere(reason) => return Err(nowhere(reason.to_string())),
        To::Service { service, port } => (service, *port),
    };
    // What a route leads to is for others to say than what was called, and so is whatever a consumer's does.
    if called != Some(service) || matched.route.for_namespace.is_some() {
        authorize::onward_connection(worker, call, &snapshot, service, port)?;
    }
    let service =
        snapshot.service(service).ok_or_else(|| nowhere(format!("there is no service {service}")))?;
    let mut endpoint = upstream::choose(worker, call, &snapshot, service, port).await?;
    // What the caller has begun itself is passed through.
    if route.kind != RouteKind::Tcp {
        endpoint.tls = None;
    }
    Ok((endpoint, Some(route)))
}

/// Carries an arrival that is known to be no HTTP; an endpoint is dialled before it is answered.
pub(crate) async fn carry(worker: &Rc<Worker>, call: &Rc<Call>, arrival: Arrival) {
    let mut record = begin(worker, call);
    let backend = match authorize::connection(worker, call, &mut record) {
        Ok(()) => dial(worker, call, Begun::Other).await,
        Err(refused) => Err(refused),
    };
    let backend = match backend {
        Ok(backend) => backend,
        Err(failure) => {
            fail(worker, &mut record, &failure);
            return arrival.refuse(failure.status());
        }
    };
    if let Ok(tunnel) = arrival.accept(None) {
        copy(record, Rewind::new(Default::default(), tunnel.into_stream()), backend, None).await;
    } else {
        record.end_because(End::ResetBySource, "the caller gave up");
    }
}

/// Carries an arrival to the server that it asks for in TLS, which is passed through as it is.
pub(crate) async fn carry_tls(worker: &Rc<Worker>, call: &Rc<Call>, arrival: Arrival) {
    let mut record = begin(worker, call);
    if let Err(refused) = authorize::connection(worker, call, &mut record) {
        fail(worker, &mut record, &refused);
        return arrival.refuse(refused.status());
    }
    let Ok(tunnel) = arrival.accept(None) else {
        return record.end_because(End::ResetBySource, "the caller gave up");
    };
    let (server, stream) = detect::server(tunnel.into_stream()).await;
    let dialled = match server {
        Ok(server) => {
            let begun = Begun::Tls(server.as_deref());
            dial(worker, call, begun).await.map(|backend| (backend, server))
        }
        Err(no_hello) => Err(no_hello.into()),
    };
    match dialled {
        Ok((backend, server)) => copy(record, stream, backend, server.as_deref()).await,
        // Dropping the stream resets the caller.
        Err(failure) => fail(worker, &mut record, &failure),
    }
}

/// Carries an arrival that is known to be no HTTP, of a port with which TLS is begun: unless the caller has begun it
/// itself, which its first bytes tell.
pub(crate) async fn carry_in_tls(worker: &Rc<Worker>, call: &Rc<Call>, mut arrival: Arrival) {
    let mut record = begin(worker, call);
    if let Err(refused) = authorize::connection(worker, call, &mut record) {
        fail(worker, &mut record, &refused);
        return arrival.refuse(refused.status());
    }
    let has_bytes = arrival.has_bytes();
    let Ok(tunnel) = arrival.accept(None) else {
        return record.end_because(End::ResetBySource, "the caller gave up");
    };
    match detect::first_words(worker, call, tunnel.into_stream(), has_bytes, MayBe::Bytes).await {
        Ok((spoken, stream)) => {
            let (begun, dialled) = match spoken {
                Spoken::Tcp(begun, dialled) => (begun, dialled),
                Spoken::Http1 | Spoken::Http2 => (Begun::Other, None),
            };
            let backend = settle(worker, call, begun, dialled).await;
            finish(worker, record, stream, backend).await;
        }
        Err(error) => record.end_because(End::Broken, error),
    }
}

/// Carries what has turned out to be no HTTP.
pub(crate) async fn relay(
    worker: &Rc<Worker>,
    call: &Rc<Call>,
    stream: Rewind<Stream>,
    begun: Begun<'_>,
    dialled: Option<Dialled>,
) {
    let mut record = begin(worker, call);
    let backend = match authorize::connection(worker, call, &mut record) {
        Err(refused) => Err(refused),
        Ok(()) => settle(worker, call, begun, dialled).await,
    };
    finish(worker, record, stream, backend).await;
}

/// The backend that was dialled before the caller had spoken; another, where the caller has begun TLS since.
async fn settle(
    worker: &Rc<Worker>,
    call: &Rc<Call>,
    begun: Begun<'_>,
    dialled: Option<Dialled>,
) -> Result<Backend, Failure> {
    let is_fit = |dialled: &Dialled| match (begun, &**dialled) {
        (Begun::Other, _) => true,
        (Begun::Tls(_), Ok(backend)) => !matches!(backend.io, Io::Tls(_)),
        (Begun::Tls(_), Err(_)) => false,
    };
    match dialled.filter(is_fit) {
        Some(dialled) => *dialled,
        None => dial(worker, call, begun).await,
    }
}

async fn finish(
    worker: &Worker,
    mut record: Record,
    stream: Rewind<Stream>,
    backend: Result<Backend, Failure>,
) {
    match backend {
        Ok(backend) => copy(record, stream, backend, None).await,
        // Dropping the stream resets the caller.
        Err(failure) => fail(worker, &mut record, &failure),
    }
}

fn begin(worker: &Worker, call: &Call) -> Record {
    let to = std::net::SocketAddr::new(std::net::Ipv4Addr::UNSPECIFIED.into(), call.port);
    let mut record = worker.shared.records.begin(Direction::Waypoint, call.source, to);
    record.source_identity(&call.claims.caller);
    record.security(Security::MutualTls);
    call.workload.iter().for_each(|workload| record.source(workload));
    if let Called::Service(service) = &call.called {
        record.service(service);
    }
    record
}

fn fail(worker: &Worker, record: &mut Record, failure: &Failure) {
    worker.shared.metrics.refused(failure.name());
    let end = if failure.status() == StatusCode::UNAUTHORIZED { End::Denied } else { End::ConnectFailed };
    record.end_because(end, failure);
}

async fn copy(mut record: Record, caller: Rewind<Stream>, backend: Backend, server: Option<&str>) {
    let Backend { target, route, io, said } = backend;
    route.iter().for_each(|route| record.route(route, server));
    record.destination(&target.workload);
    record.destination_address(target.address);
    record.opened();
    let (mut caller, mut backend) = (caller, Rewind::new(said.freeze(), io));
    // What is dropped before both directions have ended is reset on both sides.
    match copy_bidirectional(&mut caller, &mut backend).await {
        Ok((forth, back)) => {
            record.progress(Carried { forth, back });
            record.end(End::Finished);
        }
        Err(error) => {
            record.end_because(End::Broken, error);
            // The reset takes what is not sent yet along: the tunnel has its turn first.
            tokio::task::yield_now().await;
        }
    }
}
