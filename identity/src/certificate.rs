//! One certificate with its key and the roots it is judged against: immutable, shared by all workers.

use std::{sync::Arc, time::SystemTime};

use mesh::Identity;
use rustls::{RootCertStore, pki_types::CertificateDer};

/// A certificate of an identity, with its private key and the trust bundle of its time.
pub struct Certified {
    pub identity: Identity,
    /// Leaf first, then intermediates; the root is not among them.
    pub chain: Vec<CertificateDer<'static>>,
    pub roots: Arc<RootCertStore>,
    pub not_before: SystemTime,
    pub not_after: SystemTime,
    /// Hexadecimal.
    pub serial: String,
}
