//! The HBONE door: TLS proves who calls, and each CONNECT is an arrival of its own.

use std::{net::SocketAddr, rc::Rc};

use hbone::server::{Ends, Limits, ServeError, serve};
use tokio::net::TcpStream;

use crate::{
    arrival,
    worker::{Load, Worker},
};

/// Why a caller got no tunnel.
#[derive(Debug, thiserror::Error)]
enum NoTunnel {
    #[error(transparent)]
    Certificate(#[from] identity::CertificateError),
    #[error("the socket cannot be used: {0}")]
    Socket(#[from] std::io::Error),
    #[error(transparent)]
    Serve(#[from] ServeError),
}

/// Serves one TCP connection with all the streams that come over it.
pub(crate) async fn tunnel(worker: Rc<Worker>, stream: std::net::TcpStream, _load: Load) {
    let shared = worker.shared.clone();
    // While it is open the process does not end, within its deadline.
    let _hold = shared.drain.hold();
    shared.metrics.tunnels.inc();
    if let Err(error) = Box::pin(serve_tunnel(worker, stream)).await {
        shared.metrics.handshake_failures.inc();
        tracing::debug!(%error, "no tunnel");
    }
    shared.metrics.tunnels.dec();
}

async fn serve_tunnel(worker: Rc<Worker>, stream: std::net::TcpStream) -> Result<(), NoTunnel> {
    let shared = worker.shared.clone();
    let canonical = |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
    let ends = Ends { remote: canonical(stream.peer_addr()?), local: canonical(stream.local_addr()?) };
    let stream = TcpStream::from_std(stream)?;
    let certified = shared.store.certified(&shared.settings.identity).await?;
    let config = shared.store.server_config(&certified);
    let limits = Limits { settings: shared.settings.hbone.clone(), ..Limits::default() };
    let drain = {
        let drain = shared.drain.clone();
        async move { drain.started().await }
    };
    let handler = move |arrival| {
        let worker = worker.clone();
        async move { arrival::serve(&worker, arrival).await }
    };
    Ok(serve(stream, ends, config, &limits, drain, handler).await.map(drop)?)
}
