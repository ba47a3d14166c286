//! What the kernel's books say of CPU and memory: `/proc/stat` and `/proc/PID`.

use std::{fs, path::Path};

use anyhow::{Context, Result};

/// CPU spent so far, by some processes and by the whole machine.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Cpu {
    /// User and system seconds of the processes asked for. Softirq work that runs while a process
    /// is on the CPU is booked to it by most kernels (not with IRQ time accounting).
    pub(crate) processes: f64,
    /// Seconds in which any CPU of the machine was not idle: user, nice, system, hard and soft irq.
    pub(crate) machine: f64,
}

impl Cpu {
    /// Reads the books now. A process that is gone is an error: its time would be lost.
    pub(crate) fn now(processes: &[u32]) -> Result<Self> {
        let mut ticks = 0;
        for pid in processes {
            let path = format!("/proc/{pid}/stat");
            let text =
                fs::read_to_string(&path).with_context(|| format!("read {path}: has the process died?"))?;
            ticks += process_ticks(&text).with_context(|| format!("{path} is not as expected"))?;
        }
        let text = fs::read_to_string("/proc/stat").context("read /proc/stat")?;
        let machine = machine_ticks(&text).context("/proc/stat is not as expected")?;
        Ok(Self { processes: seconds(ticks), machine: seconds(machine) })
    }

    /// What was spent since `earlier`.
    pub(crate) fn since(self, earlier: Self) -> Self {
        Self {
            processes: (self.processes - earlier.processes).max(0.0),
            machine: (self.machine - earlier.machine).max(0.0),
        }
    }
}

/// The books are kept in USER_HZ, which is 100 on every Linux that runs this code (x86-64, arm64).
fn seconds(ticks: u64) -> f64 {
    ticks as f64 / 100.0
}

/// utime + stime: fields 14 and 15, counted behind the name, which may hold anything.
fn process_ticks(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

/// user + nice + system + irq + softirq of the line of all CPUs. Guests are counted within user.
fn machine_ticks(stat: &str) -> Option<u64> {
    let line = stat.lines().find(|line| line.starts_with("cpu "))?;
    let fields: Vec<u64> =
        line.split_ascii_whitespace().skip(1).map(|f| f.parse().ok()).collect::<Option<_>>()?;
    let pick = |index: usize| fields.get(index).copied();
    Some(pick(0)? + pick(1)? + pick(2)? + pick(5)? + pick(6)?)
}

/// Resident memory of a process, in bytes.
pub(crate) fn resident(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/status");
    let text = fs::read_to_string(&path).with_context(|| format!("read {path}: has the process died?"))?;
    text.lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .and_then(|value| value.trim().strip_suffix("kB"))
        .and_then(|value| value.trim().parse::<u64>().ok())
        .map(|kilobytes| kilobytes * 1024)
        .with_context(|| format!("{path} has no VmRSS"))
}

/// How many file descriptors a process holds.
pub(crate) fn descriptors(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/fd");
    Ok(fs::read_dir(Path::new(&path)).with_context(|| format!("list {path}"))?.count() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_counted_behind_a_name_with_spaces_and_brackets() {
        let stat = "42 (a) b (c)) S 1 42 42 0 -1 4194560 100 0 0 0 250 50 7 7 20 0 1 0 100 1000 10";
        assert_eq!(process_ticks(stat), Some(300));
        assert_eq!(process_ticks("42 nothing"), None);
    }

    #[test]
    fn idle_waiting_and_stolen_time_are_not_work() {
        let stat = "cpu  10 20 30 9999 8888 40 50 7777 5 5\ncpu0 1 1 1 1 1 1 1 1 1 1\n";
        assert_eq!(machine_ticks(stat), Some(150));
    }

    #[test]
    fn work_of_this_process_shows_in_both_books() {
        let me = [std::process::id()];
        let before = Cpu::now(&me).unwrap();
        let mut x = 0u64;
        while Cpu::now(&me).unwrap().since(before).processes < 0.03 {
            x = std::hint::black_box(x.wrapping_mul(3).wrapping_add(1));
        }
        assert!(Cpu::now(&me).unwrap().since(before).machine > 0.0);
        assert!(resident(me[0]).unwrap() > 100_000);
        assert!(descriptors(me[0]).unwrap() >= 3);
    }
}
