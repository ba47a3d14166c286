//! Traces: where a request stands is read from its headers and told to the backend; of the requests that are recorded
//! a span is made of the whole (kind server), and one of each try at a backend (kind client).
//!
//! ```text
//! caller's span ◀─ server span ◀─┬─ client span: a try ◀─ the backend's own
//!                                └─ client span: the next try, or a copy
//! ```
//! Who is not recorded costs the reading of a header and the writing of another.

mod attempt;
pub(crate) mod export;
mod server;

use std::{rc::Rc, sync::Arc, time::SystemTime};

use ::http::{HeaderMap, HeaderName, HeaderValue, header, request::Parts};
use mesh::trace::{Arrived, Headers, REQUEST_ID, RequestId, Sampling, SpanId, Trace};
use proto::otlp::{
    AnyValue, KeyValue, Span, SpanFlags, Status, any_value::Value, span::SpanKind, status::StatusCode,
};

pub(crate) use self::attempt::{Attempt, To};
use self::export::Recorder;

/// The longest text that a span tells of a caller's, in bytes.
const SHOWN: usize = 512;

/// Reads where requests stand, and has spans recorded.
pub(crate) struct Tracer {
    pub(crate) sampling: Sampling,
    pub(crate) recorder: Recorder,
}

/// Where one request stands.
pub(crate) struct Traced {
    trace: Trace,
    /// Present where it is recorded.
    recorded: Option<Recorded>,
}

/// What is kept of a request for its spans.
struct Recorded {
    tracer: Arc<Tracer>,
    began: SystemTime,
    user_agent: Option<String>,
}

/// Headers as `mesh` reads them.
struct Read<'a>(&'a HeaderMap);

impl Headers for Read<'_> {
    fn each(&self, name: &str, told: &mut dyn FnMut(&[u8])) {
        self.0.get_all(name).iter().for_each(|value| told(value.as_bytes()));
    }
}

/// The request's identifier: its caller's, if that is one, or else a new one, which its headers then bear.
pub(crate) fn request_id(headers: &mut HeaderMap) -> RequestId {
    let mut values = headers.get_all(REQUEST_ID).iter();
    let (first, second) = (values.next(), values.next());
    if let Some(value) = first.filter(|_| second.is_none())
        && let Some(id) = RequestId::of(value.as_bytes())
    {
        return id;
    }
    let id = RequestId::random(rand::random());
    set(headers, REQUEST_ID, id.to_string());
    id
}

impl Traced {
    /// Where a request stands that begins now.
    pub(crate) fn begin(tracer: &Arc<Tracer>, head: &Parts) -> Rc<Self> {
        let trace = Trace::begin(Arrived::read(&Read(&head.headers)), tracer.sampling, rand::random);
        let recorded = trace.is_sampled.then(|| Recorded {
            tracer: tracer.clone(),
            began: SystemTime::now(),
            user_agent: head
                .headers
                .get(header::USER_AGENT)
                .map(|agent| cut(String::from_utf8_lossy(agent.as_bytes()).as_ref())),
        });
        Rc::new(Self { trace, recorded })
    }

    pub(crate) fn trace(&self) -> &Trace {
        &self.trace
    }

    /// Writes where a request stands that is sent in a span of ours.
    fn tell(&self, headers: &mut HeaderMap, span: SpanId) {
        self.trace.tell(span, |name, value| match value {
            Some(value) => set(headers, name, value),
            None => {
                headers.remove(name);
            }
        });
    }

    /// A span of this trace that is recorded, without what is its own.
    fn span(&self, kind: SpanKind, id: SpanId, parent: Option<SpanId>) -> Span {
        // Whether the parent is another process's is known: a caller's is, our own is not.
        let mut flags = u32::from(self.trace.is_sampled) | SpanFlags::ContextHasIsRemoteMask as u32;
        if kind == SpanKind::Server && parent.is_some() {
            flags |= SpanFlags::ContextIsRemoteMask as u32;
        }
        Span {
            trace_id: self.trace.id.bytes().to_vec(),
            span_id: id.bytes().to_vec(),
            trace_state: self.trace.state.clone().unwrap_or_default(),
            parent_span_id: parent.map(|parent| parent.bytes().to_vec()).unwrap_or_default(),
            kind: kind.into(),
            flags,
            ..Span::default()
        }
    }
}

fn set(headers: &mut HeaderMap, name: &'static str, value: String) {
    // What we write are names and values of headers.
    if let Ok(value) = HeaderValue::try_from(value) {
        headers.insert(HeaderName::from_static(name), value);
    }
}

/// The attributes of a span.
#[derive(Default)]
struct Attributes(Vec<KeyValue>);

impl Attributes {
    fn text(&mut self, key: &str, value: impl Into<String>) {
        self.put(key, Value::StringValue(value.into()));
    }

    fn number(&mut self, key: &str, value: impl TryInto<i64>) {
        self.put(key, Value::IntValue(value.try_into().unwrap_or(i64::MAX)));
    }

    fn flag(&mut self, key: &str, value: bool) {
        self.put(key, Value::BoolValue(value));
    }

    fn put(&mut self, key: &str, value: Value) {
        self.0.push(KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }) });
    }

    /// The method; of what is none that everybody knows, each would be a value of its own (semantic conventions, HTTP).
    fn method(&mut self, method: &str) {
        const KNOWN: [&str; 10] =
            ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "QUERY"];
        if KNOWN.contains(&method) {
            self.text("http.request.method", method);
        } else {
            self.text("http.request.method", "_OTHER");
            self.text("http.request.method_original", cut(method));
        }
    }

    /// The method of gRPC that a path names.
    fn rpc(&mut self, path: &str, status: Option<u16>) {
        self.text("rpc.system", "grpc");
        if let Some((service, method)) = path.trim_start_matches('/').split_once('/') {
            self.text("rpc.service", cut(service));
            self.text("rpc.method", cut(method));
        }
        status.iter().for_each(|status| self.number("rpc.grpc.status_code", *status));
    }

    /// One end of a request, as Istio's waypoints tell of it.
    fn workload(&mut self, side: &str, workload: &mesh::Workload) {
        self.text(&format!("istio.{side}_workload"), &*workload.workload_name);
        self.text(&format!("istio.{side}_namespace"), &*workload.namespace);
        self.text(&format!("istio.{side}_instance_name"), &*workload.name);
        self.text(&format!("istio.{side}_canonical_service"), &*workload.canonical_name);
        self.text(&format!("istio.{side}_canonical_revision"), &*workload.canonical_revision);
        self.text(&format!("istio.{side}_cluster_id"), &*workload.cluster_id);
    }
}

/// Whether a span has failed, and of what.
struct Verdict<'a> {
    error: Option<String>,
    message: &'a str,
}

impl Verdict<'_> {
    /// As the semantic conventions have it.
    fn tell(self, attributes: &mut Attributes) -> Option<Status> {
        let error = self.error?;
        attributes.text("error.type", error);
        Some(Status { message: cut(self.message), code: StatusCode::Error.into() })
    }
}

/// As in `network.protocol.version`.
fn protocol_version(protocol: &str) -> &str {
    protocol.strip_prefix("HTTP/").unwrap_or(protocol)
}

/// Nanoseconds since 1970.
fn nanos(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

fn cut(text: &str) -> String {
    let end = (0..=SHOWN.min(text.len())).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
    text[..end].to_owned()
}

#[cfg(test)]
mod tests;
