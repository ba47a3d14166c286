//! The phases that send, and send again: another endpoint is tried where that is safe, and where the rule says so.
//!
//! Safe is what no backend has looked at: a connection that could not be made, or one that was kept and had ended. What
//! a backend may have looked at is repeated only by the rule's word, and only if its body is still there as a whole: what
//! has been streamed past the bound of what is kept is never sent twice.

use std::{cell::RefCell, pin::pin, rc::Rc, time::Duration};

use ::http::{
    HeaderValue, Method, Request, Response, StatusCode, Uri, Version as HttpVersion, header,
    request::Parts,
    uri::{PathAndQuery, Scheme},
};
use hyper::body::{Body as _, Incoming};
use mesh::{
    ServiceKey,
    route::{Filter, Mirror, Protocol, Retry, Rule, To},
};
use runtime::record::Flag;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use super::{
    Context, Settled, Version,
    filter::{self, Changes},
    mirror, pick,
};
use crate::{
    arrival::Called,
    authorize,
    body::{
        Answer, Body,
        kept::{Kept, Reader},
    },
    http::Handover,
    trace::Attempt,
    upstream::{Endpoint, Hold, REACHES, Sent, Unsent},
};

/// The pause before a request is tried again, where the rule names none.
const BACKOFF: Duration = Duration::from_millis(25);
/// Pauses grow up to so many of the first.
const LONGEST_BACKOFF: u32 = 10;

/// A request on its way.
pub(super) struct Sending<'a> {
    pub(super) context: &'a Context,
    pub(super) rule: Option<&'a Rule>,
    pub(super) prefix: Option<&'a str>,
    /// The rule is a consumer's: the service is somebody else's.
    pub(super) is_consumers: bool,
    /// Another protocol is asked for.
    pub(super) handover: Option<Handover>,
}

/// What one try came to.
enum Tried {
    Answered(Response<Incoming>, Hold, Changes),
    /// It may be sent again, with this body; no backend has looked at it.
    Unreached(Body, Settled),
    /// A backend may have looked at it.
    Failed(Settled),
}

/// Which of several tries it is.
#[derive(Clone, Copy)]
struct Place {
    /// Of the request.
    is_first: bool,
    /// Of those that go to another endpoint at once.
    is_last: bool,
}

/// Where the body of each try comes from.
enum Source {
    /// There is none: it can be sent any number of times.
    Empty,
    /// It goes by once.
    Once(Option<Body>),
    /// It can be sent again as long as all of it is kept.
    Kept(Rc<RefCell<Kept>>),
}

impl Source {
    fn next(&mut self) -> Body {
        match self {
            Self::Empty => Body::Empty,
            Self::Once(body) => body.take().unwrap_or(Body::Empty),
            Self::Kept(kept) => Body::Kept(Reader::new(kept)),
        }
    }

    /// Takes back what was not sent.
    fn put_back(&mut self, unsent: Body) {
        if let Self::Once(body) = self {
            *body = Some(unsent);
        }
    }

    fn can_repeat(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Once(_) => false,
            Self::Kept(kept) => kept.borrow().can_repeat(),
        }
    }

    fn copy(&self) -> Option<mirror::Source> {
        match self {
            Self::Empty => Some(mirror::Source::Empty),
            Self::Once(_) => None,
            Self::Kept(kept) => Some(mirror::Source::Coming(kept.borrow_mut().copy())),
        }
    }
}

