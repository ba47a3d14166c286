//! What is measured: the benches, the modes, and the order of the runs.
//!
//! It decides nothing about how a load is made (`load`) or where (`world`).

use std::{fmt, str::FromStr};

use serde::Serialize;

/// One kind of load. The name is what `l4.json` and `--only` say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Bench {
    /// iperf3, so many parallel streams, client to server.
    Bulk { streams: u16 },
    /// Keep-alive HTTP requests of a few bytes over so many connections.
    Requests { connections: u16 },
    /// Keep-alive HTTP responses of 100 KB over so many connections.
    Bodies { connections: u16 },
    /// A new connection for every request, so many at a time.
    Connections { at_once: u16 },
    /// One connection, one 64-byte message there and back at a time.
    Latency,
}

impl Bench {
    /// Every bench, in the order of the table.
    pub(crate) const ALL: [Self; 9] = [
        Self::Bulk { streams: 1 },
        Self::Bulk { streams: 8 },
        Self::Requests { connections: 1 },
        Self::Requests { connections: 32 },
        Self::Requests { connections: 256 },
        Self::Bodies { connections: 32 },
        Self::Connections { at_once: 1 },
        Self::Connections { at_once: 32 },
        Self::Latency,
    ];

    /// The metric that the ratio to no mesh is taken of.
    pub(crate) fn headline(self) -> Metric {
        match self {
            Self::Bulk { .. } => Metric::GigabitsPerSecond,
            Self::Requests { .. } | Self::Bodies { .. } => Metric::RequestsPerSecond,
            Self::Connections { .. } => Metric::ConnectionsPerSecond,
            Self::Latency => Metric::P50,
        }
    }

    /// What the CPU seconds of a run are divided by.
    pub(crate) fn unit(self) -> Unit {
        match self {
            Self::Bulk { .. } => Unit::Gigabyte,
            Self::Requests { .. } | Self::Bodies { .. } => Unit::Request,
            Self::Connections { .. } => Unit::Connection,
            Self::Latency => Unit::Request,
        }
    }
}

impl fmt::Display for Bench {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bulk { streams } => write!(f, "bulk-{streams}"),
            Self::Requests { connections } => write!(f, "requests-{connections}"),
            Self::Bodies { connections } => write!(f, "bodies-{connections}"),
            Self::Connections { at_once } => write!(f, "connections-{at_once}"),
            Self::Latency => write!(f, "latency"),
        }
    }
}

/// The way that the bytes take from client to server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Mode {
    /// Pods of two nodes, neither enrolled. Every ratio is to this row or the next.
    NoMesh,
    /// Two pods of one node, neither enrolled: the base of the same-node rows.
    NoMeshSameNode,
    /// Captured at the client, plain TCP onward to a pod of another node that is not enrolled.
    Passthrough,
    /// Both enrolled, on one node.
    SameNode,
    /// The same, on a node whose agent lets connections be spliced.
    Spliced,
    /// Both enrolled, on two nodes: HBONE between two ztunnels.
    TwoNodes,
    /// Two nodes, each with a foreign ztunnel (`--peer-ztunnel`) in place of ours.
    PeerTwoNodes,
}

impl Mode {
    /// Every mode that needs no foreign program, in the order of the table.
    pub(crate) const OURS: [Self; 6] = [
        Self::NoMesh,
        Self::NoMeshSameNode,
        Self::Passthrough,
        Self::SameNode,
        Self::Spliced,
        Self::TwoNodes,
    ];

    /// What goals are held against.
    pub(crate) const GOAL_BASE: Self = Self::NoMesh;

    /// The row that this one is compared with: the same pair of nodes without a mesh.
    pub(crate) fn baseline(self) -> Self {
        match self {
            Self::NoMesh | Self::Passthrough | Self::TwoNodes | Self::PeerTwoNodes => Self::NoMesh,
            Self::NoMeshSameNode | Self::SameNode | Self::Spliced => Self::NoMeshSameNode,
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoMesh => "no-mesh",
            Self::NoMeshSameNode => "no-mesh-same-node",
            Self::Passthrough => "passthrough",
            Self::SameNode => "same-node",
            Self::Spliced => "spliced",
            Self::TwoNodes => "two-nodes",
            Self::PeerTwoNodes => "peer-two-nodes",
        })
    }
}

/// A measured quantity. The name carries the unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Metric {
    GigabitsPerSecond,
    RequestsPerSecond,
    ConnectionsPerSecond,
    /// Microseconds: of a whole request for HTTP, of half a round trip for `latency`.
    P50,
    P99,
    /// CPU seconds of the ztunnel processes, user and system, per unit of work.
    ZtunnelCpu(Unit),
    /// Busy seconds of the whole machine (client, server, softirq, proxies) per unit of work.
    MachineCpu(Unit),
    RssIdle,
    RssPerIdleConnection,
    RssPerPod,
    DescriptorsPerPod,
}

/// A unit of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Unit {
    Gigabyte,
    Request,
    Connection,
}

impl Unit {
    /// CPU is told in seconds per GB, and in microseconds per request or connection.
    pub(crate) fn scale(self) -> f64 {
        match self {
            Self::Gigabyte => 1.0,
            Self::Request | Self::Connection => 1e6,
        }
    }

    fn suffix(self) -> &'static str {
        match self {
            Self::Gigabyte => "s_per_gb",
            Self::Request => "us_per_request",
            Self::Connection => "us_per_connection",
        }
    }
}

