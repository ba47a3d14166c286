//! A program running in the bed: in its namespace, in its node's cgroup, writing to a log file, and
//! killed with everything it started when the guard is dropped.

use std::{
    ffi::OsString,
    fs::{self, File},
    io::Write,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::{
    sys::signal::{Signal, kill, killpg},
    unistd::Pid,
};

use crate::{Netns, eventually};

/// Where a program runs: a namespace, a cgroup, and the folder its log goes to.
#[derive(Debug, Clone)]
pub struct Place {
    pub(crate) netns: Arc<Netns>,
    pub(crate) cgroup: PathBuf,
    pub(crate) logs: PathBuf,
}

impl Place {
    /// Starts `command` here. A shell line moves the process into the cgroup before it becomes the
    /// program, so that even its first socket is counted to the node.
    pub(crate) fn start(&self, command: &Invocation, stdio: [Stdio; 3]) -> Result<Child> {
        let [stdin, stdout, stderr] = stdio;
        let mut child = Command::new("/bin/sh");
        child
            .args(["-c", r#"echo $$ >"$0" && exec "$@""#])
            .arg(self.cgroup.join("cgroup.procs"))
            .arg(&command.program)
            .args(&command.args)
            .envs(command.env.iter().map(|(key, value)| (key, value)))
            .process_group(0)
            .stdin(stdin)
            .stdout(stdout)
            .stderr(stderr);
        if let Some(folder) = &command.folder {
            child.current_dir(folder);
        }
        self.netns
            .enter(|| child.spawn())?
            .with_context(|| format!("start {} in {}", command.program.display(), self.netns.name()))
    }
}

/// What to run.
#[derive(Debug, Clone, Default)]
pub(crate) struct Invocation {
    pub(crate) program: PathBuf,
    pub(crate) args: Vec<OsString>,
    pub(crate) env: Vec<(OsString, OsString)>,
    pub(crate) folder: Option<PathBuf>,
}

/// A running program. Dropping it kills its process group and waits for it.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    stdin: Option<ChildStdin>,
    log: PathBuf,
    ended: Option<ExitStatus>,
}

impl Process {
    /// Starts a program whose output goes to `<logs>/<name>.log`; a second run of the same name appends.
    pub(crate) fn start(place: &Place, name: &str, command: &Invocation) -> Result<Self> {
        let log = place.logs.join(format!("{name}.log"));
        let out = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .with_context(|| format!("open log {}", log.display()))?;
        let err = out.try_clone()?;
        let mut child = place.start(command, [Stdio::piped(), out.into(), err.into()])?;
        let stdin = child.stdin.take();
        Ok(Self { name: name.to_owned(), child, stdin, log, ended: None })
    }

    /// The name it was started under.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The process id; the program itself, not a shell around it.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    fn group(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    /// Sends a signal to the program (not to its children).
    pub fn signal(&self, signal: Signal) -> Result<()> {
        if self.ended.is_some() {
            bail!("{} has ended already", self.name);
        }
        kill(self.group(), signal).with_context(|| format!("send {signal} to {}", self.name))
    }

    /// SIGKILL to the program and everything it started; returns when it is gone.
    pub fn kill(&mut self) {
        if self.ended.is_none() {
            // The group may be gone already; what counts is that the child is reaped below.
            let _ = killpg(self.group(), Signal::SIGKILL);
            self.ended = self.child.wait().ok();
            // Its children are reaped by init, a moment later; where init does not, they stay as zombies.
            let start = Instant::now();
            while killpg(self.group(), None).is_ok() && start.elapsed() < Duration::from_millis(100) {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }

    /// SIGTERM, then waits; an error if it does not end within `limit`.
    pub fn terminate(&mut self, limit: Duration) -> Result<ExitStatus> {
        if self.ended.is_none() {
            self.signal(Signal::SIGTERM)?;
        }
        self.wait(limit)
    }

    /// Waits for the program to end by itself.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let start = Instant::now();
        while self.is_running()? {
            if start.elapsed() > limit {
                bail!("{} did not end within {limit:?}; its log ends:\n{}", self.name, self.log_tail(20));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        self.ended.with_context(|| format!("{} left no exit status", self.name))
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> Result<bool> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().with_context(|| format!("wait for {}", self.name))?;
        }
        Ok(self.ended.is_none())
    }

    /// Waits until `probe` gives a value, and gives up early if the program ends. The error shows the
    /// end of the log.
    pub fn wait_until<T>(
        &mut self,
        limit: Duration,
        what: &str,
        mut probe: impl FnMut() -> Option<T>,
    ) -> Result<(T, Duration)> {
        let name = self.name.clone();
        let outcome = eventually(limit, what, || {
            if let Some(value) = probe() {
                return Ok(Some(value));
            }
            if !self.is_running()? {
                bail!(
                    "{name} ended ({}) before: {what}",
                    self.ended.map(|s| s.to_string()).unwrap_or_default()
                );
            }
            Ok(None)
        });
        outcome.with_context(|| format!("{name} (its log ends:\n{})", self.log_tail(30)))
    }

    /// Waits for a line of the log that `pick` accepts, and gives it.
    pub fn wait_for_line(
        &mut self,
        limit: Duration,
        what: &str,
        pick: impl Fn(&str) -> bool,
    ) -> Result<String> {
        let log = self.log.clone();
        let (line, _) =
            self.wait_until(limit, what, || read(&log).lines().find(|line| pick(line)).map(str::to_owned))?;
        Ok(line)
    }

    /// Writes a line to the program's standard input.
    pub fn write_line(&mut self, line: &str) -> Result<()> {
        let stdin = self.stdin.as_mut().with_context(|| format!("stdin of {} is closed", self.name))?;
        stdin.write_all(format!("{line}\n").as_bytes()).with_context(|| format!("write to {}", self.name))?;
        stdin.flush().with_context(|| format!("write to {}", self.name))
    }

    /// Closes the program's standard input.
    pub fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// Where the log is.
    pub fn log_path(&self) -> &Path {
        &self.log
    }

    /// The whole log so far.
    pub fn log(&self) -> String {
        read(&self.log)
    }

    /// How long the log is now, for [`Process::log_since`].
    pub fn log_length(&self) -> usize {
        self.log().len()
    }

    /// What was logged after the log was `length` long.
    pub fn log_since(&self, length: usize) -> String {
        self.log().get(length..).unwrap_or_default().to_owned()
    }

    /// The last `lines` lines of the log.
    pub fn log_tail(&self, lines: usize) -> String {
        tail(&self.log(), lines)
    }

    /// Resident memory in bytes.
    pub fn resident(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid()))
            .with_context(|| format!("read the memory of {}", self.name))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS line")?;
        let kib: u64 = line.trim().trim_end_matches(" kB").trim().parse().context("VmRSS")?;
        Ok(kib * 1024)
    }

    /// Leaves the program running when the guard goes (a world that is kept).
    pub fn leave_running(mut self) {
        // Dropping a `Child` neither kills nor waits; the guard's own drop is told that all is done.
        self.ended = Some(ExitStatus::default());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

fn read(log: &Path) -> String {
    fs::read(log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

/// A line of a log is cut here: a verifier's complaint alone can fill a screen.
const LINE: usize = 400;

/// The last `lines` lines of `text`, each cut to a readable length.
pub(crate) fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    let mut tail = String::new();
    for line in &all[all.len().saturating_sub(lines)..] {
        tail.extend(line.chars().take(LINE));
        tail.push_str(if line.chars().nth(LINE).is_some() { " …\n" } else { "\n" });
    }
    tail
}

#[cfg(test)]
mod tests {
    use super::tail;

    #[test]
    fn tail_is_whole_lines() {
        assert_eq!(tail("a\nb\nc\n", 2), "b\nc\n");
        assert_eq!(tail("a\nb", 5), "a\nb\n");
        assert_eq!(tail("", 3), "");
        assert_eq!(tail(&"x".repeat(1000), 1).chars().count(), super::LINE + 3);
    }
}
