//! The seam to whoever signs: control's CA service, istiod, or an authority in this process.

use std::{future::Future, pin::Pin};

use mesh::Identity;

/// What a certificate authority answers.
#[derive(Debug, Clone)]
pub struct Issued {
    /// PEM, the leaf first; the last element holds the root or roots (`istio.v1.auth` `cert_chain`).
    pub chain_pem: Vec<String>,
}

/// Why no certificate was issued.
#[derive(Debug, Clone, thiserror::Error)]
pub enum IssueError {
    /// The authority understood and said no; asking again soon is of little use.
    #[error("the certificate authority refused: {0}")]
    Denied(String),
    /// The authority was not reached, or could not answer.
    #[error("the certificate authority is not available: {0}")]
    Unavailable(String),
}

/// Signs certificate requests.
pub trait Issuer: Send + Sync {
    /// Asks for a certificate of `identity` over the key of `csr_pem`.
    fn issue(
        &self,
        identity: &Identity,
        csr_pem: String,
    ) -> Pin<Box<dyn Future<Output = Result<Issued, IssueError>> + Send>>;
}
