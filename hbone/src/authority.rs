//! The `:authority` of a CONNECT: an address or a host name, always with a port.

use std::{fmt, net::SocketAddr, str::FromStr};

/// Where a CONNECT wants to go.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Authority {
    Ip(SocketAddr),
    /// A host name in lower case.
    Host {
        name: Box<str>,
        port: u16,
    },
}

/// A text that names no address or host with a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not of the form ip:port or hostname:port")]
pub struct BadAuthority;

impl Authority {
    pub fn port(&self) -> u16 {
        match self {
            Self::Ip(address) => address.port(),
            Self::Host { port, .. } => *port,
        }
    }
}

impl FromStr for Authority {
    type Err = BadAuthority;
    fn from_str(text: &str) -> Result<Self, BadAuthority> {
        let _ = text;
        panic!("stub")
    }
}

impl fmt::Display for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => address.fmt(f),
            Self::Host { name, port } => write!(f, "{name}:{port}"),
        }
    }
}
