//! The phases that send, and send again: another endpoint is tried where that is safe, and where the rule says so.
//!
//! Safe is what no backend has looked at: a connection that could not be made, or one that was kept and had ended. What
//! a backend may have looked at is repeated only by the rule's word, and only if it has no body, which is gone.

use std::time::Duration;

use ::http::{
    HeaderValue, Method, Request, Response, StatusCode, Uri, Version as HttpVersion, header,
    request::Parts,
    uri::{PathAndQuery, Scheme},
};
use hyper::body::{Body as _, Incoming};
use mesh::{
    Target,
    route::{Backend, Protocol, Rule, To},
};
use runtime::record::Flag;
use tokio::time::{Instant, sleep, timeout_at};

use super::{
    Context, Settled, Version,
    filter::{self, Changes},
    pick,
};
use crate::{
    body::{Answer, Body, Busy},
    http::Handover,
    upstream::{Sent, Unsent},
};

/// Endpoints tried where none could be reached, the first among them.
const REACHES: u32 = 3;
/// The pause before a request is tried again, where the rule names none.
const BACKOFF: Duration = Duration::from_millis(25);

/// A request on its way.
pub(super) struct Sending<'a> {
    pub(super) context: &'a Context,
    pub(super) rule: Option<&'a Rule>,
    pub(super) prefix: Option<&'a str>,
    /// It has no body: it can be sent any number of times.
    pub(super) can_repeat: bool,
    /// Another protocol is asked for.
    pub(super) handover: Option<Handover>,
}

/// What one try came to.
enum Tried {
    Answered(Response<Incoming>, Busy, Changes),
    /// It may be sent again, with this body; no backend has looked at it.
    Unreached(Body, Settled),
    /// A backend may have looked at it.
    Failed(Settled),
}

impl Sending<'_> {
    pub(super) async fn run(
        self,
        head: Parts,
        body: Incoming,
        changes: Changes,
    ) -> Result<Response<Body>, Settled> {
        let context = self.context;
        let timeouts = self.rule.map(|rule| rule.timeouts).unwrap_or_default();
        // One that is over after the end of time is none.
        let after = |time| Instant::now().checked_add(time);
        let end = timeouts.request.and_then(after);
        let retry = self.rule.and_then(|rule| rule.retry.as_ref());
        let (mut reaches, mut repeats) = (0, 0);
        let record = context.record.clone();
        let mut body = if self.can_repeat { Body::Empty } else { Body::Request { inner: body, record } };
        loop {
            let end_of_try = timeouts.backend_request.and_then(after);
            let end_of_try = [end, end_of_try].into_iter().flatten().min();
            let failed = match within(end_of_try, self.try_once(&head, body, changes.clone())).await {
                Some(Ok(Tried::Answered(response, busy, changes))) => {
                    let again = retry.is_some_and(|retry| {
                        retry.codes.contains(&response.status().as_u16())
                            && repeats < retry.attempts
                            && self.can_repeat
                    });
                    if !again {
                        return self.answered(response, busy, &changes);
                    }
                    None
                }
                Some(Ok(Tried::Unreached(unsent, settled))) => {
                    reaches += 1;
                    if reaches >= REACHES {
                        return Err(settled);
                    }
                    body = unsent;
                    continue;
                }
                Some(Ok(Tried::Failed(settled))) => Some(settled),
                Some(Err(settled)) => return Err(settled),
                None => {
                    let reason = "the backend did not answer in time";
                    Some(Settled::new(StatusCode::GATEWAY_TIMEOUT, Flag::Timeout, reason))
                }
            };
            let over = end.is_some_and(|end| Instant::now() >= end);
            let may = self.can_repeat && !over && retry.is_some_and(|retry| repeats < retry.attempts);
            if let Some(settled) = failed.filter(|_| !may) {
                return Err(settled);
            }
            repeats += 1;
            context.worker.shared.metrics.retries.inc();
            let pause = retry.and_then(|retry| retry.backoff).unwrap_or(BACKOFF);
            // Where it outlasts the request, the next try ends at once, and tells of the time.
            let _ = within(end, sleep(pause)).await;
            body = Body::Empty;
        }
    }

    /// Picks, and sends once.
    async fn try_once(&self, head: &Parts, body: Body, mut changes: Changes) -> Result<Tried, Settled> {
        let context = self.context;
        let backend = self.rule.map(|rule| pick::backend(rule, rand::random())).transpose()?;
        let target = pick::endpoint(context, backend.map(|backend| &backend.to))?;
        context.record.borrow_mut().backend(&target.workload, target.address);
        let version = self.version(backend);
        let mut head = head.clone();
        if let Some(backend) = backend {
            filter::apply(&backend.filters, self.prefix, &mut head, &mut changes)?;
        }
        let mut head = outgoing(head, version, &target)?;
        if version == Version::One && !body.is_end_stream() && body.size_hint().exact().is_none() {
            // Said by us: of a method that seldom has a body it would otherwise be left out.
            head.headers.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        }
        let request = Request::from_parts(head, body);
        let upstream = &context.worker.upstream;
        let handover = self.handover.as_ref();
        Ok(match upstream.send(&context.call, &target, version, request, handover).await {
            Ok(Sent { response, busy }) => Tried::Answered(response, busy, changes),
            Err(Unsent { body: Some(body), reason }) => {
                let refused = reason.is_refusal();
                let (status, flag) = if refused {
                    (StatusCode::FORBIDDEN, Flag::Denied)
                } else {
                    (StatusCode::SERVICE_UNAVAILABLE, Flag::ConnectFailed)
                };
                let settled = Settled::new(status, flag, reason.to_string());
                // The destination's policy says the same at every endpoint.
                if refused { Tried::Failed(settled) } else { Tried::Unreached(body, settled) }
            }
            Err(Unsent { body: None, reason }) => {
                let status = StatusCode::BAD_GATEWAY;
                Tried::Failed(Settled::new(status, Flag::BackendReset, reason.to_string()))
            }
        })
    }

    /// The version to speak with a backend: that which its port declares, else the caller's own.
    fn version(&self, backend: Option<&Backend>) -> Version {
        let context = self.context;
        if self.handover.is_some() {
            return Version::One;
        }
        let protocol = match (backend.map(|backend| &backend.to), &context.call.called) {
            (Some(To::Service { service, port }), _) => {
                context.snapshot.routes(service).map(|routes| routes.protocol(*port))
            }
            (None, crate::arrival::Called::Service(service)) => {
                context.snapshot.routes(&service.key).map(|routes| routes.protocol(context.call.port))
            }
            _ => None,
        };
        match protocol.unwrap_or_default() {
            Protocol::Http1 if !context.is_grpc => Version::One,
            Protocol::Http2 => Version::Two,
            Protocol::Http1 | Protocol::Unknown | Protocol::Tcp => context.version,
        }
    }

    /// A backend's answer, as the caller gets it.
    fn answered(
        &self,
        response: Response<Incoming>,
        busy: Busy,
        changes: &Changes,
    ) -> Result<Response<Body>, Settled> {
        let context = self.context;
        let (mut head, body) = response.into_parts();
        let switched = head.status == StatusCode::SWITCHING_PROTOCOLS;
        if switched && self.handover.is_none() {
            let reason = "the backend speaks another protocol, for which nobody has asked";
            return Err(Settled::new(StatusCode::BAD_GATEWAY, Flag::BackendReset, reason));
        }
        filter::hop_by_hop(&mut head.headers, switched);
        changes.apply(&mut head.headers);
        head.version = HttpVersion::default();
        head.extensions.clear();
        {
            let mut record = context.record.borrow_mut();
            record.status(head.status.as_u16());
            if let Some(status) = crate::body::grpc_status(&head.headers) {
                record.grpc_status(status);
            }
        }
        if switched {
            return Ok(Response::from_parts(head, Body::Empty));
        }
        let answer = Answer { inner: body, record: context.record.clone(), _busy: busy, ended: false };
        Ok(Response::from_parts(head, Body::Answer(Box::new(answer))))
    }
}

