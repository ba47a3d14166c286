//! The suite's own report: read, told in few lines, and kept.

use std::{fs, path::Path};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

/// The report, and its text.
#[derive(Debug)]
pub(super) struct Report {
    text: String,
    profiles: Vec<Profile>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Profile {
    name: String,
    core: Status,
    #[serde(default)]
    extended: Status,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    statistics: Statistics,
    #[serde(default)]
    skipped_tests: Vec<String>,
    #[serde(default)]
    failed_tests: Vec<String>,
    /// Of the extended ones.
    #[serde(default)]
    unsupported_features: Vec<String>,
}

#[derive(Debug, Default, Clone, Copy, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Statistics {
    passed: u32,
    skipped: u32,
    failed: u32,
}

impl Statistics {
    /// What was not tried counts as well: it did not pass.
    fn of_all(self) -> String {
        format!("{}/{}", self.passed, self.passed + self.skipped + self.failed)
    }

    fn and(self, other: Self) -> Self {
        Self {
            passed: self.passed + other.passed,
            skipped: self.skipped + other.skipped,
            failed: self.failed + other.failed,
        }
    }
}

impl Report {
    pub(super) fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        Self::parse(text)
    }

    fn parse(text: String) -> Result<Self> {
        #[derive(Deserialize)]
        struct Whole {
            profiles: Vec<Profile>,
        }
        let whole: Whole = serde_yaml_ng::from_str(&text).context("the suite's report")?;
        let mut profiles = whole.profiles;
        profiles.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(Self { text, profiles })
    }

    /// One line for each profile, and the names of what did not pass.
    pub(super) fn print(&self) {
        for Profile { name, core, extended } in &self.profiles {
            let (of_core, of_extended) = (core.statistics.of_all(), extended.statistics.of_all());
            println!("{name}: core {of_core}, extended {of_extended}");
            for (what, tests) in [
                ("FAILED      ", [&core.failed_tests, &extended.failed_tests]),
                ("NOT RUN     ", [&core.skipped_tests, &extended.skipped_tests]),
                ("NOT DECLARED", [&core.unsupported_features, &extended.unsupported_features]),
            ] {
                for test in tests.into_iter().flatten() {
                    println!("  {what} {test}");
                }
            }
        }
    }

    /// `conformance: core 8/8, extended 12/14`
    pub(super) fn last_line(&self) -> String {
        let sum = |of: fn(&Profile) -> Statistics| {
            self.profiles.iter().map(of).fold(Statistics::default(), Statistics::and)
        };
        let core = sum(|profile| profile.core.statistics).of_all();
        format!("conformance: core {core}, extended {}", sum(|profile| profile.extended.statistics).of_all())
    }

    /// Fails if anything failed, or nothing passed; or, of a whole run, if anything was not tried.
    pub(super) fn verdict(&self, one_alone: bool) -> Result<()> {
        let all = self.profiles.iter().flat_map(|profile| [&profile.core, &profile.extended]);
        let sum = all.map(|status| status.statistics).fold(Statistics::default(), Statistics::and);
        if sum.failed > 0 {
            bail!("{} tests of the suite failed", sum.failed);
        }
        if sum.passed == 0 || !one_alone && sum.skipped > 0 {
            bail!("{} tests of the suite passed, {} were not run", sum.passed, sum.skipped);
        }
        Ok(())
    }

    /// Writes the report where it is kept, with what the suite does not know.
    pub(super) fn keep(&self, path: &Path, echo: &str) -> Result<()> {
        let text = format!(
            "# Written by `cargo xtask conformance --write-report`.\n# Echo image: {echo}\n{}",
            self.text
        );
        let failed = || format!("write {}", path.display());
        fs::create_dir_all(path.parent().with_context(failed)?).with_context(failed)?;
        fs::write(path, text).with_context(failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HTTP: &str = "
- name: MESH-HTTP
  core: { result: failure, statistics: { Failed: 1, Passed: 6, Skipped: 0 }, failedTests: [MeshHTTPRouteWeight] }
  extended: { result: success, statistics: { Failed: 0, Passed: 9, Skipped: 0 }, unsupportedFeatures: [MeshX] }";
    const GRPC: &str = "
- name: MESH-GRPC
  core: { result: success, statistics: { Failed: 0, Passed: 2, Skipped: 0 } }";
    const PARTLY: &str = "
- name: MESH-GRPC
  core: { result: partial, statistics: { Failed: 0, Passed: 1, Skipped: 1 }, skippedTests: [MeshBasic] }";

    fn report(profiles: &[&str]) -> Report {
        Report::parse(format!("kind: ConformanceReport\nprofiles:{}", profiles.concat())).unwrap()
    }

    #[test]
    fn a_failure_and_what_was_not_run_are_no_pass() {
        let whole = report(&[HTTP, GRPC]);
        assert_eq!(whole.last_line(), "conformance: core 8/9, extended 9/9");
        assert!(whole.verdict(false).unwrap_err().to_string().contains("1 tests"));
        assert!(whole.verdict(true).is_err());
        assert!(report(&[GRPC]).verdict(false).is_ok());
        let partly = report(&[PARTLY]);
        assert_eq!(partly.last_line(), "conformance: core 1/2, extended 0/0");
        assert!(partly.verdict(false).is_err(), "half of it was not run");
        assert!(partly.verdict(true).is_ok(), "as was asked for");
        assert!(Report::parse("profiles: []".to_owned()).unwrap().verdict(false).is_err(), "nothing was run");
    }
}
