//! Manifests: text in, typed and validated objects and problems out. No files, no clock.
//!
//! A document that is wrong is refused by itself, with file, line, field and reason; its neighbours
//! are taken. What an object says is validated here, not later, so that [`crate::objects`] can keep the
//! last good version of it.

mod addresses;
mod authentication;
mod authorization;
mod backend_tls;
mod gateway;
mod grant;
mod istio;
mod kube;
mod labels;
mod locate;
mod mistaken;
mod object;
mod pod;
mod problem;
mod route;
mod service;
mod shared;
mod target;
mod uid;

use std::{fmt, path::Path, sync::Arc};

use serde::{Deserialize, de::DeserializeOwned};

pub use addresses::Addresses;
pub(crate) use authentication::configuration;
pub use authentication::{JwtRule, KeySource, KeysOf, RequestAuthentication};
pub use authorization::{Authorization, Judges};
pub use backend_tls::{BackendTlsPolicy, CertificateReference, ConfigMap, RefusedPolicy, TrustManifest};
pub use gateway::{Gateway, WaypointFor};
pub use grant::{GrantFrom, GrantSpec, GrantTo, ReferenceGrant};
pub use istio::{
    Mtls, MtlsMode, PeerAuthentication, PeerAuthenticationSpec, Resolution, ServiceEntry, ServiceEntrySpec,
    WorkloadEntry, WorkloadEntrySpec,
};
pub(crate) use kube::is_subdomain;
pub use kube::{LabelSelector, Metadata, Namespace, Node};
pub use labels::Labels;
pub use object::Object;
pub(crate) use pod::ANNOTATIONS;
pub use pod::{Pod, Template};
pub use problem::{Problem, Severity};
pub use route::{Backend, Filter, Reference, Refused, Route, Rule};
pub use service::{Addressed, Endpoint, EndpointSlice, Service, ServicePort, Target};
pub use shared::Shared;
pub use target::{PolicyTarget, TargetKind};
pub use uid::Uid;

use self::service::{ServiceManifest, SliceManifest};

/// Documents beyond this number in one file are refused: a bound on what a file may cost.
const MAX_DOCUMENTS: usize = 100_000;

/// Longest name of an object or a namespace (RFC 1123 subdomain, as Kubernetes has it).
const MAX_NAME: usize = 253;

/// What names an object: kind, namespace (empty for cluster-wide kinds) and name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectKey {
    pub kind: Kind,
    pub namespace: Arc<str>,
    pub name: Arc<str>,
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            write!(f, "{:?} {}", self.kind, self.name)
        } else {
            write!(f, "{:?} {}/{}", self.kind, self.namespace, self.name)
        }
    }
}

/// The kinds that the mesh reads; every other kind is passed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    Namespace,
    Node,
    Pod,
    Service,
    EndpointSlice,
    ServiceEntry,
    WorkloadEntry,
    AuthorizationPolicy,
    PeerAuthentication,
    RequestAuthentication,
    Gateway,
    HTTPRoute,
    GRPCRoute,
    TLSRoute,
    TCPRoute,
    ReferenceGrant,
    BackendTLSPolicy,
    /// Only what policies refer to is read of them.
    ConfigMap,
}

impl Kind {
    /// Every kind, in the order in which objects sort.
    pub const ALL: [Self; 18] = [
        Self::Namespace,
        Self::Node,
        Self::Pod,
        Self::Service,
        Self::EndpointSlice,
        Self::ServiceEntry,
        Self::WorkloadEntry,
        Self::AuthorizationPolicy,
        Self::PeerAuthentication,
        Self::RequestAuthentication,
        Self::Gateway,
        Self::HTTPRoute,
        Self::GRPCRoute,
        Self::TLSRoute,
        Self::TCPRoute,
        Self::ReferenceGrant,
        Self::BackendTLSPolicy,
        Self::ConfigMap,
    ];