async fn within<T>(end: Option<Instant>, work: impl Future<Output = T>) -> Option<T> {
    match end {
        Some(end) => timeout_at(end, work).await.ok(),
        None => Some(work.await),
    }
}

/// The head as a backend gets it.
fn outgoing(mut head: Parts, version: Version, target: &Target) -> Result<Parts, Settled> {
    // We have read it, and will have the body: nobody needs to be asked.
    head.headers.remove(header::EXPECT);
    head.extensions.clear();
    let authority = filter::authority(&head).map(str::to_owned).unwrap_or_else(|| target.address.to_string());
    let path = head.uri.path_and_query().cloned();
    match version {
        Version::One => {
            head.version = HttpVersion::HTTP_11;
            if !head.headers.contains_key(header::HOST) {
                // HTTP/1.0 has named none.
                let host = HeaderValue::try_from(&authority).map_err(|_| malformed())?;
                head.headers.insert(header::HOST, host);
            }
            merge_cookies(&mut head);
            let asterisk =
                head.method == Method::OPTIONS && path.as_ref().is_none_or(|path| path.as_str() == "*");
            head.uri = match path {
                Some(path) if !asterisk => Uri::from(path),
                _ if asterisk => Uri::from_static("*"),
                _ => Uri::from_static("/"),
            };
        }
        Version::Two => {
            head.version = HttpVersion::HTTP_2;
            head.headers.remove(header::HOST);
            let mut parts = ::http::uri::Parts::default();
            parts.scheme = Some(Scheme::HTTP);
            parts.authority = Some(authority.parse().map_err(|_| malformed())?);
            parts.path_and_query = Some(path.unwrap_or_else(|| PathAndQuery::from_static("/")));
            head.uri = Uri::from_parts(parts).map_err(|_| malformed())?;
        }
    }
    Ok(head)
}

/// HTTP/2 may send a cookie in pieces; in HTTP/1 it is one (RFC 9113, 8.2.3).
fn merge_cookies(head: &mut Parts) {
    let mut pieces = head.headers.get_all(header::COOKIE).iter();
    if let (Some(first), Some(second)) = (pieces.next(), pieces.next()) {
        let all = [first, second].into_iter().chain(pieces).map(HeaderValue::as_bytes);
        let joined = all.collect::<Vec<_>>().join(&b"; "[..]);
        if let Ok(joined) = HeaderValue::from_bytes(&joined) {
            head.headers.insert(header::COOKIE, joined);
        }
    }
}

fn malformed() -> Settled {
    Settled::new(
        StatusCode::BAD_REQUEST,
        Flag::Malformed,
        "the request names no host that can be written down",
    )
}
