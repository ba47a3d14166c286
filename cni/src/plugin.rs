//! The verbs of the CNI specification, as a function from what the runtime says to what it is answered.
//!
//! ADD decides; everything else is a formality. DEL never fails, since a pod that cannot be removed is worse
//! than anything it could leave behind: the agent sees for itself that a namespace is gone.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use serde_json::{Value, json};

use crate::{
    PLUGIN,
    ask::{self, Answer, Refusal, Request, ask},
    config::{Config, VERSIONS, addresses, arguments},
    known,
};

/// Codes of the specification.
mod code {
    pub(super) const INCOMPATIBLE: u32 = 1;
    pub(super) const ENVIRONMENT: u32 = 4;
    pub(super) const DECODE: u32 = 6;
    pub(super) const CONFIGURATION: u32 = 7;
    /// The runtime should try again later.
    pub(super) const LATER: u32 = 11;
}

/// How the plugin is called.
#[derive(Debug, Clone, Default)]
pub struct Call {
    /// `CNI_…` of the environment.
    pub environment: BTreeMap<String, String>,
    /// Standard input.
    pub input: Vec<u8>,
}

/// A failure, as the specification has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub code: u32,
    pub message: String,
    pub details: String,
    version: String,
}

impl Failure {
    /// As it goes to standard output.
    pub fn json(&self) -> String {
        json!({
            "cniVersion": self.version,
            "code": self.code,
            "msg": format!("{PLUGIN}: {}", self.message),
            "details": self.details,
        })
        .to_string()
    }
}

/// Does what is called for; what goes to standard output. The agent has `patience` to answer.
///
/// # Errors
/// With what goes to standard output then.
pub fn run(call: &Call, patience: Duration) -> Result<String, Failure> {
    let newest = VERSIONS[VERSIONS.len() - 1];
    let fail = |code, message: &str, details: &str, version: &str| Failure {
        code,
        message: message.to_owned(),
        details: details.to_owned(),
        version: if VERSIONS.contains(&version) { version } else { newest }.to_owned(),
    };
    let command = call.environment.get("CNI_COMMAND").map(String::as_str).unwrap_or_default();
    match command {
        "DEL" | "GC" => return Ok(String::new()),
        "VERSION" => return Ok(versions(&call.input)),
        "ADD" | "CHECK" | "STATUS" => {}
        other => {
            let message = format!("CNI_COMMAND is {other:?}");
            let details =
                "this is a CNI plugin, called by the container runtime: ADD, CHECK, DEL, GC, STATUS, VERSION";
            return Err(fail(code::ENVIRONMENT, &message, details, ""));
        }
    }
    let config: Config = serde_json::from_slice(&call.input).map_err(|error| {
        let message = format!("its configuration cannot be read: {error}");
        fail(code::DECODE, &message, "look at the files in the node's /etc/cni/net.d", "")
    })?;
    let version = config.cni_version.as_str();
    if !VERSIONS.contains(&version) {
        let message = format!("cniVersion {version:?} is not supported");
        let details = format!("use one of {} in the node's /etc/cni/net.d", VERSIONS.join(", "));
        return Err(fail(code::INCOMPATIBLE, &message, &details, ""));
    }
    // Whether pods can be captured is asked for each: a node that says it is not ready would start none.
    if command == "STATUS" {
        return Ok(String::new());
    }
    let Some(result) = &config.prev_result else {
        let details =
            "it captures what another plugin has made: its entry belongs behind the others' in a conflist";
        return Err(fail(code::CONFIGURATION, "there is no prevResult", details, version));
    };
    if command == "CHECK" {
        return Ok(String::new());
    }
    let later = |refusal: Refusal| fail(code::LATER, &refusal.message, &refusal.details, version);
    let request = request(&call.environment, addresses(result)).map_err(|variable| {
        let message = format!("{variable} is not set");
        fail(code::ENVIRONMENT, &message, "the container runtime sets it: is it called by hand?", version)
    })?;
    if let Some(request) = request {
        admit(&config, &request, patience).map_err(later)?;
    }
    Ok(result.get().to_owned())
}

/// Whether the pod may start.
fn admit(config: &Config, request: &Request, patience: Duration) -> Result<(), Refusal> {
    let (exempt, namespace) = (&config.exempt_namespaces, &request.namespace);
    if exempt.contains(namespace) {
        return Ok(());
    }
    match ask(&config.socket, request, patience) {
        Ok(Answer::Start) => Ok(()),
        Ok(Answer::Refuse(refusal)) => Err(refusal),
        Err(none) => known::decide(exempt, &known::read(&config.state), namespace, &none.to_string()),
    }
}

/// What the agent is asked; `None` where this is no pod of Kubernetes.
fn request(
    environment: &BTreeMap<String, String>,
    addresses: Vec<std::net::IpAddr>,
) -> Result<Option<Request>, &'static str> {
    let variable = |name: &'static str| {
        let value = environment.get(name).filter(|value| !value.is_empty());
        value.cloned().ok_or(name)
    };
    let netns: PathBuf = variable("CNI_NETNS")?.into();
    let (container_id, ifname) = (variable("CNI_CONTAINERID")?, variable("CNI_IFNAME")?);
    let text = environment.get("CNI_ARGS").map(String::as_str).unwrap_or_default();
    let arguments = arguments(text);
    let argument = |name| arguments.get(name).copied().unwrap_or_default().to_owned();
    let (namespace, name) = (argument("K8S_POD_NAMESPACE"), argument("K8S_POD_NAME"));
    if namespace.is_empty() {
        return Ok(None);
    }
    let uid = argument("K8S_POD_UID");
    Ok(Some(Request { container_id, netns, ifname, namespace, name, uid, addresses }))
}

fn versions(input: &[u8]) -> String {
    let config: Value = serde_json::from_slice(input).unwrap_or_default();
    let asked = config["cniVersion"].as_str().filter(|version| VERSIONS.contains(version));
    let version = asked.unwrap_or(VERSIONS[VERSIONS.len() - 1]);
    json!({ "cniVersion": version, "supportedVersions": VERSIONS }).to_string()
}

/// How long the agent has to answer.
pub const PATIENCE: Duration = ask::PATIENCE;

#[cfg(test)]
mod tests;
