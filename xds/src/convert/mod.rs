//! Discovery resources → `mesh` types: strict and total. What control sends is a contract, but its bytes
//! come from outside: whatever they hold, the answer is an object or a reason, never a panic, and never
//! an object that means more than was said (an address block that does not parse is not left out of a
//! match, for that would widen it).

mod address;
mod policy;
mod requests;
mod routes;
mod tokens;

use std::{net::IpAddr, sync::Arc};

pub use policy::InvalidPolicy;

pub use crate::strings::Strings;

/// What an `istio.workload.Address` holds.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(
    clippy::large_enum_variant,
    reason = "it lives for one move into the mesh; a box would be one more allocation"
)]
pub enum Address {
    Workload(mesh::Workload),
    Service(mesh::Service),
}

/// Why a resource is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    #[error("it does not decode: {0}")]
    Encoding(String),
    #[error("its type is {0:?}")]
    Type(String),
    #[error("it is named {found:?}, not {wanted:?}")]
    Name { wanted: String, found: String },
    #[error("{field}: it is missing")]
    Missing { field: &'static str },
    #[error("{field}: {reason}")]
    Field { field: &'static str, reason: String },
}

/// Turns resources into objects of one mesh.
pub struct Converter {
    /// Stands in where a resource names no trust domain.
    trust_domain: Arc<str>,
    strings: Strings,
}

impl Converter {
    /// For the mesh of that trust domain.
    pub fn new(trust_domain: impl Into<Arc<str>>) -> Self {
        Self { trust_domain: trust_domain.into(), strings: Strings::default() }
    }

    fn share(&mut self, text: &str) -> Arc<str> {
        self.strings.share(text)
    }

    fn share_or(&mut self, text: &str, default: &str) -> Arc<str> {
        self.strings.share(if text.is_empty() { default } else { text })
    }
}

fn invalid(field: &'static str, reason: impl Into<String>) -> Invalid {
    Invalid::Field { field, reason: reason.into() }
}

fn required<'a>(field: &'static str, text: &'a str) -> Result<&'a str, Invalid> {
    if text.is_empty() { Err(Invalid::Missing { field }) } else { Ok(text) }
}

fn ip(field: &'static str, bytes: &[u8]) -> Result<IpAddr, Invalid> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Ok(IpAddr::from(v4));
    }
    if let Ok(v6) = <[u8; 16]>::try_from(bytes) {
        return Ok(IpAddr::from(v6));
    }
    Err(invalid(field, format!("an address has 4 or 16 bytes, not {}", bytes.len())))
}

fn port(field: &'static str, port: u32) -> Result<u16, Invalid> {
    u16::try_from(port).map_err(|_| invalid(field, format!("{port} is not a port")))
}
