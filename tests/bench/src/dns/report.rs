//! The figures of DNS: collected by round, held against the goal, given out as a table and as JSON.

use std::{
    collections::BTreeMap,
    fmt::{self, Write as _},
    path::Path,
};

use anyhow::Result;
use serde_json::json;

use super::{Way, load::Load};
use crate::{
    facts::Facts,
    report::{grid, median, section, short, write_json},
};

/// What ztunnel may add to a query, in microseconds: the p99 with one query in flight.
const GOAL: f64 = 1000.0;

/// A measured quantity. The name carries the unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Metric {
    QueriesPerSecond,
    P50,
    P99,
    /// CPU of ztunnel, user and system, for each query.
    ZtunnelCpu,
    /// Busy time of the whole machine (the asking pod, the resolver, softirq, ztunnel) for each query.
    MachineCpu,
}

impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::QueriesPerSecond => "queries_per_s",
            Self::P50 => "p50_us",
            Self::P99 => "p99_us",
            Self::ZtunnelCpu => "cpu_ztunnel_us_per_query",
            Self::MachineCpu => "cpu_machine_us_per_query",
        })
    }
}

/// All figures of one invocation, each with the value of every round.
#[derive(Debug, Default)]
pub(super) struct Results {
    rounds: BTreeMap<(Load, Way, Metric), Vec<f64>>,
}

/// What the goal is held against: a time of ztunnel's own, in microseconds.
struct Own {
    what: &'static str,
    median: f64,
    /// Of the rounds by themselves.
    lowest: f64,
    highest: f64,
}

impl Own {
    fn is_met(&self) -> bool {
        self.median <= GOAL
    }
}

impl Results {
    pub(super) fn add(&mut self, load: Load, way: Way, metric: Metric, value: f64) {
        self.rounds.entry((load, way, metric)).or_default().push(value);
    }

    fn values(&self, load: Load, way: Way, metric: Metric) -> &[f64] {
        self.rounds.get(&(load, way, metric)).map_or(&[], Vec::as_slice)
    }

    fn median(&self, load: Load, way: Way, metric: Metric) -> Option<f64> {
        median(self.values(load, way, metric))
    }

    /// What is held against the goal: of a name that is passed on, what it takes longer than without a mesh; of one
    /// that is answered, all that it takes.
    fn own(&self) -> Vec<Own> {
        let p99 = |way| self.values(Load::ALONE, way, Metric::P99);
        let bare = p99(Way::NoMesh);
        let added: Vec<f64> =
            p99(Way::PassedOn).iter().zip(bare).map(|(with, without)| with - without).collect();
        let added_median = median(p99(Way::PassedOn)).zip(median(bare)).map(|(with, without)| with - without);
        let answered = p99(Way::Answered);
        let own = |what, median: Option<f64>, rounds: &[f64]| {
            Some(Own {
                what,
                median: median?,
                lowest: rounds.iter().copied().fold(f64::INFINITY, f64::min),
                highest: rounds.iter().copied().fold(f64::NEG_INFINITY, f64::max),
            })
        };
        [
            own("what is added to a name that is passed on", added_median, &added),
            own("a name that is answered, in all", median(answered), answered),
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    pub(super) fn goals_met(&self) -> bool {
        self.own().iter().all(Own::is_met)
    }

    /// The tables and the verdict on the goal, for the terminal.
    pub(super) fn table(&self, facts: &Facts) -> String {
        let mut out = facts.lines().join("\n") + "\n";
        section(&mut out, "Queries per second over UDP, 1 and 32 in flight");
        self.rows(&mut out, |load, way| self.median(load, way, Metric::QueriesPerSecond).map(short));
        section(&mut out, "Time of a query, p50 / p99 in µs");
        self.rows(&mut out, |load, way| {
            let [p50, p99] = [Metric::P50, Metric::P99].map(|metric| self.median(load, way, metric));
            Some(format!("{} / {}", short(p50?), short(p99?)))
        });
        section(&mut out, "CPU of ztunnel | of the whole machine, per query (µs)");
        self.rows(&mut out, |load, way| {
            let ztunnel = self.median(load, way, Metric::ZtunnelCpu).map_or_else(|| "–".into(), short);
            Some(format!("{ztunnel} | {}", short(self.median(load, way, Metric::MachineCpu)?)))
        });
        section(&mut out, "Goal: ztunnel never takes more than 1 ms, as p99 with one query in flight, in µs");
        for own in self.own() {
            let (mark, verdict) = if own.is_met() { ("✔", "met") } else { ("✘", "missed") };
            let _ = writeln!(
                out,
                "  {mark} {}: {}, to reach ≤ {GOAL}: {verdict} (rounds {} to {})",
                own.what,
                short(own.median),
                short(own.lowest),
                short(own.highest)
            );
        }
        out
    }

    fn rows(&self, out: &mut String, cell: impl Fn(Load, Way) -> Option<String>) {
        let row = |load: Load| {
            let cells = Way::ALL.map(|way| cell(load, way).unwrap_or_else(|| "–".into()));
            (load.to_string(), cells.to_vec())
        };
        grid(out, &Way::ALL, &Load::ALL.map(row));
    }

    /// Writes `dns.json` and `dns-machine.json` into `folder`.
    pub(super) fn write(&self, folder: &Path, facts: &Facts) -> Result<()> {
        write_json(folder, "dns.json", &self.json())?;
        write_json(folder, "dns-machine.json", &serde_json::to_value(facts)?)
    }

    fn json(&self) -> serde_json::Value {
        let row = |((load, way, metric), rounds): (&(Load, Way, Metric), &Vec<f64>)| {
            json!({
                "bench": load.to_string(), "mode": way.to_string(), "metric": metric.to_string(),
                "median": median(rounds), "runs": rounds,
            })
        };
        self.rounds.iter().map(row).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(answered: f64) -> Results {
        let mut results = Results::default();
        for (way, p99) in [
            (Way::NoMesh, [100.0, 300.0, 200.0]),
            (Way::PassedOn, [400.0, 9_000.0, 300.0]),
            (Way::Answered, [answered; 3]),
        ] {
            p99.iter().for_each(|&p99| results.add(Load::ALONE, way, Metric::P99, p99));
        }
        results
    }

    #[test]
    fn a_noisy_round_is_seen_and_decides_nothing() {
        let own = sample(150.0).own();
        assert_eq!((own[0].median, own[0].lowest, own[0].highest), (200.0, 100.0, 8_700.0));
        assert_eq!((own[1].median, own[1].lowest, own[1].highest), (150.0, 150.0, 150.0));
        assert!(sample(150.0).goals_met());
    }

    #[test]
    fn a_goal_that_is_missed_is_said_to_be() {
        let missed = sample(1_001.0);
        assert!(!missed.goals_met());
        let table = missed.table(&Facts::gather(Path::new("."), None, 3, 1));
        assert!(
            table.contains("✔ what is added to a name that is passed on: 200, to reach ≤ 1000: met"),
            "{table}"
        );
        assert!(
            table.contains("✘ a name that is answered, in all: 1.00k, to reach ≤ 1000: missed"),
            "{table}"
        );
    }

    #[test]
    fn json_rows_are_like_those_of_the_other_benches() {
        let rows = sample(150.0).json();
        let row = rows.as_array().unwrap().iter().find(|row| row["mode"] == "no-mesh").unwrap();
        assert_eq!((&row["bench"], &row["metric"]), (&json!("udp-1"), &json!("p99_us")));
        assert_eq!((&row["median"], row["runs"].as_array().unwrap().len()), (&json!(200.0), 3));
    }
}
