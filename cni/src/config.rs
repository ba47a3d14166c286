//! What the runtime tells the plugin: the configuration on standard input, the call in the environment.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    path::{Path, PathBuf},
};

use serde::Deserialize;
use serde_json::{Value, value::RawValue};

/// Versions of the specification by which the plugin can be called, oldest first. Before 0.3.0 there are no
/// chains of plugins.
pub const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// The plugin's entry in the configuration, with what the runtime adds to it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Config {
    #[serde(default)]
    pub cni_version: String,
    /// The agent's socket.
    #[serde(default = "default_socket")]
    pub socket: PathBuf,
    /// The agent's file of what is known of namespaces.
    #[serde(default = "default_state")]
    pub state: PathBuf,
    /// Namespaces whose pods start without asking.
    #[serde(default)]
    pub exempt_namespaces: Vec<String>,
    /// What the plugins before this one made; handed on as it is.
    pub prev_result: Option<Box<RawValue>>,
}

fn default_socket() -> PathBuf {
    Path::new("/run/culvert/cni.sock").to_owned()
}

fn default_state() -> PathBuf {
    Path::new("/var/lib/culvert/agent/cni.json").to_owned()
}

/// The addresses in a result of plugins.
pub fn addresses(result: &RawValue) -> Vec<IpAddr> {
    let result: Value = serde_json::from_str(result.get()).unwrap_or_default();
    let ips = result["ips"].as_array().map(Vec::as_slice).unwrap_or_default();
    let addresses = ips.iter().filter_map(|ip| ip["address"].as_str());
    addresses.filter_map(|address| address.split('/').next()?.parse().ok()).collect()
}

/// `CNI_ARGS`: `IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;…`
pub fn arguments(text: &str) -> BTreeMap<&str, &str> {
    text.split(';').filter_map(|pair| pair.split_once('=')).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_both_families_are_found() {
        let result =
            r#"{"cniVersion":"1.0.0","ips":[{"address":"10.244.1.5/24"},{"address":"fd00::5/64"},{"x":1}]}"#;
        let result: Box<RawValue> = serde_json::from_str(result).expect("JSON");
        let expected: [IpAddr; 2] = ["10.244.1.5".parse().unwrap(), "fd00::5".parse().unwrap()];
        assert_eq!(addresses(&result), expected);
        let odd: Box<RawValue> = serde_json::from_str("[1]").expect("JSON");
        assert!(addresses(&odd).is_empty());
    }

    #[test]
    fn arguments_are_pairs_and_anything_else_is_left_out() {
        let found = arguments("IgnoreUnknown=1;K8S_POD_NAME=web;;x;K8S_POD_UID=a=b");
        assert_eq!(found.get("K8S_POD_NAME"), Some(&"web"));
        assert_eq!(found.get("K8S_POD_UID"), Some(&"a=b"));
        assert_eq!(found.len(), 3);
    }
}
