//! Who a workload is, and how it proves it: certificates of SPIFFE identities, their renewal, trust
//! bundles, and the rustls configurations made from them.
//!
//! This crate never opens a socket and never writes a workload's key anywhere: private keys live in
//! memory and leave it only through [`Store::export`], for the next ztunnel of the same node.
#![forbid(unsafe_code)]

pub mod assertion;
pub mod authority;
mod certificate;
mod clock;
mod error;
mod handover;
mod issuer;
mod renew;
mod signatures;
mod store;
mod tls;
mod verify;

pub use certificate::Certified;
pub use clock::{Clock, SystemClock, TokioClock};
pub use error::{BadChain, CertificateError, HandoverError, PeerIdentityError};
pub use issuer::{IssueError, Issued, Issuer};
pub use mesh::Identity;
pub use store::{CertificateSummary, Store, StoreOptions};
pub use tls::{ALPN_H2, provider};
pub use verify::{NotOneOf, UntrustedDomain, peer_expiry, peer_identity};
