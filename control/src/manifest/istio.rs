//! The `networking.istio.io` and `security.istio.io` kinds that need no conversion of their own.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use mesh::route::Protocol;
use serde::{Deserialize, de::IgnoredAny};

use super::{
    kube::{LabelSelector, Metadata, parse_ip},
    labels::Labels,
};

type Checked = Result<(), (String, String)>;

#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct ServiceEntry {
    pub metadata: Metadata,
    pub spec: ServiceEntrySpec,
    #[serde(default)]
    pub status: ServiceEntryStatus,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct ServiceEntryStatus {
    pub addresses: Option<Vec<GivenAddress>>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct GivenAddress {
    pub value: String,
    pub host: String,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceEntrySpec {
    pub hosts: Vec<String>,
    pub addresses: Option<Vec<String>>,
    pub ports: Option<Vec<EntryPort>>,
    pub resolution: Option<String>,
    pub endpoints: Option<Vec<WorkloadEntrySpec>>,
    pub workload_selector: Option<EntrySelector>,
    pub subject_alt_names: Option<Vec<String>>,
    pub export_to: Option<Vec<String>>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct EntrySelector {
    pub labels: Labels,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EntryPort {
    pub number: u16,
    #[serde(default)]
    pub name: String,
    /// `HTTP`, `TLS`, `TCP`, …
    #[serde(default)]
    pub protocol: String,
    #[serde(default)]
    pub target_port: Option<u16>,
}

impl EntryPort {
    /// What it speaks, as it is written.
    pub fn speaks(&self) -> Protocol {
        match self.protocol.to_ascii_uppercase().as_str() {
            "HTTP" => Protocol::Http1,
            "HTTP2" | "GRPC" | "GRPC-WEB" => Protocol::Http2,
            "TCP" | "TLS" | "HTTPS" | "MONGO" | "MYSQL" | "REDIS" => Protocol::Tcp,
            _ => Protocol::Unknown,
        }
    }
}

impl ServiceEntry {
    pub(super) fn check(&self) -> Checked {
        let spec = &self.spec;
        if spec.hosts.is_empty() {
            return Err(("spec.hosts".to_owned(), "at least one host is needed".to_owned()));
        }
        for (index, host) in spec.hosts.iter().enumerate() {
            if !is_host(host.strip_prefix("*.").unwrap_or(host)) {
                let reason = format!("{host:?} is no host name, nor *. and one");
                return Err((format!("spec.hosts[{index}]"), reason));
            }
        }
        for (index, address) in spec.addresses.iter().flatten().enumerate() {
            let field = format!("spec.addresses[{index}]");
            if address.contains('/') && !address.ends_with("/32") && !address.ends_with("/128") {
                return Err((field, format!("{address:?} is a range; only single addresses work today")));
            }
            parse_ip(&field, single(address))?;
        }
        let resolution = Resolution::of(spec.resolution.as_deref()).ok_or_else(|| {
            let reason = "use NONE, STATIC, DNS or DNS_ROUND_ROBIN".to_owned();
            ("spec.resolution".to_owned(), reason)
        })?;
        if spec.ports.as_ref().is_none_or(Vec::is_empty) {
            return Err(("spec.ports".to_owned(), "at least one port is needed".to_owned()));
        }
        if spec.endpoints.is_some() && spec.workload_selector.is_some() {
            let reason = "endpoints and workloadSelector exclude each other".to_owned();
            return Err(("spec.workloadSelector".to_owned(), reason));
        }
        for (index, endpoint) in spec.endpoints.iter().flatten().enumerate() {
            let field = format!("spec.endpoints[{index}]");
            endpoint.check(&field)?;
            if resolution == Resolution::Static && endpoint.hostname().is_some() {
                let reason = "a host name needs resolution: DNS".to_owned();
                return Err((format!("{field}.address"), reason));
            }
        }
        Ok(())
    }

    /// The virtual addresses that the entry names itself.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.spec.addresses.iter().flatten().filter_map(|address| single(address).parse().ok())
    }

    /// The addresses that another control plane has given a host of the entry (`status.addresses`).
    pub fn given<'a>(&'a self, host: &'a str) -> impl Iterator<Item = IpAddr> + 'a {
        let given = self.status.addresses.iter().flatten();
        given.filter(move |given| given.host == host).filter_map(|given| single(&given.value).parse().ok())
    }

    /// How its endpoints are found.
    pub fn resolution(&self) -> Resolution {
        // What cannot be read was refused before.
        Resolution::of(self.spec.resolution.as_deref()).unwrap_or(Resolution::None)
    }
}

/// How the endpoints of a ServiceEntry are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resolution {
    /// Whoever is dialled is meant.
    None,
    Static,
    /// By the name of the endpoint, or of the host where there is no endpoint.
    Dns,
}

impl Resolution {
    fn of(text: Option<&str>) -> Option<Self> {
        match text {
            None | Some("" | "NONE") => Some(Self::None),
            Some("STATIC") => Some(Self::Static),
            Some("DNS" | "DNS_ROUND_ROBIN") => Some(Self::Dns),
            Some(_) => None,
        }
    }
}

/// Whether a text is a host name (RFC 1123 §2.1; underscores are common in DNS and harm nobody).
fn is_host(text: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    text.len() <= 253 && text.split('.').all(label)
}

/// `10.0.0.1/32` is the address `10.0.0.1`.
fn single(address: &str) -> &str {
    address.strip_suffix("/32").or_else(|| address.strip_suffix("/128")).unwrap_or(address)
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct WorkloadEntry {
    pub metadata: Metadata,
    pub spec: WorkloadEntrySpec,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct WorkloadEntrySpec {
    pub address: Option<String>,
    pub ports: Option<BTreeMap<String, u16>>,
    pub labels: Option<Labels>,
    pub network: Option<Arc<str>>,
    pub service_account: Option<Arc<str>>,
    /// `region/zone/subzone`.
    pub locality: Option<String>,
}

impl WorkloadEntrySpec {
    /// Its name, where that is all that is known of where it is.
    pub fn hostname(&self) -> Option<&str> {
        // Nothing that begins like an address is a name: it is a mistyped address.
        let name = |text: &&str| is_host(text) && text.bytes().any(|byte| byte.is_ascii_alphabetic());
        self.address.as_deref().filter(name)
    }

    fn check(&self, field: &str) -> Checked {
        let Some(address) = &self.address else {
            return Err((format!("{field}.address"), "an address is needed".to_owned()));
        };
        if self.hostname().is_some() {
            return Ok(());
        }
        parse_ip(&format!("{field}.address"), address).map(|_| ())
    }
}

impl WorkloadEntry {
    pub(super) fn check(&self) -> Checked {
        self.spec.check("spec")
    }
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeerAuthentication {
    // Read before; named here so that a misspelt `spec` is not passed over.
    #[serde(rename = "apiVersion")]
    _api_version: IgnoredAny,
    #[serde(rename = "kind")]
    _kind: IgnoredAny,
    #[serde(rename = "status", default)]
    _status: IgnoredAny,
    pub metadata: Metadata,
    #[serde(default)]
    pub spec: PeerAuthenticationSpec,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct PeerAuthenticationSpec {
    pub selector: Option<LabelSelector>,
    pub mtls: Option<Mtls>,
    #[serde(deserialize_with = "port_keys")]
    pub port_level_mtls: Option<BTreeMap<u16, Mtls>>,
}

/// Ports as keys: numbers in YAML, texts in what the API server's JSON makes of them.
fn port_keys<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<BTreeMap<u16, Mtls>>, D::Error> {
    #[derive(Deserialize, PartialEq, Eq, PartialOrd, Ord)]
    #[serde(untagged)]
    enum Key {
        Number(u16),
        Text(String),
    }
    let Some(map) = Option::<BTreeMap<Key, Mtls>>::deserialize(from)? else { return Ok(None) };
    let ports = map.into_iter().map(|(key, mtls)| match key {
        Key::Number(port) => Ok((port, mtls)),
        Key::Text(text) => text
            .parse()
            .map(|port| (port, mtls))
            .map_err(|_| serde::de::Error::custom(format!("{text:?} is not a port"))),
    });
    ports.collect::<Result<_, _>>().map(Some)
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Mtls {
    pub mode: MtlsMode,
}

/// How plaintext callers are met.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum MtlsMode {
    /// As the wider scope says.
    #[default]
    Unset,
    /// Not a mode of an ambient mesh: taken as PERMISSIVE, with a warning.
    Disable,
    Permissive,
    Strict,
}

impl PeerAuthentication {
    pub(super) fn check(&self) -> Checked {
        if self.spec.port_level_mtls.is_some() && self.selector().is_none() {
            let reason = "ports can be named only together with a selector".to_owned();
            return Err(("spec.portLevelMtls".to_owned(), reason));
        }
        if self.spec.port_level_mtls.as_ref().is_some_and(|ports| ports.contains_key(&0)) {
            return Err(("spec.portLevelMtls".to_owned(), "a port is 1 to 65535".to_owned()));
        }
        Ok(())
    }

    /// The selector, unless it selects everything.
    pub fn selector(&self) -> Option<&LabelSelector> {
        self.spec.selector.as_ref().filter(|selector| !selector.match_labels.is_empty())
    }
}
