//! The machine and the moment of a run: what a reader of the figures needs to judge them.

use std::{fs, path::Path, process::Command, time::SystemTime};

use serde::Serialize;

/// Facts beside the figures; each is told as found, "unknown" where it cannot be had.
#[derive(Debug, Serialize)]
pub(crate) struct Facts {
    pub(crate) kernel: String,
    pub(crate) processor: String,
    pub(crate) cores: usize,
    pub(crate) memory_gb: u64,
    /// Of TCP, where it is TCP that is measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) congestion_control: Option<String>,
    pub(crate) date: String,
    pub(crate) commit: String,
    /// The load average when the run began: another load on the machine bends every figure.
    pub(crate) load_at_start: String,
    pub(crate) runs: usize,
    pub(crate) seconds: u64,
}

impl Facts {
    pub(crate) fn gather(root: &Path, congestion_control: Option<&str>, runs: usize, seconds: u64) -> Self {
        Self {
            kernel: read("/proc/sys/kernel/osrelease"),
            processor: field("/proc/cpuinfo", "model name"),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            memory_gb: field("/proc/meminfo", "MemTotal")
                .trim_end_matches("kB")
                .trim()
                .parse::<u64>()
                .map_or(0, |kb| (kb + 512 * 1024) / (1024 * 1024)),
            congestion_control: congestion_control.map(str::to_owned),
            date: timestamp(SystemTime::now()),
            commit: commit(root),
            load_at_start: read("/proc/loadavg").split(' ').take(3).collect::<Vec<_>>().join(" "),
            runs,
            seconds,
        }
    }

    /// One paragraph for the terminal.
    pub(crate) fn lines(&self) -> Vec<String> {
        let tcp = self.congestion_control.as_ref().map(|name| format!(" · TCP {name}")).unwrap_or_default();
        vec![
            format!(
                "kernel {} · {} × {} · {} GB{tcp}",
                self.kernel, self.cores, self.processor, self.memory_gb
            ),
            format!(
                "{} · commit {} · medians of {} × {} s · load at start {}",
                self.date, self.commit, self.runs, self.seconds, self.load_at_start
            ),
        ]
    }
}

fn read(path: &str) -> String {
    fs::read_to_string(path).map_or_else(|_| "unknown".into(), |text| text.trim().to_owned())
}

fn field(path: &str, key: &str) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines()
        .find(|line| line.starts_with(key))
        .and_then(|line| line.split_once(':'))
        .map_or_else(|| "unknown".into(), |(_, value)| value.trim().to_owned())
}

fn commit(root: &Path) -> String {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").arg("-C").arg(root).args(arguments).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let Some(commit) = git(&["rev-parse", "--short=12", "HEAD"]) else { return "unknown".into() };
    match git(&["status", "--porcelain", "--untracked-files=no"]) {
        Some(changes) if !changes.is_empty() => format!("{commit} with local changes"),
        _ => commit,
    }
}

/// A moment in UTC as `2026-11-21 16:30 UTC`.
fn timestamp(at: SystemTime) -> String {
    let seconds = at.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let (year, month, day) = civil(seconds / 86_400);
    let minutes = seconds % 86_400 / 60;
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02} UTC", minutes / 60, minutes % 60)
}

/// The Gregorian date of a day since 1970-01-01 (H. Hinnant, "chrono-compatible low-level date algorithms").
fn civil(day: u64) -> (u64, u64, u64) {
    let z = day + 719_468;
    let (era, of_era) = (z / 146_097, z % 146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * of_year + 2) / 153;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    (year, month, of_year - (153 * month_from_march + 2) / 5 + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_right_on_both_sides_of_a_leap_day() {
        assert_eq!(civil(0), (1970, 1, 1));
        assert_eq!(civil(11_016), (2000, 2, 29));
        assert_eq!(civil(11_017), (2000, 3, 1));
        assert_eq!(civil(20_778), (2026, 11, 21));
    }
}
