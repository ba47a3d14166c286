//! The figures: collected by step, held against the goals, given out as a table and as JSON.

use std::{collections::BTreeMap, fmt::Write as _, fs, path::Path};

use anyhow::{Context, Result};
use serde::Serialize;

/// What is asked of control at its full size (docs/scale.md).
const GOALS: &[Goal] = &[
    Goal { step: "cold sync of one node", figure: "time of the node", unit: "s", most: 2.0 },
    Goal { step: "one pod changes", figure: "last subscriber has it", unit: "ms", most: 100.0 },
    Goal { step: "one policy changes", figure: "last subscriber has it", unit: "ms", most: 100.0 },
    Goal { step: "memory", figure: "of a workload", unit: "KB", most: 1.0 },
];

struct Goal {
    step: &'static str,
    figure: &'static str,
    unit: &'static str,
    most: f64,
}

/// All figures of one invocation, each with the value of every run, in the order in which they were taken.
#[derive(Default)]
pub(crate) struct Results {
    rows: Vec<Row>,
    facts: BTreeMap<&'static str, String>,
}

#[derive(Debug, Serialize)]
struct Row {
    bench: String,
    mode: String,
    metric: String,
    median: f64,
    runs: Vec<f64>,
}

impl Results {
    pub(crate) fn fact(&mut self, name: &'static str, value: impl ToString) {
        self.facts.insert(name, value.to_string());
    }

    /// One more value of `figure` (with its unit, `time, s`) in `step`.
    pub(crate) fn add(&mut self, source: &str, step: &str, figure: &str, unit: &str, value: f64) {
        let metric = format!("{figure}, {unit}");
        let known =
            self.rows.iter_mut().find(|row| row.bench == step && row.mode == source && row.metric == metric);
        match known {
            Some(row) => {
                row.runs.push(value);
                row.median = median(&row.runs);
            }
            None => self.rows.push(Row {
                bench: step.to_owned(),
                mode: source.to_owned(),
                metric,
                median: value,
                runs: vec![value],
            }),
        }
        eprintln!("  {step}: {figure} {} {unit}", short(value));
    }

    /// The table and the verdict on the goals.
    pub(crate) fn table(&self) -> String {
        let mut out = String::new();
        for (name, value) in &self.facts {
            let _ = writeln!(out, "{name}: {value}");
        }
        let _ = writeln!(out, "\n| step | figure | median | of |\n|---|---|---|---|");
        let mut step = "";
        for row in &self.rows {
            let shown = if row.bench == step { "" } else { &row.bench };
            step = &row.bench;
            let runs: Vec<String> = row.runs.iter().map(|value| short(*value)).collect();
            let runs = if runs.len() > 1 { runs.join(" ") } else { String::new() };
            let _ = writeln!(out, "| {shown} | {} | {} | {runs} |", row.metric, short(row.median));
        }
        let _ = writeln!(out, "\nGoals:");
        for (goal, value) in self.goals() {
            let verdict = if value <= goal.most { "met" } else { "missed" };
            let Goal { step, figure, unit, most } = goal;
            let _ = writeln!(out, "  {step}, {figure}: {} {unit}, wanted ≤ {most}: {verdict}", short(value));
        }
        out
    }

    /// Whether every goal that was measured is met.
    pub(crate) fn goals_met(&self) -> bool {
        self.goals().all(|(goal, value)| value <= goal.most)
    }

    fn goals(&self) -> impl Iterator<Item = (&'static Goal, f64)> {
        GOALS.iter().filter_map(|goal| {
            let metric = format!("{}, {}", goal.figure, goal.unit);
            let row = self.rows.iter().find(|row| row.bench == goal.step && row.metric == metric)?;
            Some((goal, row.median))
        })
    }

    /// Writes `NAME.json`, the figures, and `NAME-machine.json`, where they were taken.
    pub(crate) fn write(&self, folder: &Path, name: &str) -> Result<()> {
        fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
        let write = |file: &str, json: String| {
            let path = folder.join(file);
            fs::write(&path, json + "\n").with_context(|| format!("write {}", path.display()))
        };
        write(&format!("{name}.json"), serde_json::to_string_pretty(&self.rows)?)?;
        write(&format!("{name}-machine.json"), serde_json::to_string_pretty(&self.facts)?)
    }
}

/// The middle value, or the mean of the two in the middle; 0 of none.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match (sorted.len(), sorted.len() / 2) {
        (0, _) => 0.0,
        (count, middle) if count % 2 == 1 => sorted[middle],
        (_, middle) => f64::midpoint(sorted[middle - 1], sorted[middle]),
    }
}

fn short(value: f64) -> String {
    match value {
        v if v >= 100.0 => format!("{v:.0}"),
        v if v >= 10.0 => format!("{v:.1}"),
        v => format!("{v:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_goal_is_held_against_the_median() {
        let mut results = Results::default();
        for value in [90.0, 120.0, 95.0] {
            results.add("folder", "one pod changes", "last subscriber has it", "ms", value);
        }
        assert!(results.goals_met() && results.table().contains("95.0 ms, wanted ≤ 100: met"));
        results.add("folder", "one pod changes", "last subscriber has it", "ms", 130.0);
        assert!(!results.goals_met(), "{}", results.table());
    }

    #[test]
    fn rows_have_the_shape_of_the_other_bench() {
        let mut results = Results::default();
        results.add("folder", "memory", "of a workload", "KB", 1.0);
        let json = serde_json::to_value(&results.rows).unwrap();
        assert_eq!(json[0]["bench"], "memory");
        assert_eq!((&json[0]["mode"], &json[0]["median"]), (&"folder".into(), &1.0.into()));
        assert_eq!(json[0]["runs"], serde_json::json!([1.0]));
    }
}
