//! The phase that asks whether a request may be: `mesh` decides, by what is said of the request here.
//!
//! Policies judge who calls (whom the tunnel has proved), before anything of the request is changed or routed.

use std::net::{IpAddr, Ipv4Addr};

use ::http::{HeaderValue, Method, StatusCode, Uri, header, request::Parts};
use jwt::Verified;
use mesh::{
    GatewayAddress, NetworkAddress, PolicyKey, ServiceKey, ServiceRoutes, Snapshot,
    request::{
        Content, Head, NoToken, NormalPath, RequestAttempt, RequestDecision, RequestPolicies, RequestRefusal,
        RequestVerdict, normal_path,
    },
};
use runtime::record::{self, Flag};

use crate::{
    arrival::{Call, Called, Failure},
    authenticate,
    request::{Context, Settled},
    shared::Settings,
    worker::Worker,
};

/// Whether a request may be. Whatever comes after reads its path as it was judged.
///
/// # Errors
/// With the answer, if it may not.
pub(crate) fn request(context: &Context, head: &mut Parts) -> Result<(), Settled> {
    if !head.uri.path().starts_with('/') && head.method != Method::OPTIONS {
        let reason = "its target is no path";
        return Err(Settled::new(StatusCode::BAD_REQUEST, Flag::Malformed, reason));
    }
    normalise(head);
    merge_cookies(head);
    let (worker, call) = (&context.worker, &context.call);
    let Some(policies) = policies(&context.snapshot, call, &worker.shared.settings) else { return Ok(()) };
    let authenticated = context.authenticated.get();
    let token = authenticated.and_then(|authenticated| authenticated.token.as_deref());
    judge(context, policies, &called(call), head, token)
}

/// Whether a request that a route leads on may be, as it is then: for the service and the port it is sent to.
///
/// A consumer's route changes requests to a service of somebody else's, whose policies are not his to get round; and
/// what a route leads to may have policies of its own. Its own are the rules for tokens, too, by which the request is
/// changed.
///
/// # Errors
/// With the answer, if it may not.
pub(crate) fn onward(
    context: &Context,
    service: &ServiceKey,
    port: u16,
    head: &mut Parts,
) -> Result<(), Settled> {
    let Some(routes) = context.snapshot.routes(service) else { return Ok(()) };
    let authenticated = authenticate::onward(context, &routes.authentication, head)?;
    if routes.policies.all().is_empty() {
        return Ok(());
    }
    let to = led_to(&context.snapshot, &context.call, service, port);
    judge(context, &routes.policies, &to, head, authenticated.token.as_deref())
}

/// Where a request goes.
struct To {
    /// A headless service has none.
    address: Option<IpAddr>,
    /// Of the service.
    port: u16,
}

fn called(call: &Call) -> To {
    let first = || match &call.called {
        Called::Service(service) => service.addresses.first().map(|at| at.address),
        Called::Workload(workload) => workload.addresses.first().copied(),
    };
    To { address: call.address.or_else(first), port: call.port }
}

/// What a route leads to.
fn led_to(snapshot: &Snapshot, call: &Call, service: &ServiceKey, port: u16) -> To {
    let addresses = snapshot.service(service).map_or(&[][..], |service| &service.addresses);
    To { address: of_family(addresses, call.address), port }
}

/// The address of the family that the caller has dialled, if there is one of it.
fn of_family(addresses: &[NetworkAddress], dialled: Option<IpAddr>) -> Option<IpAddr> {
    let is_like = |at: &&NetworkAddress| dialled.is_none_or(|of| of.is_ipv4() == at.address.is_ipv4());
    addresses.iter().find(is_like).or_else(|| addresses.first()).map(|at| at.address)
}

