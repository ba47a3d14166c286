//! The `networking.istio.io` and `security.istio.io` kinds that need no conversion of their own.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

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
    #[serde(default)]
    pub target_port: Option<u16>,
}

impl ServiceEntry {
    pub(super) fn check(&self) -> Checked {
        let spec = &self.spec;
        if spec.hosts.is_empty() {
            return Err(("spec.hosts".to_owned(), "at least one host is needed".to_owned()));
        }
        if let Some(index) = spec.hosts.iter().position(|host| host.contains('*')) {
            let reason = "a wildcard host needs DNS in the mesh, which is not there yet".to_owned();
            return Err((format!("spec.hosts[{index}]"), reason));
        }
        let addresses = spec.addresses.as_deref().unwrap_or_default();
        if addresses.is_empty() {
            let reason = "a ServiceEntry without addresses can't be recognised on the wire until ztunnel answers \
                          DNS; give it at least one address";
            return Err(("spec.addresses".to_owned(), reason.to_owned()));
        }
        for (index, address) in addresses.iter().enumerate() {
            let field = format!("spec.addresses[{index}]");
            if address.contains('/') && !address.ends_with("/32") && !address.ends_with("/128") {
                return Err((field, format!("{address:?} is a range; only single addresses work today")));
            }
            parse_ip(&field, single(address))?;
        }
        match spec.resolution.as_deref() {
            Some("STATIC") => {}
            other => {
                let reason = format!(
                    "resolution {} needs DNS in the mesh, which is not there yet; use STATIC with endpoints",
                    other.unwrap_or("NONE")
                );
                return Err(("spec.resolution".to_owned(), reason));
            }
        }
        if spec.ports.as_ref().is_none_or(Vec::is_empty) {
            return Err(("spec.ports".to_owned(), "at least one port is needed".to_owned()));
        }
        if spec.endpoints.is_some() && spec.workload_selector.is_some() {
            let reason = "endpoints and workloadSelector exclude each other".to_owned();
            return Err(("spec.workloadSelector".to_owned(), reason));
        }
        for (index, endpoint) in spec.endpoints.iter().flatten().enumerate() {
            endpoint.check(&format!("spec.endpoints[{index}]"))?;
        }
        Ok(())
    }

    /// The virtual addresses.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.spec.addresses.iter().flatten().filter_map(|address| single(address).parse().ok())
    }
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
    fn check(&self, field: &str) -> Checked {
        let Some(address) = &self.address else {
            return Err((format!("{field}.address"), "an address is needed".to_owned()));
        };
        parse_ip(&format!("{field}.address"), address).map(|_| ()).map_err(|(field, reason)| {
            (field, format!("{reason}; host names need DNS in the mesh, which is not there yet"))
        })
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
