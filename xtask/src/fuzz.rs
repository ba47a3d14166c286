//! Fuzzing: builds the targets of `tests/fuzz` with cargo-fuzz and runs each for a while.
//!
//! On stable Rust there is no sanitizer, only coverage: a finding is a panic, a hang or too much memory.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::{lanes, shell};

/// How long to fuzz.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Seconds for each target.
    #[arg(long, default_value_t = 60)]
    pub(crate) seconds: u32,
    /// Only this target.
    #[arg(long)]
    pub(crate) target: Option<String>,
    /// Compile fast rather than well, which pays for a run of seconds.
    #[arg(long)]
    pub(crate) dev: bool,
}

/// The release of cargo-fuzz that is installed where there is none.
const CARGO_FUZZ: &str = "0.13";

/// Builds and runs the fuzz targets.
pub(crate) fn run(root: &Path, args: &Args) -> Result<()> {
    let fuzz = root.join("tests/fuzz");
    let targets = targets(&fuzz, args.target.as_deref())?;
    let cargo_fuzz = ensure_cargo_fuzz(root)?;
    let cargo_fuzz = |verb: &str| {
        let mut command = Command::new(&cargo_fuzz);
        command.current_dir(root).args(["fuzz", verb, "--fuzz-dir"]).arg(&fuzz);
        command.args(["--sanitizer", "none"]).args(args.dev.then_some("--dev"));
        command
    };
    shell::run(&mut cargo_fuzz("build"), "build the fuzz targets")?;
    let one = |target: &String| {
        println!("  fuzzing  {target} for {} s", args.seconds);
        let mut command = cargo_fuzz("run");
        command.arg(target).args(inputs(&fuzz, target)?).arg("--");
        command.args([&format!("-max_total_time={}", args.seconds), "-rss_limit_mb=2048", "-timeout=10"]);
        command.args(["-verbosity=0", "-print_final_stats=1"]);
        shell::run(&mut command, &format!("fuzz {target}"))
    };
    lanes::each(&targets, lanes::cores(), one)?.into_iter().try_for_each(|(_, found)| found)?;
    println!("{} fuzz targets, no finding", targets.len());
    Ok(())
}

/// The targets' names, from their files.
fn targets(fuzz: &Path, only: Option<&str>) -> Result<Vec<String>> {
    let folder = fuzz.join("fuzz_targets");
    let entries = fs::read_dir(&folder).with_context(|| format!("list {}", folder.display()))?;
    let mut names: Vec<String> = entries
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let is_rust = path.extension().is_some_and(|extension| extension == "rs");
            is_rust.then(|| path.file_stem().map(|stem| stem.to_string_lossy().into_owned()))?
        })
        .filter(|name| only.is_none_or(|only| only == name))
        .collect();
    names.sort();
    if names.is_empty() {
        bail!(
            "no fuzz target{} in {}",
            only.map(|name| format!(" {name}")).unwrap_or_default(),
            folder.display()
        );
    }
    Ok(names)
}

/// The folders to start from: what earlier runs found (and this one adds to), and the seeds of the repository.
fn inputs(fuzz: &Path, target: &str) -> Result<Vec<PathBuf>> {
    let found = fuzz.join("corpus").join(target);
    fs::create_dir_all(&found).with_context(|| format!("make {}", found.display()))?;
    let seeds = fuzz.join("seeds").join(target);
    Ok([Some(found), seeds.is_dir().then_some(seeds)].into_iter().flatten().collect())
}

fn ensure_cargo_fuzz(root: &Path) -> Result<PathBuf> {
    let tools = root.join("target/tools");
    let program = tools.join("bin/cargo-fuzz");
    if let Some(found) = program.is_file().then(|| program.clone()).or_else(|| shell::which("cargo-fuzz")) {
        return Ok(found);
    }
    println!("  installing  cargo-fuzz {CARGO_FUZZ}: builds and runs the fuzz targets; about a minute");
    let mut install = shell::cargo(root);
    install.args(["install", "cargo-fuzz", "--locked", "--quiet", "--version", &format!("^{CARGO_FUZZ}")]);
    install.arg("--root").arg(&tools).arg("--target-dir").arg(tools.join("build"));
    shell::run(&mut install, "install cargo-fuzz")?;
    // Only the program is needed; a failure to remove the rest is no failure.
    let _ = fs::remove_dir_all(tools.join("build"));
    Ok(program)
}
