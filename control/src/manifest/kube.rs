//! The Kubernetes kinds, with only the fields the mesh reads.

use std::{net::IpAddr, sync::Arc};

use serde::Deserialize;

use super::{labels::Labels, shared::Shared};
use crate::compile::{EXPORT_TO, WAYPOINT_EXCEPT};

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

    /// Its own texts become those that all share. Of what belongs to Kubernetes itself only labels are read, and of
    /// annotations some.
    pub(crate) fn share(&mut self, shared: &mut Shared) {
        self.annotations = self.annotations.only(&[EXPORT_TO, WAYPOINT_EXCEPT]);
        self.annotations.share(shared);
        self.labels.share(shared);
        self.creation_timestamp = None;
    }
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

/// Parses an address or says which field is wrong.
pub(super) fn parse_ip(field: &str, text: &str) -> Result<IpAddr, (String, String)> {
    text.parse().map_err(|_| (field.to_owned(), format!("{text:?} is not an IP address")))
}
