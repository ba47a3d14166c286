//! Labels and annotations, kept as small as they are: a cluster has some for each of its pods.

use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Deserializer};

use super::shared::Shared;

/// A key and its value.
type Pair = (Arc<str>, Arc<str>);

/// Texts by name, in the order of the names. The pods of one owner have the same, and share them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Labels(Option<Arc<[Pair]>>);

impl Labels {
    pub const NONE: Self = Self(None);

    pub fn get(&self, name: &str) -> Option<&str> {
        let pairs = self.pairs();
        let at = pairs.binary_search_by(|(held, _)| (**held).cmp(name)).ok()?;
        Some(&pairs[at].1)
    }

    /// Whether every one of `wanted` is among them.
    pub fn have(&self, wanted: &Self) -> bool {
        wanted.pairs().iter().all(|(name, value)| self.get(name) == Some(value))
    }

    pub fn is_empty(&self) -> bool {
        self.pairs().is_empty()
    }

    /// Only those whose names are `wanted`.
    pub fn only(&self, wanted: &[&str]) -> Self {
        let kept = self.pairs().iter().filter(|(name, _)| wanted.contains(&&**name)).cloned();
        let kept: Vec<_> = kept.collect();
        if kept.is_empty() { Self::NONE } else { Self(Some(kept.into())) }
    }

    /// The same in memory that is shared with whoever has the same.
    pub(crate) fn share(&mut self, shared: &mut Shared) {
        let Some(pairs) = &self.0 else { return };
        if let Some(known) = shared.labels(pairs) {
            self.0 = Some(known);
            return;
        }
        let pairs: Vec<_> =
            pairs.iter().map(|(name, value)| (shared.text(name), shared.text(value))).collect();
        self.0 = Some(shared.add_labels(pairs.into()));
    }

    fn pairs(&self) -> &[(Arc<str>, Arc<str>)] {
        self.0.as_deref().unwrap_or_default()
    }
}

impl<'de> Deserialize<'de> for Labels {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let map = Option::<BTreeMap<Arc<str>, Arc<str>>>::deserialize(from)?.unwrap_or_default();
        if map.is_empty() { Ok(Self::NONE) } else { Ok(Self(Some(map.into_iter().collect()))) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_found_and_compared_by_name() {
        let labels = |text: &str| serde_yaml_ng::from_str::<Labels>(text).unwrap();
        let held = labels("{b: '2', a: '1', c: ''}");
        assert_eq!((held.get("a"), held.get("c"), held.get("d")), (Some("1"), Some(""), None));
        assert!(held.have(&labels("{a: '1', b: '2'}")) && held.have(&Labels::NONE));
        assert!(!held.have(&labels("{a: '2'}")) && !held.have(&labels("{d: ''}")));
    }
}
