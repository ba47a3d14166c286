//! The `forwarded` header: `for="ip:port"[;host=svc.fqdn]` (RFC 7239, the part that peers use).

use std::{fmt, net::SocketAddr, str::FromStr};

/// Who called, and by which name of the service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forwarded {
    /// The caller's own address.
    pub source: SocketAddr,
    pub host: Option<String>,
}

/// A header that is not of that form.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not of the form for=\"ip:port\"[;host=name]")]
pub struct BadForwarded;

impl FromStr for Forwarded {
    type Err = BadForwarded;
    fn from_str(text: &str) -> Result<Self, BadForwarded> {
        let _ = text;
        panic!("stub")
    }
}

impl fmt::Display for Forwarded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let _ = f;
        panic!("stub")
    }
}
