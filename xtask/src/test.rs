//! Every test, ring by ring: built once, in one profile, then run test program by test program, some at a time: most
//! of what they do is to wait. What one prints is shown once it has ended.
//!
//! A ring without a test, a test that is ignored and a test program that printed no result are failures:
//! silence proves nothing.

use std::{
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::mpsc::{self, RecvTimeoutError, Sender},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde::Deserialize;

use crate::{build, kind, lanes, setup, shell, tool_table::Use};

/// The reason by which a test may be ignored: it is the part of another test that runs in a process of its
/// own, and that test starts it.
pub(crate) const PART_OF_A_TEST: &str = "runs within another test";

/// How long one test program may take.
const LIMIT: Duration = Duration::from_secs(15 * 60);

/// How many test programs run at a time at most; each has threads of its own, too.
const MOST_AT_A_TIME: usize = 4;

/// Which tests to run.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only this ring.
    #[arg(value_enum)]
    ring: Option<Ring>,
    /// Only tests whose name contains this.
    #[arg(long, value_name = "NAME")]
    only: Option<String>,
}

/// A ring of tests, from the cheapest to the dearest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Ring {
    /// Decisions, parsers, state machines: each crate's own tests.
    Pure,
    /// Tunnel and copy against cut, slow and hostile peers, in paused time.
    Sim,
    /// Capture by real eBPF in real network namespaces.
    Kernel,
    /// All programs on nodes made of namespaces, with real clients and servers.
    Node,
    /// Foreign HBONE peers: Envoy and curl.
    Interop,
}

const RINGS: [Ring; 5] = [Ring::Pure, Ring::Sim, Ring::Kernel, Ring::Node, Ring::Interop];

impl Ring {
    fn of(package: &str) -> Self {
        match package {
            "sim" => Self::Sim,
            "capture" => Self::Kernel,
            "bed" | "app" | "node" | "bench" | "scale" => Self::Node,
            "interop" => Self::Interop,
            _ => Self::Pure,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Pure => "pure",
            Self::Sim => "sim",
            Self::Kernel => "kernel",
            Self::Node => "node",
            Self::Interop => "interop",
        }
    }
}

/// Builds and runs the tests.
pub(crate) fn run(root: &Path, args: &Args) -> Result<()> {
    shell::demand_root("the test suite")?;
    setup::ensure(&[Use::Test])?;
    // The tests of `culvert install` compare with what helm makes of the chart.
    kind::demand_helm(root)?;
    bed::sweep()?;
    let programs = build_all(root)?;
    let begun = Instant::now();
    let mut outcomes: Vec<Outcome> =
        RINGS.iter().filter(|ring| args.ring.is_none_or(|only| only == **ring)).map(Outcome::of).collect();
    let chosen: Vec<&TestProgram> = outcomes
        .iter()
        .flat_map(|outcome| programs.iter().filter(|program| Ring::of(&program.package) == outcome.ring))
        .collect();
    let run = |program: &&TestProgram| {
        let start = Instant::now();
        program.run(root, args.only.as_deref()).map(|tally| (tally, start.elapsed()))
    };
    for (program, done) in lanes::each(&chosen, lanes::cores().min(MOST_AT_A_TIME), run)? {
        let (ring, (tally, took)) = (Ring::of(&program.package), done?);
        outcomes
            .iter_mut()
            .filter(|outcome| outcome.ring == ring)
            .for_each(|outcome| outcome.add(&tally, took));
    }
    if args.only.is_none() {
        outcomes.iter_mut().for_each(Outcome::demand_tests);
    }
    bed::sweep()?;
    report(&outcomes, begun.elapsed())
}

/// What came of a ring.
#[derive(Debug)]
struct Outcome {
    ring: Ring,
    tally: Tally,
    /// Of its programs, one after the other.
    took: Duration,
}

impl Outcome {
    fn of(ring: &Ring) -> Self {
        Self { ring: *ring, tally: Tally::default(), took: Duration::ZERO }
    }