    fn of(api_version: &str, kind: &str) -> Option<Self> {
        let group = api_version.rsplit_once('/').map_or("", |(group, _)| group);
        match (group, kind) {
            ("", "Namespace") => Some(Self::Namespace),
            ("", "Node") => Some(Self::Node),
            ("", "Pod") => Some(Self::Pod),
            ("", "Service") => Some(Self::Service),
            ("discovery.k8s.io", "EndpointSlice") => Some(Self::EndpointSlice),
            ("networking.istio.io", "ServiceEntry") => Some(Self::ServiceEntry),
            ("networking.istio.io", "WorkloadEntry") => Some(Self::WorkloadEntry),
            ("security.istio.io", "AuthorizationPolicy") => Some(Self::AuthorizationPolicy),
            ("security.istio.io", "PeerAuthentication") => Some(Self::PeerAuthentication),
            ("security.istio.io", "RequestAuthentication") => Some(Self::RequestAuthentication),
            ("gateway.networking.k8s.io", "Gateway") => Some(Self::Gateway),
            ("gateway.networking.k8s.io", "HTTPRoute") => Some(Self::HTTPRoute),
            ("gateway.networking.k8s.io", "GRPCRoute") => Some(Self::GRPCRoute),
            ("gateway.networking.k8s.io", "TLSRoute") => Some(Self::TLSRoute),
            ("gateway.networking.k8s.io", "TCPRoute") => Some(Self::TCPRoute),
            ("gateway.networking.k8s.io", "ReferenceGrant") => Some(Self::ReferenceGrant),
            ("gateway.networking.k8s.io", "BackendTLSPolicy") => Some(Self::BackendTLSPolicy),
            ("", "ConfigMap") => Some(Self::ConfigMap),
            _ => None,
        }
    }

    /// Whether its status is that it has at what it refers to as its parents or its targets.
    pub fn has_standings(self) -> bool {
        self.is_route() || self == Self::BackendTLSPolicy
    }

    /// Whether it is a kind of route.
    pub fn is_route(self) -> bool {
        matches!(self, Self::HTTPRoute | Self::GRPCRoute | Self::TLSRoute | Self::TCPRoute)
    }

    fn cluster_wide(self) -> bool {
        matches!(self, Self::Namespace | Self::Node)
    }
}

/// What one file holds.
#[derive(Debug, Default)]
pub struct Parsed {
    pub objects: Vec<(ObjectKey, Object)>,
    pub problems: Vec<Problem>,
    /// Objects that are there but could not be used: their last good version holds.
    pub refused: Vec<ObjectKey>,
    /// Of these the routes and the BackendTLSPolicies, with what could be read of them.
    pub stand_ins: Vec<(ObjectKey, Object)>,
    /// A document could not even be told by name: nothing that this file held before may be forgotten.
    pub unreadable: bool,
    /// Kinds that are not the mesh's, with how many of each.
    pub passed_over: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Head {
    #[serde(default)]
    api_version: String,
    #[serde(default)]
    kind: String,
    #[serde(default)]
    metadata: HeadMetadata,
    #[serde(default)]
    items: Option<Vec<serde_yaml_ng::Value>>,
}

#[derive(Deserialize, Default)]
struct HeadMetadata {
    #[serde(default)]
    name: String,
    #[serde(default)]
    namespace: String,
}

/// Reads all documents of one file. `path` is only quoted in problems.
pub fn parse(path: &Path, text: &str) -> Parsed {
    let mut parsed = Parsed::default();
    for (number, document) in documents(text).into_iter().enumerate() {
        if number >= MAX_DOCUMENTS {
            let reason = format!("the file holds more than {MAX_DOCUMENTS} documents; split it");
            parsed.problems.push(Problem::at(path, number + 1, Some(document.line), "", reason));
            parsed.unreadable = true;
            break;
        }
        Reader { path, number: number + 1, document: Document::Text(document), parsed: &mut parsed }.read();
    }
    parsed
}

/// Reads one object as the API server has it. Its problems name the object, and no file and no line.
pub fn parse_json(object: &serde_json::Value) -> Parsed {
    let mut parsed = Parsed::default();
    Reader { path: Path::new(""), number: 1, document: Document::Json(object), parsed: &mut parsed }.read();
    parsed
}

/// What one object is read from.
enum Document<'a> {
    Text(Text<'a>),
    Json(&'a serde_json::Value),
}

/// One YAML document and where it begins.
struct Text<'a> {
    /// 1-based line of its first line in the file.
    line: usize,
    text: &'a str,
}

/// Splits at `---` and `...` in the first column, which YAML 1.2 (9.1.2) reserves for this even inside
/// block scalars, so that a syntax error in one document costs only that document.
fn documents(text: &str) -> Vec<Text<'_>> {
    let mut found = Vec::new();
    let (mut start, mut start_line, mut at, mut line) = (0, 1, 0, 1);
    for piece in text.split_inclusive('\n') {
        let marker = piece.trim_end();
        let ends = marker == "..." || marker == "---" || marker.starts_with("--- ");
        if ends {
            found.push(Text { line: start_line, text: &text[start..at] });
            // What follows the marker on its own line belongs to the next document.
            let kept = if marker.starts_with("--- ") { at + 4 } else { at + piece.len() };
            start = kept;
            start_line = if marker.starts_with("--- ") { line } else { line + 1 };
        }
        at += piece.len();
        line += 1;
    }
    found.push(Text { line: start_line, text: &text[start..] });
    found.retain(|document| {
        document.text.lines().any(|line| !line.trim().is_empty() && !line.trim_start().starts_with('#'))
    });
    found
}