fn judge(
    context: &Context,
    policies: &RequestPolicies,
    to: &To,
    head: &Parts,
    token: Option<&Verified>,
) -> Result<(), Settled> {
    let host = head.headers.get(header::HOST).map(|host| String::from_utf8_lossy(host.as_bytes()));
    let content = Content {
        head: &Read(head),
        host: host.as_deref().unwrap_or_default(),
        path: &normal_path(head.uri.path()),
        token,
    };
    let decision = policies.authorize(&attempt(&context.call, to, Some(content)));
    let mut record = context.record.borrow_mut();
    record.audited(&decision.audited);
    record.dry_run(&decision.dry_run);
    match decided(&context.worker, decision) {
        Ok(policy) => {
            policy.iter().for_each(|policy| record.policy(policy));
            Ok(())
        }
        Err(refusal) => {
            record.policy(refusal.policy());
            let status = match refusal {
                RequestRefusal::Ambiguous(..) => StatusCode::BAD_REQUEST,
                RequestRefusal::Denied(_) | RequestRefusal::NotAllowed(_) => StatusCode::FORBIDDEN,
            };
            Err(Settled::new(status, Flag::Denied, refusal.to_string()))
        }
    }
}

/// Whether a connection may be that is carried as it is: of its requests nothing can be read.
///
/// # Errors
/// If it may not.
pub(crate) fn connection(
    worker: &Worker,
    call: &Call,
    record: &mut record::Connection,
) -> Result<(), Failure> {
    let snapshot = worker.shared.mesh.current();
    let Some(policies) = policies(&snapshot, call, &worker.shared.settings) else { return Ok(()) };
    let decision = policies.authorize(&attempt(call, &called(call), None::<Content<'_, Read<'_>, NoToken>>));
    record.dry_run(&decision.dry_run);
    match decided(worker, decision) {
        Ok(policy) => {
            policy.iter().for_each(|policy| record.policy(policy));
            Ok(())
        }
        Err(refusal) => {
            record.policy(refusal.policy());
            Err(refusal.into())
        }
    }
}

/// Whether a connection that is carried as it is may be led on, to a service and a port of it.
///
/// # Errors
/// If it may not.
pub(crate) fn onward_connection(
    worker: &Worker,
    call: &Call,
    snapshot: &Snapshot,
    service: &ServiceKey,
    port: u16,
) -> Result<(), Failure> {
    let Some(routes) = snapshot.routes(service).filter(|routes| !routes.policies.all().is_empty()) else {
        return Ok(());
    };
    let to = led_to(snapshot, call, service, port);
    let attempt = attempt(call, &to, None::<Content<'_, Read<'_>, NoToken>>);
    decided(worker, routes.policies.authorize(&attempt)).map(drop).map_err(Failure::from)
}

fn decided(worker: &Worker, decision: RequestDecision) -> Result<Option<PolicyKey>, RequestRefusal> {
    let metrics = &worker.shared.metrics;
    metrics.audited.inc_by(decision.audited.len() as u64);
    match decision.verdict {
        RequestVerdict::Allow(policy) => Ok(policy),
        RequestVerdict::Refuse(refusal) => {
            metrics.denied.inc();
            Err(refusal)
        }
    }
}

fn attempt<'a, R, T>(
    call: &'a Call,
    to: &To,
    content: Option<Content<'a, R, T>>,
) -> RequestAttempt<'a, R, T> {
    RequestAttempt {
        source: Some(&call.claims.caller),
        source_ip: call.source.ip(),
        destination_ip: to.address.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
        port: to.port,
        content,
    }
}

/// Puts the path in its normal form: what is judged, routed and sent is the same. What may mean several things stays
/// as it is.
fn normalise(head: &mut Parts) {
    let NormalPath { path, ambiguous, .. } = normal_path(head.uri.path());
    if ambiguous.is_some() || *path == *head.uri.path() {
        return;
    }
    let query = head.uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    let target = format!("{path}{query}");
    let mut parts = std::mem::take(&mut head.uri).into_parts();
    parts.path_and_query = target.try_into().ok();
    // Of a valid path and query one is made again.
    head.uri = Uri::from_parts(parts).unwrap_or_default();
}

/// HTTP/2 may send a cookie in pieces; what reads it reads one (RFC 9113, 8.2.3), and so does what judges it.
pub(crate) fn merge_cookies(head: &mut Parts) {
    let mut pieces = head.headers.get_all(header::COOKIE).iter();
    if let (Some(first), Some(second)) = (pieces.next(), pieces.next()) {
        let all = [first, second].into_iter().chain(pieces).map(HeaderValue::as_bytes);
        let joined = all.collect::<Vec<_>>().join(&b"; "[..]);
        if let Ok(joined) = HeaderValue::from_bytes(&joined) {
            head.headers.insert(header::COOKIE, joined);
        }
    }
}

