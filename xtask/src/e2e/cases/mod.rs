//! The cases, in the order in which they are tried.

use super::Case;
pub(super) use faults::split;
pub(super) use joining::{PODS, UPGRADE_FROM};
pub(super) use policy::refused;

mod faults;
mod joining;
mod leaving;
mod long;
mod node;
mod policy;
mod waypoint;
mod workloads;

/// Every case there is.
pub(super) fn all() -> Vec<Case> {
    [
        joining::CASES,
        workloads::CASES,
        policy::CASES,
        waypoint::CASES,
        faults::CASES,
        node::CASES,
        long::CASES,
        leaving::CASES,
    ]
    .concat()
}
