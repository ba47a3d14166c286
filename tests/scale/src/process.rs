//! The control process: started, watched through the kernel's books, ended.

use std::{
    fs,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

/// A running control.
pub(crate) struct Control {
    child: Child,
    pub(crate) port: u16,
    admin: u16,
    log: PathBuf,
    started: Instant,
}

impl Control {
    /// Starts `program`; its log goes to a file.
    pub(crate) fn start(program: &Path, options: &[String], log: &Path) -> Result<Self> {
        let (port, admin) = (free_port()?, free_port()?);
        let file = fs::File::create(log).with_context(|| format!("make {}", log.display()))?;
        let started = Instant::now();
        let child = Command::new(program)
            .args(options)
            .args(["--listen", &format!("127.0.0.1:{port}"), "--admin-addr", &format!("127.0.0.1:{admin}")])
            .args(["--metrics-addr", "none", "--ready-addr", "none", "--log-level", "warn"])
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("start {}", program.display()))?;
        Ok(Self { child, port, admin, log: log.to_owned(), started })
    }

    /// Waits until it is ready; the time since its start.
    pub(crate) fn ready(&mut self, patience: Duration) -> Result<Duration> {
        loop {
            if get(self.admin, "/healthz/ready").is_ok_and(|answer| answer.starts_with("HTTP/1.1 200")) {
                return Ok(self.started.elapsed());
            }
            let ended = self.child.try_wait()?;
            if ended.is_some() || self.started.elapsed() > patience {
                let log = fs::read_to_string(&self.log).unwrap_or_default();
                let tail: String = log.lines().rev().take(10).map(|line| format!("\n  {line}")).collect();
                match ended {
                    Some(status) => bail!("control ended with {status}:{tail}"),
                    None => bail!("control is not ready after {patience:?}:{tail}"),
                }
            }
            sleep(Duration::from_millis(10));
        }
    }

    /// Its CPU so far, in seconds.
    pub(crate) fn cpu(&self) -> Result<f64> {
        cpu(&self.child.id().to_string())
    }

    /// How long its threads were ready to run so far, and had no core: in seconds, together.
    pub(crate) fn waited(&self) -> Result<f64> {
        waited(&self.child.id().to_string())
    }

    /// Its resident memory, in bytes.
    pub(crate) fn resident(&self) -> Result<u64> {
        let path = format!("/proc/{}/status", self.child.id());
        let text = fs::read_to_string(&path).with_context(|| format!("read {path}: has it died?"))?;
        kilobytes(&text, "VmRSS:").map(|kb| kb * 1024).with_context(|| format!("{path} has no VmRSS"))
    }

    /// The most it ever had resident, in bytes.
    pub(crate) fn peak(&self) -> Result<u64> {
        let path = format!("/proc/{}/status", self.child.id());
        let text = fs::read_to_string(&path).with_context(|| format!("read {path}: has it died?"))?;
        kilobytes(&text, "VmHWM:").map(|kb| kb * 1024).with_context(|| format!("{path} has no VmHWM"))
    }

    /// Waits until it has done nothing for half a second.
    pub(crate) fn idle(&self) -> Result<()> {
        let start = Instant::now();
        let (mut seen, mut since) = (self.cpu()?, Instant::now());
        while since.elapsed() < Duration::from_millis(500) && start.elapsed() < Duration::from_secs(60) {
            sleep(Duration::from_millis(50));
            let now = self.cpu()?;
            // A tick or two is what being asked and keeping alive costs.
            if now - seen > 0.021 {
                (seen, since) = (now, Instant::now());
            }
        }
        Ok(())
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The CPU of a process, `self` or a number, in seconds.
pub(crate) fn cpu(process: &str) -> Result<f64> {
    let path = format!("/proc/{process}/stat");
    let text = fs::read_to_string(&path).with_context(|| format!("read {path}: has it died?"))?;
    ticks(&text).map(|ticks| ticks as f64 / 100.0).with_context(|| format!("{path} is not as expected"))
}

/// How long the threads of a process, `self` or a number, were ready to run and had no core: in seconds, together.
pub(crate) fn waited(process: &str) -> Result<f64> {
    let folder = format!("/proc/{process}/task");
    let threads = fs::read_dir(&folder).with_context(|| format!("read {folder}: has it died?"))?;
    // A thread that ends meanwhile is not missed.
    let books = threads.filter_map(|thread| fs::read_to_string(thread.ok()?.path().join("schedstat")).ok());
    Ok(books.filter_map(|book| run_delay(&book)).sum::<u64>() as f64 / 1e9)
}

/// Nanoseconds on a run queue: the second field.
fn run_delay(schedstat: &str) -> Option<u64> {
    schedstat.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// utime + stime: fields 14 and 15, counted behind the name, which may hold anything.
fn ticks(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace().skip(11);
    Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
}

fn kilobytes(status: &str, field: &str) -> Option<u64> {
    let value = status.lines().find_map(|line| line.strip_prefix(field))?;
    value.trim().strip_suffix("kB")?.trim().parse().ok()
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0").context("find a free port")?.local_addr()?.port())
}

fn get(port: u16, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_books_are_read() {
        assert_eq!(ticks("42 (a) b (c)) S 1 42 42 0 -1 4194560 100 0 0 0 250 50 7 7"), Some(300));
        assert_eq!(kilobytes("Name: x\nVmHWM:\t  100 kB\nVmRSS:\t  90 kB\n", "VmRSS:"), Some(90));
        assert_eq!(run_delay("8241 77 3\n"), Some(77));
        assert!(cpu("self").is_ok() && waited("self").is_ok());
    }
}