/// A head as policies read it.
struct Read<'a>(&'a Parts);

impl Head for Read<'_> {
    fn method(&self) -> &str {
        self.0.method.as_str()
    }

    fn has(&self, name: &str, test: &mut dyn FnMut(&str) -> bool) -> bool {
        // What is no text is there all the same.
        self.0.headers.get_all(name).iter().any(|value| test(&String::from_utf8_lossy(value.as_bytes())))
    }
}

/// The policies for what was called.
fn policies<'s>(snapshot: &'s Snapshot, call: &Call, settings: &Settings) -> Option<&'s RequestPolicies> {
    let policies = &routes(snapshot, call, settings)?.policies;
    (!policies.all().is_empty()).then_some(policies)
}

/// What is known of what was called.
pub(crate) fn routes<'s>(
    snapshot: &'s Snapshot,
    call: &Call,
    settings: &Settings,
) -> Option<&'s ServiceRoutes> {
    let service = match &call.called {
        Called::Service(service) => &service.key,
        // Those of the waypoint as a whole are kept with its own service.
        Called::Workload(workload) => match workload.waypoint.as_ref()? {
            GatewayAddress::Host { service, .. } => service,
            GatewayAddress::Address { address, .. } => {
                &snapshot.service_at(&settings.network, address.address)?.key
            }
        },
    };
    snapshot.routes(service).map(|routes| &**routes)
}

#[cfg(test)]
mod tests {
    use ::http::Request;

    use super::*;

    #[test]
    fn what_is_judged_is_what_is_sent() {
        let normal = |target: &str| {
            let mut head = Request::builder().uri(target).body(()).unwrap().into_parts().0;
            normalise(&mut head);
            head.uri.to_string()
        };
        assert_eq!(normal("/a/../b?c=/../d"), "/b?c=/../d");
        assert_eq!(normal("/%61"), "/a");
        assert_eq!(normal("/..?x"), "/?x");
        assert_eq!(normal("*"), "*");
        assert_eq!(normal("/a//%61"), "/a//%61", "as it was");
    }

    #[test]
    fn where_a_call_is_led_is_told_in_the_family_that_was_dialled() {
        let at = |text: &str| NetworkAddress { network: "".into(), address: text.parse().unwrap() };
        let both = [at("10.96.0.1"), at("fd00::1")];
        for (addresses, dialled, found) in [
            (&both[..], None, Some("10.96.0.1")),
            (&both, Some("10.96.0.9"), Some("10.96.0.1")),
            (&both, Some("fd00::9"), Some("fd00::1")),
            (&both[..1], Some("fd00::9"), Some("10.96.0.1")),
            (&[], Some("fd00::9"), None),
        ] {
            let parsed = |text: &str| text.parse().unwrap();
            assert_eq!(of_family(addresses, dialled.map(parsed)), found.map(parsed), "{dialled:?}");
        }
    }

    #[test]
    fn a_cookie_that_comes_in_pieces_is_judged_as_the_one_that_is_read() {
        let pieces = [("cookie", "a=1"), ("x", "y"), ("cookie", "b=2"), ("cookie", "c=3")];
        let request = pieces.iter().fold(Request::builder(), |all, (name, value)| all.header(*name, *value));
        let mut head = request.body(()).unwrap().into_parts().0;
        merge_cookies(&mut head);
        let read = Read(&head);
        let mut all = Vec::new();
        read.has("cookie", &mut |value| {
            all.push(value.to_owned());
            false
        });
        assert_eq!(all, ["a=1; b=2; c=3"]);
        assert_eq!(head.headers.len(), 2);
    }

    #[test]
    fn each_value_of_a_header_is_read_and_so_is_what_is_no_text() {
        let request = Request::builder().header("x", "a").header("x", "b").header("y", &b"\xff"[..]);
        let head = request.body(()).unwrap().into_parts().0;
        let read = Read(&head);
        assert!(read.has("x", &mut |value| value == "a") && read.has("x", &mut |value| value == "b"));
        assert!(read.has("y", &mut |_| true) && !read.has("z", &mut |_| true));
    }
}