    fn add(&mut self, tally: &Tally, took: Duration) {
        self.tally.add(tally);
        self.took += took;
    }

    fn demand_tests(&mut self) {
        if self.tally.passed + self.tally.failed == 0 {
            self.tally.broken.push(format!("the ring {} has no test", self.ring.name()));
        }
    }
}

fn report(rings: &[Outcome], took: Duration) -> Result<()> {
    println!();
    let mut total = Tally::default();
    for Outcome { ring, tally, took } in rings {
        let Tally { passed, failed, .. } = tally;
        println!(
            "  {:<8} {passed:>4} passed  {failed:>3} failed  {:>6.1} s",
            ring.name(),
            took.as_secs_f64()
        );
        total.add(tally);
    }
    for failure in &total.broken {
        println!("  {failure}");
    }
    println!("\n{} passed, {} failed, in {:.1} s", total.passed, total.failed, took.as_secs_f64());
    if total.passed + total.failed == 0 {
        bail!("no test was run");
    }
    if total.failed > 0 || !total.broken.is_empty() {
        bail!("the tests failed");
    }
    Ok(())
}

/// What a test program's last line said.
#[derive(Debug, Default)]
struct Tally {
    passed: u32,
    failed: u32,
    /// What went wrong, one line each.
    broken: Vec<String>,
}

impl Tally {
    fn add(&mut self, other: &Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.broken.extend_from_slice(&other.broken);
    }
}

/// A built test program.
#[derive(Debug)]
struct TestProgram {
    package: String,
    target: String,
    folder: PathBuf,
    path: PathBuf,
}

/// The lines of `cargo --message-format=json` that matter here.
#[derive(Debug, Deserialize)]
struct Message {
    reason: String,
    #[serde(default)]
    package_id: String,
    #[serde(default)]
    manifest_path: PathBuf,
    executable: Option<PathBuf>,
    target: Option<Target>,
    profile: Option<Profile>,
}

#[derive(Debug, Deserialize)]
struct Target {
    name: String,
}

#[derive(Debug, Deserialize)]
struct Profile {
    test: bool,
}

/// Builds all programs; those that are tests.
fn build_all(root: &Path) -> Result<Vec<TestProgram>> {
    let mut programs = Vec::new();
    for line in build::with_tests(root)?.lines() {
        let message: Message = serde_json::from_str(line).context("cargo's messages")?;
        let (Some(path), Some(target), Some(Profile { test: true })) =
            (message.executable, message.target, message.profile)
        else {
            continue;
        };
        if message.reason == "compiler-artifact" {
            let folder = message.manifest_path.parent().unwrap_or(root).to_owned();
            let package = package_name(&folder, &message.package_id);
            programs.push(TestProgram { package, target: target.name, folder, path });
        }
    }
    programs.sort_by(|a, b| (&a.package, &a.target).cmp(&(&b.package, &b.target)));
    Ok(programs)
}

/// The package's name: `path+file:///…/tests/bed#0.1.0` or `…#bed@0.1.0`.
fn package_name(folder: &Path, id: &str) -> String {
    let after = id.rsplit_once('#').map_or("", |(_, after)| after);
    match after.split_once('@') {
        Some((name, _)) => name.to_owned(),
        None => folder.file_name().unwrap_or_default().to_string_lossy().into_owned(),
    }
}

