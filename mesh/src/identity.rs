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

/// The longest trust domain there is, in bytes (the SPIFFE ID specification, 2.3).
const LONGEST_TRUST_DOMAIN: usize = 255;

/// Takes a trust domain as somebody configures it: what the SPIFFE ID specification allows (2.1), in lower case alone.
///
/// # Errors
/// What is wrong with it.
pub fn trust_domain(text: &str) -> Result<String, &'static str> {
    if text.len() > LONGEST_TRUST_DOMAIN {
        return Err("a trust domain has 255 characters at most");
    }
    if !is_part(text) || text.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return Err(
            "a trust domain is made of lower-case letters, digits, dots, dashes and underscores, such as cluster.local",
        );
    }
    Ok(text.to_owned())
}

/// Takes the domain of a cluster's names: labels as Kubernetes has them (RFC 1123, in lower case).
///
/// # Errors
/// What is wrong with it.
pub fn cluster_domain(text: &str) -> Result<String, &'static str> {
    let label = |label: &str| {
        let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        (1..=63).contains(&label.len())
            && label.bytes().all(allowed)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if text.len() > 253 || !text.split('.').all(label) {
        return Err(
            "a DNS name is made of labels of lower-case letters, digits and inner dashes, with dots between, such as \
             cluster.local",
        );
    }
    Ok(text.to_owned())
}

fn is_part(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    !text.is_empty() && text != "." && text != ".." && text.bytes().all(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn domains_are_taken_as_they_can_be_used() {
        let long = "a".repeat(255);
        for good in ["cluster.local", "prod_1.example-2", "a", &long] {
            assert_eq!(trust_domain(good).as_deref(), Ok(good));
            // What is taken here can be said in an identity.
            assert!(Identity::new(good, "ns", "sa").to_string().parse::<Identity>().is_ok());
        }
        let longer = format!("{long}a");
        for bad in ["", "Foo Bar", "Prod", ".", "..", "a/b", "spiffe://a", "a:1", "ü", &longer] {
            assert!(trust_domain(bad).is_err(), "{bad:?}");
        }
        let label = "a".repeat(63);
        for good in ["cluster.local", "k8s.example", &label] {
            assert_eq!(cluster_domain(good).as_deref(), Ok(good));
        }
        let names = vec!["a".repeat(63); 4].join(".");
        for bad in ["", ".", "a.", ".a", "a..b", "-a", "a-", "A", "a_b", "a b", &names, &format!("{label}a")]
        {
            assert!(cluster_domain(bad).is_err(), "{bad:?}");
        }
    }
}
