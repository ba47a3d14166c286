//! Why no stream could be opened, and who is to blame.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use http::StatusCode;
use identity::{CertificateError, NotOneOf};
use mesh::Identity;

use crate::tls::Fault;

/// What a peer may be late with before it has said anything.
pub(super) const ACCEPT: &str = "accept a TCP connection";
pub(super) const HANDSHAKE: &str = "finish the TLS handshake";
pub(super) const READY: &str = "take a tunnel";

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
    /// The tunnel's peer went silent before it had answered, and nothing of the caller's was sent.
    #[error("{peer} does not answer any more, not even a PING within {after:?}")]
    Silent { peer: SocketAddr, after: Duration },
    #[error("the tunnel to {peer} broke before the answer: {reason}")]
    Broken { peer: SocketAddr, reason: String },
    #[error("too many tunnels to {peer} ({limit})")]
    TooManyTunnels { peer: SocketAddr, limit: usize },
    /// What the caller asked for cannot be said in HTTP/2.
    #[error("the request to {peer} cannot be sent: {reason}")]
    BadRequest { peer: SocketAddr, reason: String },
}

impl OpenError {
    /// The peer that has not answered at all, so that nothing was sent and another may be tried. What it has refused, or
    /// cannot prove, is an answer.
    pub fn unanswered(&self) -> Option<SocketAddr> {
        match self {
            Self::Timeout { peer, what: ACCEPT | HANDSHAKE | READY, .. } | Self::Silent { peer, .. } => {
                Some(*peer)
            }
            Self::Dial { peer, source } => is_nobody_there(source.kind()).then_some(*peer),
            Self::Certificate(_)
            | Self::Timeout { .. }
            | Self::WrongIdentity { .. }
            | Self::Tls { .. }
            | Self::Rejected { .. }
            | Self::Refused { .. }
            | Self::Broken { .. }
            | Self::TooManyTunnels { .. }
            | Self::BadRequest { .. } => None,
        }
    }

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

/// Whether a dial failed for want of somebody at the other end, and not of something here.
fn is_nobody_there(kind: io::ErrorKind) -> bool {
    use io::ErrorKind::{ConnectionRefused, ConnectionReset, HostUnreachable, NetworkUnreachable, TimedOut};
    matches!(kind, TimedOut | HostUnreachable | NetworkUnreachable | ConnectionRefused | ConnectionReset)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_has_not_answered_at_all_is_left_for_another() {
        let peer: SocketAddr = ([10, 0, 0, 1], 15008).into();
        let late = |what| OpenError::Timeout { peer, what, after: Duration::from_secs(1) };
        let dial = |kind: io::ErrorKind| OpenError::Dial { peer, source: Arc::new(kind.into()) };
        let reason = || "why".to_owned();
        for (error, is_unanswered) in [
            (late(ACCEPT), true),
            (late(HANDSHAKE), true),
            (late(READY), true),
            (OpenError::Silent { peer, after: Duration::from_secs(1) }, true),
            (dial(io::ErrorKind::TimedOut), true),
            (dial(io::ErrorKind::HostUnreachable), true),
            (dial(io::ErrorKind::ConnectionRefused), true),
            (dial(io::ErrorKind::AddrNotAvailable), false),
            (dial(io::ErrorKind::PermissionDenied), false),
            (late("answer the CONNECT"), false),
            (OpenError::Refused { peer, status: StatusCode::SERVICE_UNAVAILABLE }, false),
            (OpenError::Rejected { peer, reason: reason() }, false),
            (OpenError::Tls { peer, reason: reason() }, false),
            (OpenError::Broken { peer, reason: reason() }, false),
        ] {
            assert_eq!(error.unanswered(), is_unanswered.then_some(peer), "{error}");
        }
    }
}
