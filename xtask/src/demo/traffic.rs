//! Real clients: curl, redis-cli and iperf3, run inside pods.

use std::{
    net::SocketAddr,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use bed::{Finished, Pod, Process};

use super::cast::{IPERF, PAGE, PATIENCE, REDIS};
use crate::shell;

/// nginx is in an administrator's folder, which may not be in the path.
pub(crate) fn nginx() -> Result<PathBuf> {
    shell::which("nginx").context("no nginx; try: cargo xtask setup")
}

/// How a call by curl went.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) status: u16,
    pub(crate) body: String,
    /// curl's own measure of the whole call.
    pub(crate) took: Duration,
    /// curl's words where it failed.
    pub(crate) error: Option<String>,
}

impl Call {
    /// Whether the page came.
    pub(crate) fn served(&self) -> bool {
        self.status == 200 && self.body.starts_with(PAGE)
    }

    /// The evidence of a page that came, or an error.
    pub(crate) fn expect_served(&self) -> Result<String> {
        if !self.served() {
            bail!(
                "no page: status {}, {}",
                self.status,
                self.error.as_deref().unwrap_or("no error from curl")
            );
        }
        Ok(format!("200, {} bytes", self.body.len()))
    }

    /// The evidence of a call that was refused, or an error.
    pub(crate) fn expect_refused(&self) -> Result<String> {
        match &self.error {
            Some(error) if !self.served() => Ok(error.clone()),
            Some(_) | None => bail!("the call was served with status {}", self.status),
        }
    }
}

/// curl's command line for a page, as a person would type it.
pub(crate) fn curl_line(to: SocketAddr) -> String {
    format!("curl http://{to}/")
}

/// Gets the page at `to`; gives up after `limit` seconds.
pub(crate) fn curl(pod: &Pod, to: SocketAddr, limit: u32) -> Result<Call> {
    let finished = pod
        .job("curl")
        .args(["--silent", "--show-error", "--noproxy", "*", "--max-time", &limit.to_string()])
        .args(["--write-out", "\n%{http_code} %{time_total}", &format!("http://{to}/")])
        .run()?;
    let Finished { status, stdout, stderr, .. } = finished;
    let (body, tail) = stdout.rsplit_once('\n').context("curl printed no status line")?;
    let (code, seconds) = tail.split_once(' ').context("curl's status line")?;
    Ok(Call {
        status: code.parse().context("curl's status")?,
        body: body.to_owned(),
        took: Duration::from_secs_f64(seconds.parse().context("curl's time")?),
        error: (!status.success()).then(|| stderr.trim().to_owned()),
    })
}

/// Bits per second that iperf3 carries from one pod to another within a second.
pub(crate) fn iperf(from: &Pod, to: &Pod) -> Result<f64> {
    let finished = from
        .job("iperf3")
        .args(["--client", &to.v4().to_string(), "--port", &IPERF.to_string()])
        .args(["--time", "1", "--json"])
        .check()?;
    let report: serde_json::Value = serde_json::from_str(&finished.stdout).context("iperf3's report")?;
    report["end"]["sum_received"]["bits_per_second"].as_f64().context("no rate in iperf3's report")
}

/// `8.4 Gbit/s`
pub(crate) fn rate(bits_per_second: f64) -> String {
    format!("{:.1} Gbit/s", bits_per_second / 1e9)
}

/// One redis-cli on one connection, kept open; a person typing slowly.
#[derive(Debug)]
pub(crate) struct RedisSession {
    client: Process,
    answers: usize,
}

impl RedisSession {
    /// Opens it and says PING.
    pub(crate) fn open(from: &Pod, to: &Pod, name: &str) -> Result<Self> {
        let client = redis_cli(from, to).spawn(name)?;
        let mut session = Self { client, answers: 0 };
        session.ask("PING")?;
        Ok(session)
    }

    /// Says a line without waiting for the answer.
    pub(crate) fn tell(&mut self, line: &str) -> Result<()> {
        self.client.write_line(line)
    }

    /// Says a line and gives the answer's line.
    pub(crate) fn ask(&mut self, line: &str) -> Result<String> {
        self.tell(line)?;
        let wanted = self.answers;
        let log = self.client.log_path().to_owned();
        let answer = || {
            let text = std::fs::read_to_string(&log).unwrap_or_default();
            let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
            whole.lines().filter(|line| !line.is_empty()).nth(wanted).map(str::to_owned)
        };
        let (answer, _) = self.client.wait_until(PATIENCE, &format!("the answer to {line}"), answer)?;
        self.answers += 1;
        if answer.contains("rror") || answer.contains("Could not connect") {
            bail!("{line}: {answer}");
        }
        Ok(answer)
    }
}

fn redis_cli(from: &Pod, to: &Pod) -> bed::Job {
    from.job("redis-cli").args(["-h", &to.v4().to_string(), "-p", &REDIS.to_string()])
}

/// A redis-cli that listens to a channel: one long-lived connection over which the server speaks.
#[derive(Debug)]
pub(crate) struct Subscriber {
    client: Process,
}

impl Subscriber {
    /// Subscribes and waits until the server has confirmed it.
    pub(crate) fn open(from: &Pod, to: &Pod, channel: &str) -> Result<Self> {
        let mut client =
            redis_cli(from, to).args(["SUBSCRIBE", channel]).spawn(&format!("subscriber-{channel}"))?;
        client.wait_for_line(PATIENCE, "the subscription", |line| line == "subscribe")?;
        Ok(Self { client })
    }

    /// The numbers received so far, in order.
    pub(crate) fn numbers(&self) -> Vec<u64> {
        // Without a terminal each part of a message is a line of its own: kind, channel, text.
        self.client.log().lines().filter_map(|line| line.strip_prefix("number ")?.parse().ok()).collect()
    }

    /// How often it subscribed: more than once means that the connection broke in between.
    pub(crate) fn subscriptions(&self) -> usize {
        self.client.log().lines().filter(|line| *line == "subscribe").count()
    }

    /// Waits until number `number` has come.
    pub(crate) fn wait_number(&mut self, number: u64) -> Result<Duration> {
        let line = format!("number {number}");
        let start = Instant::now();
        self.client.wait_for_line(PATIENCE, &line, |have| have == line)?;
        Ok(start.elapsed())
    }

    /// Waits until the connection is ended by the other side, which ends the program.
    pub(crate) fn wait_cut(&mut self, limit: Duration) -> Result<String> {
        self.client.wait(limit)?;
        let log = self.client.log();
        Ok(log.lines().last().unwrap_or("redis-cli ended").to_owned())
    }
}

/// Publishes numbers, from the server's own pod, over its loopback.
#[derive(Debug)]
pub(crate) struct Publisher {
    session: RedisSession,
    channel: String,
    last: u64,
}

impl Publisher {
    pub(crate) fn open(at: &Pod, channel: &str) -> Result<Self> {
        let client =
            at.job("redis-cli").args(["-p", &REDIS.to_string()]).spawn(&format!("publisher-{channel}"))?;
        let mut session = RedisSession { client, answers: 0 };
        session.ask("PING")?;
        Ok(Self { session, channel: channel.to_owned(), last: 0 })
    }

    /// Publishes the next number, and gives it.
    pub(crate) fn publish(&mut self) -> Result<u64> {
        self.last += 1;
        let answer = self.session.ask(&format!("PUBLISH {} \"number {}\"", self.channel, self.last))?;
        if answer != "1" {
            bail!("number {} reached {answer} subscribers", self.last);
        }
        Ok(self.last)
    }
}
