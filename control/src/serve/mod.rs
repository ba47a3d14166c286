//! What nodes call: discovery, certificates and the node service, over TLS on one listener.

mod ca;
mod node;
mod signer;
mod tls;

use std::{io, sync::Arc, time::Duration};

use proto::{
    ca::istio_certificate_service_server::IstioCertificateServiceServer,
    discovery::aggregated_discovery_service_server::AggregatedDiscoveryServiceServer,
    node::node_service_server::NodeServiceServer,
};
use tokio::net::TcpListener;
use tonic::transport::Server;

pub use ca::{Certificates, Entitled};
pub use node::NodeReports;
pub use signer::Signer;
pub use tls::Identities;

use crate::publish::Discovery;

/// A silent connection is asked for a sign of life this often, and given [`KEEPALIVE_TIMEOUT`] for it.
const KEEPALIVE: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// HTTP/2 flow-control window of a connection and of a stream, towards us.
const WINDOW: u32 = 1024 * 1024;
/// Streams of one connection: a node needs two and a few certificates at a time.
const MAX_STREAMS: u32 = 100;

/// Everything that is served.
pub struct Services {
    pub discovery: Discovery,
    pub certificates: Certificates,
    pub nodes: NodeReports,
}

/// Serves on `listener` until `end`.
///
/// # Errors
/// When the server itself breaks; a broken connection costs nothing but itself.
pub async fn serve(
    listener: TcpListener,
    identities: Arc<Identities>,
    services: Services,
    end: impl Future<Output = ()>,
) -> io::Result<()> {
    let discovery = AggregatedDiscoveryServiceServer::new(services.discovery)
        // The first request of a stream that comes back lists all it holds.
        .max_decoding_message_size(proto::MAX_MESSAGE);
    Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .initial_connection_window_size(WINDOW)
        .initial_stream_window_size(WINDOW)
        .max_concurrent_streams(MAX_STREAMS)
        .add_service(discovery)
        .add_service(IstioCertificateServiceServer::new(services.certificates))
        .add_service(NodeServiceServer::new(services.nodes))
        .serve_with_incoming_shutdown(tls::incoming(listener, identities), end)
        .await
        .map_err(io::Error::other)
}
