//! Metrics of the process itself, read from `/proc/self` at each scrape, under the names that
//! Prometheus client libraries agree on.

use std::{fmt, fs};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, NoLabelSet},
    metrics::MetricType,
};

/// Clock ticks per second in `/proc/*/stat`; the kernel's user ABI fixes it (USER_HZ).
const TICKS_PER_SECOND: f64 = 100.0;

/// Reads `/proc/self`; what cannot be read is left out.
#[derive(Debug)]
pub(super) struct Process {
    /// Seconds since the epoch.
    started: Option<f64>,
}

impl Process {
    pub(super) fn new() -> Self {
        Self { started: start_time() }
    }
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        if let Some(seconds) = stat().map(|stat| stat.cpu_seconds) {
            let help = "User and system CPU time";
            let mut metric =
                encoder.encode_descriptor("process_cpu_seconds", help, None, MetricType::Counter)?;
            metric.encode_counter::<NoLabelSet, _, f64>(&seconds, None)?;
        }
        let gauges = [
            (
                "process_resident_memory_bytes",
                "Resident memory",
                status_kib("VmRSS:").map(|kib| kib * 1024.0),
            ),
            ("process_threads", "Threads of the process", stat().map(|stat| stat.threads)),
            ("process_open_fds", "Open file descriptors", open_fds()),
            ("process_max_fds", "Most file descriptors the process may open", max_fds()),
            ("process_start_time_seconds", "Start of the process, in seconds since 1970", self.started),
        ];
        for (name, help, value) in gauges {
            if let Some(value) = value {
                encoder.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(&value)?;
            }
        }
        Ok(())
    }
}

/// What is used of `/proc/self/stat` (proc_pid_stat(5)).
struct Stat {
    cpu_seconds: f64,
    threads: f64,
    /// Ticks from boot to the start of the process.
    started: f64,
}

fn stat() -> Option<Stat> {
    let text = fs::read_to_string("/proc/self/stat").ok()?;
    // The second field, the command in parentheses, may itself hold spaces and parentheses.
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    let field = |number: usize| fields.get(number - 3)?.parse::<f64>().ok();
    Some(Stat {
        cpu_seconds: (field(14)? + field(15)?) / TICKS_PER_SECOND,
        threads: field(20)?,
        started: field(22)?,
    })
}

fn start_time() -> Option<f64> {
    let boot = fs::read_to_string("/proc/stat").ok()?;
    let boot: f64 = boot.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
    Some(boot + stat()?.started / TICKS_PER_SECOND)
}

fn status_kib(key: &str) -> Option<f64> {
    let text = fs::read_to_string("/proc/self/status").ok()?;
    text.lines().find_map(|line| line.strip_prefix(key))?.split_whitespace().next()?.parse().ok()
}

fn open_fds() -> Option<f64> {
    // One of them is the directory that is being read.
    Some((fs::read_dir("/proc/self/fd").ok()?.count().saturating_sub(1)) as f64)
}

fn max_fds() -> Option<f64> {
    let text = fs::read_to_string("/proc/self/limits").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_measures_itself() {
        let stat = stat().expect("/proc/self/stat");
        assert!(stat.threads >= 1.0);
        assert!(status_kib("VmRSS:").expect("/proc/self/status") > 100.0);
        assert!(open_fds().expect("/proc/self/fd") >= 3.0);
        assert!(start_time().expect("/proc/stat") > 1_500_000_000.0);
    }
}
