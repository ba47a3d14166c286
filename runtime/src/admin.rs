//! The three small HTTP/1.1 servers of every program: readiness, metrics, admin.
//!
//! | address (default) | path | answer |
//! |---|---|---|
//! | `[::]:15021` | `/healthz/ready` | 200 when ready, 503 with what is missing |
//! | `[::]:15020` | `/metrics` | Prometheus or OpenMetrics text |
//! | `127.0.0.1:15000` | `/` | the list of what is there |
//! | | `/healthz/ready`, `/metrics` | as above |
//! | | `/logging?level=…` | shows the log levels; POST with `level` changes them |
//! | | whatever the program registered | JSON |
//!
//! All of them are bounded: 5 s for a request's head, 30 s for an answer, 64 connections each, and a
//! head of 16 KiB. No request body is read.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    future::Future,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::Semaphore, time::timeout};

use crate::{
    drain,
    logging::LevelHandle,
    metrics::{Exposition, Metrics},
    readiness::Readiness,
};

const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
const MAX_CONNECTIONS: usize = 64;
const MAX_HEAD: usize = 16 << 10;

/// Where the servers listen; `None`: not at all.
#[derive(Debug, Clone, Copy, Default)]
pub struct Addresses {
    pub admin: Option<SocketAddr>,
    pub metrics: Option<SocketAddr>,
    pub ready: Option<SocketAddr>,
}

/// A server that could not listen.
#[derive(Debug, thiserror::Error)]
#[error("the {server} server cannot listen on {address}: {error}. Choose another address with --{flag}")]
pub struct BindError {
    server: &'static str,
    flag: &'static str,
    address: SocketAddr,
    error: io::Error,
}

type Answer = Pin<Box<dyn Future<Output = Result<Value, String>> + Send>>;
type Handler = Arc<dyn Fn(Query) -> Answer + Send + Sync>;

/// The JSON handlers of the admin server; clones share them. Handlers may be added at any time.
#[derive(Clone, Default)]
pub struct Handlers {
    by_path: Arc<Mutex<BTreeMap<&'static str, (&'static str, Handler)>>>,
}

/// The query of a request's address: `?a=1&b=2`, percent-decoded.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Query(Vec<(String, String)>);

/// The servers, bound and not yet answering.
pub struct Servers {
    bound: Vec<(Role, TcpListener)>,
    shared: Arc<Shared>,
}

struct Shared {
    program: &'static str,
    metrics: Arc<Metrics>,
    readiness: Readiness,
    levels: LevelHandle,
    handlers: Handlers,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Admin,
    Metrics,
    Ready,
}

impl Handlers {
    /// With none.
    pub fn new() -> Self {
        Self::default()
    }

    /// Answers GET `path` on the admin server with JSON. `about` is shown in the list at `/`; an
    /// `Err` becomes a 400 with that text.
    pub fn add<F>(
        &self,
        path: &'static str,
        about: &'static str,
        handler: impl Fn(Query) -> F + Send + Sync + 'static,
    ) where
        F: Future<Output = Result<Value, String>> + Send + 'static,
    {
        let handler: Handler = Arc::new(move |query| Box::pin(handler(query)));
        self.by_path.lock().unwrap_or_else(PoisonError::into_inner).insert(path, (about, handler));
    }

    fn get(&self, path: &str) -> Option<Handler> {
        let handlers = self.by_path.lock().unwrap_or_else(PoisonError::into_inner);
        handlers.get(path).map(|(_, handler)| handler.clone())
    }

    fn list(&self) -> Value {
        let handlers = self.by_path.lock().unwrap_or_else(PoisonError::into_inner);
        handlers.iter().map(|(path, (about, _))| ((*path).to_owned(), Value::from(*about))).collect()
    }
}

impl Query {
    /// The first value of `key`.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    fn parse(query: &str) -> Self {
        let pairs = query.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(key), decode(value))
        });
        Self(pairs.collect())
    }
}

