//! A command to run in a pod or on a node: to its end with its output, or as a [`Process`].

use std::{
    ffi::OsStr,
    fs::File,
    io::{Read, Seek, SeekFrom, Write},
    path::PathBuf,
    process::{ExitStatus, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};

use crate::{
    Process,
    process::{Invocation, Place},
};

/// How long a command may take when nothing else is said.
const LIMIT: Duration = Duration::from_secs(30);

/// A command being put together.
#[derive(Debug)]
#[must_use = "a job does nothing until it is run or spawned"]
pub struct Job {
    place: Place,
    command: Invocation,
    stdin: Option<Vec<u8>>,
    limit: Duration,
}

/// How a command ended.
#[derive(Debug, Clone)]
pub struct Finished {
    /// The command line, for messages.
    pub line: String,
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
    pub took: Duration,
}

impl Finished {
    /// Whether it exited with 0.
    pub fn success(&self) -> bool {
        self.status.success()
    }

    /// The output, if the command succeeded; else an error with what it said.
    pub fn ok(self) -> Result<Self> {
        if !self.success() {
            bail!("`{}`: {}: {}{}", self.line, self.status, self.stdout.trim(), self.stderr.trim());
        }
        Ok(self)
    }
}

impl Job {
    pub(crate) fn new(place: Place, program: impl Into<PathBuf>) -> Self {
        let command = Invocation { program: program.into(), ..Invocation::default() };
        Self { place, command, stdin: None, limit: LIMIT }
    }

    /// Adds one argument.
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.command.args.push(arg.as_ref().to_owned());
        self
    }

    /// Adds arguments.
    pub fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.command.args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Sets an environment variable.
    pub fn env(mut self, key: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.command.env.push((key.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// Sets the working directory.
    pub fn folder(mut self, folder: impl Into<PathBuf>) -> Self {
        self.command.folder = Some(folder.into());
        self
    }

    /// Gives the command its standard input (none by default).
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = Some(bytes.into());
        self
    }

    /// How long [`Job::run`] waits before it kills the command; 30 s by default.
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    fn line(&self) -> String {
        let program = self.command.program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let args = self.command.args.iter().map(|arg| arg.to_string_lossy().into_owned());
        std::iter::once(program).chain(args).collect::<Vec<_>>().join(" ")
    }

    /// Runs it to its end. A command that fails is no error here: see [`Finished::ok`].
    ///
    /// # Errors
    /// When it cannot be started, or does not end in time.
    pub fn run(self) -> Result<Finished> {
        let line = self.line();
        let mut stdout = tempfile::tempfile()?;
        let mut stderr = tempfile::tempfile()?;
        let stdin = match &self.stdin {
            None => Stdio::null(),
            Some(bytes) => {
                let mut file = tempfile::tempfile()?;
                file.write_all(bytes)?;
                file.seek(SeekFrom::Start(0))?;
                file.into()
            }
        };
        let start = Instant::now();
        let stdio = [stdin, stdout.try_clone()?.into(), stderr.try_clone()?.into()];
        let mut child = self.place.start(&self.command, stdio)?;
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            if start.elapsed() > self.limit {
                killpg(Pid::from_raw(child.id().cast_signed()), Signal::SIGKILL)?;
                child.wait()?;
                bail!("`{line}` did not end within {:?}; it said: {}", self.limit, read(&mut stderr)?.trim());
            }
            std::thread::sleep(Duration::from_millis(1));
        };
        let took = start.elapsed();
        Ok(Finished { line, status, stdout: read(&mut stdout)?, stderr: read(&mut stderr)?, took })
    }

    /// Runs it to its end and demands success.
    pub fn check(self) -> Result<Finished> {
        self.run()?.ok()
    }

    /// Starts it; `name` names its log.
    pub fn spawn(self, name: &str) -> Result<Process> {
        Process::start(&self.place, name, &self.command).with_context(|| self.line())
    }
}

fn read(file: &mut File) -> Result<String> {
    file.seek(SeekFrom::Start(0))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
