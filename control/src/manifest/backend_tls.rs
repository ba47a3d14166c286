//! BackendTLSPolicy of the Gateway API: how a waypoint begins TLS with a service. What it refers to is looked for when it
//! is compiled; all else is settled here.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use mesh::route::SubjectName;
use serde::{Deserialize, de::IgnoredAny};

use super::{
    kube::{Metadata, Strict, bounded, is_subdomain},
    route::Reference,
};

/// A field's path and what is wrong with it.
type Wrong = (String, String);

/// The most targets, references and names that the API allows.
const MOST_TARGETS: usize = 16;
/// The most targets that what cannot be used closes the way to: it may be refused for being too long.
const MOST_CLOSED: usize = 1024;
const MOST_CERTIFICATES: usize = 8;
const MOST_NAMES: usize = 5;

/// A policy that was understood.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct BackendTlsPolicy {
    pub metadata: Metadata,
    /// As they are written; all in the policy's own namespace.
    pub targets: Vec<Reference>,
    pub hostname: Arc<str>,
    pub names: Vec<SubjectName>,
    pub trust: TrustManifest,
    /// Fields that have no effect, with what that means.
    pub remarks: Vec<(String, String)>,
    /// What is written now cannot be used: this is the last version that could, or what holds in its place.
    pub refused: Option<Box<RefusedPolicy>>,
}

/// What is known of a version that was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusedPolicy {
    /// The targets that could be read.
    pub targets: Vec<Reference>,
    /// The fields of those to which no way is closed, and why.
    pub left_out: Vec<Wrong>,
    /// The field's path and what is wrong with it.
    pub reason: String,
}

/// Whose signatures it believes, as it is written.
#[derive(Debug, Clone, Default, PartialEq)]
pub enum TrustManifest {
    #[default]
    System,
    /// Of a kind of well-known certificates that is not known here.
    Unknown(String),
    Certificates(Vec<CertificateReference>),
    /// No version of the policy could ever be used: nobody's.
    Refused,
}

/// Where certificates are: a ConfigMap of the policy's namespace, with the key `ca.crt`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CertificateReference {
    #[serde(default)]
    pub group: String,
    pub kind: String,
    pub name: Arc<str>,
}

impl CertificateReference {
    /// Whether it is to what is read here.
    pub fn is_config_map(&self) -> bool {
        matches!(self.group.as_str(), "" | "core") && self.kind == "ConfigMap"
    }
}