impl Sending<'_> {
    pub(super) async fn run(
        self,
        head: Parts,
        body: Incoming,
        mut changes: Changes,
    ) -> Result<Response<Body>, Settled> {
        let context = self.context;
        let timeouts = self.rule.map(|rule| rule.timeouts).unwrap_or_default();
        // One that is over after the end of time is none.
        let after = |time| Instant::now().checked_add(time);
        let end = timeouts.request.and_then(after);
        let retry = self.rule.and_then(|rule| rule.retry.as_ref());
        let mut source = self.source(body, retry.is_some() || self.may_mirror(&changes));
        self.mirror(std::mem::take(&mut changes.mirrors), &head, &source);
        let (mut reaches, mut repeats) = (0, 0);
        loop {
            let end_of_try = timeouts.backend_request.and_then(after);
            let end_of_try = [end, end_of_try].into_iter().flatten().min();
            let is_first = reaches + repeats == 0;
            let may = |source: &Source| {
                let over = end.is_some_and(|end| Instant::now() >= end);
                source.can_repeat() && !over && retry.is_some_and(|retry| repeats < attempts(retry))
            };
            let mut attempt = None;
            let place = Place { is_first, is_last: reaches + 1 == REACHES };
            let tried = {
                // Pinned here: a future that is handed on by value is laid out twice, and every request waits in this one.
                let tried = pin!(self.try_once(&head, &mut source, changes.clone(), place, &mut attempt));
                within(end_of_try, tried).await
            };
            match tried {
                Some(Ok(Tried::Answered(response, hold, changes))) => {
                    let status = response.status().as_u16();
                    if !retry.is_some_and(|retry| retry.codes.contains(&status)) || !may(&source) {
                        return self.answered(response, hold, &changes, end_of_try, attempt);
                    }
                }
                Some(Ok(Tried::Unreached(unsent, settled))) => {
                    source.put_back(unsent);
                    reaches += 1;
                    if reaches < REACHES {
                        context.worker.shared.metrics.chosen_again.inc();
                        continue;
                    }
                    if !may(&source) {
                        return Err(settled);
                    }
                    reaches = 0;
                }
                Some(Ok(Tried::Failed(settled))) if !may(&source) => return Err(settled),
                Some(Ok(Tried::Failed(_))) => {}
                Some(Err(settled)) => return Err(settled),
                None => {
                    let reason = "the backend did not answer in time";
                    attempt.iter_mut().for_each(|attempt| attempt.failed("timeout", reason));
                    if !may(&source) {
                        return Err(Settled::new(StatusCode::GATEWAY_TIMEOUT, Flag::Timeout, reason));
                    }
                }
            }
            // The try has ended: the pause is no part of it.
            drop(attempt);
            repeats += 1;
            context.worker.shared.metrics.retries.inc();
            // Where it outlasts the request, the next try ends at once, and tells of the time.
            let _ = within(end, sleep(pause(retry, repeats, rand::random()))).await;
        }
    }

    fn source(&self, body: Incoming, keep: bool) -> Source {
        let record = self.context.record.clone();
        if body.is_end_stream() {
            Source::Empty
        } else if keep {
            Source::Kept(Kept::new(body, record, self.context.worker.kept.clone()))
        } else {
            Source::Once(Some(Body::Request { inner: body, record }))
        }
    }

    /// Whether copies of the request may be made.
    fn may_mirror(&self, changes: &Changes) -> bool {
        let of_backends = self.rule.into_iter().flat_map(|rule| &rule.backends);
        let mut filters = of_backends.flat_map(|backend| &backend.filters);
        !changes.mirrors.is_empty() || filters.any(|filter| matches!(filter, Filter::Mirror(_)))
    }

    /// Has copies made of the request, as it is now.
    fn mirror(&self, mirrors: Vec<Mirror>, head: &Parts, source: &Source) {
        let chosen = mirrors.iter().filter(|mirror| mirror::is_copied(mirror, rand::random()));
        for mirror in chosen {
            let mut head = head.clone();
            if self.judge(&mirror.to, &mut head).is_err() {
                self.context.worker.shared.metrics.mirrored("refused");
                continue;
            }
            // What leads out of HTTP has no copy.
            match source.copy().filter(|_| self.handover.is_none()) {
                Some(copy) => mirror::start(self.context, &mirror.to, head, copy),
                None => self.context.worker.shared.metrics.mirrored("body"),
            }
        }
    }

    /// Judges what goes to a backend, where that is for others to say than it was before, and changes it as they say.
    fn judge(&self, to: &To, head: &mut Parts) -> Result<(), Settled> {
        let To::Service { service, port } = to else { return Ok(()) };
        let is_called =
            matches!(&self.context.call.called, Called::Service(called) if called.key == *service);
        if is_called && !self.is_consumers {
            return Ok(());
        }
        authorize::onward(self.context, service, *port, head)
    }

    /// Picks, and sends once.
    async fn try_once(
        &self,
        head: &Parts,
        source: &mut Source,
        mut changes: Changes,
        place: Place,
        attempt: &mut Option<Box<Attempt>>,
    ) -> Result<Tried, Settled> {
        let context = self.context;
        let backend = self.rule.map(|rule| pick::backend(rule, rand::random())).transpose()?;
        let mut target = pick::endpoint(context, backend.map(|backend| &backend.to)).await?;
        target.is_hasty = !place.is_last;
        let service = service(context, backend.map(|backend| &backend.to));
        let resends = {
            let mut record = context.record.borrow_mut();
            let named = service.map(|(key, port)| (key.clone(), port));
            record.try_at(named, &target.workload, target.address)
        };
        let version = match self.handover {
            Some(_) => Version::One,
            None => version(context, backend.map(|backend| &backend.to)),
        };
        let mut head = head.clone();
        if let Some(backend) = backend {
            filter::apply(&backend.filters, self.prefix, context.call.port, &mut head, &mut changes)?;
            self.judge(&backend.to, &mut head)?;
            let mirrors = std::mem::take(&mut changes.mirrors);
            // A backend that is tried after another gets no copies: one request has one.
            if place.is_first {
                self.mirror(mirrors, &head, source);
            }
        }
        let body = source.next();
        let mut head = outgoing(head, version, &target)?;
        if version == Version::One && !body.is_end_stream() && body.size_hint().exact().is_none() {
            // Said by us: of a method that seldom has a body it would otherwise be left out.
            head.headers.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        }
        *attempt = context.attempt(&mut head, service, &target, version, resends);
        let request = Request::from_parts(head, body);
        let upstream = &context.worker.upstream;
        let handover = self.handover.as_ref();
        let began = Instant::now();
        let sent = upstream.send(&context.call, &target, version, request, handover).await;
        if let (Some(attempt), Err(Unsent { body, reason })) = (attempt.as_mut(), &sent) {
            let kind = match body {
                Some(_) if reason.is_refusal() => "refused",
                Some(_) => "connect",
                None => "reset",
            };
            attempt.failed(kind, reason);
        }
        Ok(match sent {
            Ok(Sent { response, hold }) => {
                context.record.borrow_mut().upstream_time(began.elapsed());
                attempt.iter_mut().for_each(|attempt| attempt.answered(response.status().as_u16()));
                Tried::Answered(response, hold, changes)
            }
            Err(Unsent { body: Some(body), reason }) => {
                let refused = reason.is_refusal();
                let (status, flag) = if refused {
                    (StatusCode::FORBIDDEN, Flag::Denied)
                } else {
                    (StatusCode::SERVICE_UNAVAILABLE, Flag::ConnectFailed)
                };
                let settled = Settled::new(status, flag, reason.to_string());
                // The destination's policy says the same at every endpoint, and as often as it is asked.
                if refused {
                    return Err(settled);
                }
                Tried::Unreached(body, settled)
            }
            Err(Unsent { body: None, reason }) => {
                let status = StatusCode::BAD_GATEWAY;
                Tried::Failed(Settled::new(status, Flag::BackendReset, reason.to_string()))
            }
        })
    }

    /// A backend's answer, as the caller gets it.
    fn answered(
        &self,
        response: Response<Incoming>,
        hold: Hold,
        changes: &Changes,
        end: Option<Instant>,
        mut attempt: Option<Box<Attempt>>,
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
                attempt.iter_mut().for_each(|attempt| attempt.grpc_status(status));
            }
        }
        if switched {
            attempt.iter_mut().for_each(|attempt| attempt.finished());
            return Ok(Response::from_parts(head, Body::Empty));
        }
        let end = end.map(|end| Box::pin(sleep_until(end)));
        let record = context.record.clone();
        let answer = Answer { inner: body, record, _hold: hold, ended: false, attempt, end, broken: None };
        Ok(Response::from_parts(head, Body::Answer(Box::new(answer))))
    }
}

