//! A certificate authority: a root of its own, made on first start, or a plugged-in intermediate.

use std::{net::IpAddr, path::Path, path::PathBuf, time::Duration};

use mesh::Identity;

/// Signs certificates of identities, and server certificates for control itself.
pub struct Authority {
    _private: (),
}

/// A server's certificate and key, both PEM.
pub struct ServerCertificate {
    /// Leaf first, then intermediates, then the root.
    pub chain_pem: String,
    /// PKCS#8.
    pub key_pem: String,
}

/// Why an authority cannot be had, or does not sign.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    #[error("cannot {what} {path}: {source}")]
    File { what: &'static str, path: PathBuf, source: std::io::Error },
    #[error("{what} is not usable: {reason}")]
    Unusable { what: String, reason: String },
    #[error("the certificate request is refused: {0}")]
    BadRequest(String),
    #[error("cannot sign: {0}")]
    Sign(String),
}

impl Authority {
    /// Opens `dir/root.pem` and `dir/key.pem`, or makes them (key mode 0600, directory 0700).
    pub fn load_or_create(dir: &Path, trust_domain: &str) -> Result<Self, AuthorityError> {
        let _ = (dir, trust_domain);
        panic!("stub")
    }

    /// Takes an intermediate (or root) from elsewhere: `chain_pem` from the signing certificate up to
    /// the root, `key_pem` its private key.
    pub fn from_pem(chain_pem: &str, key_pem: &str) -> Result<Self, AuthorityError> {
        let _ = (chain_pem, key_pem);
        panic!("stub")
    }

    /// An authority that lives in memory only: for tests.
    pub fn ephemeral(trust_domain: &str) -> Result<Self, AuthorityError> {
        let _ = trust_domain;
        panic!("stub")
    }

    /// Signs the key of a request for `identity`, whatever else the request claims. The answer is
    /// leaf, intermediates, root, each PEM.
    pub fn sign(
        &self,
        csr_pem: &str,
        identity: &Identity,
        ttl: Duration,
    ) -> Result<Vec<String>, AuthorityError> {
        let _ = (csr_pem, identity, ttl);
        panic!("stub")
    }

    /// A certificate for a server that clients reach by DNS name or address.
    pub fn server_certificate(
        &self,
        dns_names: &[String],
        addresses: &[IpAddr],
        ttl: Duration,
    ) -> Result<ServerCertificate, AuthorityError> {
        let _ = (dns_names, addresses, ttl);
        panic!("stub")
    }

    /// The root that clients must trust, PEM.
    pub fn root_pem(&self) -> &str {
        panic!("stub")
    }
}