impl Metric {
    /// Whether a bigger figure is a better one.
    pub(crate) fn more_is_better(self) -> bool {
        matches!(self, Self::GigabitsPerSecond | Self::RequestsPerSecond | Self::ConnectionsPerSecond)
    }
}

impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::GigabitsPerSecond => f.write_str("gbit_per_s"),
            Self::RequestsPerSecond => f.write_str("requests_per_s"),
            Self::ConnectionsPerSecond => f.write_str("connections_per_s"),
            Self::P50 => f.write_str("p50_us"),
            Self::P99 => f.write_str("p99_us"),
            Self::ZtunnelCpu(unit) => write!(f, "cpu_ztunnels_{}", unit.suffix()),
            Self::MachineCpu(unit) => write!(f, "cpu_machine_{}", unit.suffix()),
            Self::RssIdle => f.write_str("rss_idle_mb"),
            Self::RssPerIdleConnection => f.write_str("rss_per_idle_connection_kb"),
            Self::RssPerPod => f.write_str("rss_per_pod_kb"),
            Self::DescriptorsPerPod => f.write_str("descriptors_per_pod"),
        }
    }
}

impl Serialize for Metric {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// What `--only` leaves: a list of bench and mode names; a name alone selects all of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Selection {
    names: Vec<String>,
}

impl FromStr for Selection {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let names: Vec<String> =
            text.split(',').map(|name| name.trim().to_owned()).filter(|name| !name.is_empty()).collect();
        let known: Vec<String> = Bench::ALL
            .iter()
            .map(ToString::to_string)
            .chain(Mode::OURS.iter().map(ToString::to_string))
            .chain([Mode::PeerTwoNodes.to_string(), MEMORY.to_owned()])
            .collect();
        match names.iter().find(|name| !known.contains(name)) {
            Some(name) => Err(format!("no bench or mode is called {name}; there are {}", known.join(", "))),
            None => Ok(Self { names }),
        }
    }
}

/// The name of the part that measures memory, for `--only` and in `l4.json`.
pub(crate) const MEMORY: &str = "memory";

impl Selection {
    fn takes(&self, names: &[String], name: &str) -> bool {
        let chosen: Vec<&String> = self.names.iter().filter(|chosen| names.contains(chosen)).collect();
        chosen.is_empty() || chosen.iter().any(|chosen| *chosen == name)
    }

    /// The benches to run. Naming only `memory` leaves none.
    pub(crate) fn benches(&self) -> Vec<Bench> {
        let mut names: Vec<String> = Bench::ALL.iter().map(ToString::to_string).collect();
        names.push(MEMORY.to_owned());
        Bench::ALL.into_iter().filter(|bench| self.takes(&names, &bench.to_string())).collect()
    }

    /// The modes to run, each with the baseline that its ratio needs, and the base that its goal has.
    pub(crate) fn modes(&self, available: &[Mode]) -> Vec<Mode> {
        let names: Vec<String> = available.iter().map(ToString::to_string).collect();
        let chosen: Vec<Mode> =
            available.iter().copied().filter(|mode| self.takes(&names, &mode.to_string())).collect();
        available
            .iter()
            .copied()
            .filter(|mode| {
                let needed = |by: &Mode| by.baseline() == *mode || *mode == Mode::GOAL_BASE;
                chosen.contains(mode) || chosen.iter().any(needed)
            })
            .collect()
    }

    /// Whether memory is measured.
    pub(crate) fn memory(&self) -> bool {
        let mut names: Vec<String> = Bench::ALL.iter().map(ToString::to_string).collect();
        names.push(MEMORY.to_owned());
        self.takes(&names, MEMORY)
    }
}

/// The order of the runs: bench by bench, and within one the modes take turns, each turn starting one
/// mode later, so that a drift of the machine and the heat of a neighbour fall on all of them alike.
pub(crate) fn schedule(benches: &[Bench], modes: &[Mode], runs: usize) -> Vec<(Bench, Mode)> {
    let mut order = Vec::with_capacity(benches.len() * modes.len() * runs);
    for bench in benches {
        for turn in 0..runs {
            for place in 0..modes.len() {
                order.push((*bench, modes[(place + turn) % modes.len()]));
            }
        }
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mode_meets_every_bench_in_every_turn_and_none_always_goes_first() {
        let order = schedule(&Bench::ALL, &Mode::OURS, 3);
        assert_eq!(order.len(), 9 * 6 * 3);
        for bench in Bench::ALL {
            for mode in Mode::OURS {
                assert_eq!(order.iter().filter(|entry| **entry == (bench, mode)).count(), 3);
            }
        }
        assert_ne!(order[0].1, order[6].1);
    }

    #[test]
    fn a_selection_keeps_the_baseline_and_refuses_a_name_it_does_not_know() {
        let selection: Selection = "bulk-1,same-node".parse().unwrap();
        assert_eq!(selection.benches(), [Bench::Bulk { streams: 1 }]);
        assert_eq!(selection.modes(&Mode::OURS), [Mode::NoMesh, Mode::NoMeshSameNode, Mode::SameNode]);
        assert!(!selection.memory());
        assert!("bulk-9".parse::<Selection>().unwrap_err().contains("bulk-8"));
        let memory: Selection = "memory".parse().unwrap();
        assert!(memory.benches().is_empty() && memory.memory());
        let modes: Selection = "two-nodes".parse().unwrap();
        assert_eq!(modes.benches().len(), 9);
    }
}
