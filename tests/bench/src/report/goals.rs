//! The speed to reach: ratios to no mesh that Istio's ztunnel measured on this kind of machine.
//!
//! Two nodes are held against its figures for two nodes, the same node against its captured plain TCP. Those have
//! one base, a pair of pods without a mesh, so goals are held against the mode `no-mesh`; the tables show the same
//! node beside two pods of one node without a mesh, which is the harder comparison.

use crate::plan::{Bench, Mode};

/// A ratio to no mesh, and the side of it that is good.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Goal {
    AtLeast(f64),
    AtMost(f64),
}

impl Goal {
    /// What is asked of a bench in a mode.
    pub(crate) fn of(bench: Bench, mode: Mode) -> Option<Self> {
        let (two_nodes, same_node) = match bench {
            Bench::Bulk { streams: 1 } => (0.23, 0.60),
            Bench::Bulk { .. } => (0.20, 0.60),
            Bench::Requests { connections: 1 } => (0.23, 0.41),
            Bench::Requests { connections: 32 } => (0.31, 0.49),
            Bench::Requests { .. } => (0.30, 0.48),
            Bench::Bodies { .. } => (0.16, 0.41),
            Bench::Connections { at_once: 1 } => (0.14, 0.38),
            Bench::Connections { .. } => (0.23, 0.40),
            Bench::Latency => (3.55, 2.0),
        };
        let ratio = match mode {
            Mode::TwoNodes => two_nodes,
            Mode::SameNode => same_node,
            // Its row is reported; what it is to reach is later work.
            Mode::Spliced => return None,
            Mode::NoMesh | Mode::NoMeshSameNode | Mode::Passthrough | Mode::PeerTwoNodes => return None,
        };
        Some(if bench.headline().more_is_better() { Self::AtLeast(ratio) } else { Self::AtMost(ratio) })
    }

    pub(crate) fn is_met(self, ratio: f64) -> bool {
        match self {
            Self::AtLeast(goal) => ratio >= goal,
            Self::AtMost(goal) => ratio <= goal,
        }
    }
}

impl std::fmt::Display for Goal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::AtLeast(goal) => write!(f, "≥ {goal:.2}×"),
            Self::AtMost(goal) => write!(f, "≤ {goal:.2}×"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn less_is_better_only_for_latency() {
        let latency = Goal::of(Bench::Latency, Mode::TwoNodes).unwrap();
        assert!(latency.is_met(3.0) && !latency.is_met(4.0));
        let bulk = Goal::of(Bench::Bulk { streams: 1 }, Mode::TwoNodes).unwrap();
        assert!(bulk.is_met(0.3) && !bulk.is_met(0.2));
        assert_eq!(Goal::of(Bench::Latency, Mode::NoMesh), None);
    }
}