/// The service that is sent to, and its port: a backend, or what was called.
pub(super) fn service<'a>(context: &'a Context, backend: Option<&'a To>) -> Option<(&'a ServiceKey, u16)> {
    match (backend, &context.call.called) {
        (Some(To::Service { service, port }), _) => Some((service, *port)),
        (None, Called::Service(service)) => Some((&service.key, context.call.port)),
        (Some(To::Nowhere(_)), _) | (None, Called::Workload(_)) => None,
    }
}

/// The version to speak with a backend, or with what was called: that which its port declares, else the caller's own.
/// In TLS HTTP/2 is what is declared, or what calls need.
pub(super) fn version(context: &Context, backend: Option<&To>) -> Version {
    let said = service(context, backend);
    let said = said.and_then(|(service, port)| Some((context.snapshot.routes(service)?, port)));
    let (protocol, is_tls) =
        said.map(|(routes, port)| (routes.protocol(port), routes.tls(port).is_some())).unwrap_or_default();
    match protocol {
        Protocol::Http1 if !context.is_grpc => Version::One,
        Protocol::Unknown | Protocol::Tcp if is_tls && !context.is_grpc => Version::One,
        Protocol::Http2 => Version::Two,
        Protocol::Http1 | Protocol::Unknown | Protocol::Tcp => context.version,
    }
}

