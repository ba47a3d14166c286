//! A pod's verdicts, counted by the kernel programs and named for metrics.

use std::collections::BTreeMap;

/// How often each verdict fell for one pod, summed over the CPUs, by the verdict's stable name
/// (`snake_case`, fit for a metric label).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counters {
    pub(crate) by_name: BTreeMap<&'static str, u64>,
}

impl Counters {
    /// The count of one verdict; 0 for a name that does not exist.
    pub fn get(&self, name: &str) -> u64 {
        self.by_name.get(name).copied().unwrap_or(0)
    }

    /// Every verdict with its count, in the order of names.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        self.by_name.iter().map(|(name, count)| (*name, *count))
    }
}
