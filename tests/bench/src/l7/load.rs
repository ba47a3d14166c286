//! HTTP load with h2load, for both versions, and its log of requests for the percentiles.

use std::{fmt::Write as _, fs, net::IpAddr, path::Path};

use anyhow::{Context, Result, bail, ensure};
use bed::Pod;

use super::plan::{Load, Size, Version};
use crate::load::finish;

/// Ports of the services, and of the pods behind them; HTTP/2 has one of its own, since nginx tells the versions apart
/// by it.
pub(super) const PORTS: [(Version, u16, u16); 2] = [(Version::One, 80, 8080), (Version::Two, 81, 8081)];

/// Requests at a time on a connection of HTTP/2.
const STREAMS: &str = "10";

/// What one run came to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Figures {
    pub(super) requests: f64,
    pub(super) per_second: f64,
    /// Microseconds.
    pub(super) p50: f64,
    pub(super) p99: f64,
}

/// The path that a rule is for.
pub(super) fn path(route: usize) -> String {
    format!("/r{route}/")
}

/// What is asked for below it.
pub(super) fn file(size: Size) -> &'static str {
    match size {
        Size::Small => "small",
        Size::Large => "large",
    }
}

/// Asks the service at `address` for `seconds` from a pod; `folder` takes its files.
pub(super) fn run(client: &Pod, address: IpAddr, load: Load, seconds: u64, folder: &Path) -> Result<Figures> {
    let port = PORTS.iter().find(|(version, _, _)| *version == load.version).map_or(80, |(_, port, _)| *port);
    let mut targets = String::new();
    for route in 0..load.routes {
        let _ = writeln!(targets, "http://{address}:{port}{}{}", path(route), file(load.size));
    }
    let [list, log] = ["targets", "requests"].map(|name| folder.join(format!("h2load-{name}")));
    fs::write(&list, targets).with_context(|| format!("write {}", list.display()))?;
    let mut job = client
        .job("h2load")
        .args(["--threads=1", &format!("--clients={}", load.connections)])
        .arg(format!("--duration={seconds}"))
        .arg(format!("--log-file={}", log.display()))
        .arg(format!("--input-file={}", list.display()));
    job = match load.version {
        Version::One => job.args(["--h1", "--max-concurrent-streams=1"]),
        Version::Two => job.args(["--max-concurrent-streams", STREAMS]),
    };
    let said = finish(job, "h2load", seconds)?;
    let lines = fs::read_to_string(&log).with_context(|| format!("read {}", log.display()))?;
    // It appends.
    fs::remove_file(&log).with_context(|| format!("remove {}", log.display()))?;
    check(&said, load.size)?;
    percentiles(&lines, seconds)
}

/// Fails unless every request was answered, with what was asked for.
fn check(said: &str, size: Size) -> Result<()> {
    let line = |start: &str| {
        said.lines()
            .find_map(|line| line.trim().strip_prefix(start))
            .with_context(|| format!("h2load printed no \"{start}\": {}", said.trim()))
    };
    let number = |line: &str, of: &str| -> Result<f64> {
        let part = line.split(',').find_map(|part| part.trim().strip_suffix(of)).map(str::trim);
        let number = part.and_then(|part| part.parse().ok());
        number.with_context(|| format!("h2load printed no number of \"{of}\" in \"{line}\""))
    };
    let requests = line("requests:")?;
    for of in [" failed", " errored", " timeout"] {
        if number(requests, of)? > 0.0 {
            bail!("h2load met errors:{requests}");
        }
    }
    let (codes, succeeded) = (line("status codes:")?, number(requests, " succeeded")?);
    ensure!(succeeded > 0.0 && number(codes, " 2xx")? >= succeeded, "h2load got other answers:{codes}");
    let traffic = line("traffic:")?;
    let data = traffic.rsplit_once('(').and_then(|(_, rest)| rest.split_once(')')?.0.parse::<f64>().ok());
    let data = data.with_context(|| format!("h2load printed no bytes in \"{traffic}\""))?;
    ensure!(data >= succeeded * size.bytes() as f64, "the answers were too short:{traffic}");
    Ok(())
}

/// Each line is when it began, the status, and how long it took: microseconds.
fn percentiles(lines: &str, seconds: u64) -> Result<Figures> {
    let took = |line: &str| line.rsplit('\t').next()?.trim().parse::<u64>().ok();
    let mut times: Vec<u64> = lines.lines().filter_map(took).collect();
    ensure!(!times.is_empty(), "h2load logged no request");
    times.sort_unstable();
    let at = |share: usize| times[(times.len() * share / 100).min(times.len() - 1)] as f64;
    let requests = times.len() as f64;
    Ok(Figures { requests, per_second: requests / seconds.max(1) as f64, p50: at(50), p99: at(99) })
}

#[cfg(test)]
mod tests {
    use super::*;

    const FINE: &str = "finished in 2.00s, 40240.00 req/s, 6.14MB/s\n\
        requests: 80480 total, 80484 started, 80480 done, 80480 succeeded, 0 failed, 0 errored, 0 timeout\n\
        status codes: 80480 2xx, 0 3xx, 0 4xx, 0 5xx\n\
        traffic: 12.28MB (12876800) total, 8.37MB (8772647) headers (space savings 0.00%), 76.8MB (80480000) data\n";

    #[test]
    fn one_failed_or_short_answer_fails_the_run() {
        check(FINE, Size::Small).unwrap();
        let wrong =
            |from: &str, to: &str| check(&FINE.replace(from, to), Size::Small).unwrap_err().to_string();
        assert!(wrong("0 errored", "1 errored").contains("1 errored"));
        assert!(wrong("80480 2xx, 0 3xx, 0 4xx", "80479 2xx, 0 3xx, 1 4xx").contains("1 4xx"));
        assert!(wrong("(80480000)", "(80479999)").contains("too short"));
        assert!(check("spawning", Size::Small).is_err());
    }

    #[test]
    fn percentiles_are_of_the_log() {
        let lines: String = (1..=200).map(|took| format!("1795367876301931\t200\t{took}\n")).collect();
        let figures = percentiles(&lines, 2).unwrap();
        assert_eq!((figures.requests, figures.per_second), (200.0, 100.0));
        assert_eq!((figures.p50, figures.p99), (101.0, 199.0));
        assert!(percentiles("", 1).is_err());
    }
}
