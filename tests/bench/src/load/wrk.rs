//! HTTP load with wrk; a script makes it print its figures as one line of JSON.

use anyhow::{Context, Result, ensure};
use bed::Pod;
use serde::Deserialize;

use super::{Figures, HTTP_PORT, finish};

/// What a request asks for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Load {
    /// A few bytes over a kept connection.
    Small,
    /// 100 KB over a kept connection.
    Body,
    /// A few bytes over a connection of its own.
    NewConnection,
}

const SCRIPT: &str = r#"
done = function(summary, latency, requests)
  local e = summary.errors
  io.write(string.format('FIGURES {"duration_us":%d,"requests":%d,"bytes":%d,' ..
    '"connect":%d,"read":%d,"write":%d,"status":%d,"timeout":%d,"p50_us":%d,"p99_us":%d}\n',
    summary.duration, summary.requests, summary.bytes,
    e.connect, e.read, e.write, e.status, e.timeout, latency:percentile(50), latency:percentile(99)))
end
"#;

#[derive(Debug, Deserialize)]
struct Report {
    duration_us: f64,
    requests: f64,
    bytes: f64,
    connect: u64,
    read: u64,
    write: u64,
    status: u64,
    timeout: u64,
    p50_us: f64,
    p99_us: f64,
}

pub(super) fn run(client: &Pod, server: &Pod, load: Load, connections: u16, seconds: u64) -> Result<Figures> {
    let script =
        tempfile::Builder::new().suffix(".lua").tempfile().context("make a file for wrk's script")?;
    std::fs::write(script.path(), SCRIPT).context("write wrk's script")?;
    let path = match load {
        Load::Small | Load::NewConnection => "small",
        Load::Body => "body",
    };
    let mut job = client
        .job("wrk")
        .arg(format!("--threads={}", connections.min(2)))
        .arg(format!("--connections={connections}"))
        .arg(format!("--duration={seconds}s"))
        .args(["--timeout=5s", "--script"])
        .arg(script.path());
    if let Load::NewConnection = load {
        job = job.args(["--header", "Connection: close"]);
    }
    let job = job.arg(format!("http://{}/{path}", server.at(HTTP_PORT)));
    parse(&finish(job, "wrk", seconds)?)
}

fn parse(text: &str) -> Result<Figures> {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("FIGURES "))
        .with_context(|| format!("wrk printed no figures: {}", text.trim()))?;
    let report: Report = serde_json::from_str(line).context("read wrk's figures")?;
    let errors = report.connect + report.read + report.write + report.status + report.timeout;
    ensure!(
        errors == 0,
        "wrk met errors: {} to connect, {} to read, {} to write, {} by status, {} by time-out, in {} requests",
        report.connect,
        report.read,
        report.write,
        report.status,
        report.timeout,
        report.requests
    );
    ensure!(report.requests > 0.0 && report.bytes > 0.0, "wrk finished no request");
    Ok(Figures {
        rate: Some(report.requests / report.duration_us * 1e6),
        p50: Some(report.p50_us),
        p99: Some(report.p99_us),
        work: report.requests,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const FINE: &str = "Running 2s test\n  1 threads\nFIGURES {\"duration_us\":2000000,\"requests\":164842,\
        \"bytes\":24726300,\"connect\":0,\"read\":0,\"write\":0,\"status\":0,\"timeout\":0,\"p50_us\":8,\"p99_us\":1675}\n";

    #[test]
    fn a_clean_run_gives_rate_and_latency() {
        let figures = parse(FINE).unwrap();
        assert_eq!(figures.rate, Some(82421.0));
        assert_eq!((figures.p50, figures.p99), (Some(8.0), Some(1675.0)));
    }

    #[test]
    fn one_failed_request_fails_the_run() {
        let broken = FINE.replace("\"read\":0", "\"read\":1");
        assert!(parse(&broken).unwrap_err().to_string().contains("1 to read"));
        assert!(parse("Running 2s test\n").is_err());
    }
}
