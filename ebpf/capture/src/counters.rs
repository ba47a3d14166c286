//! A pod's verdicts, counted by the kernel programs and named for metrics.

use crate::{Error, maps};
use std::{collections::BTreeMap, path::Path};

/// How often each verdict fell for one pod, summed over the CPUs, by the verdict's stable name
/// (`snake_case`, fit for a metric label).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counters {
    by_name: BTreeMap<&'static str, u64>,
}

impl Counters {
    pub(crate) fn read(pod: &Path) -> Result<Self, Error> {
        let map = maps::counters(pod)?;
        let mut by_name = BTreeMap::new();
        for (counter, name) in abi::counters() {
            by_name.insert(name, count(&map, counter, pod)?);
        }
        Ok(Self { by_name })
    }

    /// The count of one verdict; 0 for a name that does not exist.
    pub fn get(&self, name: &str) -> u64 {
        self.by_name.get(name).copied().unwrap_or(0)
    }

    /// Every verdict with its count, in the order of names.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        self.by_name.iter().map(|(name, count)| (*name, *count))
    }
}

/// One counter of a pod.
pub(crate) fn read_one(pod: &Path, counter: abi::Counter) -> Result<u64, Error> {
    count(&maps::counters(pod)?, counter, pod)
}

fn count(
    map: &aya::maps::PerCpuArray<aya::maps::MapData, u64>,
    counter: abi::Counter,
    pod: &Path,
) -> Result<u64, Error> {
    let per_cpu = map
        .get(&counter.0, 0)
        .map_err(|error| Error::kernel(format!("read the counters in {}", pod.display()), &error))?;
    Ok(per_cpu.iter().sum())
}
