//! ReferenceGrant of the Gateway API: who in other namespaces may refer to what in this one.

use std::sync::Arc;

use serde::{Deserialize, de::IgnoredAny};

use super::kube::Metadata;

/// A grant. A field that is not known refuses it: it might be what narrows it.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ReferenceGrant {
    // Read before; named here so that a misspelt `spec` is not passed over.
    #[serde(rename = "apiVersion")]
    _api_version: Passed,
    #[serde(rename = "kind")]
    _kind: Passed,
    #[serde(rename = "status", default)]
    _status: Passed,
    pub metadata: Metadata,
    pub spec: GrantSpec,
}

/// What is of no interest here.
#[derive(Debug, Clone, Copy, Default, PartialEq, Deserialize)]
#[serde(from = "IgnoredAny")]
struct Passed;

impl From<IgnoredAny> for Passed {
    fn from(_: IgnoredAny) -> Self {
        Self
    }
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GrantSpec {
    pub from: Vec<GrantFrom>,
    pub to: Vec<GrantTo>,
}

/// Who may refer.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GrantFrom {
    pub group: Arc<str>,
    pub kind: Arc<str>,
    pub namespace: Arc<str>,
}

/// What may be referred to.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GrantTo {
    pub group: Arc<str>,
    pub kind: Arc<str>,
    /// All of them, if none is named.
    #[serde(default)]
    pub name: Option<Arc<str>>,
}

impl ReferenceGrant {
    /// Whether routes of a kind and namespace may refer to an object of the grant's namespace, by its group and kind.
    pub fn permits(&self, kind: &str, namespace: &str, (group, of, name): (&str, &str, &str)) -> bool {
        let from = |from: &GrantFrom| {
            *from.group == *"gateway.networking.k8s.io"
                && *from.kind == *kind
                && *from.namespace == *namespace
        };
        let to = |to: &GrantTo| {
            *to.group == *group
                && *to.kind == *of
                && to.name.as_deref().is_none_or(|named| named.is_empty() || *named == *name)
        };
        self.spec.from.iter().any(from) && self.spec.to.iter().any(to)
    }
}