/// Percent-decoding of a query part (WHATWG URL, application/x-www-form-urlencoded).
fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        let hex = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
        match byte {
            b'+' => bytes.push(b' '),
            b'%' => {
                let mut ahead = rest.clone();
                match (ahead.next().and_then(hex), ahead.next().and_then(hex)) {
                    (Some(high), Some(low)) => {
                        bytes.push(high << 4 | low);
                        rest = ahead;
                    }
                    _ => bytes.push(b'%'),
                }
            }
            other => bytes.push(other),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

impl Servers {
    /// Binds the addresses, so that a program fails early where one is taken.
    ///
    /// # Errors
    /// Naming the server, the address and the flag that changes it.
    pub async fn bind(
        program: &'static str,
        addresses: Addresses,
        metrics: Arc<Metrics>,
        readiness: Readiness,
        levels: LevelHandle,
        handlers: Handlers,
    ) -> Result<Self, BindError> {
        let wanted = [
            (Role::Admin, "admin", "admin-addr", addresses.admin),
            (Role::Metrics, "metrics", "metrics-addr", addresses.metrics),
            (Role::Ready, "readiness", "ready-addr", addresses.ready),
        ];
        let mut bound = Vec::new();
        for (role, server, flag, address) in wanted {
            let Some(address) = address else { continue };
            let listener = TcpListener::bind(address).await.map_err(|error| BindError {
                server,
                flag,
                address,
                error,
            })?;
            bound.push((role, listener));
        }
        let shared = Shared { program, metrics, readiness, levels, handlers };
        Ok(Self { bound, shared: Arc::new(shared) })
    }

    /// The addresses the servers got (a configured port 0 is replaced by the real one).
    pub fn addresses(&self) -> Addresses {
        let of = |wanted| {
            let (_, listener) = self.bound.iter().find(|(role, _)| *role == wanted)?;
            listener.local_addr().ok()
        };
        Addresses { admin: of(Role::Admin), metrics: of(Role::Metrics), ready: of(Role::Ready) }
    }

    /// Answers in tasks of the current runtime, as long as it runs: readiness and metrics are wanted
    /// most while a program drains. Once `watch` has started, readiness is 503.
    pub fn spawn(self, watch: drain::Watch) {
        for (role, listener) in self.bound {
            tokio::spawn(accept(role, listener, self.shared.clone(), watch.clone()));
        }
    }
}

async fn accept(role: Role, listener: TcpListener, shared: Arc<Shared>, watch: drain::Watch) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, server = ?role, "an admin connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (shared, watch) = (shared.clone(), watch.clone());
        tokio::spawn(async move {
            let service = service_fn(|request| {
                let (shared, watch) = (shared.clone(), watch.clone());
                async move { Ok::<_, Infallible>(answer(role, &shared, &watch, &request).await) }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIMEOUT)
                .max_buf_size(MAX_HEAD)
                .serve_connection(TokioIo::new(stream), service);
            if let Err(error) = connection.await {
                tracing::debug!(%error, server = ?role, "an admin connection ended badly");
            }
            drop(place);
        });
    }
}

async fn answer(
    role: Role,
    shared: &Shared,
    watch: &drain::Watch,
    request: &Request<Incoming>,
) -> Response<Full<Bytes>> {
    let path = request.uri().path();
    match (role, path) {
        (Role::Ready | Role::Admin, "/healthz/ready") => ready(shared, watch),
        (Role::Metrics | Role::Admin, "/metrics" | "/stats/prometheus") => {
            let accept = request.headers().get(header::ACCEPT).and_then(|value| value.to_str().ok());
            let exposition = Exposition::accepted(accept);
            text(StatusCode::OK, exposition.content_type(), shared.metrics.encode(exposition))
        }
        // A browser names the page that made it ask; no page has business here.
        (Role::Admin, _) if request.headers().contains_key(header::ORIGIN) => {
            plain(StatusCode::FORBIDDEN, "web pages are not answered\n".into())
        }
        (Role::Admin, _) => {
            let query = Query::parse(request.uri().query().unwrap_or_default());
            admin(shared, request.method(), path, query).await
        }
        (Role::Ready | Role::Metrics, _) => {
            plain(StatusCode::NOT_FOUND, format!("there is no {path} here\n"))
        }
    }
}

