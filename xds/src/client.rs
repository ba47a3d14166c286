//! The discovery stream: opened, kept, opened again.

use std::{convert::Infallible, net::IpAddr, sync::Arc, time::Duration};

use prost_types::{Struct, Value, value::Kind};
use proto::discovery::{
    DeltaDiscoveryRequest, Node, aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::Request;
use tracing::{debug, info, warn};

use crate::{
    Connection, Control, Mesh,
    backoff::Backoff,
    control::{ControlError, causes, name_cluster},
    session::Session,
};

const BACKOFF_LEAST: Duration = Duration::from_millis(250);
const BACKOFF_MOST: Duration = Duration::from_secs(15);

/// What the client needs to know.
#[derive(Debug, Clone)]
pub struct Options {
    pub control: Control,
    pub proxy: Proxy,
    /// The cluster this node belongs to (`Kubernetes` unless configured).
    pub cluster: String,
    /// Stands in where a resource names no trust domain.
    pub trust_domain: String,
    /// A waypoint is told of routes, too.
    pub routes: bool,
}

/// Who asks. Control only reports it; the token is what counts.
#[derive(Debug, Clone)]
pub struct Proxy {
    /// The node it serves.
    pub node: String,
    /// Its own pod's name and namespace; any names where it runs in none.
    pub name: String,
    pub namespace: String,
    pub address: IpAddr,
}

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
enum StreamError {
    #[error(transparent)]
    Control(#[from] ControlError),
    #[error("control refused the stream or ended it: {0}")]
    Status(String),
    #[error("control closed the stream")]
    Closed,
}

/// Follows control for ever and keeps `mesh` up to date; drop the future to end it. Applying a first
/// answer of many thousand resources takes its time on this task: do not run it on a runtime that carries
/// connections.
pub async fn run(options: Options, mesh: Arc<Mesh>) -> Infallible {
    let mut session = Session::new(&options.trust_domain, &options.cluster).with_routes(options.routes);
    let mut backoff = Backoff::new(BACKOFF_LEAST, BACKOFF_MOST);
    let node = node(&options);
    loop {
        let Err(error) = stream(&options, &node, &mut session, &mesh, &mut backoff).await;
        let wait = backoff.wait();
        warn!(
            control = options.control.uri,
            "discovery: {error}; what is known is kept, next attempt in {} ms",
            wait.as_millis()
        );
        mesh.set_connection(Connection::Away(error.to_string()));
        tokio::time::sleep(wait).await;
    }
}

/// One stream, from its opening to its end.
async fn stream(
    options: &Options,
    node: &Node,
    session: &mut Session,
    mesh: &Mesh,
    backoff: &mut Backoff,
) -> Result<Infallible, StreamError> {
    let channel = options.control.connect().await?;
    let mut client =
        AggregatedDiscoveryServiceClient::new(channel).max_decoding_message_size(proto::MAX_MESSAGE);
    // Unbounded, yet each answer brings one request, and the next answer waits for it.
    let (requests, outgoing) = mpsc::unbounded_channel::<DeltaDiscoveryRequest>();
    for request in session.open(node) {
        let _ = requests.send(request);
    }
    let mut request = Request::new(UnboundedReceiverStream::new(outgoing));
    request.metadata_mut().insert("authorization", options.control.bearer().await?);
    name_cluster(request.metadata_mut(), &options.cluster);
    let answer = client.delta_aggregated_resources(request).await.map_err(status)?;
    info!(control = options.control.uri, "discovery stream open");
    mesh.set_connection(Connection::Up);
    let mut answers = answer.into_inner();
    while let Some(answer) = answers.message().await.map_err(status)? {
        backoff.reset();
        debug!(
            type_url = answer.type_url,
            resources = answer.resources.len(),
            removed = answer.removed_resources.len(),
            "discovery answer"
        );
        let outcome = session.receive(answer);
        for (name, reason) in &outcome.refused {
            warn!("discovery: resource {name} is refused, its last good version stays: {reason}");
        }
        mesh.count_refused(outcome.refused.len());
        // In force before it is acknowledged: control counts on that when it withdraws something.
        mesh.publish(session.snapshot().clone());
        let _ = requests.send(outcome.reply);
    }
    Err(StreamError::Closed)
}

fn status(status: tonic::Status) -> StreamError {
    StreamError::Status(causes(&status))
}

fn node(options: &Options) -> Node {
    let Proxy { node, name, namespace, address } = &options.proxy;
    let kind = if options.routes { "waypoint" } else { "ztunnel" };
    let text = |text: String| Value { kind: Some(Kind::StringValue(text)) };
    let fields = [
        ("CLUSTER_ID", text(options.cluster.clone())),
        // Several would have commas between them: istiod ends the stream of one who sends a list.
        ("INSTANCE_IPS", text(address.to_string())),
        ("NAME", text(name.clone())),
        ("NAMESPACE", text(namespace.clone())),
        ("NODE_NAME", text(node.clone())),
    ];
    Node {
        id: format!("{kind}~{address}~{name}.{namespace}~{namespace}.svc.cluster.local"),
        metadata: Some(Struct { fields: fields.map(|(name, value)| (name.to_owned(), value)).into() }),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_says_in_which_namespace_its_pod_is() {
        let control = Control {
            uri: "https://istiod:15012".into(),
            ca: "ca".into(),
            token: "t".into(),
            server_name: None,
        };
        let proxy = Proxy {
            node: "worker".into(),
            name: "ztunnel-x".into(),
            namespace: "istio-system".into(),
            address: IpAddr::from([10, 0, 0, 1]),
        };
        let cluster = "Kubernetes".to_owned();
        let trust_domain = "cluster.local".into();
        let node = node(&Options { control, proxy, cluster, trust_domain, routes: false });
        // istiod compares both with the namespace of the token.
        assert_eq!(node.id, "ztunnel~10.0.0.1~ztunnel-x.istio-system~istio-system.svc.cluster.local");
        let namespace = Some(Kind::StringValue("istio-system".into()));
        let fields = node.metadata.unwrap().fields;
        assert_eq!(fields["NAMESPACE"].kind, namespace);
        assert_eq!(fields["INSTANCE_IPS"].kind, Some(Kind::StringValue("10.0.0.1".into())));
    }
}
