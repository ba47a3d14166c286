//! The `forwarded` header: `for="ip:port"[;host=svc.fqdn]` (RFC 7239, the part that peers use).
//!
//! It is said by the peer: for reports, and for a decision only where the peer itself is trusted.

use std::{fmt, net::SocketAddr, str::FromStr};

/// Longest header that is read, in bytes.
const MAX_HEADER: usize = 1024;
/// Longest host name, in bytes.
const MAX_HOST: usize = 255;

/// Who called, and by which name of the service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forwarded {
    /// The caller's own address.
    pub source: SocketAddr,
    pub host: Option<String>,
}

/// A header that is not of that form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not of the form for=\"ip:port\"[;host=name]")]
pub struct BadForwarded;

impl FromStr for Forwarded {
    type Err = BadForwarded;

    /// Reads the first element; parameters other than `for` and `host` are skipped.
    fn from_str(text: &str) -> Result<Self, BadForwarded> {
        if text.len() > MAX_HEADER {
            return Err(BadForwarded);
        }
        let first = text.split(',').next().unwrap_or_default();
        let (mut source, mut host) = (None, None);
        for parameter in first.split(';') {
            let (name, value) = parameter.split_once('=').ok_or(BadForwarded)?;
            let value = unquoted(value.trim()).ok_or(BadForwarded)?;
            let name = name.trim();
            if name.eq_ignore_ascii_case("for") && source.is_none() {
                source = Some(value.parse().map_err(|_| BadForwarded)?);
            } else if name.eq_ignore_ascii_case("host") && host.is_none() {
                if !is_host(value) {
                    return Err(BadForwarded);
                }
                host = Some(value.to_owned());
            }
        }
        Ok(Self { source: source.ok_or(BadForwarded)?, host })
    }
}

fn unquoted(value: &str) -> Option<&str> {
    match value.strip_prefix('"') {
        None => Some(value),
        Some(rest) => rest.strip_suffix('"').filter(|inner| !inner.contains(['"', '\\'])),
    }
}

fn is_host(value: &str) -> bool {
    let plain =
        |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_' | b':' | b'[' | b']');
    (1..=MAX_HOST).contains(&value.len()) && value.bytes().all(plain)
}

impl fmt::Display for Forwarded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "for=\"{}\"", self.source)?;
        match &self.host {
            Some(host) => write!(f, ";host={host}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_peers_send() {
        let parsed: Forwarded =
            "for=\"10.0.0.1:4711\";host=web.default.svc.cluster.local".parse().expect("a header");
        assert_eq!(parsed.source, "10.0.0.1:4711".parse().expect("an address"));
        assert_eq!(parsed.host.as_deref(), Some("web.default.svc.cluster.local"));
        let parsed: Forwarded =
            "For=\"[fd00::1]:4711\";proto=tcp, for=\"1.2.3.4:5\"".parse().expect("a header");
        assert_eq!(parsed, Forwarded { source: "[fd00::1]:4711".parse().expect("an address"), host: None });
    }

    #[test]
    fn what_is_refused() {
        let long = format!("for=\"1.2.3.4:5\";x={}", "a".repeat(2000));
        for bad in [
            "",
            "for",
            "for=",
            "for=unknown",
            "host=web",
            "for=\"1.2.3.4:5",
            "for=1.2.3.4",
            "for=\"1.2.3.4:5\";host=",
            "for=\"1.2.3.4:5\";host=a b",
            &long,
        ] {
            assert_eq!(bad.parse::<Forwarded>(), Err(BadForwarded), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in ".{0,200}") {
            let _ = text.parse::<Forwarded>();
        }

        #[test]
        fn what_we_print_we_read(ip: std::net::IpAddr, port: u16, host in proptest::option::of("[a-z.-]{1,40}")) {
            let forwarded = Forwarded { source: SocketAddr::new(ip, port), host };
            prop_assert_eq!(forwarded.to_string().parse(), Ok(forwarded));
        }
    }
}
