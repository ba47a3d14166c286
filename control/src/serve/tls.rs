//! The TLS door: handshakes with a deadline, and a certificate of our own authority that is made anew
//! before it ends and always names the address the client has dialled.

use std::{
    collections::HashMap,
    io,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use identity::authority::{Authority, AuthorityError};
use rustls::ServerConfig;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc},
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_stream::wrappers::ReceiverStream;
use tracing::{debug, warn};

use super::Signer;

/// Life of a server certificate; a new one is made at half of it.
const LIFETIME: Duration = Duration::from_secs(24 * 3600);
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections beyond this number wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 8192;
/// Local addresses for which a certificate is kept.
const MAX_ADDRESSES: usize = 256;
/// After a failed accept (mostly: no descriptors left).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Control's own certificates.
pub struct Identities {
    signer: Signer,
    names: Vec<String>,
    addresses: Vec<IpAddr>,
    by_address: Mutex<HashMap<IpAddr, Made>>,
}

/// A configuration, by whom its certificate was signed, and when it is made anew.
struct Made {
    config: Arc<ServerConfig>,
    by: Arc<Authority>,
    renew: Instant,
}

impl Identities {
    /// Certificates for `names` and `addresses`, besides the address each client has dialled.
    pub fn new(signer: Signer, names: Vec<String>, addresses: Vec<IpAddr>) -> Self {
        Self { signer, names, addresses, by_address: Mutex::default() }
    }

    /// The configuration for a client that has reached us at `local`.
    fn config(&self, local: IpAddr) -> Result<Arc<ServerConfig>, String> {
        let local = local.to_canonical();
        let now = Instant::now();
        let by = self.signer.current();
        let mut by_address = self.by_address.lock().unwrap_or_else(PoisonError::into_inner);
        let good = |made: &&Made| now < made.renew && Arc::ptr_eq(&made.by, &by);
        if let Some(made) = by_address.get(&local).filter(good) {
            return Ok(made.config.clone());
        }
        let config = self.make(&by, local)?;
        if by_address.len() >= MAX_ADDRESSES {
            by_address.clear();
        }
        by_address.insert(local, Made { config: config.clone(), by, renew: now + LIFETIME / 2 });
        Ok(config)
    }

    fn make(&self, authority: &Authority, local: IpAddr) -> Result<Arc<ServerConfig>, String> {
        let mut addresses = self.addresses.clone();
        if !addresses.contains(&local) {
            addresses.push(local);
        }
        let made = authority
            .server_certificate(&self.names, &addresses, LIFETIME)
            .map_err(|error: AuthorityError| error.to_string())?;
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(made.chain_pem.as_bytes())
            .collect::<Result<_, _>>()
            .map_err(|error| error.to_string())?;
        let key =
            PrivateKeyDer::from_pem_slice(made.key_pem.as_bytes()).map_err(|error| error.to_string())?;
        let mut config =
            ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
                .with_safe_default_protocol_versions()
                .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key))
                .map_err(|error| error.to_string())?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Arc::new(config))
    }
}

/// Connections whose handshake is done.
pub(super) fn incoming(
    listener: TcpListener,
    identities: Arc<Identities>,
) -> ReceiverStream<io::Result<TlsStream<TcpStream>>> {
    let (ready, incoming) = mpsc::channel(16);
    tokio::spawn(async move {
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let Ok(place) = places.clone().acquire_owned().await else { return };
            let stream = tokio::select! {
                () = ready.closed() => return,
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => stream,
                    Err(error) => {
                        warn!("cannot accept a connection: {error}");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                        continue;
                    }
                },
            };
            let (ready, identities) = (ready.clone(), identities.clone());
            tokio::spawn(async move {
                // The place is for handshakes and queue; connections are bounded by their keepalive.
                let _place = place;
                match timeout(HANDSHAKE_TIMEOUT, handshake(stream, &identities)).await {
                    Ok(Ok(stream)) => drop(ready.send(Ok(stream)).await),
                    Ok(Err(error)) => debug!("TLS handshake failed: {error}"),
                    Err(_) => debug!("TLS handshake took longer than {HANDSHAKE_TIMEOUT:?}"),
                }
            });
        }
    });
    ReceiverStream::new(incoming)
}

async fn handshake(stream: TcpStream, identities: &Identities) -> io::Result<TlsStream<TcpStream>> {
    stream.set_nodelay(true)?;
    let config = identities.config(stream.local_addr()?.ip()).map_err(|error| {
        warn!("no server certificate: {error}");
        io::Error::other(error)
    })?;
    TlsAcceptor::from(config).accept(stream).await
}
