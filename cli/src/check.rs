//! `culvert check`: what is wrong, and how to mend it. Each check is a pure function from what was seen of the cluster
//! to findings; seeing is [`facts`]' affair.

use std::{fmt::Write as _, process::ExitCode};

use serde_json::{Value, json};

use crate::{
    api::{self, Reach},
    table::{self, Paint},
};
use apiserver::Api;

mod before;
mod clocks;
mod facts;
mod mesh;
mod network_policy;
mod networks;
mod nodes;
mod waypoints;

pub(crate) use before::version;
pub(crate) use mesh::{AMBIENT, DATAPLANE_MODE, EXEMPT, mode, tls_mode, trust_domain};

use facts::Facts;

/// How to tell it.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Table for people, JSON for programs
    #[arg(long, short, value_enum, default_value = "table")]
    output: Output,
}

/// The form of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Output {
    Table,
    Json,
}

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    Ok,
    /// It works, and something may not be as it is thought to be.
    Warning,
    /// Something does not work, or will not.
    Problem,
}

impl Level {
    fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Problem => "problem",
        }
    }
}

/// What one check has to say of one thing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Finding {
    pub(crate) check: &'static str,
    pub(crate) level: Level,
    /// The object or the node; empty if it is about the cluster.
    pub(crate) about: String,
    pub(crate) seen: String,
    pub(crate) mend: String,
}

impl Finding {
    fn ok(check: &'static str, seen: impl Into<String>) -> Self {
        Self { check, level: Level::Ok, about: String::new(), seen: seen.into(), mend: String::new() }
    }

    fn warning(
        check: &'static str,
        about: impl Into<String>,
        seen: impl Into<String>,
        mend: impl Into<String>,
    ) -> Self {
        Self { check, level: Level::Warning, about: about.into(), seen: seen.into(), mend: mend.into() }
    }

    fn problem(
        check: &'static str,
        about: impl Into<String>,
        seen: impl Into<String>,
        mend: impl Into<String>,
    ) -> Self {
        Self { check, level: Level::Problem, about: about.into(), seen: seen.into(), mend: mend.into() }
    }
}

/// All that was found.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) findings: Vec<Finding>,
    installed: bool,
}

impl Report {
    fn count(&self, level: Level) -> usize {
        self.findings.iter().filter(|finding| finding.level == level).count()
    }

    pub(crate) fn problems(&self) -> usize {
        self.count(Level::Problem)
    }

    /// Those that an install is held up by. What people have written for their pods is theirs to mend at any time, and is
    /// not to stand in the way of an upgrade.
    pub(crate) fn obstacles(&self) -> usize {
        let stands_in_the_way = |one: &&Finding| {
            one.level == Level::Problem
                && !matches!(one.check, "network-policy" | "policies" | "labels" | "waypoints")
        };
        self.findings.iter().filter(stands_in_the_way).count()
    }

    /// Prints what is not ok, if anything.
    pub(crate) fn print_findings(&self) {
        let wrong: Vec<&Finding> = self.findings.iter().filter(|one| one.level != Level::Ok).collect();
        print!("{}", lines(&wrong, &Paint::of_stdout()));
    }

    fn text(&self, paint: &Paint) -> String {
        let mut sorted: Vec<&Finding> = self.findings.iter().collect();
        // The good news first: what is at the end is read.
        sorted.sort_by_key(|finding| finding.level);
        let mut text = lines(&sorted, paint);
        let what = if self.installed { "the mesh" } else { "the cluster, in which Culvert is not installed" };
        let counted = |count: usize, one: &str| match count {
            1 => format!("1 {one}"),
            more => format!("{more} {one}s"),
        };
        let _ = match (self.problems(), self.count(Level::Warning)) {
            (0, 0) => writeln!(text, "\nNothing is wrong with {what}."),
            (0, warnings) => writeln!(text, "\n{} about {what}.", counted(warnings, "warning")),
            (problems, 0) => writeln!(text, "\n{} with {what}.", counted(problems, "problem")),
            (problems, warnings) => writeln!(
                text,
                "\n{} and {} with {what}.",
                counted(problems, "problem"),
                counted(warnings, "warning")
            ),
        };
        text
    }

    fn json(&self) -> Value {
        let findings: Vec<Value> = self
            .findings
            .iter()
            .map(|one| {
                json!({"check": one.check, "level": one.level.word(), "about": one.about, "seen": one.seen,
                       "mend": one.mend})
            })
            .collect();
        json!({"installed": self.installed, "problems": self.problems(),
               "warnings": self.count(Level::Warning), "findings": findings})
    }
}

fn lines(findings: &[&Finding], paint: &Paint) -> String {
    let mut text = String::new();
    for finding in findings {
        let level = match finding.level {
            Level::Ok => paint.good(finding.level.word()),
            Level::Warning => paint.doubtful(finding.level.word()),
            Level::Problem => paint.bad(finding.level.word()),
        };
        let about = if finding.about.is_empty() { String::new() } else { format!("{}: ", finding.about) };
        let said = format!("{about}{}", finding.seen);
        let said = table::wrapped(&said, 29, paint.width);
        let pad = " ".repeat(9_usize.saturating_sub(finding.level.word().len()));
        let _ = writeln!(text, "  {level}{pad}{:<17} {said}", finding.check);
        if !finding.mend.is_empty() {
            let _ = writeln!(text, "{:28} → {}", "", table::wrapped(&finding.mend, 31, paint.width));
        }
    }
    text
}

/// Looks, and tells.
///
/// # Errors
/// If the API server cannot be asked.
pub(crate) async fn run(reach: &Reach, namespace: &str, args: &Args) -> anyhow::Result<ExitCode> {
    let api = api::connect(reach).await?;
    let facts = Facts::gather(&api, namespace, true).await?;
    let report = judge(&facts);
    match args.output {
        Output::Table => print!("{}", report.text(&Paint::of_stdout())),
        Output::Json => println!("{:#}", report.json()),
    }
    Ok(if report.problems() == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What stands against an install.
pub(crate) async fn before(api: &Api, namespace: &str) -> anyhow::Result<Report> {
    let facts = Facts::gather(api, namespace, false).await?;
    Ok(judge(&facts))
}

fn judge(facts: &Facts) -> Report {
    let mut findings = Vec::new();
    for check in [
        before::kubernetes,
        before::rights,
        before::pod_security,
        before::other_meshes,
        nodes::kernels,
        networks::check,
        network_policy::check,
        mesh::labels,
        mesh::policies,
        waypoints::check,
    ] {
        findings.extend(check(facts));
    }
    if facts.installed() && facts.asked {
        for check in
            [nodes::programs, nodes::versions, nodes::own, clocks::clocks, clocks::root, clocks::certificates]
        {
            findings.extend(check(facts));
        }
    }
    // An install is what mends it, and need not be told.
    if !facts.installed() && facts.asked {
        findings.extend(before::left_behind(facts));
    }
    Report { findings, installed: facts.installed() }
}

#[cfg(test)]
mod tests;
