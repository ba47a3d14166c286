//! Latency with sockperf's TCP ping-pong: half a round trip of one 64-byte message at a time.

use anyhow::{Context, Result, ensure};
use bed::{Pod, Process};

use super::{Figures, SOCKPERF_PORT, finish};

pub(super) fn serve(pod: &Pod, name: &str) -> Result<Process> {
    pod.job("sockperf")
        .args(["server", "--tcp", "-i", &pod.v4().to_string(), "-p", &SOCKPERF_PORT.to_string()])
        .spawn(&format!("sockperf-{name}"))
}

pub(super) fn run(client: &Pod, server: &Pod, seconds: u64) -> Result<Figures> {
    let job = client
        .job("sockperf")
        .args(["ping-pong", "--tcp", "--msg-size", "64", "-t", &seconds.to_string()])
        .args(["-i", &server.v4().to_string(), "-p", &SOCKPERF_PORT.to_string()]);
    parse(&finish(job, "sockperf", seconds)?)
}

fn parse(text: &str) -> Result<Figures> {
    // Lines read `sockperf: ---> percentile 99.000 =   15.633`, some with colours in them.
    let percentile = |which: &str| {
        text.lines()
            .find_map(|line| line.split_once(&format!("percentile {which} =")))
            .and_then(|(_, value)| value.trim().parse::<f64>().ok())
            .with_context(|| format!("sockperf printed no percentile {which}: {}", text.trim()))
    };
    let (_, tail) = text.split_once("[Valid Duration]").context("sockperf printed no valid duration")?;
    let messages: f64 = tail
        .split_once("ReceivedMessages=")
        .and_then(|(_, rest)| rest.split(|c: char| !c.is_ascii_digit()).next())
        .and_then(|digits| digits.parse().ok())
        .context("sockperf printed no count of messages")?;
    ensure!(messages > 0.0, "sockperf got no message back");
    Ok(Figures {
        rate: None,
        p50: Some(percentile("50.000")?),
        p99: Some(percentile("99.000")?),
        work: messages,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_and_the_count_are_found_among_colours() {
        let text = "sockperf: [Total Run] RunTime=2.001 sec; SentMessages=26; ReceivedMessages=26\n\
            sockperf: [Valid Duration] RunTime=1.550 sec; SentMessages=203091; ReceivedMessages=203090\n\
            sockperf: \u{1b}[2;35mTotal 203091 observations\u{1b}[0m; each percentile contains 2030.91\n\
            sockperf: ---> percentile 99.000 =   15.633\nsockperf: ---> percentile 50.000 =    2.686\n";
        let figures = parse(text).unwrap();
        assert_eq!(figures.work, 203090.0);
        assert_eq!((figures.p50, figures.p99), (Some(2.686), Some(15.633)));
        assert!(parse("sockperf: Summary: Latency is 3.792 usec").is_err());
    }
}