struct Reader<'a, 'p> {
    path: &'a Path,
    /// 1-based.
    number: usize,
    document: Document<'a>,
    parsed: &'p mut Parsed,
}

impl Reader<'_, '_> {
    fn read(mut self) {
        let head: Head = match self.typed() {
            Ok(head) => head,
            Err(problem) => {
                self.parsed.problems.push(*problem);
                self.parsed.unreadable = true;
                return;
            }
        };
        match head.items {
            Some(items) if head.kind.ends_with("List") => self.read_list(items),
            _ => {
                let result = self.object(&head, None);
                self.keep(&head, result);
            }
        }
    }

    fn read_list(&mut self, items: Vec<serde_yaml_ng::Value>) {
        for (index, item) in items.into_iter().enumerate() {
            let head: Head = match serde_yaml_ng::from_value(item.clone()) {
                Ok(head) => head,
                Err(error) => {
                    let field = format!("items[{index}]");
                    self.parsed.problems.push(*self.problem(&field, error.to_string()));
                    self.parsed.unreadable = true;
                    continue;
                }
            };
            let result = self.object(&head, Some((index, item)));
            self.keep(&head, result);
        }
    }

    fn keep(&mut self, head: &Head, result: Result<Option<(ObjectKey, Object)>, Box<Problem>>) {
        match result {
            Ok(Some(found)) => self.parsed.objects.push(found),
            Ok(None) => self.parsed.passed_over.push(format!("{} {}", head.api_version, head.kind)),
            Err(problem) => {
                match &problem.object {
                    Some(key) => self.parsed.refused.push(key.clone()),
                    None => self.parsed.unreadable = true,
                }
                self.parsed.problems.push(*problem);
            }
        }
    }

