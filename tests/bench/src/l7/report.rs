//! The figures of layer 7: collected by run, held against the goals, given out as a table and as JSON.

use std::{
    collections::BTreeMap,
    fmt::{self, Write as _},
    path::Path,
};

use anyhow::Result;
use serde_json::json;

use super::plan::{Load, Mode};
use crate::{
    facts::Facts,
    report::{grid, median, section, short, write_json},
};

/// Requests for each second of CPU, as a multiple of Envoy's.
const PER_CORE: f64 = 1.5;
/// The memory, as a share of Envoy's.
const MEMORY: f64 = 0.5;
/// The p99, as a multiple of Envoy's.
const LATENCY: f64 = 1.0;

/// A measured quantity. The name carries the unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Metric {
    RequestsPerSecond,
    /// For each second of the proxy's CPU, user and system.
    RequestsPerCore,
    P50,
    P99,
    /// Of the proxy, right after the run.
    Resident,
    /// Busy time of the whole machine for each request.
    MachineCpu,
}

impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::RequestsPerSecond => "requests_per_second",
            Self::RequestsPerCore => "requests_per_core",
            Self::P50 => "p50_us",
            Self::P99 => "p99_us",
            Self::Resident => "rss_mib",
            Self::MachineCpu => "cpu_machine_us_per_request",
        })
    }
}

/// All figures of one invocation, each with the value of every run.
#[derive(Debug, Default)]
pub(super) struct Results {
    runs: BTreeMap<(Load, Mode, Metric), Vec<f64>>,
}

/// What our waypoint is held to, beside Envoy in the same run.
struct Goal {
    metric: Metric,
    what: &'static str,
    /// A multiple of Envoy's figure.
    limit: f64,
    more_is_better: bool,
}

const GOALS: [Goal; 3] = [
    Goal {
        metric: Metric::RequestsPerCore,
        what: "requests of a core",
        limit: PER_CORE,
        more_is_better: true,
    },
    Goal { metric: Metric::P99, what: "p99", limit: LATENCY, more_is_better: false },
    Goal { metric: Metric::Resident, what: "memory", limit: MEMORY, more_is_better: false },
];

impl Goal {
    fn is_met(&self, ratio: f64) -> bool {
        if self.more_is_better { ratio >= self.limit } else { ratio <= self.limit }
    }
}

impl Results {
    pub(super) fn add(&mut self, load: Load, mode: Mode, metric: Metric, value: f64) {
        self.runs.entry((load, mode, metric)).or_default().push(value);
    }

    fn median(&self, load: Load, mode: Mode, metric: Metric) -> Option<f64> {
        median(self.runs.get(&(load, mode, metric))?)
    }

    /// Our figure as a multiple of Envoy's.
    fn ratio(&self, load: Load, metric: Metric) -> Option<f64> {
        let envoys = self.median(load, Mode::Envoy, metric).filter(|envoys| *envoys > 0.0)?;
        Some(self.median(load, Mode::Waypoint, metric)? / envoys)
    }

    fn loads(&self) -> Vec<Load> {
        let mut loads: Vec<Load> = self.runs.keys().map(|(load, _, _)| *load).collect();
        loads.dedup();
        loads
    }

    fn ratios(&self, metric: Metric) -> Vec<(Load, f64)> {
        let ratio = |load: Load| Some((load, self.ratio(load, metric)?));
        self.loads().into_iter().filter_map(ratio).collect()
    }

    pub(super) fn goals_met(&self) -> bool {
        GOALS.iter().all(|goal| self.ratios(goal.metric).iter().all(|(_, ratio)| goal.is_met(*ratio)))
    }

    /// The tables and the verdict on the goals, for the terminal.
    pub(super) fn table(&self, facts: &Facts) -> String {
        let mut out = facts.lines().join("\n") + "\n";
        section(&mut out, "Requests for each second of the proxy's CPU");
        self.rows(&mut out, Metric::RequestsPerCore);
        section(&mut out, "Requests per second; what is not the proxy has the rest of the machine");
        self.rows(&mut out, Metric::RequestsPerSecond);
        section(&mut out, "Time of a request, p99 in µs");
        self.rows(&mut out, Metric::P99);
        section(&mut out, "Resident memory of the proxy, in MiB");
        self.rows(&mut out, Metric::Resident);
        section(&mut out, "Goals, beside Envoy in the same run");
        for goal in &GOALS {
            self.verdict(&mut out, goal);
        }
        out
    }

