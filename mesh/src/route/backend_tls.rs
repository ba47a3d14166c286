//! TLS with a backend, which the waypoint begins itself: whom it asks for, and by what it believes the answer.

use std::sync::Arc;

/// How a service is spoken to in TLS (BackendTLSPolicy).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct BackendTls {
    /// `namespace/name` of the policy.
    pub policy: Arc<str>,
    /// Only this port of the service; `None`: every one that no other is for by its number.
    pub port: Option<u16>,
    /// The server that is asked for (SNI), and that its certificate must name if `names` are none.
    pub hostname: Arc<str>,
    pub trust: Trust,
    /// One of these the certificate must have, if there are any.
    pub names: Vec<SubjectName>,
}

/// Whose signature is believed.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Trust {
    /// Whom the waypoint's own system believes.
    System,
    /// Certificates in PEM.
    Roots(Arc<str>),
    /// What the policy refers to cannot be used: nobody is. The reason is for people.
    Nobody(Arc<str>),
}

/// A subject's alternative name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum SubjectName {
    /// In lower case; with `*.` before it the certificate must have exactly that wildcard.
    Dns(Arc<str>),
    Uri(Arc<str>),
}

/// That for a port, of all that a service has: what names the port goes before what is for all of them.
pub(super) fn of_port(all: &[Arc<BackendTls>], port: u16) -> Option<&Arc<BackendTls>> {
    let named = all.iter().find(|tls| tls.port == Some(port));
    named.or_else(|| all.iter().find(|tls| tls.port.is_none()))
}