pub(super) type Manifest = Strict<Spec>;

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(super) struct Spec {
    target_refs: Vec<Reference>,
    validation: Validation,
    /// Each is somebody's own; none is known here.
    options: Option<BTreeMap<String, IgnoredAny>>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct Validation {
    hostname: String,
    #[serde(rename = "caCertificateRefs")]
    ca_certificate_refs: Option<Vec<CertificateReference>>,
    #[serde(rename = "wellKnownCACertificates")]
    well_known: Option<String>,
    subject_alt_names: Option<Vec<NameManifest>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NameManifest {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    hostname: String,
    #[serde(default)]
    uri: String,
}

impl BackendTlsPolicy {
    /// Converts and validates.
    pub(super) fn from_manifest(manifest: Manifest) -> Result<Self, Wrong> {
        let Strict { metadata, spec, .. } = manifest;
        let Spec { target_refs: targets, validation, options } = spec;
        let remarks = options.unwrap_or_default().into_keys().map(|option| {
            (format!("spec.options[{option}]"), "no option is known here: it changes nothing".to_owned())
        });
        let remarks = remarks.collect();
        check_targets(&targets)?;
        let at = |field: &str| format!("spec.validation.{field}");
        if validation.hostname.starts_with('*') || !is_server(&validation.hostname) {
            let reason = format!("{:?} is no name of a server", validation.hostname);
            return Err((at("hostname"), reason));
        }
        let names = validation.subject_alt_names.unwrap_or_default();
        bounded(&at("subjectAltNames"), names.len(), MOST_NAMES)?;
        let names = names.into_iter().enumerate();
        let names = names.map(|(index, of)| name_of(of, &at(&format!("subjectAltNames[{index}]"))));
        let certificates = validation.ca_certificate_refs.unwrap_or_default();
        bounded(&at("caCertificateRefs"), certificates.len(), MOST_CERTIFICATES)?;
        let well_known = validation.well_known.filter(|named| !named.is_empty());
        let trust = match (certificates.is_empty(), well_known) {
            (false, None) => TrustManifest::Certificates(certificates),
            (true, Some(named)) if named == "System" => TrustManifest::System,
            (true, Some(named)) => TrustManifest::Unknown(named),
            (empty, _) => {
                let both = if empty { "one of them must be there" } else { "they exclude each other" };
                let reason = format!("caCertificateRefs and wellKnownCACertificates: {both}");
                return Err(("spec.validation".to_owned(), reason));
            }
        };
        let hostname = validation.hostname.as_str().into();
        let names = names.collect::<Result<_, _>>()?;
        Ok(Self { metadata, targets, hostname, names, trust, remarks, refused: None })
    }

    /// Whether it holds in the place of one that never was good, and closes the way to its targets.
    pub fn is_stand_in(&self) -> bool {
        self.trust == TrustManifest::Refused
    }
}

/// A manifest of a policy of which nothing but its targets is read, and the server that they are.
#[derive(Deserialize, Default)]
#[serde(default)]
pub(super) struct TargetsOnly {
    metadata: serde_yaml_ng::Value,
    spec: serde_yaml_ng::Value,
}

impl TargetsOnly {
    /// What holds in the place of a policy that was refused and never was good: nobody is believed, so that its targets
    /// are not spoken to in plaintext. They are of its own `namespace`.
    pub(super) fn refused(self, namespace: &str, reason: String) -> BackendTlsPolicy {
        let (targets, left_out) = self.targets(namespace);
        let hostname =
            self.spec.get("validation").and_then(|validation| validation.get("hostname")?.as_str());
        let hostname = hostname.filter(|name| is_server(name)).unwrap_or("unreadable").into();
        let refused = Some(Box::new(RefusedPolicy { targets: targets.clone(), left_out, reason }));
        // Even metadata may be what cannot be read.
        let metadata = serde_yaml_ng::from_value(self.metadata).unwrap_or_default();
        let trust = TrustManifest::Refused;
        BackendTlsPolicy { metadata, targets, hostname, trust, refused, ..BackendTlsPolicy::default() }
    }

    /// Those that can be read, each once, and what is wrong with the others.
    fn targets(&self, namespace: &str) -> (Vec<Reference>, Vec<Wrong>) {
        let field = "spec.targetRefs";
        let written = match self.spec.get("targetRefs") {
            Some(serde_yaml_ng::Value::Sequence(written)) => &**written,
            // One, without the list that it should be in.
            Some(written @ serde_yaml_ng::Value::Mapping(_)) => std::slice::from_ref(written),
            _ => &[],
        };
        let (mut targets, mut left_out): (Vec<Reference>, Vec<Wrong>) = (Vec::new(), Vec::new());
        for (at, written) in written.iter().take(MOST_CLOSED).enumerate() {
            match target_of(written, namespace) {
                Ok(target) if targets.contains(&target) => {}
                Ok(target) => targets.push(target),
                Err(reason) => left_out.push((format!("{field}[{at}]"), reason)),
            }
        }
        if written.len() > MOST_CLOSED {
            let reason = format!("of {} targets those after the {MOST_CLOSED}th are not read", written.len());
            left_out.push((field.to_owned(), reason));
        }
        if written.is_empty() {
            left_out.push((field.to_owned(), "no target can be read".to_owned()));
        }
        (targets, left_out)
    }
}

/// A target, as far as it can be read. What says that it is in another namespace is none: nobody closes others' ways.
fn target_of(written: &serde_yaml_ng::Value, namespace: &str) -> Result<Reference, String> {
    let text = |field: &str| written.get(field).and_then(serde_yaml_ng::Value::as_str).map(Arc::from);
    match written.get("namespace") {
        None | Some(serde_yaml_ng::Value::Null) => {}
        Some(serde_yaml_ng::Value::String(of)) if of.is_empty() || of == namespace => {}
        Some(_) => return Err(format!("it is in another namespace than the policy ({namespace})")),
    }
    Ok(Reference {
        group: text("group"),
        kind: text("kind"),
        namespace: None,
        name: text("name").ok_or("it names nothing")?,
        port: None,
        section_name: text("sectionName"),
    })
}

fn check_targets(targets: &[Reference]) -> Result<(), Wrong> {
    if targets.is_empty() {
        return Err(("spec.targetRefs".to_owned(), "it is for nothing".to_owned()));
    }
    bounded("spec.targetRefs", targets.len(), MOST_TARGETS)?;
    for (at, target) in targets.iter().enumerate() {
        let field = format!("spec.targetRefs[{at}]");
        if target.namespace.is_some() || target.port.is_some() {
            let reason =
                "what a policy is for is of its own namespace, and a port is told by its name (sectionName)";
            return Err((field, reason.to_owned()));
        }
        if targets[..at].contains(target) {
            return Err((field, "named twice".to_owned()));
        }
    }
    Ok(())
}

fn name_of(of: NameManifest, field: &str) -> Result<SubjectName, Wrong> {
    match (of.kind.as_str(), of.hostname.as_str(), of.uri.as_str()) {
        ("Hostname", name, "") if is_server(name.strip_prefix("*.").unwrap_or(name)) => {
            Ok(SubjectName::Dns(name.into()))
        }
        ("URI", "", uri)
            if uri.split_once(':').is_some_and(|(scheme, rest)| !scheme.is_empty() && !rest.is_empty()) =>
        {
            Ok(SubjectName::Uri(uri.into()))
        }
        ("Hostname", ..) => Err((field.to_owned(), "it needs a hostname, and nothing else".to_owned())),
        ("URI", ..) => Err((field.to_owned(), "it needs a uri with its scheme, and nothing else".to_owned())),
        (kind, ..) => Err((format!("{field}.type"), format!("{kind:?}: use Hostname or URI"))),
    }
}

/// Whether a name may be asked for in TLS (RFC 6066).
pub(super) fn is_server(name: &str) -> bool {
    is_subdomain(name) && name.split('.').all(|label| label.len() <= 63) && name.parse::<IpAddr>().is_err()
}

/// Of a ConfigMap what policies may refer to.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ConfigMap {
    /// `ca.crt`: certificates in PEM.
    pub certificates: Option<Arc<str>>,
}

#[derive(Deserialize)]
pub(super) struct ConfigMapManifest {
    #[serde(default)]
    data: Option<Data>,
}

#[derive(Deserialize, Default)]
struct Data {
    #[serde(rename = "ca.crt", default)]
    certificates: Option<Arc<str>>,
}

impl From<ConfigMapManifest> for ConfigMap {
    fn from(manifest: ConfigMapManifest) -> Self {
        Self { certificates: manifest.data.and_then(|data| data.certificates) }
    }
}