    fn verdict(&self, out: &mut String, goal: &Goal) {
        let ratios = self.ratios(goal.metric);
        let met = ratios.iter().filter(|(_, ratio)| goal.is_met(*ratio)).count();
        let worst = if goal.more_is_better {
            ratios.iter().min_by(|a, b| a.1.total_cmp(&b.1))
        } else {
            ratios.iter().max_by(|a, b| a.1.total_cmp(&b.1))
        };
        let Some((load, worst)) = worst else { return };
        let mean = (ratios.iter().map(|(_, ratio)| ratio.ln()).sum::<f64>() / ratios.len() as f64).exp();
        let mark = if met == ratios.len() { "✔" } else { "✘" };
        let sign = if goal.more_is_better { "≥" } else { "≤" };
        let _ = writeln!(
            out,
            "  {mark} {} {sign} {} × Envoy's: met by {met} of {}; geometric mean {mean:.2} ×, worst {worst:.2} × ({load})",
            goal.what,
            goal.limit,
            ratios.len()
        );
    }

    fn rows(&self, out: &mut String, metric: Metric) {
        let row = |load: Load| {
            let mut cells: Vec<String> = Mode::ALL
                .iter()
                .map(|mode| self.median(load, *mode, metric).map_or_else(|| "–".into(), short))
                .collect();
            cells.push(self.ratio(load, metric).map_or_else(|| "–".into(), |ratio| format!("{ratio:.2} ×")));
            (load.to_string(), cells)
        };
        let rows: Vec<_> = self.loads().into_iter().map(row).collect();
        grid(out, &["envoy", "waypoint", "ratio"], &rows);
    }

    /// Writes `l7.json` and `l7-machine.json` into `folder`.
    pub(super) fn write(&self, folder: &Path, facts: &Facts) -> Result<()> {
        write_json(folder, "l7.json", &self.json())?;
        write_json(folder, "l7-machine.json", &serde_json::to_value(facts)?)
    }

    fn json(&self) -> serde_json::Value {
        let row = |((load, mode, metric), runs): (&(Load, Mode, Metric), &Vec<f64>)| {
            json!({
                "bench": load.to_string(), "mode": mode.to_string(), "metric": metric.to_string(),
                "median": median(runs), "runs": runs,
            })
        };
        self.runs.iter().map(row).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(ours: f64) -> Results {
        let mut results = Results::default();
        for load in Load::all().into_iter().take(2) {
            for (metric, better) in
                [(Metric::RequestsPerCore, ours), (Metric::P99, 1.0 / ours), (Metric::Resident, 0.4)]
            {
                for wobble in [0.9, 1.0, 1.4] {
                    results.add(load, Mode::Envoy, metric, 100.0 * wobble);
                    results.add(load, Mode::Waypoint, metric, 100.0 * better * wobble);
                }
            }
        }
        results
    }

    #[test]
    fn one_load_that_misses_a_goal_misses_it() {
        assert!(sample(1.6).goals_met());
        let mut missed = sample(1.6);
        let load = Load::all()[2];
        missed.add(load, Mode::Envoy, Metric::RequestsPerCore, 100.0);
        missed.add(load, Mode::Waypoint, Metric::RequestsPerCore, 149.0);
        assert!(!missed.goals_met());
        let table = missed.table(&Facts::gather(Path::new("."), None, 3, 1));
        let line = format!(
            "✘ requests of a core ≥ 1.5 × Envoy's: met by 2 of 3; geometric mean 1.56 ×, worst 1.49 × ({load})"
        );
        assert!(table.contains(&line), "{table}");
        assert!(table.contains("✔ memory ≤ 0.5 × Envoy's: met by 2 of 2"), "{table}");
    }

    #[test]
    fn json_rows_are_like_those_of_the_other_benches() {
        let rows = sample(2.0).json();
        let row = rows.as_array().unwrap().iter().find(|row| row["mode"] == "waypoint").unwrap();
        assert_eq!(
            (&row["bench"], &row["metric"]),
            (&json!("plain-10r-http1-1k-1c"), &json!("requests_per_core"))
        );
        assert_eq!((&row["median"], row["runs"].as_array().unwrap().len()), (&json!(200.0), 3));
    }
}
