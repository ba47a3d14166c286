//! What can go wrong with a certificate, and who is to blame.

use std::time::Duration;

use mesh::Identity;

use crate::IssueError;

/// Why a held identity has no certificate to show.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CertificateError {
    /// A bug or a race of the caller: `hold` it first.
    #[error("no certificate of {0}: this node does not hold that identity")]
    NotHeld(Identity),
    /// The first certificate did not come in time.
    #[error("no certificate of {identity} after {waited:?}: {reason}")]
    NotYet { identity: Identity, waited: Duration, reason: String },
}

/// A chain that an authority issued and that we cannot use.
#[derive(Debug, Clone, thiserror::Error)]
pub enum BadChain {
    #[error("the certificate authority issued an empty chain")]
    Empty,
    #[error("the issued chain is not PEM of certificates: {0}")]
    NotPem(String),
    #[error("the issued chain brings no root and none is configured")]
    NoRoot,
    #[error("the issued certificate does not parse: {0}")]
    NotX509(String),
    #[error("the issued certificate is for {found}, {wanted} was asked for")]
    WrongIdentity { wanted: Identity, found: String },
    #[error("the issued certificate does not fit our key: {0}")]
    WrongKey(String),
    #[error("the issued certificate is not trusted by its own roots: {0}")]
    Untrusted(String),
}

/// Why one attempt to get a certificate failed.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum FetchError {
    #[error("cannot make a key and a request: {0}")]
    Request(String),
    #[error(transparent)]
    Issue(#[from] IssueError),
    #[error(transparent)]
    Chain(#[from] BadChain),
    #[error("the certificate authority did not answer within {0:?}")]
    Timeout(Duration),
}

/// Why a peer's certificate names no identity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeerIdentityError {
    #[error("the peer showed no certificate")]
    NoCertificate,
    #[error("the peer's certificate does not parse: {0}")]
    NotX509(String),
    #[error("the peer's certificate names no SPIFFE ID (no URI among its subject alternative names)")]
    NoSpiffeId,
    #[error("the peer's certificate names {0} URIs; an SVID has exactly one")]
    ManyUris(usize),
    #[error("the peer's certificate names {0:?}, which is no service account's SPIFFE ID")]
    NotAServiceAccount(String),
}

/// Why a handed-over state was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HandoverError {
    #[error("the handed-over identities are not in a format we know")]
    NotOurs,
    #[error("the handed-over identities have version {0}, we read version 1")]
    Version(u16),
    #[error("the handed-over identities are cut short or malformed at byte {0}")]
    Malformed(usize),
    #[error("the handed-over identities exceed the limit of {0}")]
    TooLarge(&'static str),
}
