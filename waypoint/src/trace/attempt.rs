//! The span of one try at a backend: begun before it is sent, and recorded when it is dropped, however it ended.

use std::{
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::{Instant, SystemTime},
};

use ::http::request::Parts;
use mesh::{ServiceKey, Workload, trace::SpanId};
use proto::otlp::{Span, span::SpanKind};

use super::{Attributes, Traced, Verdict, nanos};
use crate::request::Version;

/// Where a try goes.
pub(crate) struct To<'a> {
    /// The service that was chosen, and its port; none of what was called by its own address.
    pub(crate) service: Option<(&'a ServiceKey, u16)>,
    pub(crate) workload: &'a Arc<Workload>,
    pub(crate) address: SocketAddr,
    pub(crate) version: Version,
    /// Tries before this one.
    pub(crate) resends: u32,
    /// It is a copy.
    pub(crate) is_mirror: bool,
}

/// One try that is recorded.
pub(crate) struct Attempt {
    traced: Rc<Traced>,
    id: SpanId,
    name: String,
    began: SystemTime,
    since: Instant,
    attributes: Attributes,
    is_grpc: bool,
    path: String,
    status: Option<u16>,
    grpc: Option<u16>,
    failure: Option<(&'static str, String)>,
    /// It has come to its end in order.
    is_whole: bool,
}

impl Traced {
    /// Begins a try: its headers tell where it stands. What is given back is there where it is recorded.
    pub(crate) fn attempt(
        self: &Rc<Self>,
        head: &mut Parts,
        is_grpc: bool,
        to: &To<'_>,
    ) -> Option<Box<Attempt>> {
        let id = SpanId::random(rand::random());
        self.tell(&mut head.headers, id);
        self.recorded.as_ref()?;
        Some(Box::new(Attempt {
            id,
            name: name(to),
            began: SystemTime::now(),
            since: Instant::now(),
            attributes: attributes(head, to),
            is_grpc,
            path: super::cut(head.uri.path()),
            status: None,
            grpc: None,
            failure: None,
            is_whole: false,
            traced: self.clone(),
        }))
    }
}

/// As Envoy calls what it asks.
fn name(to: &To<'_>) -> String {
    let kind = if to.is_mirror { "mirror" } else { "router" };
    match to.service {
        Some((service, port)) => format!("{kind} {}:{port} egress", service.hostname),
        None => format!("{kind} {} egress", to.workload.workload_name),
    }
}

fn attributes(head: &Parts, to: &To<'_>) -> Attributes {
    let mut attributes = Attributes::default();
    attributes.method(head.method.as_str());
    attributes.text("url.path", super::cut(head.uri.path()));
    attributes.text("url.scheme", "http");
    match to.service {
        Some((service, port)) => {
            attributes.text("server.address", &*service.hostname);
            attributes.number("server.port", port);
        }
        None => {
            attributes.text("server.address", to.address.ip().to_string());
            attributes.number("server.port", to.address.port());
        }
    }
    attributes.text("network.peer.address", to.address.ip().to_string());
    attributes.number("network.peer.port", to.address.port());
    attributes.text("network.protocol.name", "http");
    let version = match to.version {
        Version::One => "1.1",
        Version::Two => "2",
    };
    attributes.text("network.protocol.version", version);
    if to.resends > 0 {
        attributes.number("http.request.resend_count", to.resends);
    }
    attributes.text("component", "proxy");
    if to.is_mirror {
        attributes.flag("culvert.mirror", true);
    }
    attributes.workload("destination", to.workload);
    attributes.text("istio.destination_principal", to.workload.identity().to_string());
    attributes
}

impl Attempt {
    /// The head of the answer has come.
    pub(crate) fn answered(&mut self, status: u16) {
        self.status = Some(status);
    }

    /// The status of a call of gRPC.
    pub(crate) fn grpc_status(&mut self, status: u16) {
        self.grpc = Some(status);
    }

    /// It has come to its end in order.
    pub(crate) fn finished(&mut self) {
        self.is_whole = true;
    }

    /// It has failed: `kind` as in `error.type`. The first failure counts.
    pub(crate) fn failed(&mut self, kind: &'static str, reason: impl std::fmt::Display) {
        self.failure.get_or_insert_with(|| (kind, reason.to_string()));
    }

    fn span(&mut self) -> Span {
        let mut attributes = std::mem::take(&mut self.attributes);
        self.status.iter().for_each(|status| attributes.number("http.response.status_code", *status));
        if self.is_grpc {
            attributes.rpc(&self.path, self.grpc);
        }
        let (error, message) = match (&self.failure, self.status, self.grpc) {
            (Some((kind, reason)), ..) => (Some((*kind).to_owned()), reason.as_str()),
            // Whoever asks has failed, too, where his own mistake is answered.
            (None, Some(status @ 400..), _) => (Some(status.to_string()), ""),
            (None, _, Some(status @ 1..)) => (Some(status.to_string()), ""),
            (None, ..) if !self.is_whole => {
                (Some("cancelled".to_owned()), "nobody has waited for the end of the answer")
            }
            (None, ..) => (None, ""),
        };
        let status = Verdict { error, message }.tell(&mut attributes);
        let start = nanos(self.began);
        let took = u64::try_from(self.since.elapsed().as_nanos()).unwrap_or(u64::MAX);
        Span {
            name: std::mem::take(&mut self.name),
            start_time_unix_nano: start,
            end_time_unix_nano: start.saturating_add(took),
            attributes: attributes.0,
            status,
            ..self.traced.span(SpanKind::Client, self.id, Some(self.traced.trace.span))
        }
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        let span = self.span();
        if let Some(recorded) = &self.traced.recorded {
            recorded.tracer.recorder.record(span);
        }
    }
}
