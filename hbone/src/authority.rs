//! The `:authority` of a CONNECT: an address or a host name, always with a port.

use std::{fmt, net::SocketAddr, str::FromStr};

/// Longest host name (RFC 1035), in bytes.
const MAX_HOST: usize = 253;

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
    /// Never 0.
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
        if let Ok(address) = text.parse::<SocketAddr>() {
            return if address.port() == 0 { Err(BadAuthority) } else { Ok(Self::Ip(address)) };
        }
        let (name, port) = text.rsplit_once(':').ok_or(BadAuthority)?;
        let digits = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
        let port = if digits { port.parse().unwrap_or(0) } else { 0 };
        if port == 0 || !is_host(name) {
            return Err(BadAuthority);
        }
        Ok(Self::Host { name: name.to_ascii_lowercase().into(), port })
    }
}

/// Labels of letters, digits, `-` and `_`; and not all digits and dots, which would be an address
/// that did not parse.
fn is_host(name: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    };
    name.len() <= MAX_HOST
        && name.split('.').all(label)
        && !name.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.')
}

impl fmt::Display for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => address.fmt(f),
            Self::Host { name, port } => write!(f, "{name}:{port}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn addresses_and_hosts() {
        let ip = |text: &str| Ok(Authority::Ip(text.parse().expect("an address")));
        assert_eq!("10.0.0.1:80".parse(), ip("10.0.0.1:80"));
        assert_eq!("[fd00::1]:80".parse(), ip("[fd00::1]:80"));
        let host = Authority::Host { name: "web.default.svc.cluster.local".into(), port: 8080 };
        assert_eq!("Web.Default.svc.cluster.local:8080".parse(), Ok(host));
    }

    #[test]
    fn what_is_refused() {
        let long = format!("{}:80", "a.".repeat(130));
        for bad in [
            "",
            ":",
            ":80",
            "host",
            "host:",
            "host:0",
            "host:65536",
            "host:+80",
            "host:8 0",
            "10.0.0.1",
            "10.0.0.1:0",
            "10.0.0.300:80",
            "fd00::1:80:",
            "a..b:80",
            "a b:80",
            "user@host:80",
            "host/path:80",
            &long,
        ] {
            assert_eq!(bad.parse::<Authority>(), Err(BadAuthority), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn whatever_parses_prints_and_parses_again(text in ".{0,80}") {
            if let Ok(authority) = text.parse::<Authority>() {
                prop_assert_eq!(authority.to_string().parse(), Ok(authority));
            }
        }

        #[test]
        fn hosts_come_through(name in "[a-z][a-z0-9-]{0,20}(\\.[a-z0-9-]{1,20}){0,4}", port in 1u16..) {
            let parsed: Authority = format!("{name}:{port}").parse().expect("a host");
            prop_assert_eq!(parsed, Authority::Host { name: name.into(), port });
        }
    }
}
