//! SPIFFE identities of service accounts: `spiffe://TRUST_DOMAIN/ns/NAMESPACE/sa/SERVICE_ACCOUNT`.

use std::{fmt, str::FromStr, sync::Arc};

/// The identity of a Kubernetes service account in a trust domain (SPIFFE ID, path form `/ns/…/sa/…`).
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Identity {
    trust_domain: Arc<str>,
    namespace: Arc<str>,
    service_account: Arc<str>,
}

/// A text that is not the SPIFFE ID of a service account; of a long one the beginning.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not of the form spiffe://TRUST_DOMAIN/ns/NAMESPACE/sa/SERVICE_ACCOUNT")]
pub struct InvalidIdentity(pub String);

/// The longest SPIFFE ID there is, in bytes (the SPIFFE ID specification, 2.3).
const LONGEST: usize = 2048;

impl Identity {
    /// Builds an identity from its parts; the parts are taken as they are.
    pub fn new(
        trust_domain: impl Into<Arc<str>>,
        namespace: impl Into<Arc<str>>,
        service_account: impl Into<Arc<str>>,
    ) -> Self {
        Self {
            trust_domain: trust_domain.into(),
            namespace: namespace.into(),
            service_account: service_account.into(),
        }
    }

    /// The trust domain, `cluster.local` unless configured.
    pub fn trust_domain(&self) -> &str {
        &self.trust_domain
    }

    /// The Kubernetes namespace.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The Kubernetes service account.
    pub fn service_account(&self) -> &str {
        &self.service_account
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spiffe://{}/ns/{}/sa/{}", self.trust_domain, self.namespace, self.service_account)
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Identity {
    type Err = InvalidIdentity;

    /// Takes what the SPIFFE ID specification allows (2.1, 2.2: letters, digits, `.`, `-` and `_` in the
    /// trust domain and in each part of the path), in this one form. Upper case in the trust domain is
    /// taken too, and is another trust domain.
    fn from_str(text: &str) -> Result<Self, InvalidIdentity> {
        let invalid = || InvalidIdentity(text.chars().take(256).collect());
        if text.len() > LONGEST {
            return Err(invalid());
        }
        let mut parts = text.strip_prefix("spiffe://").ok_or_else(invalid)?.split('/');
        match std::array::from_fn(|_| parts.next()) {
            [Some(td), Some("ns"), Some(ns), Some("sa"), Some(sa), None]
                if [td, ns, sa].into_iter().all(is_part) =>
            {
                Ok(Self::new(td, ns, sa))
            }
            _ => Err(invalid()),
        }
    }
}

fn is_part(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    !text.is_empty() && text != "." && text != ".." && text.bytes().all(allowed)
}
