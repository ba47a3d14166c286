//! Is a mode really in effect? A figure counts only if ztunnel's own counters, and the bytes on the
//! nodes' uplinks, say that the traffic went the way of its mode.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};
use bed::Node;

use crate::{
    load::Figures,
    plan::{Bench, Mode},
    world::Scene,
};

const OPENED: &str = "istio_tcp_connections_opened_total";
const SPLICED: &str = "culvert_ztunnel_spliced_connections_total";

/// Connections opened at one ztunnel, by who reports and how they are secured.
#[derive(Clone, Debug, Default, PartialEq)]
struct Opened(BTreeMap<(String, String), f64>);

impl Opened {
    /// Reads Prometheus text; samples of the same reporter and security add up.
    fn read(metrics: &str) -> Self {
        let mut counts = BTreeMap::new();
        for line in metrics.lines() {
            let Some((labels, value)) = line
                .strip_prefix(OPENED)
                .and_then(|rest| rest.strip_prefix('{'))
                .and_then(|rest| rest.rsplit_once('}'))
            else {
                continue;
            };
            let label = |name: &str| {
                let (_, rest) = labels.split_once(&format!("{name}=\""))?;
                Some(rest.split('"').next()?.to_owned())
            };
            let (Some(reporter), Some(security)) = (label("reporter"), label("connection_security_policy"))
            else {
                continue;
            };
            *counts.entry((reporter, security)).or_default() += value.trim().parse().unwrap_or(0.0);
        }
        Self(counts)
    }

    fn since(&self, earlier: &Self) -> Self {
        Self(
            self.0
                .iter()
                .map(|(key, count)| (key.clone(), count - earlier.0.get(key).copied().unwrap_or(0.0)))
                .filter(|(_, count)| *count > 0.0)
                .collect(),
        )
    }

    fn secured(&self, reporter: &str) -> f64 {
        self.sum(|by, how| by == reporter && how == "mutual_tls")
    }

    fn plain(&self, reporter: &str) -> f64 {
        self.sum(|by, how| by == reporter && how != "mutual_tls")
    }

    fn all(&self) -> f64 {
        self.sum(|_, _| true)
    }

    fn sum(&self, wanted: impl Fn(&str, &str) -> bool) -> f64 {
        self.0.iter().filter(|((by, how), _)| wanted(by, how)).map(|(_, count)| count).sum()
    }
}

/// The counters before or after a run.
pub(crate) struct Evidence {
    opened: BTreeMap<String, Opened>,
    /// Connections spliced, at all ztunnels.
    spliced: f64,
    /// Bytes sent on the uplinks of the nodes of the pair, client's and server's.
    wire: u64,
}

impl Evidence {
    pub(crate) fn gather(scene: &Scene, mode: Mode) -> Result<Self> {
        let mut opened = BTreeMap::new();
        let mut spliced = 0.0;
        for ztunnel in &scene.ztunnels {
            let metrics = ztunnel.node.metrics().with_context(|| {
                format!("read the metrics of the ztunnel of node {}", ztunnel.node.name())
            })?;
            opened.insert(ztunnel.node.name().to_owned(), Opened::read(&metrics));
            let line = metrics.lines().find_map(|line| line.strip_prefix(SPLICED));
            spliced += line.and_then(|count| count.trim().parse::<f64>().ok()).unwrap_or(0.0);
        }
        let (client, server) = scene.pair(mode)?;
        let mut wire = 0;
        for pod in [client, server] {
            wire += uplink_bytes(scene.node_of(pod))?;
        }
        Ok(Self { opened, spliced, wire })
    }

    /// Fails unless what happened since `self` is what the mode promises.
    pub(crate) fn check(&self, scene: &Scene, bench: Bench, mode: Mode, figures: &Figures) -> Result<()> {
        let after = Self::gather(scene, mode)?;
        let opened = |node: &str| {
            let none = Opened::default();
            after.opened.get(node).unwrap_or(&none).since(self.opened.get(node).unwrap_or(&none))
        };
        let least = least_connections(bench, figures);
        let (client, server) = match mode {
            Mode::PeerTwoNodes => ("p1", "p2"),
            Mode::Spliced => ("s", "b"),
            _ => ("a", "b"),
        };
        let (near, far) = (opened(client), opened(server));
        let what = format!("{mode} {bench}: at the client's ztunnel {near:?}, at the server's {far:?}");
        match mode {
            Mode::NoMesh | Mode::NoMeshSameNode => {
                ensure!(near.all() + far.all() == 0.0, "traffic without a mesh went through one. {what}");
            }
            Mode::Passthrough => {
                ensure!(
                    near.plain("source") >= least,
                    "not captured: fewer than {least} connections. {what}"
                );
                ensure!(near.secured("source") == 0.0 && far.all() == 0.0, "not passed through. {what}");
            }
            Mode::SameNode | Mode::Spliced => {
                ensure!(near.all() >= least, "not captured: fewer than {least} connections. {what}");
                ensure!(far.all() == 0.0, "another node's ztunnel took part. {what}");
                let spliced = after.spliced - self.spliced;
                // A connection is spliced once it is a millisecond old.
                let expected = match (mode, bench) {
                    (Mode::SameNode, _) => spliced == 0.0,
                    (_, Bench::Connections { .. }) => true,
                    _ => spliced >= least_spliced(bench),
                };
                ensure!(expected, "{spliced} connections were spliced. {what}");
            }
            Mode::TwoNodes | Mode::PeerTwoNodes => {
                ensure!(
                    near.secured("source") >= least && far.secured("destination") >= least,
                    "not carried by HBONE: fewer than {least} connections. {what}"
                );
                ensure!(near.plain("source") == 0.0, "some connections went in plaintext. {what}");
            }
        }
        self.check_wire(&after, bench, mode, figures)
    }

