//! The stream to control: what this node measured goes up, what is wanted of its pods comes down.
//!
//! Each report is the full state, so the newest replaces those not sent yet. The token and the
//! certificate are read anew for each attempt. While control is away nothing changes here.

use std::{fs, io, path::PathBuf, time::Duration};

use prometheus_client::metrics::gauge::Gauge;
use proto::node::{NodeDirective, NodeReport, PodReport, node_service_client::NodeServiceClient};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep},
};
use tokio_stream::{StreamExt, wrappers::WatchStream};
use tonic::{
    Request, Status,
    metadata::MetadataValue,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint},
};

/// Wait before the next attempt, doubled after each that failed.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));
/// A stream that lived this long was no failure.
const GOOD: Duration = Duration::from_secs(10);
const CONNECT_PATIENCE: Duration = Duration::from_secs(5);
/// HTTP/2 PING while connected, and the time to answer it: control behind a cut wire is noticed.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(20));
/// Pods of one node, with their addresses, are far below this many bytes.
const MAX_MESSAGE: usize = 16 << 20;

/// Where control is and who we are.
#[derive(Debug, Clone)]
pub(crate) struct Control {
    pub(crate) node: String,
    pub(crate) uri: String,
    pub(crate) ca: PathBuf,
    pub(crate) token: PathBuf,
}

/// The newest report; `None` while there is nothing to say yet.
pub(crate) type Reports = watch::Receiver<Option<Vec<PodReport>>>;

/// Why there is no stream.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("{what} {path} cannot be read: {error}")]
    Unreadable { what: &'static str, path: PathBuf, error: io::Error },
    #[error("the token in {0} is not one line of printable characters")]
    BadToken(PathBuf),
    #[error("{uri} is no address of control: {error}")]
    BadUri { uri: String, error: tonic::transport::Error },
    #[error("control at {uri} cannot be reached: {}", sources(error))]
    Unreachable { uri: String, error: tonic::transport::Error },
    #[error("control refused: {} ({:?})", .0.message(), .0.code())]
    Refused(Status),
    #[error("the stream to control broke: {0}")]
    Broken(String),
    #[error("control closed the stream")]
    Closed,
}

/// Keeps a stream for ever.
pub(crate) async fn run(
    control: Control,
    reports: Reports,
    directives: mpsc::Sender<NodeDirective>,
    connected: Gauge,
) {
    let mut wait = BACK_OFF.0;
    let mut last = String::new();
    loop {
        let begun = Instant::now();
        let Err(ended) = stream(&control, &reports, &directives, &connected).await;
        connected.set(0);
        if begun.elapsed() > GOOD {
            wait = BACK_OFF.0;
        }
        let ended = ended.to_string();
        // Told once, not at every attempt.
        if ended == last {
            tracing::debug!("{ended}; next attempt in {}ms", wait.as_millis());
        } else {
            tracing::warn!("{ended}; the pods are served as they are until it is back");
        }
        last = ended;
        sleep(wait.mul_f64(rand::random_range(0.75..1.25))).await;
        wait = (wait * 2).min(BACK_OFF.1);
    }
}

async fn stream(
    control: &Control,
    reports: &Reports,
    directives: &mpsc::Sender<NodeDirective>,
    connected: &Gauge,
) -> Result<std::convert::Infallible, Ended> {
    let channel = connect(control).await?;
    let node = control.node.clone();
    let outgoing = WatchStream::new(reports.clone()).filter_map(move |pods| {
        Some(NodeReport { node: node.clone(), version: runtime::VERSION.to_owned(), pods: pods? })
    });
    let mut request = Request::new(outgoing);
    request.metadata_mut().insert("authorization", token(&control.token)?);
    let mut client = NodeServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE);
    let mut incoming = client.sync(request).await.map_err(Ended::from)?.into_inner();
    loop {
        let directive = incoming.message().await.map_err(Ended::from)?.ok_or(Ended::Closed)?;
        // Control speaks first: only then it has taken the token and the report.
        if connected.set(1) == 0 {
            tracing::info!(control = control.uri, "connected to control");
        }
        if directives.send(directive).await.is_err() {
            // The program ends.
            return Err(Ended::Closed);
        }
    }
}

async fn connect(control: &Control) -> Result<Channel, Ended> {
    let uri = || control.uri.clone();
    let ca = read("the certificate of control", &control.ca)?;
    let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(ca));
    let endpoint = Endpoint::from_shared(uri())
        .and_then(|endpoint| endpoint.tls_config(tls))
        .map_err(|error| Ended::BadUri { uri: uri(), error })?
        .connect_timeout(CONNECT_PATIENCE)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEPALIVE.0)
        .keep_alive_timeout(KEEPALIVE.1)
        .keep_alive_while_idle(true);
    endpoint.connect().await.map_err(|error| Ended::Unreachable { uri: uri(), error })
}

fn token(path: &PathBuf) -> Result<MetadataValue<tonic::metadata::Ascii>, Ended> {
    let token = read("the node's token", path)?;
    let token = String::from_utf8_lossy(&token);
    let mut value = MetadataValue::try_from(format!("Bearer {}", token.trim()))
        .map_err(|_| Ended::BadToken(path.clone()))?;
    value.set_sensitive(true);
    Ok(value)
}

fn read(what: &'static str, path: &PathBuf) -> Result<Vec<u8>, Ended> {
    fs::read(path).map_err(|error| Ended::Unreadable { what, path: path.clone(), error })
}

impl From<Status> for Ended {
    /// A status that came from control is its word; one made here of a broken connection has a source.
    fn from(status: Status) -> Self {
        match std::error::Error::source(&status) {
            Some(source) => Self::Broken(sources(source)),
            None => Self::Refused(status),
        }
    }
}

/// An error with what caused it: tonic's own text says only "transport error".
fn sources(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}
