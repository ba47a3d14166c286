//! The measured figures: collected, reduced to medians, and given out as a table, JSON and a plot.

mod goals;
mod svg;
mod table;

use std::{collections::BTreeMap, fmt, path::Path};

use anyhow::{Context, Result};
use serde::Serialize;

use crate::{
    facts::Facts,
    plan::{Bench, MEMORY, Metric, Mode},
};

use goals::Goal;
pub(crate) use table::{grid, section, short};

/// What a figure belongs to: a bench, or the part that measures memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Subject {
    Load(Bench),
    Memory,
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Load(bench) => bench.fmt(f),
            Self::Memory => f.write_str(MEMORY),
        }
    }
}

/// All figures of one invocation, each with the value of every run.
#[derive(Debug, Default)]
pub(crate) struct Results {
    runs: BTreeMap<(Subject, Mode, Metric), Vec<f64>>,
}

#[derive(Serialize)]
struct Row<'a> {
    bench: String,
    mode: String,
    metric: Metric,
    median: f64,
    runs: &'a [f64],
}

impl Results {
    pub(crate) fn add(&mut self, subject: Subject, mode: Mode, metric: Metric, value: f64) {
        self.runs.entry((subject, mode, metric)).or_default().push(value);
    }

    pub(crate) fn median(&self, subject: Subject, mode: Mode, metric: Metric) -> Option<f64> {
        self.runs.get(&(subject, mode, metric)).and_then(|values| median(values))
    }

    /// The median as a multiple of the baseline's in this very run.
    pub(crate) fn ratio(&self, bench: Bench, mode: Mode, metric: Metric) -> Option<f64> {
        let subject = Subject::Load(bench);
        let base = self.median(subject, mode.baseline(), metric)?;
        (base > 0.0).then_some(self.median(subject, mode, metric)? / base)
    }

    /// What a goal is held against: the median as a multiple of [`Mode::GOAL_BASE`]'s in this very run.
    pub(crate) fn goal_ratio(&self, bench: Bench, mode: Mode) -> Option<f64> {
        let (subject, metric) = (Subject::Load(bench), bench.headline());
        let base = self.median(subject, Mode::GOAL_BASE, metric)?;
        (base > 0.0).then_some(self.median(subject, mode, metric)? / base)
    }

    /// The smallest and largest value of a figure's runs.
    pub(crate) fn spread(&self, subject: Subject, mode: Mode, metric: Metric) -> Option<(f64, f64)> {
        let values = self.runs.get(&(subject, mode, metric))?;
        let low = values.iter().copied().fold(f64::INFINITY, f64::min);
        let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        Some((low, high))
    }

    fn has_subject(&self, subject: Subject) -> bool {
        self.runs.keys().any(|(s, _, _)| *s == subject)
    }

    fn modes(&self) -> Vec<Mode> {
        let mut modes: Vec<Mode> = self.runs.keys().map(|(_, mode, _)| *mode).collect();
        modes.sort_unstable();
        modes.dedup();
        modes
    }

    fn benches(&self) -> Vec<Bench> {
        Bench::ALL.into_iter().filter(|bench| self.has_subject(Subject::Load(*bench))).collect()
    }

    /// The tables and the verdict on the goals, for the terminal.
    pub(crate) fn table(&self, facts: &Facts) -> String {
        table::render(self, facts)
    }

    /// Writes `l4.json`, `l4.svg` and `l4-machine.json` into `folder`.
    pub(crate) fn write(&self, folder: &Path, facts: &Facts) -> Result<()> {
        std::fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
        let write = |name: &str, content: &str| {
            let path = folder.join(name);
            std::fs::write(&path, content).with_context(|| format!("write {}", path.display()))
        };
        write("l4.json", &self.json()?)?;
        write("l4-machine.json", &(serde_json::to_string_pretty(facts)? + "\n"))?;
        write("l4.svg", &svg::render(self, facts))
    }

    /// Whether every goal that was measured is met.
    pub(crate) fn goals_met(&self) -> bool {
        self.modes().into_iter().all(|mode| {
            self.benches().into_iter().all(|bench| {
                match (Goal::of(bench, mode), self.goal_ratio(bench, mode)) {
                    (Some(goal), Some(ratio)) => goal.is_met(ratio),
                    _ => true,
                }
            })
        })
    }

    fn json(&self) -> Result<String> {
        let rows: Vec<Row<'_>> = self
            .runs
            .iter()
            .filter_map(|((subject, mode, metric), values)| {
                Some(Row {
                    bench: subject.to_string(),
                    mode: mode.to_string(),
                    metric: *metric,
                    median: median(values)?,
                    runs: values,
                })
            })
            .collect();
        Ok(serde_json::to_string_pretty(&rows).context("write the figures as JSON")? + "\n")
    }
}

/// Writes a file of JSON into a folder, which is made.
pub(crate) fn write_json(folder: &Path, name: &str, value: &serde_json::Value) -> Result<()> {
    std::fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    let path = folder.join(name);
    let text = serde_json::to_string_pretty(value)? + "\n";
    std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))
}

/// The middle value, or the mean of the two in the middle.
pub(crate) fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        n if n % 2 == 1 => Some(sorted[middle]),
        _ => Some((sorted[middle - 1] + sorted[middle]) / 2.0),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn sample() -> Results {
        let mut results = Results::default();
        for (mode, factor) in [
            (Mode::NoMesh, 1.0),
            (Mode::NoMeshSameNode, 1.0),
            (Mode::Passthrough, 0.5),
            (Mode::TwoNodes, 0.25),
        ] {
            for bench in Bench::ALL {
                for wobble in [0.9, 1.0, 1.3] {
                    let base = if bench.headline().more_is_better() { 30.0 * factor } else { 10.0 / factor };
                    results.add(Subject::Load(bench), mode, bench.headline(), base * wobble);
                }
            }
        }
        results.add(Subject::Memory, Mode::TwoNodes, Metric::RssIdle, 11.5);
        results
    }

    #[test]
    fn the_median_is_the_middle_one() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(&[]), None);
    }

    #[test]
    fn json_rows_have_the_promised_fields() {
        let rows: Vec<serde_json::Value> = serde_json::from_str(&sample().json().unwrap()).unwrap();
        let row = rows.iter().find(|row| row["bench"] == "bulk-1" && row["mode"] == "two-nodes").unwrap();
        assert_eq!(row["metric"], "gbit_per_s");
        assert_eq!(row["median"], 7.5);
        assert_eq!(row["runs"].as_array().unwrap().len(), 3);
    }

    #[test]
    fn a_ratio_is_to_the_baseline_of_the_mode() {
        let results = sample();
        let bulk = Bench::Bulk { streams: 1 };
        assert_eq!(results.ratio(bulk, Mode::TwoNodes, bulk.headline()), Some(0.25));
        assert_eq!(results.ratio(Bench::Latency, Mode::Passthrough, Metric::P50), Some(2.0));
        assert_eq!(results.ratio(bulk, Mode::SameNode, bulk.headline()), None);
    }
}
