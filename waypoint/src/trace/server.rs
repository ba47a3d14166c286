//! The span of a request as a whole, made of its record once it has ended.

use std::rc::Rc;

use proto::otlp::{Span, span::SpanKind};
use runtime::record::{Ended, Heard};

use super::{Attributes, Recorded, Traced, Verdict, nanos, protocol_version};

/// The statuses of gRPC that are a server's failure (semantic conventions, gRPC).
const FAILURES: [u16; 6] = [2, 4, 12, 13, 14, 15];

impl Traced {
    /// Who makes the span of the whole, where the request is recorded.
    pub(crate) fn heard(self: &Rc<Self>) -> Option<Heard> {
        self.recorded.as_ref()?;
        let traced = self.clone();
        Some(Box::new(move |ended| {
            if let Some(recorded) = &traced.recorded {
                recorded.tracer.recorder.record(traced.whole(recorded, ended));
            }
        }))
    }

    fn whole(&self, recorded: &Recorded, ended: &Ended<'_>) -> Span {
        let mut attributes = Attributes::default();
        let start = nanos(recorded.began);
        let status = verdict(ended).tell(&mut attributes);
        http(&mut attributes, ended);
        recorded.user_agent.iter().for_each(|agent| attributes.text("user_agent.original", agent.as_str()));
        ends(&mut attributes, ended);
        Span {
            name: name(ended),
            start_time_unix_nano: start,
            end_time_unix_nano: start.saturating_add(u64::try_from(ended.age.as_nanos()).unwrap_or(u64::MAX)),
            attributes: attributes.0,
            status,
            ..self.span(SpanKind::Server, self.trace.span, self.trace.parent)
        }
    }
}

/// As Istio's proxies call what they serve.
fn name(ended: &Ended<'_>) -> String {
    match ended.service {
        Some(service) => format!("{}:{}/*", service.key.hostname, ended.called_port),
        None => ended.method.to_owned(),
    }
}

/// A caller's own mistakes are no failures of the server.
fn verdict<'a>(ended: &Ended<'a>) -> Verdict<'a> {
    let of_grpc = ended.grpc_status.filter(|status| FAILURES.contains(status));
    let error = match (of_grpc, ended.status) {
        (Some(status), _) => Some(status.to_string()),
        (None, 500..) => Some(ended.status.to_string()),
        // Its head was sent before it broke off.
        (None, _) if ended.is_failure && matches!(ended.flags, "UC" | "UT" | "UF") => {
            Some(ended.flags.to_owned())
        }
        _ => None,
    };
    Verdict { error, message: ended.reason.unwrap_or_default() }
}

/// The semantic conventions of HTTP and of gRPC. The query is left out: it may hold what is secret.
fn http(attributes: &mut Attributes, ended: &Ended<'_>) {
    attributes.method(ended.method);
    let path = ended.path.split('?').next().unwrap_or_default();
    attributes.text("url.path", path);
    attributes.text("url.scheme", "http");
    if ended.status != 0 {
        attributes.number("http.response.status_code", ended.status);
    }
    attributes.text("network.protocol.name", "http");
    attributes.text("network.protocol.version", protocol_version(ended.protocol));
    if !ended.authority.is_empty() {
        let authority: Result<::http::uri::Authority, _> = ended.authority.parse();
        let host = authority.as_ref().map_or(ended.authority, |authority| authority.host());
        attributes.text("server.address", host);
        let port = authority.ok().and_then(|authority| authority.port_u16());
        attributes.number("server.port", port.unwrap_or(ended.called_port));
    }
    attributes.text("client.address", ended.source.ip().to_string());
    if ended.source.port() != 0 {
        attributes.number("client.port", ended.source.port());
    }
    attributes.number("http.request.body.size", ended.received);
    attributes.number("http.response.body.size", ended.sent);
    if ended.is_grpc {
        attributes.rpc(path, ended.grpc_status);
    }
}

/// What the mesh knows of the two ends, and what the waypoint did.
fn ends(attributes: &mut Attributes, ended: &Ended<'_>) {
    attributes.text("component", "proxy");
    ended.id.iter().for_each(|id| attributes.text("guid:x-request-id", id.as_str()));
    attributes.text("response_flags", ended.flags);
    ended.source_workload.iter().for_each(|workload| attributes.workload("source", workload));
    ended.source_identity.iter().for_each(|who| attributes.text("istio.source_principal", who.to_string()));
    if let Some(service) = ended.service {
        attributes.text("istio.destination_service", &*service.key.hostname);
        attributes.text("istio.destination_service_name", &*service.name);
        attributes.text("istio.destination_service_namespace", &*service.key.namespace);
    }
    if let Some(workload) = ended.destination {
        attributes.workload("destination", workload);
        attributes.text("istio.destination_principal", workload.identity().to_string());
    }
    if let Some((route, rule, name)) = ended.route {
        attributes.text("culvert.route", route.to_string());
        attributes.number("culvert.rule", rule as u64);
        name.iter().for_each(|name| attributes.text("culvert.rule_name", *name));
    }
    ended.policy.iter().for_each(|policy| attributes.text("culvert.policy", policy.to_string()));
    attributes.number("culvert.tries", ended.tries);
}