impl TestProgram {
    /// Runs it, shows what it printed, and reads its result.
    fn run(&self, root: &Path, only: Option<&str>) -> Result<Tally> {
        let name = format!("{} {}", self.package, self.target);
        let mut command = Command::new(&self.path);
        command.current_dir(&self.folder).args(only).stdout(Stdio::piped());
        command.env("CARGO_MANIFEST_DIR", &self.folder).env("CULVERT_ROOT", root);
        let mut child = command.spawn().with_context(|| format!("start the tests of {name}"))?;
        let watchdog = Watchdog::over(child.id());
        let stdout = child.stdout.take().context("stdout of a test program")?;
        let results = show(&name, BufReader::new(stdout))?;
        let killed = watchdog.barked();
        let status = child.wait()?;
        if killed {
            let broken = format!("{name} was killed: it did not end within {} minutes", LIMIT.as_secs() / 60);
            return Ok(Tally { broken: vec![broken], ..Tally::default() });
        }
        let Some(results) = results else {
            let broken = format!("{name} ended ({status}) without a result");
            return Ok(Tally { broken: vec![broken], ..Tally::default() });
        };
        let mut broken = Vec::new();
        if !status.success() {
            broken.push(format!("{name} failed ({status})"));
        }
        if results.ignored > 0 {
            broken.push(format!(
                "{name} ignores {} test(s): a test that is skipped proves nothing",
                results.ignored
            ));
        }
        Ok(Tally { passed: results.passed, failed: results.failed, broken })
    }
}

/// Prints a test program's lines once there are no more, and gives the last result among them. A program without
/// a test (a binary that has none) prints nothing.
fn show(name: &str, lines: impl BufRead) -> Result<Option<Results>> {
    let mut results = None;
    let mut parts = 0;
    let mut shown = String::new();
    for line in lines.split(b'\n') {
        let line = line?;
        let line = String::from_utf8_lossy(&line);
        results = Results::parse(&line).or(results);
        parts += u32::from(line.contains(&format!("... ignored, {PART_OF_A_TEST}")));
        let idle =
            line.trim().is_empty() || line == "running 0 tests" || (shown.is_empty() && results.is_some());
        if !idle {
            shown.extend([&line, "\n"]);
        }
    }
    if !shown.is_empty() {
        write!(std::io::stdout().lock(), "\n== {name}\n{shown}")?;
    }
    Ok(results.map(|results: Results| Results { ignored: results.ignored.saturating_sub(parts), ..results }))
}

/// Kills a test program that hangs.
struct Watchdog {
    done: Sender<()>,
    thread: JoinHandle<bool>,
}

impl Watchdog {
    fn over(pid: u32) -> Self {
        let (done, ended) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let late = ended.recv_timeout(LIMIT) == Err(RecvTimeoutError::Timeout);
            // Not reaped yet, since the watchdog is asked before that: the id is still the program's.
            late && kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL).is_ok()
        });
        Self { done, thread }
    }

    /// Ends the watch; whether it had to kill.
    fn barked(self) -> bool {
        drop(self.done);
        self.thread.join().unwrap_or(false)
    }
}

/// The counts of a `test result:` line.
#[derive(Debug, PartialEq, Eq)]
struct Results {
    passed: u32,
    failed: u32,
    ignored: u32,
}

impl Results {
    fn parse(line: &str) -> Option<Self> {
        let rest = line.strip_prefix("test result: ")?;
        let count = |word: &str| -> Option<u32> {
            let before = rest.split(';').find_map(|part| part.trim().strip_suffix(word))?;
            before.trim().rsplit(' ').next()?.parse().ok()
        };
        Some(Self { passed: count("passed")?, failed: count("failed")?, ignored: count("ignored")? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_result_line_is_read() {
        let line = "test result: FAILED. 3 passed; 1 failed; 2 ignored; 0 measured; 0 filtered out; finished in 0.42s";
        assert_eq!(Results::parse(line), Some(Results { passed: 3, failed: 1, ignored: 2 }));
        assert_eq!(Results::parse("test something ... ok"), None);
    }

    #[test]
    fn a_package_is_named_by_its_id_or_its_folder() {
        assert_eq!(package_name(Path::new("/x/tests/bed"), "path+file:///x/tests/bed#0.1.0"), "bed");
        assert_eq!(
            package_name(Path::new("/x/ebpf/abi"), "path+file:///x/ebpf/abi#verdicts@0.1.0"),
            "verdicts"
        );
    }
}
