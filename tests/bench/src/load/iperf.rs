//! Bulk transfer with iperf3, read from its JSON report.

use anyhow::{Context, Result, bail};
use bed::{Pod, Process};
use serde_json::Value;

use super::{Figures, IPERF_PORT, finish};

/// Serves one test after another.
pub(super) fn serve(pod: &Pod, name: &str) -> Result<Process> {
    pod.job("iperf3").args(["--server", "--port", &IPERF_PORT.to_string()]).spawn(&format!("iperf3-{name}"))
}

pub(super) fn run(client: &Pod, server: &Pod, streams: u16, seconds: u64) -> Result<Figures> {
    let job = client
        .job("iperf3")
        .args(["--client", &server.v4().to_string(), "--port", &IPERF_PORT.to_string(), "--json"])
        .args(["--parallel", &streams.to_string(), "--time", &seconds.to_string()])
        .args(["--connect-timeout", "5000"]);
    parse(&finish(job, "iperf3", seconds)?)
}

fn parse(text: &str) -> Result<Figures> {
    let report: Value = serde_json::from_str(text).context("iperf3 printed something that is not JSON")?;
    if let Some(error) = report.get("error").and_then(Value::as_str) {
        bail!("iperf3: {error}");
    }
    // What arrived counts, not what the sender's buffers took.
    let figure = |name: &str| {
        report
            .pointer(&format!("/end/sum_received/{name}"))
            .and_then(Value::as_f64)
            .with_context(|| format!("iperf3's report lacks end.sum_received.{name}"))
    };
    let (bits, bytes) = (figure("bits_per_second")?, figure("bytes")?);
    if bytes <= 0.0 {
        bail!("iperf3 reports that no byte arrived");
    }
    Ok(Figures { rate: Some(bits / 1e9), p50: None, p99: None, work: bytes / 1e9 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_receivers_figures_are_taken_and_an_error_is_one() {
        let report = r#"{"end":{"sum_sent":{"bytes":9,"bits_per_second":9},
            "sum_received":{"bytes":2000000000,"bits_per_second":8400000000.5,"seconds":2.0}}}"#;
        let figures = parse(report).unwrap();
        assert_eq!(figures.work, 2.0);
        assert!((figures.rate.unwrap() - 8.4).abs() < 1e-6);
        let refused = parse(r#"{"start":{},"error":"unable to connect to server"}"#).unwrap_err();
        assert!(refused.to_string().contains("unable to connect"));
        assert!(parse(r#"{"end":{"sum_received":{"bytes":0,"bits_per_second":0}}}"#).is_err());
    }
}