/// How often a rule may have a request sent again.
fn attempts(retry: &Retry) -> u32 {
    retry.attempts.min(Retry::MOST)
}

/// The pause before the next try: never shorter than the rule has it, longer with each, and not the same for all who
/// wait.
fn pause(retry: Option<&Retry>, repeats: u32, random: u32) -> Duration {
    let least = retry.and_then(|retry| retry.backoff).unwrap_or(BACKOFF);
    let times = 1_u32.checked_shl(repeats.saturating_sub(1)).unwrap_or(u32::MAX).min(LONGEST_BACKOFF);
    let pause = least.saturating_mul(times);
    // Up to a quarter more.
    pause.saturating_add((pause / 4).mul_f64(f64::from(random) / f64::from(u32::MAX)))
}

async fn within<T>(end: Option<Instant>, work: impl Future<Output = T>) -> Option<T> {
    match end {
        Some(end) => timeout_at(end, work).await.ok(),
        None => Some(work.await),
    }
}

/// The head as a backend gets it.
pub(super) fn outgoing(mut head: Parts, version: Version, target: &Endpoint) -> Result<Parts, Settled> {
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
            authorize::merge_cookies(&mut head);
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
            parts.scheme = Some(if target.tls.is_some() { Scheme::HTTPS } else { Scheme::HTTP });
            parts.authority = Some(authority.parse().map_err(|_| malformed())?);
            parts.path_and_query = Some(path.unwrap_or_else(|| PathAndQuery::from_static("/")));
            head.uri = Uri::from_parts(parts).map_err(|_| malformed())?;
        }
    }
    Ok(head)
}

fn malformed() -> Settled {
    Settled::new(
        StatusCode::BAD_REQUEST,
        Flag::Malformed,
        "the request names no host that can be written down",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_is_never_shorter_than_the_rule_has_it_and_grows_to_a_bound() {
        let retry = Retry { codes: vec![503], attempts: 1000, backoff: Some(Duration::from_millis(100)) };
        assert_eq!(attempts(&retry), Retry::MOST);
        let mut longest = Duration::ZERO;
        for repeats in 1..=40 {
            let (least, most) = (pause(Some(&retry), repeats, 0), pause(Some(&retry), repeats, u32::MAX));
            assert!(least >= Duration::from_millis(100) && least >= longest, "{repeats}: {least:?}");
            assert!(most <= Duration::from_millis(1250) && most > least, "{repeats}: {most:?}");
            longest = least;
        }
        assert_eq!(longest, Duration::from_secs(1));
        assert_eq!(pause(None, 1, 0), BACKOFF);
        let endless = Retry { backoff: Some(Duration::MAX), ..retry };
        assert_eq!(pause(Some(&endless), 3, u32::MAX), Duration::MAX);
    }
}
