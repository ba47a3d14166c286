//! SPIFFE verification on top of webpki: a chain to our roots, and a URI SAN that we accept.

use std::sync::Arc;

use mesh::Identity;
use rustls::pki_types::CertificateDer;

use crate::PeerIdentityError;

/// The peer proved an identity, but not one that the plan allows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the peer proved to be {found}, expected one of {expected:?}")]
pub struct NotOneOf {
    pub expected: Arc<[Identity]>,
    pub found: Identity,
}

/// The peer's trust domain is not one that this node accepts.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the peer proved to be {found}, whose trust domain is not accepted here")]
pub struct UntrustedDomain {
    pub found: Identity,
}

/// The identity in a peer's chain (leaf first). The chain must have been verified already.
pub fn peer_identity(chain: &[CertificateDer<'_>]) -> Result<Identity, PeerIdentityError> {
    let _ = chain;
    panic!("stub")
}