fn ready(shared: &Shared, watch: &drain::Watch) -> Response<Full<Bytes>> {
    if watch.is_started() {
        return plain(StatusCode::SERVICE_UNAVAILABLE, "draining\n".into());
    }
    let pending = shared.readiness.pending();
    if pending.is_empty() {
        return plain(StatusCode::OK, "ready\n".into());
    }
    let waiting = pending.iter().map(|(name, waiting)| format!("not ready: {name} waits for {waiting}\n"));
    plain(StatusCode::SERVICE_UNAVAILABLE, waiting.collect())
}

async fn admin(shared: &Shared, method: &Method, path: &str, query: Query) -> Response<Full<Bytes>> {
    match (method, path) {
        (&Method::GET, "/") => {
            let program = json!({ "program": shared.program, "version": crate::VERSION });
            let mut paths = shared.handlers.list();
            paths["/logging"] = "the log levels; POST /logging?level=info,hbone=debug changes them".into();
            json_answer(StatusCode::OK, &json!({ "about": program, "paths": paths }))
        }
        (&Method::GET | &Method::POST | &Method::PUT, "/logging") => logging(shared, method, &query),
        (&Method::GET, path) => match shared.handlers.get(path) {
            None => plain(StatusCode::NOT_FOUND, format!("there is no {path}; / lists what there is\n")),
            Some(handler) => match timeout(ANSWER_TIMEOUT, handler(query)).await {
                Ok(Ok(value)) => json_answer(StatusCode::OK, &value),
                Ok(Err(reason)) => plain(StatusCode::BAD_REQUEST, reason + "\n"),
                Err(_) => plain(StatusCode::GATEWAY_TIMEOUT, "no answer within 30 s\n".into()),
            },
        },
        (method, path) => {
            plain(StatusCode::METHOD_NOT_ALLOWED, format!("{method} is not answered at {path}\n"))
        }
    }
}

fn logging(shared: &Shared, method: &Method, query: &Query) -> Response<Full<Bytes>> {
    match query.get("level") {
        None => plain(StatusCode::OK, shared.levels.current() + "\n"),
        // A GET that changes something could be sent by any web page the operator looks at.
        Some(_) if method == Method::GET => {
            plain(StatusCode::METHOD_NOT_ALLOWED, "levels are changed by POST: curl -X POST …\n".into())
        }
        Some(levels) => match shared.levels.set(levels) {
            Ok(()) => {
                tracing::info!(levels, "log levels changed");
                plain(StatusCode::OK, shared.levels.current() + "\n")
            }
            Err(error) => plain(StatusCode::BAD_REQUEST, format!("{error}\n")),
        },
    }
}

fn json_answer(status: StatusCode, value: &Value) -> Response<Full<Bytes>> {
    // The alternate form of a JSON value is indented, for eyes.
    text(status, "application/json", format!("{value:#}\n"))
}

fn plain(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    text(status, "text/plain; charset=utf-8", body)
}

fn text(status: StatusCode, content_type: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_decoded() {
        let query = Query::parse("level=info%2Chbone%3Ddebug&x=a+b&bare&bad=%zz");
        assert_eq!(query.get("level"), Some("info,hbone=debug"));
        assert_eq!(query.get("x"), Some("a b"));
        assert_eq!(query.get("bare"), Some(""));
        assert_eq!(query.get("bad"), Some("%zz"));
        assert_eq!(query.get("none"), None);
    }
}
