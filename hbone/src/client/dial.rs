//! A new tunnel: TCP, TLS, HTTP/2, each within its time.

use std::{io, net::SocketAddr, rc::Rc, sync::Arc, time::Duration};

use identity::{Store, peer_identity};
use tokio::time::timeout;

use super::{
    Key, OpenError, Peers,
    connection::{Connection, UNSETTLED, drive},
    error::{ACCEPT, HANDSHAKE},
};
use crate::{Settings, Transport, chunk::Chunk, tls};

/// Dials, proves both ends, and starts the tunnel's driver.
pub(super) async fn dial<D, T>(
    key: &Key,
    store: &Store,
    settings: &Rc<Settings>,
    peers: &Arc<Peers>,
    dial: D,
) -> Result<Rc<Connection>, OpenError>
where
    D: AsyncFnOnce() -> io::Result<T>,
    T: Transport,
{
    let peer = key.peer;
    let certified = store.certified(&key.source).await?;
    let transport = within(settings.dial_timeout, peer, ACCEPT, dial())
        .await?
        .map_err(|source| OpenError::Dial { peer, source: Arc::new(source) })?;
    let config = store.client_config(&certified, &key.expected);
    let connecting = tls::connect(transport.into_link(), config, peer.ip());
    let handshaken = within(settings.handshake_timeout, peer, HANDSHAKE, connecting)
        .await?
        .map_err(|fault| OpenError::from_fault(peer, &fault))?;
    let identity = peer_identity(&handshaken.chain)
        .map_err(|error| OpenError::Tls { peer, reason: error.to_string() })?;
    let stream = handshaken.stream;
    // Only writes into the cork: it cannot wait for the peer.
    let (sender, h2) = builder(settings)
        .handshake::<_, Chunk>(stream.clone())
        .await
        .map_err(|error| OpenError::Broken { peer, reason: error.to_string() })?;
    let connection = Connection::new(peer, identity, stream.socket(), certified, sender, settings);
    tokio::task::spawn_local(drive(h2, stream, connection.clone(), settings.clone(), peers.clone()));
    Ok(connection)
}

async fn within<F: Future>(
    after: Duration,
    peer: SocketAddr,
    what: &'static str,
    future: F,
) -> Result<F::Output, OpenError> {
    timeout(after, future).await.map_err(|_elapsed| OpenError::Timeout { peer, what, after })
}

fn builder(settings: &Settings) -> h2::client::Builder {
    let mut builder = h2::client::Builder::new();
    builder
        .enable_push(false)
        .initial_window_size(settings.stream_window)
        .initial_connection_window_size(settings.connection_window)
        .max_frame_size(settings.max_frame)
        .max_header_list_size(settings.client_header_list)
        .max_send_buffer_size(settings.send_buffer)
        .max_concurrent_reset_streams(settings.max_streams as usize)
        .initial_max_send_streams(UNSETTLED);
    builder
}
