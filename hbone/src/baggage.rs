//! The `baggage` header: the names of the workload at the other end, for reports only.
//!
//! It is said by the peer and proved by nobody: no decision may rest on it.

use std::fmt;

use mesh::{Workload, WorkloadKind};

/// The names that HBONE peers tell each other. Empty where the peer said nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Baggage {
    pub cluster: String,
    pub namespace: String,
    pub workload_kind: WorkloadKind,
    pub workload_name: String,
    pub service_name: String,
    pub service_version: String,
    pub region: String,
    pub zone: String,
}

/// A header that is no baggage, or too much of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadBaggage {
    #[error("baggage of {0} bytes is longer than 8192")]
    TooLong(usize),
    #[error("baggage has more than 64 members")]
    TooMany,
    #[error("baggage member {0} is malformed")]
    Malformed(usize),
}

impl Baggage {
    /// What we tell of one of our workloads.
    pub fn of(workload: &Workload) -> Self {
        let _ = workload;
        panic!("stub")
    }

    /// Reads a header; members of other names are skipped.
    pub fn parse(text: &str) -> Result<Self, BadBaggage> {
        let _ = text;
        panic!("stub")
    }
}

impl fmt::Display for Baggage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let _ = f;
        panic!("stub")
    }
}
