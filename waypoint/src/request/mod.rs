//! A request, phase by phase, over one context:
//!
//! ```text
//! begin ─▶ authenticate ─▶ authorize ─▶ match ─▶ filter ─▶ pick ─▶ send ─▶ answer
//!                                                           ▲       │
//!                                                           └─retry─┘
//! ```
//! Each phase either goes on or settles the answer. All of them read the one snapshot that the request began with.

mod answer;
mod cors;
mod filter;
mod host;
mod matching;
mod mirror;
mod pick;
mod send;

use std::{
    cell::{OnceCell, RefCell},
    convert::Infallible,
    rc::Rc,
    sync::Arc,
};

use ::http::{Request, Response, StatusCode, request::Parts};
use hyper::body::Incoming;
use mesh::{ServiceKey, Snapshot, Target, route::Found};
use runtime::record::Flag;

use crate::{
    arrival::{Call, Called},
    authenticate::{self, Authenticated},
    authorize,
    body::{Body, SharedRecord},
    http::Handover,
    trace::{self, Attempt, Traced},
    worker::Worker,
};

/// The version of HTTP that a caller speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Version {
    One,
    Two,
}

/// What all phases of a request share.
pub(crate) struct Context {
    pub(crate) worker: Rc<Worker>,
    pub(crate) call: Rc<Call>,
    pub(crate) snapshot: Arc<Snapshot>,
    pub(crate) version: Version,
    pub(crate) is_grpc: bool,
    pub(crate) record: SharedRecord,
    /// Where it stands in its trace, if anybody wants to know.
    pub(crate) traced: Option<Rc<Traced>>,
    /// What came of its tokens.
    pub(crate) authenticated: OnceCell<Authenticated>,
}

impl Context {
    /// Begins the span of a try, after `resends` of them; what is sent tells where it stands.
    fn attempt(
        &self,
        head: &mut Parts,
        service: Option<(&ServiceKey, u16)>,
        target: &Target,
        version: Version,
        resends: u32,
    ) -> Option<Box<Attempt>> {
        let (workload, address) = (&target.workload, target.address);
        let to = trace::To { service, workload, address, version, resends, is_mirror: false };
        self.traced.as_ref()?.attempt(head, self.is_grpc, &to)
    }
}

/// An answer that is settled before a backend has given one.
#[derive(Debug)]
pub(crate) struct Settled {
    pub(crate) status: StatusCode,
    pub(crate) flag: Flag,
    pub(crate) reason: String,
    /// The headers of an answer that is no error, and has no body: where a redirect leads, what a preflight may.
    reply: Option<Box<::http::HeaderMap>>,
    /// How the caller may prove who he is, of a 401.
    pub(crate) challenge: Option<Box<::http::HeaderValue>>,
    /// What the caller's origin is allowed, whatever the answer.
    allowance: Option<Box<cors::Allowance>>,
}

impl Settled {
    pub(crate) fn new(status: StatusCode, flag: Flag, reason: impl Into<String>) -> Self {
        Self { status, flag, reason: reason.into(), reply: None, challenge: None, allowance: None }
    }

    /// The headers of the answer, which is no error.
    fn reply(&mut self) -> &mut ::http::HeaderMap {
        self.reply.get_or_insert_default()
    }
}

/// Answers a request of `call`.
pub(crate) async fn answer(
    worker: Rc<Worker>,
    call: Rc<Call>,
    version: Version,
    handover: Option<Handover>,
    request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    let (mut head, body) = request.into_parts();
    // First of all: what a caller has named as its connection's own goes no further, and is not judged by.
    let upgrade = filter::hop_by_hop(&mut head.headers, handover.is_some());
    let context = begin(worker, call, version, &mut head);
    // On the heap: a connection that waits for its next request is to cost little.
    let answered = Box::pin(phases(&context, head, body, handover.filter(|_| upgrade))).await;
    Ok(answered.unwrap_or_else(|settled| answer::settled(&context, settled)))
}

fn begin(worker: Rc<Worker>, call: Rc<Call>, version: Version, head: &mut Parts) -> Context {
    let protocol = match version {
        Version::One => "HTTP/1.1",
        Version::Two => "HTTP/2",
    };
    let path = head.uri.path_and_query().map_or("", |path| path.as_str());
    let mut record = worker.shared.requests.begin(call.source, protocol, head.method.as_str(), path);
    record.source(&call.claims.caller, call.workload.as_ref());
    record.authority(filter::authority(head).unwrap_or_default());
    let service = match &call.called {
        Called::Service(service) => Some(service),
        Called::Workload(_) => None,
    };
    record.called(service, call.port);
    let is_grpc = is_grpc(head);
    if is_grpc {
        record.grpc();
    }
    record.id(trace::request_id(&mut head.headers));
    let traced = worker.shared.tracer.as_ref().map(|tracer| Traced::begin(tracer, head));
    if let Some(traced) = &traced {
        record.trace(traced.trace().id);
        traced.heard().into_iter().for_each(|heard| record.hear(heard));
    }
    let snapshot = worker.shared.mesh.current();
    let (record, authenticated) = (Rc::new(RefCell::new(record)), OnceCell::new());
    Context { worker, call, snapshot, version, is_grpc, record, traced, authenticated }
}

/// Whether it is a call of gRPC; `grpc-web` is another protocol, which browsers speak.
fn is_grpc(head: &Parts) -> bool {
    let value = head.headers.get(::http::header::CONTENT_TYPE).map(::http::HeaderValue::as_bytes);
    let rest = value.and_then(|value| value.strip_prefix(b"application/grpc"));
    rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';' | b' ')))
}

async fn phases(
    context: &Context,
    mut head: Parts,
    body: Incoming,
    handover: Option<Handover>,
) -> Result<Response<Body>, Settled> {
    if head.method == ::http::Method::CONNECT {
        let reason = "a tunnel within a request is not carried";
        return Err(Settled::new(StatusCode::NOT_IMPLEMENTED, Flag::Malformed, reason));
    }
    host::settle(&mut head)?;
    let authenticated = authenticate::request(context, &mut head)?;
    context.authenticated.get_or_init(|| authenticated);
    authorize::request(context, &mut head)?;
    let routes = matching::routes(context);
    let found = routes.as_ref().map_or(Found::NoRoute, |routes| matching::find(context, routes, &head));
    let matched = match found {
        Found::Rule(matched) => Some(matched),
        Found::NoRoute => None,
        Found::NoMatch => {
            let reason = "no rule of its service's routes is for the request";
            return Err(Settled::new(StatusCode::NOT_FOUND, Flag::NoRoute, reason));
        }
    };
    if let Some(matched) = &matched {
        let (route, rule) = (matched.route, matched.rule);
        context.record.borrow_mut().route(&route.key, matched.index, rule.name.as_ref());
    }
    let mut changes = filter::Changes::default();
    if let Some(matched) = &matched {
        filter::apply(&matched.rule.filters, matched.prefix, context.call.port, &mut head, &mut changes)?;
    }
    let allowance = changes.allowance.clone();
    let sending = send::Sending {
        context,
        rule: matched.as_ref().map(|matched| matched.rule),
        prefix: matched.as_ref().and_then(|matched| matched.prefix),
        is_consumers: matched.as_ref().is_some_and(|matched| matched.route.for_namespace.is_some()),
        handover,
    };
    let answered = sending.run(head, body, changes).await;
    answered.map_err(|settled| match settled.reply {
        Some(_) => settled,
        None => Settled { allowance: allowance.map(Box::new), ..settled },
    })
}