    fn check_wire(&self, after: &Self, bench: Bench, mode: Mode, figures: &Figures) -> Result<()> {
        // A unit of work is at least this many bytes, there and back.
        let work = figures.work
            * match bench {
                Bench::Bulk { .. } => 1e9,
                Bench::Bodies { .. } => 100e3,
                Bench::Requests { .. } | Bench::Connections { .. } | Bench::Latency => 100.0,
            };
        let crossed = after.wire.saturating_sub(self.wire) as f64;
        let two_nodes = !matches!(mode, Mode::SameNode | Mode::Spliced | Mode::NoMeshSameNode);
        if two_nodes && crossed < work * 0.9 {
            bail!(
                "{mode} {bench}: only {crossed:.0} bytes crossed the wire for at least {work:.0} bytes of load"
            );
        }
        // Beside the load there is the talk with control.
        if !two_nodes && crossed > work * 0.1 + 1e6 {
            bail!("{mode} {bench}: {crossed:.0} bytes crossed the wire, though both pods are on one node");
        }
        Ok(())
    }
}

/// How many connections a load must have opened at every ztunnel on its way.
fn least_connections(bench: Bench, figures: &Figures) -> f64 {
    match bench {
        Bench::Bulk { streams } => f64::from(streams) + 1.0,
        Bench::Requests { connections } | Bench::Bodies { connections } => f64::from(connections),
        Bench::Connections { .. } => figures.work,
        Bench::Latency => 1.0,
    }
}

/// How many connections of a load must have been spliced: those that carry it.
fn least_spliced(bench: Bench) -> f64 {
    match bench {
        Bench::Bulk { streams } => f64::from(streams),
        Bench::Requests { connections } | Bench::Bodies { connections } => f64::from(connections),
        Bench::Connections { .. } => 0.0,
        Bench::Latency => 1.0,
    }
}

/// Bytes that a node has sent to the wire.
fn uplink_bytes(node: &Node) -> Result<u64> {
    let text = node
        .netns()
        .enter(|| std::fs::read_to_string("/proc/thread-self/net/dev"))?
        .with_context(|| format!("read the devices' counters of node {}", node.name()))?;
    sent_bytes(&text, "uplink").with_context(|| format!("node {} has no device uplink", node.name()))
}

/// The ninth figure of a device's line in /proc/net/dev.
fn sent_bytes(devices: &str, device: &str) -> Option<u64> {
    let (_, figures) =
        devices.lines().filter_map(|line| line.split_once(':')).find(|(name, _)| name.trim() == device)?;
    figures.split_ascii_whitespace().nth(8)?.parse().ok()
}

/// The sum of a counter over its labels, of Prometheus' text.
pub(crate) fn total(metrics: &str, name: &str) -> u64 {
    let samples = metrics.lines().filter_map(|line| line.strip_prefix(name));
    let samples = samples.filter(|rest| rest.starts_with(['{', ' ']));
    samples.filter_map(|rest| rest.rsplit(' ').next()?.parse::<u64>().ok()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# TYPE istio_tcp_connections_opened counter\n\
        istio_tcp_connections_opened_total{reporter=\"source\",connection_security_policy=\"mutual_tls\",x=\"a}b\"} 3\n\
        istio_tcp_connections_opened_total{connection_security_policy=\"mutual_tls\",reporter=\"source\"} 4\n\
        istio_tcp_connections_opened_total{reporter=\"source\",connection_security_policy=\"unknown\"} 2\n\
        istio_tcp_connections_closed_total{reporter=\"source\",connection_security_policy=\"mutual_tls\"} 9\n";

    #[test]
    fn a_counter_is_summed_over_its_labels_and_no_other_is() {
        let metrics = "# TYPE istio_dns_requests counter\nistio_dns_requests_total{a=\"A\",b=\"x y\"} 3\n\
                       istio_dns_requests_total{a=\"AAAA\"} 4\nistio_dns_requests_total_other 9\n\
                       istio_dns_upstream_requests_total 5\n";
        assert_eq!(total(metrics, "istio_dns_requests_total"), 7);
        assert_eq!(total(metrics, "istio_dns_upstream_requests_total"), 5);
        assert_eq!(total(metrics, "istio_dns_none_total"), 0);
    }

    #[test]
    fn connections_are_told_apart_by_reporter_and_security() {
        let opened = Opened::read(TEXT);
        assert_eq!(opened.secured("source"), 7.0);
        assert_eq!(opened.plain("source"), 2.0);
        assert_eq!(opened.secured("destination"), 0.0);
        let later = Opened::read(&TEXT.replace("} 4", "} 10"));
        assert_eq!(later.since(&opened).all(), 6.0);
    }

    #[test]
    fn the_bytes_sent_are_found() {
        let text = "Inter-|   Receive\n face |bytes\n  uplink: 11 2 0 0 0 0 0 0 99 1 0 0 0 0 0 0\n";
        assert_eq!(sent_bytes(text, "uplink"), Some(99));
        assert_eq!(sent_bytes(text, "eth0"), None);
    }
}
