//! A collector of spans: takes what OTLP brings over gRPC, and prints one line of JSON for each span.

use std::{
    fs,
    io::Write as _,
    net::{Ipv6Addr, SocketAddr},
    path::PathBuf,
};

use anyhow::{Context, Result};
use clap::Args;
use proto::otlp::{
    AnyValue, ExportTraceServiceRequest, ExportTraceServiceResponse, KeyValue, Span, any_value,
    span::SpanKind,
    status::StatusCode,
    trace_service_server::{TraceService, TraceServiceServer},
};
use serde_json::{Map, Value, json};
use tonic::{
    Request, Response, Status,
    transport::{Identity, Server, ServerTlsConfig},
};

/// Take spans (OTLP over gRPC) and print each as a line of JSON, until killed; prints `ready` once the port listens.
#[derive(Debug, Args)]
pub(crate) struct Collect {
    /// Where to listen.
    #[arg(long, default_value_t = 4317)]
    port: u16,
    /// Speak TLS, with this certificate (PEM).
    #[arg(long, value_name = "FILE", requires = "key")]
    certificate: Option<PathBuf>,
    /// The certificate's key (PEM).
    #[arg(long, value_name = "FILE", requires = "certificate")]
    key: Option<PathBuf>,
}

impl Collect {
    pub(crate) async fn run(self) -> Result<()> {
        let address = SocketAddr::from((Ipv6Addr::UNSPECIFIED, self.port));
        let incoming = tonic::transport::server::TcpIncoming::bind(address)
            .with_context(|| format!("listen on port {}", self.port))?;
        let mut server = Server::builder();
        if let (Some(certificate), Some(key)) = (&self.certificate, &self.key) {
            let read = |path: &PathBuf| fs::read(path).with_context(|| format!("read {}", path.display()));
            let identity = Identity::from_pem(read(certificate)?, read(key)?);
            server =
                server.tls_config(ServerTlsConfig::new().identity(identity)).context("the certificate")?;
        }
        println!("ready");
        let server = server.add_service(TraceServiceServer::new(Collector));
        server.serve_with_incoming(incoming).await.context("serve")
    }
}

struct Collector;

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let mut out = std::io::stdout().lock();
        for of_resource in request.into_inner().resource_spans {
            let resource = of_resource.resource.map(|resource| attributes(&resource.attributes));
            for span in of_resource.scope_spans.iter().flat_map(|scope| &scope.spans) {
                let line = told(span, resource.as_ref());
                writeln!(out, "{line}").map_err(|error| Status::internal(error.to_string()))?;
            }
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

fn told(span: &Span, resource: Option<&Value>) -> Value {
    let kind = match span.kind() {
        SpanKind::Server => "server",
        SpanKind::Client => "client",
        SpanKind::Unspecified | SpanKind::Internal | SpanKind::Producer | SpanKind::Consumer => "other",
    };
    let status = span.status.as_ref();
    json!({
        "trace": hex(&span.trace_id),
        "span": hex(&span.span_id),
        "parent": hex(&span.parent_span_id),
        "state": span.trace_state,
        "name": span.name,
        "kind": kind,
        "start": span.start_time_unix_nano,
        "end": span.end_time_unix_nano,
        "error": status.filter(|status| status.code() == StatusCode::Error).map(|status| &status.message),
        "attributes": attributes(&span.attributes),
        "resource": resource,
    })
}

fn attributes(pairs: &[KeyValue]) -> Value {
    let pairs = pairs.iter().map(|pair| (pair.key.clone(), pair.value.as_ref().map_or(Value::Null, value)));
    Value::Object(pairs.collect::<Map<_, _>>())
}

fn value(value: &AnyValue) -> Value {
    match &value.value {
        Some(any_value::Value::StringValue(text)) => json!(text),
        Some(any_value::Value::BoolValue(flag)) => json!(flag),
        Some(any_value::Value::IntValue(number)) => json!(number),
        Some(any_value::Value::DoubleValue(number)) => json!(number),
        Some(any_value::Value::ArrayValue(array)) => array.values.iter().map(self::value).collect(),
        Some(any_value::Value::KvlistValue(list)) => attributes(&list.values),
        Some(any_value::Value::BytesValue(bytes)) => json!(hex(bytes)),
        None => Value::Null,
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
