//! Why no stream could be opened, and who is to blame.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use http::StatusCode;
use identity::{CertificateError, NotOneOf};
use mesh::Identity;

use crate::tls::Fault;

/// Why no stream could be opened. It is cloned to all who waited for one dial.
#[derive(Debug, Clone, thiserror::Error)]
pub enum OpenError {
    /// We have nothing to show.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    #[error("cannot connect to {peer}: {source}")]
    Dial { peer: SocketAddr, source: Arc<io::Error> },
    #[error("{peer} did not {what} within {after:?}")]
    Timeout { peer: SocketAddr, what: &'static str, after: Duration },
    /// The peer proved an identity that the plan does not allow.
    #[error("{peer} proved to be {found}, expected one of {expected:?}")]
    WrongIdentity { peer: SocketAddr, found: Identity, expected: Arc<[Identity]> },
    /// We do not trust the peer's certificate, or it speaks no TLS of ours.
    #[error("TLS with {peer} failed: {reason}")]
    Tls { peer: SocketAddr, reason: String },
    /// The peer does not trust our certificate (its alert may come after the handshake).
    #[error("{peer} rejected our certificate: {reason}")]
    Rejected { peer: SocketAddr, reason: String },
    /// The peer answered the CONNECT with a status other than 200.
    #[error("{peer} refused the connection: {status}")]
    Refused { peer: SocketAddr, status: StatusCode },
    #[error("the tunnel to {peer} broke before the answer: {reason}")]
    Broken { peer: SocketAddr, reason: String },
    #[error("too many tunnels to {peer} ({limit})")]
    TooManyTunnels { peer: SocketAddr, limit: usize },
    /// What the caller asked for cannot be said in HTTP/2.
    #[error("the request to {peer} cannot be sent: {reason}")]
    BadRequest { peer: SocketAddr, reason: String },
}

impl OpenError {
    /// What a failure of TLS means for those who wait.
    pub(super) fn from_fault(peer: SocketAddr, fault: &Fault) -> Self {
        if fault.rejects_our_certificate() {
            return Self::Rejected { peer, reason: fault.to_string() };
        }
        if let Fault::Tls(error) = fault
            && let rustls::Error::InvalidCertificate(rustls::CertificateError::Other(other)) = &**error
            && let Some(NotOneOf { expected, found }) = other.0.downcast_ref()
        {
            return Self::WrongIdentity { peer, found: found.clone(), expected: expected.clone() };
        }
        Self::Tls { peer, reason: fault.to_string() }
    }
}
