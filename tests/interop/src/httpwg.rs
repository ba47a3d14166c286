//! httpwg: a client of another implementation that tries what RFC 9113 says of HTTP/2, case by case.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

use crate::tools::{Place, run};

/// The version that the gate was set with: 107 cases.
pub const VERSION: &str = "0.2.5";

/// The program, built from crates.io into `target/tools/httpwg` at first use.
pub fn ensure_httpwg(root: &Path) -> Result<PathBuf> {
    let place = Place::take(root, "httpwg")?;
    let folder = place.folder.join(VERSION);
    let binary = folder.join("bin/httpwg");
    if binary.is_file() {
        return Ok(binary);
    }
    eprintln!("building httpwg-cli {VERSION} (crates.io): the conformance of HTTP/2; about two minutes");
    let target = place.folder.join("build");
    run(Command::new("cargo")
        .args(["install", "httpwg-cli", "--locked", "--quiet", "--version", &format!("={VERSION}")])
        .args(["--profile", "dev"])
        .arg("--root")
        .arg(&folder)
        .env("CARGO_TARGET_DIR", &target)
        .env_remove("RUSTFLAGS"))?;
    ensure!(binary.is_file(), "cargo install has made no {}", binary.display());
    std::fs::remove_dir_all(&target).with_context(|| format!("remove {}", target.display()))?;
    Ok(binary)
}

/// What it said of each case.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Verdicts {
    pub passed: usize,
    pub failed: BTreeSet<String>,
}

impl Verdicts {
    /// Reads what it prints to the end of its run.
    pub fn read(said: &str) -> Self {
        let case = |line: &str, word: &str| Some(line.split_once(word)?.1.trim().to_owned());
        Self {
            passed: said.lines().filter(|line| line.contains("Test passed: ")).count(),
            failed: said.lines().filter_map(|line| case(line, "Test failed: ")).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_case_counts_once() {
        let said = "Holding 2 connections\n✅ Test passed: RFC 9113 :: a :: b\n❌ Test failed: RFC 9113 :: c :: d\n\
            Error: timed out\n✅ Test passed: RFC 9113 :: a :: e\n🚄 Passed 2/3 tests\n";
        let verdicts = Verdicts::read(said);
        assert_eq!(verdicts.passed, 2);
        assert!(verdicts.failed.contains("RFC 9113 :: c :: d") && verdicts.failed.len() == 1);
    }
}
