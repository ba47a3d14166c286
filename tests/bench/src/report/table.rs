//! The figures as plain tables, wide enough to read and narrow enough to paste.

use std::fmt::Write as _;

use super::{Goal, Results, Subject};
use crate::{
    facts::Facts,
    plan::{Metric, Mode},
};

pub(super) fn render(results: &Results, facts: &Facts) -> String {
    let mut out = String::new();
    for line in facts.lines() {
        let _ = writeln!(out, "{line}");
    }
    let modes = results.modes();
    if !results.benches().is_empty() {
        section(
            &mut out,
            "Rate (Gbit/s, requests/s, connections/s; latency: half a round trip, µs) and ratio to no mesh",
        );
        grid(&mut out, &modes, &headline_rows(results, &modes));
        section(&mut out, "Time of a request or of half a round trip, p50 / p99 in µs");
        grid(&mut out, &modes, &latency_rows(results, &modes));
        section(
            &mut out,
            "CPU of the ztunnels | of the whole machine, per GB (s), per request or connection (µs)",
        );
        grid(&mut out, &modes, &cpu_rows(results, &modes));
    }
    memory(&mut out, results, &modes);
    goals(&mut out, results);
    out
}

pub(crate) fn section(out: &mut String, title: &str) {
    let _ = writeln!(out, "\n{title}");
}

/// A figure with three significant digits; thousands as `12.3k`.
pub(crate) fn short(value: f64) -> String {
    match value {
        v if v >= 100_000.0 => format!("{:.0}k", v / 1e3),
        v if v >= 10_000.0 => format!("{:.1}k", v / 1e3),
        v if v >= 1_000.0 => format!("{:.2}k", v / 1e3),
        v if v >= 100.0 => format!("{v:.0}"),
        v if v >= 10.0 => format!("{v:.1}"),
        v => format!("{v:.2}"),
    }
}

fn headline_rows(results: &Results, modes: &[Mode]) -> Vec<(String, Vec<String>)> {
    rows(results, modes, |bench, mode| {
        let value = results.median(Subject::Load(bench), mode, bench.headline())?;
        let ratio = results.ratio(bench, mode, bench.headline());
        Some(match ratio {
            Some(ratio) if mode.baseline() != mode => format!("{} {ratio:.2}×", short(value)),
            _ => short(value),
        })
    })
}

fn latency_rows(results: &Results, modes: &[Mode]) -> Vec<(String, Vec<String>)> {
    let mut all = rows(results, modes, |bench, mode| {
        let p50 = results.median(Subject::Load(bench), mode, Metric::P50)?;
        let p99 = results.median(Subject::Load(bench), mode, Metric::P99)?;
        Some(format!("{} / {}", short(p50), short(p99)))
    });
    all.retain(|(_, cells)| cells.iter().any(|cell| cell != "–"));
    all
}

fn cpu_rows(results: &Results, modes: &[Mode]) -> Vec<(String, Vec<String>)> {
    rows(results, modes, |bench, mode| {
        let subject = Subject::Load(bench);
        let machine = results.median(subject, mode, Metric::MachineCpu(bench.unit()))?;
        let ztunnels = results.median(subject, mode, Metric::ZtunnelCpu(bench.unit()));
        Some(format!("{} | {}", ztunnels.map_or_else(|| "–".into(), short), short(machine)))
    })
}

fn rows(
    results: &Results,
    modes: &[Mode],
    cell: impl Fn(crate::plan::Bench, Mode) -> Option<String>,
) -> Vec<(String, Vec<String>)> {
    results
        .benches()
        .into_iter()
        .map(|bench| {
            let cells = modes.iter().map(|mode| cell(bench, *mode).unwrap_or_else(|| "–".into())).collect();
            (bench.to_string(), cells)
        })
        .collect()
}

/// Rows under the names of their columns.
pub(crate) fn grid(out: &mut String, columns: &[impl ToString], rows: &[(String, Vec<String>)]) {
    let columns: Vec<String> = columns.iter().map(ToString::to_string).collect();
    let first = rows.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = columns
        .iter()
        .enumerate()
        .map(|(at, column)| {
            let cells = rows.iter().map(|(_, cells)| cells[at].chars().count()).max().unwrap_or(0);
            cells.max(column.chars().count())
        })
        .collect();
    let mut line = format!("  {:first$}", "");
    for (column, width) in columns.iter().zip(&widths) {
        let _ = write!(line, "  {column:>width$}");
    }
    let _ = writeln!(out, "{line}");
    for (name, cells) in rows {
        let mut line = format!("  {name:first$}");
        for (cell, width) in cells.iter().zip(&widths) {
            let _ = write!(line, "  {cell:>width$}");
        }
        let _ = writeln!(out, "{line}");
    }
}

fn memory(out: &mut String, results: &Results, modes: &[Mode]) {
    if !results.has_subject(Subject::Memory) {
        return;
    }
    section(out, "Memory of one ztunnel");
    for mode in modes {
        let figure = |metric| results.median(Subject::Memory, *mode, metric);
        let Some(idle) = figure(Metric::RssIdle) else { continue };
        let _ = write!(out, "  {mode}: {idle:.1} MB idle");
        if let Some(value) = figure(Metric::RssPerIdleConnection) {
            let _ = write!(out, ", {value:.1} KB per idle connection and side");
        }
        if let Some(value) = figure(Metric::RssPerPod) {
            let _ = write!(out, ", {value:.0} KB");
        }
        if let Some(value) = figure(Metric::DescriptorsPerPod) {
            let _ = write!(out, " and {value:.1} descriptors per pod");
        }
        let _ = writeln!(out);
    }
}

fn goals(out: &mut String, results: &Results) {
    let mut lines = Vec::new();
    for mode in results.modes() {
        for bench in results.benches() {
            let (Some(goal), Some(ratio)) = (Goal::of(bench, mode), results.goal_ratio(bench, mode)) else {
                continue;
            };
            let (low, high) =
                results.spread(Subject::Load(bench), mode, bench.headline()).unwrap_or_default();
            let mark = if goal.is_met(ratio) { "✔" } else { "✘" };
            lines.push(format!(
                "  {mark} {mode} {bench}: {ratio:.2}×, to reach {goal} (runs {} to {})",
                short(low),
                short(high)
            ));
        }
    }
    if !lines.is_empty() {
        section(out, "Goals, as ratios to no-mesh");
        for line in lines {
            let _ = writeln!(out, "{line}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_keep_three_digits() {
        let shown: Vec<String> = [0.123, 8.4, 36.25, 123.4, 8_500.0, 46_700.0, 123_000.0].map(short).into();
        assert_eq!(shown, ["0.12", "8.40", "36.2", "123", "8.50k", "46.7k", "123k"]);
    }

    #[test]
    fn a_goal_that_is_missed_is_marked() {
        let mut out = String::new();
        goals(&mut out, &super::super::tests::sample());
        assert!(out.contains("✔ two-nodes bulk-1: 0.25×, to reach ≥ 0.23×"), "{out}");
        assert!(out.contains("✘ two-nodes requests-32: 0.25×, to reach ≥ 0.31×"), "{out}");
        assert!(out.contains("✘ two-nodes latency: 4.00×"), "{out}");
    }
}
