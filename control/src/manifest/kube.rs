//! The Kubernetes kinds, with only the fields the mesh reads.

use std::{net::IpAddr, sync::Arc};

use serde::{Deserialize, de::IgnoredAny};

use super::{MAX_NAME, labels::Labels, shared::Shared};

/// What is read of `metadata` of every object, besides its name.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Metadata {
    pub labels: Labels,
    pub annotations: Labels,
    /// RFC 3339; compared as text, which sorts as time does in UTC.
    pub creation_timestamp: Option<Box<str>>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(default)]
pub struct OwnerReference {
    pub kind: Arc<str>,
    pub name: Arc<str>,
    pub controller: Option<bool>,
}

impl Metadata {
    pub fn label(&self, name: &str) -> Option<&str> {
        self.labels.get(name)
    }

    pub fn annotation(&self, name: &str) -> Option<&str> {
        self.annotations.get(name)
    }

    /// Its own texts become those that all share, of what belongs to Kubernetes itself: labels are read of it, and
    /// these annotations.
    pub(crate) fn share(&mut self, annotations: &[&str], shared: &mut Shared) {
        (self.annotations, self.creation_timestamp) = (self.annotations.only(annotations), None);
        self.labels.share(shared);
        self.annotations.share(shared);
    }
}

/// An object of which every field must be known: one that was passed over might be what keeps somebody out.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, bound(deserialize = "S: Deserialize<'de> + Default"))]
pub(super) struct Strict<S> {
    // Read before; named here so that a misspelt `spec` is not passed over.
    #[serde(rename = "apiVersion")]
    _api_version: IgnoredAny,
    #[serde(rename = "kind")]
    _kind: IgnoredAny,
    #[serde(rename = "status", default)]
    _status: IgnoredAny,
    pub(super) metadata: Metadata,
    #[serde(default)]
    pub(super) spec: S,
}

/// `matchLabels`, the only form the policies of the mesh have.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LabelSelector {
    #[serde(default)]
    pub match_labels: Labels,
}

impl LabelSelector {
    pub fn matches(&self, labels: &Labels) -> bool {
        labels.have(&self.match_labels)
    }
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
pub struct Namespace {
    pub metadata: Metadata,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
pub struct Node {
    pub metadata: Metadata,
}

/// Says of a list that it is too long.
pub(super) fn bounded(field: &str, length: usize, most: usize) -> Result<(), (String, String)> {
    if length > most {
        return Err((field.to_owned(), format!("more than {most}")));
    }
    Ok(())
}

/// Whether an object may be called so (a subdomain of RFC 1123).
pub(crate) fn is_subdomain(name: &str) -> bool {
    let label = |label: &str| {
        let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        !label.is_empty() && label.bytes().all(fits) && !label.starts_with('-') && !label.ends_with('-')
    };
    name.len() <= MAX_NAME && name.split('.').all(label)
}

/// Parses an address or says which field is wrong.
pub(super) fn parse_ip(field: &str, text: &str) -> Result<IpAddr, (String, String)> {
    text.parse().map_err(|_| (field.to_owned(), format!("{text:?} is not an IP address")))
}
