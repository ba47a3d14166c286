//! The cases, in the order in which they are tried.

use super::Case;
pub(super) use joining::UPGRADE_FROM;

mod faults;
mod joining;
mod leaving;
mod long;
mod node;
mod policy;
mod workloads;

/// Every case there is.
pub(super) fn all() -> Vec<Case> {
    [joining::CASES, workloads::CASES, policy::CASES, faults::CASES, node::CASES, long::CASES, leaving::CASES]
        .concat()
}
