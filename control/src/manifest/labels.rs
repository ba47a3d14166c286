//! Labels and annotations, kept as small as they are: a cluster has some for each of its pods.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};

/// Texts by name, in the order of the names. A map costs half a KiB more where there are three.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Labels(Vec<(Box<str>, Box<str>)>);

impl Labels {
    pub const NONE: Self = Self(Vec::new());

    pub fn get(&self, name: &str) -> Option<&str> {
        let at = self.0.binary_search_by(|(held, _)| (**held).cmp(name)).ok()?;
        Some(&self.0[at].1)
    }

    /// Whether every one of `wanted` is among them.
    pub fn have(&self, wanted: &Self) -> bool {
        wanted.0.iter().all(|(name, value)| self.get(name) == Some(value))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<'de> Deserialize<'de> for Labels {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let map = BTreeMap::<Box<str>, Box<str>>::deserialize(from)?;
        // Collected anew: exactly as long as it has to be.
        let mut pairs = Vec::with_capacity(map.len());
        pairs.extend(map);
        Ok(Self(pairs))
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