    fn object(
        &mut self,
        head: &Head,
        item: Option<(usize, serde_yaml_ng::Value)>,
    ) -> Result<Option<(ObjectKey, Object)>, Box<Problem>> {
        if head.kind.is_empty() || head.api_version.is_empty() {
            return Err(self.problem("kind", "a manifest needs apiVersion and kind".to_owned()));
        }
        // Both are asked of kinds that are passed over, too: half of a manifest that is being written must
        // not look like a manifest of another kind.
        if !head.kind.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            return Err(self.problem("kind", format!("{:?} is not the name of a kind", head.kind)));
        }
        if head.metadata.name.is_empty() {
            return Err(self.problem("metadata.name", "every object needs a name".to_owned()));
        }
        if let Some((field, reason)) = mistaken::mistaken(&head.api_version, &head.kind) {
            return Err(self.problem(field, reason));
        }
        let Some(kind) = Kind::of(&head.api_version, &head.kind) else { return Ok(None) };
        for (field, name) in
            [("metadata.name", &head.metadata.name), ("metadata.namespace", &head.metadata.namespace)]
        {
            // They are joined with slashes into the names of the mesh.
            let odd = |byte: u8| byte == b'/' || byte.is_ascii_whitespace() || byte.is_ascii_control();
            if name.len() > MAX_NAME || name.bytes().any(odd) {
                let reason =
                    format!("{name:?} is not a name: no slashes or spaces, {MAX_NAME} characters at most");
                return Err(self.problem(field, reason));
            }
        }
        let namespace = match (kind.cluster_wide(), head.metadata.namespace.as_str()) {
            (true, _) => "",
            (false, "") => "default",
            (false, namespace) => namespace,
        };
        let key = ObjectKey { kind, namespace: namespace.into(), name: head.metadata.name.as_str().into() };
        let written = if kind.has_standings() { item.clone() } else { None };
        match self.typed_object(&key, item) {
            Ok(object) => Ok(Some((key, object))),
            Err(problem) => {
                let stand_in = self.stand_in(&key, written, &problem);
                self.parsed.stand_ins.extend(stand_in.map(|object| (key.clone(), object)));
                Err(Box::new(problem.of(key)))
            }
        }
    }

    /// What is known of an object that was refused, of the kinds that say how they stand.
    fn stand_in(
        &self,
        key: &ObjectKey,
        written: Option<(usize, serde_yaml_ng::Value)>,
        problem: &Problem,
    ) -> Option<Object> {
        let (field, reason) = (&problem.field, &problem.reason);
        if key.kind == Kind::BackendTLSPolicy {
            // Of what cannot be read at all, it is told that it closes no way.
            let policy: backend_tls::TargetsOnly = self.typed_or(written).unwrap_or_default();
            let colon = if field.is_empty() { "" } else { ": " };
            let policy = policy.refused(&key.namespace, format!("{field}{colon}{reason}"));
            return Some(Object::BackendTLSPolicy(Box::new(policy)));
        }
        let of: fn(Box<Route>) -> Object = match key.kind {
            Kind::HTTPRoute => Object::HTTPRoute,
            Kind::GRPCRoute => Object::GRPCRoute,
            Kind::TLSRoute => Object::TLSRoute,
            Kind::TCPRoute => Object::TCPRoute,
            _ => return None,
        };
        let route: route::ParentsOnly = self.typed_or(written).ok()?;
        Some(of(Box::new(route.refused(field.clone(), reason.clone()))))
    }

    fn typed_object(
        &self,
        key: &ObjectKey,
        item: Option<(usize, serde_yaml_ng::Value)>,
    ) -> Result<Object, Box<Problem>> {
        let object = match key.kind {
            Kind::Namespace => Object::Namespace(Box::new(self.typed_or(item)?)),
            Kind::Node => Object::Node(Box::new(self.typed_or(item)?)),
            Kind::Pod => Object::Pod(Box::new(self.checked(item, pod::Manifest::check)?.into())),
            Kind::Service => Object::Service(Box::new(self.checked(item, ServiceManifest::check)?.into())),
            Kind::EndpointSlice => {
                Object::EndpointSlice(Box::new(self.checked(item, SliceManifest::check)?.into()))
            }
            Kind::ServiceEntry => Object::ServiceEntry(Box::new(self.checked(item, ServiceEntry::check)?)),
            Kind::WorkloadEntry => Object::WorkloadEntry(Box::new(self.checked(item, WorkloadEntry::check)?)),
            Kind::PeerAuthentication => {
                Object::PeerAuthentication(Box::new(self.checked(item, PeerAuthentication::check)?))
            }
            Kind::RequestAuthentication => Object::RequestAuthentication(Box::new(
                self.converted(item, RequestAuthentication::from_manifest)?,
            )),
            Kind::Gateway => Object::Gateway(Box::new(self.checked(item, Gateway::check)?)),
            Kind::HTTPRoute => Object::HTTPRoute(Box::new(self.converted(item, Route::from_manifest)?)),
            Kind::GRPCRoute => Object::GRPCRoute(Box::new(self.converted(item, Route::from_grpc_manifest)?)),
            Kind::TLSRoute => Object::TLSRoute(Box::new(self.converted(item, Route::from_tls_manifest)?)),
            Kind::TCPRoute => Object::TCPRoute(Box::new(self.converted(item, Route::from_tcp_manifest)?)),
            Kind::ReferenceGrant => Object::ReferenceGrant(Box::new(self.typed_or(item)?)),
            Kind::BackendTLSPolicy => {
                Object::BackendTLSPolicy(Box::new(self.converted(item, BackendTlsPolicy::from_manifest)?))
            }
            Kind::ConfigMap => {
                Object::ConfigMap(Box::new(self.typed_or::<backend_tls::ConfigMapManifest>(item)?.into()))
            }
            Kind::AuthorizationPolicy => {
                let policy = |manifest| Authorization::from_manifest(manifest, &key.namespace);
                Object::AuthorizationPolicy(Box::new(self.converted(item, policy)?))
            }
        };
        Ok(object)
    }

    /// Parses, then lets the type check what serde can't say.
    fn checked<T: DeserializeOwned>(
        &self,
        item: Option<(usize, serde_yaml_ng::Value)>,
        check: fn(&T) -> Result<(), (String, String)>,
    ) -> Result<T, Box<Problem>> {
        self.converted(item, |object| check(&object).map(|()| object))
    }

    /// Parses one form, and converts it into another, which says what serde can't.
    fn converted<M: DeserializeOwned, T>(
        &self,
        item: Option<(usize, serde_yaml_ng::Value)>,
        convert: impl FnOnce(M) -> Result<T, (String, String)>,
    ) -> Result<T, Box<Problem>> {
        let prefix = item.as_ref().map_or_else(String::new, |(index, _)| format!("items[{index}]."));
        let manifest = self.typed_or(item)?;
        convert(manifest).map_err(|(field, reason)| self.problem(&format!("{prefix}{field}"), reason))
    }

    fn typed_or<T: DeserializeOwned>(
        &self,
        item: Option<(usize, serde_yaml_ng::Value)>,
    ) -> Result<T, Box<Problem>> {
        let Some((index, item)) = item else { return self.typed() };
        serde_path_to_error::deserialize(item).map_err(|error| {
            let field = format!("items[{index}].{}", error.path());
            self.problem(&field, error.into_inner().to_string())
        })
    }

    fn typed<T: DeserializeOwned>(&self) -> Result<T, Box<Problem>> {
        match &self.document {
            Document::Text(text) => self.typed_text(text),
            Document::Json(value) => serde_path_to_error::deserialize(*value).map_err(|error| {
                let field = field_of(error.path());
                Box::new(Problem::at(self.path, self.number, None, &field, error.into_inner().to_string()))
            }),
        }
    }

    fn typed_text<T: DeserializeOwned>(&self, text: &Text<'_>) -> Result<T, Box<Problem>> {
        let deserializer = serde_yaml_ng::Deserializer::from_str(text.text);
        serde_path_to_error::deserialize(deserializer).map_err(|error| {
            let field = field_of(error.path());
            let inner = error.into_inner();
            let line = inner.location().map(|location| text.line + location.line().saturating_sub(1));
            let line = line.or(Some(text.line));
            Box::new(Problem::at(self.path, self.number, line, &field, strip(&inner, &field)))
        })
    }

    /// A problem of a field that parsed and is wrong all the same.
    fn problem(&self, field: &str, reason: String) -> Box<Problem> {
        let line = match &self.document {
            Document::Text(text) => Some(text.line + locate::line_of(text.text, field)),
            Document::Json(_) => None,
        };
        Box::new(Problem::at(self.path, self.number, line, field, reason))
    }
}

/// A field's path; empty for the whole document.
fn field_of(path: &serde_path_to_error::Path) -> String {
    match path.to_string() {
        path if path == "." => String::new(),
        path => path,
    }
}

/// The reason alone: field and position are told by the problem itself.
fn strip(error: &serde_yaml_ng::Error, field: &str) -> String {
    let text = error.to_string();
    let text = text.strip_prefix(field).and_then(|rest| rest.strip_prefix(": ")).unwrap_or(&text);
    match text.rfind(" at line ") {
        Some(at) => text[..at].to_owned(),
        None => text.to_owned(),
    }
}

#[cfg(test)]
pub(crate) mod tests;
