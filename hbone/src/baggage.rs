//! The `baggage` header: the names of the workload at the other end, for reports only.
//!
//! It is said by the peer and proved by nobody: no decision may rest on it.

use std::fmt;

use mesh::{Workload, WorkloadKind};

const MAX_HEADER: usize = 8192;
const MAX_MEMBERS: usize = 64;
/// Names longer than this are cut; Kubernetes' own end at 253 bytes.
const MAX_VALUE: usize = 256;

const CLUSTER: &str = "k8s.cluster.name";
const NAMESPACE: &str = "k8s.namespace.name";
const SERVICE: &str = "service.name";
const VERSION: &str = "service.version";
const REGION: &str = "cloud.region";
const ZONE: &str = "cloud.availability_zone";
const KINDS: [(&str, WorkloadKind); 4] = [
    ("k8s.deployment.name", WorkloadKind::Deployment),
    ("k8s.cronjob.name", WorkloadKind::CronJob),
    ("k8s.pod.name", WorkloadKind::Pod),
    ("k8s.job.name", WorkloadKind::Job),
];

/// The names that HBONE peers tell each other. Empty where the peer said nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Baggage {
    pub cluster: String,
    pub namespace: String,
    pub workload_kind: WorkloadKind,
    pub workload_name: String,
    pub service_name: String,
    pub service_version: String,
    pub region: String,
    pub zone: String,
}

/// A header that is no baggage, or too much of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadBaggage {
    #[error("baggage of {0} bytes is longer than 8192")]
    TooLong(usize),
    #[error("baggage has more than 64 members")]
    TooMany,
    #[error("baggage member {0} is malformed")]
    Malformed(usize),
}

impl Baggage {
    /// What we tell of one of our workloads.
    pub fn of(workload: &Workload) -> Self {
        Self {
            cluster: workload.cluster_id.to_string(),
            namespace: workload.namespace.to_string(),
            workload_kind: workload.workload_kind,
            workload_name: workload.workload_name.to_string(),
            service_name: workload.canonical_name.to_string(),
            service_version: workload.canonical_revision.to_string(),
            region: workload.locality.region.to_string(),
            zone: workload.locality.zone.to_string(),
        }
    }

    /// Reads a header (W3C Baggage); members of other names and properties are skipped.
    pub fn parse(text: &str) -> Result<Self, BadBaggage> {
        if text.len() > MAX_HEADER {
            return Err(BadBaggage::TooLong(text.len()));
        }
        let mut baggage = Self::default();
        for (index, member) in text.split(',').enumerate() {
            if index >= MAX_MEMBERS {
                return Err(BadBaggage::TooMany);
            }
            let member = member.trim();
            if member.is_empty() {
                continue;
            }
            let (key, value) = member.split_once('=').ok_or(BadBaggage::Malformed(index))?;
            let value = value.split(';').next().unwrap_or_default().trim();
            let value = decode(value).ok_or(BadBaggage::Malformed(index))?;
            baggage.set(key.trim(), value);
        }
        Ok(baggage)
    }

    fn set(&mut self, key: &str, value: String) {
        let field = match key {
            CLUSTER => &mut self.cluster,
            NAMESPACE => &mut self.namespace,
            SERVICE => &mut self.service_name,
            VERSION => &mut self.service_version,
            REGION => &mut self.region,
            ZONE => &mut self.zone,
            key => match KINDS.iter().find(|(name, _)| *name == key) {
                Some((_, kind)) => {
                    self.workload_kind = *kind;
                    &mut self.workload_name
                }
                None => return,
            },
        };
        *field = value;
    }
}

/// Percent-decodes; `None` for what is no UTF-8, holds control characters or a broken escape.
fn decode(value: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(value.len());
    let mut rest = value.as_bytes();
    while let Some((byte, after)) = rest.split_first() {
        rest = after;
        if *byte == b'%' {
            let (digits, after) = rest.split_at_checked(2)?;
            let digits = std::str::from_utf8(digits)
                .ok()
                .filter(|text| text.bytes().all(|b| b.is_ascii_hexdigit()))?;
            bytes.push(u8::from_str_radix(digits, 16).ok()?);
            rest = after;
        } else {
            bytes.push(*byte);
        }
    }
    let mut text = String::from_utf8(bytes).ok().filter(|text| !text.chars().any(char::is_control))?;
    text.truncate(text.floor_char_boundary(MAX_VALUE));
    Some(text)
}

/// A baggage-octet (W3C Baggage, section 3.3.1.3) that is no `%`.
fn is_plain(byte: u8) -> bool {
    matches!(byte, 0x21 | 0x23..=0x24 | 0x26..=0x2b | 0x2d..=0x3a | 0x3c..=0x5b | 0x5d..=0x7e)
}

/// As it is sent: empty members are left out.
impl fmt::Display for Baggage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = KINDS
            .iter()
            .find(|(_, kind)| *kind == self.workload_kind)
            .map_or("k8s.pod.name", |(name, _)| name);
        let members = [
            (CLUSTER, &self.cluster),
            (NAMESPACE, &self.namespace),
            (kind, &self.workload_name),
            (SERVICE, &self.service_name),
            (VERSION, &self.service_version),
            (REGION, &self.region),
            (ZONE, &self.zone),
        ];
        let mut separator = "";
        for (key, value) in members {
            if value.is_empty() {
                continue;
            }
            write!(f, "{separator}{key}=")?;
            for byte in value.bytes() {
                if is_plain(byte) { write!(f, "{}", char::from(byte))? } else { write!(f, "%{byte:02X}")? }
            }
            separator = ",";
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_peers_send() {
        let text = "k8s.cluster.name=Kubernetes,k8s.namespace.name=default, k8s.deployment.name=web;p=1,service.name=web,service.version=v1,other=x";
        let baggage = Baggage::parse(text).expect("baggage");
        assert_eq!(baggage.cluster, "Kubernetes");
        assert_eq!(baggage.workload_kind, WorkloadKind::Deployment);
        assert_eq!(baggage.workload_name, "web");
        assert_eq!(
            baggage.to_string(),
            "k8s.cluster.name=Kubernetes,k8s.namespace.name=default,k8s.deployment.name=web,service.name=web,service.version=v1"
        );
    }

    #[test]
    fn what_is_refused() {
        assert_eq!(Baggage::parse(&"a".repeat(9000)), Err(BadBaggage::TooLong(9000)));
        assert_eq!(Baggage::parse(&"a=b,".repeat(100)), Err(BadBaggage::TooMany));
        for bad in [
            "a",
            "a=b,c",
            "service.name=%",
            "service.name=%zz",
            "service.name=%+1",
            "service.name=%ff",
            "service.name=%0a",
        ] {
            assert!(matches!(Baggage::parse(bad), Err(BadBaggage::Malformed(_))), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in ".{0,300}") {
            let _ = Baggage::parse(&text);
        }

        #[test]
        fn what_we_print_we_read(names in proptest::array::uniform7("[^\\p{Cc}]{0,40}"), kind in 0usize..4) {
            let [cluster, namespace, workload_name, service_name, service_version, region, zone] = names;
            let workload_kind = if workload_name.is_empty() { WorkloadKind::default() } else { KINDS[kind].1 };
            let baggage = Baggage { cluster, namespace, workload_kind, workload_name, service_name, service_version, region, zone };
            let text = baggage.to_string();
            prop_assert!(text.is_ascii());
            prop_assert_eq!(Baggage::parse(&text), Ok(baggage));
        }
    }
}
