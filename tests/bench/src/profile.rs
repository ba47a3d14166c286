//! Where the CPU time of a run goes: perf's samples of the whole machine, grouped by kind of work.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result, ensure};

/// A recording under way; [`Recording::stop`] ends it.
pub(crate) struct Recording {
    perf: Child,
    data: PathBuf,
}

/// Starts sampling all CPUs, call chains included, into `data`.
pub(crate) fn record(data: &Path) -> Result<Recording> {
    // cpu-clock: virtual machines often have no hardware counters.
    let perf = Command::new("perf")
        .args(["record", "--quiet", "-g", "-a", "-e", "cpu-clock", "-F", "997", "-o"])
        .arg(data)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("start perf")?;
    Ok(Recording { perf, data: data.to_owned() })
}

impl Recording {
    /// Ends the recording and reads it. `processes` are ours.
    pub(crate) fn stop(mut self, processes: &[u32]) -> Result<Profile> {
        let threads = threads(processes)?;
        // perf writes its file out upon SIGINT.
        nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(self.perf.id().cast_signed()),
            nix::sys::signal::Signal::SIGINT,
        )
        .context("stop perf")?;
        self.perf.wait().context("wait for perf")?;
        ensure!(
            self.data.is_file(),
            "perf recorded nothing: sampling is not supported or not allowed here (see perf_event_paranoid)"
        );
        let report = Command::new("perf")
            .args(["report", "--stdio", "--no-children", "-g", "none", "--sort", "pid,dso,symbol"])
            .args(["--field-separator", "|", "--percent-limit", "0", "-i"])
            .arg(&self.data)
            .output()
            .context("run perf report")?;
        ensure!(report.status.success(), "perf report: {}", String::from_utf8_lossy(&report.stderr).trim());
        Profile::read(&String::from_utf8_lossy(&report.stdout), &threads)
    }
}

/// The threads of these processes: perf's `pid` column holds threads.
fn threads(processes: &[u32]) -> Result<Vec<u32>> {
    let mut threads = Vec::new();
    for process in processes {
        let path = format!("/proc/{process}/task");
        for entry in std::fs::read_dir(&path).with_context(|| format!("list {path}"))? {
            threads.extend(entry?.file_name().to_str().and_then(|name| name.parse::<u32>().ok()));
        }
    }
    Ok(threads)
}

/// Programs of the load. Whatever else runs on the machine is left out.
const LOAD: [&str; 5] = ["wrk", "nginx", "iperf3", "sockperf", "h2load"];

/// Shares of the time that load, our processes and the kernel were busy.
#[derive(Debug, Default)]
pub(crate) struct Profile {
    groups: BTreeMap<Group, Share>,
    symbols: BTreeMap<String, Share>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Share {
    machine: f64,
    ours: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Group {
    Copies,
    Crypto,
    Scheduling,
    Network,
    Bpf,
    Memory,
    SystemCalls,
    Interrupts,
    Http2,
    Http,
    Tls,
    Runtime,
    Own,
    OtherUser,
    OtherKernel,
}

impl Group {
    fn name(self) -> &'static str {
        match self {
            Self::Copies => "copies (user/kernel, memcpy)",
            Self::Crypto => "AES-GCM and other crypto",
            Self::Scheduling => "wake-ups, scheduling, epoll",
            Self::Network => "TCP/IP, veth, routing, softirq",
            Self::Bpf => "BPF programs and maps",
            Self::Memory => "allocation (kernel, user)",
            Self::SystemCalls => "system call entry and exit",
            Self::Interrupts => "interrupts and page faults",
            Self::Http2 => "HTTP/2 framing (h2)",
            Self::Http => "HTTP (hyper)",
            Self::Tls => "TLS records",
            Self::Runtime => "async runtime",
            Self::Own => "our own code",
            Self::OtherUser => "other user code",
            Self::OtherKernel => "other kernel code",
        }
    }

    /// Sorts a symbol by its name; the order of the questions decides where two fit.
    fn of(kernel: bool, symbol: &str) -> Self {
        let has = |parts: &[&str]| parts.iter().any(|part| symbol.contains(part));
        if has(&[
            "copy_user",
            "rep_movs",
            "copy_to_iter",
            "copy_from_iter",
            "copy_page_to_iter",
            "memcpy",
            "memmove",
        ]) || has(&["memset", "clear_page", "skb_copy", "copyin", "copyout", "copy_folio"])
        {
            return Self::Copies;
        }
        if has(&[
            "aes",
            "AES",
            "gcm",
            "ghash",
            "sha256",
            "sha384",
            "sha512",
            "x25519",
            "ecdsa",
            "p256",
            "curve25519",
        ]) || has(&["bignum", "ecp_nistz", "aws_lc"])
        {
            return Self::Crypto;
        }
        if kernel { Self::of_kernel(symbol, &has) } else { Self::of_user(&has) }
    }

    fn of_user(has: &dyn Fn(&[&str]) -> bool) -> Self {
        if has(&["malloc", "realloc", "calloc", "free", "alloc::", "je_", "mi_"]) {
            Self::Memory
        } else if has(&["h2::", "hpack"]) {
            Self::Http2
        } else if has(&["hyper", "httparse", "http::"]) {
            Self::Http
        } else if has(&["rustls"]) {
            Self::Tls
        } else if has(&["tokio", "mio::", "futures"]) {
            Self::Runtime
        } else if has(&["waypoint::", "ztunnel::", "hbone::", "mesh::", "runtime::record"]) {
            Self::Own
        } else {
            Self::OtherUser
        }
    }

    fn of_kernel(symbol: &str, has: &dyn Fn(&[&str]) -> bool) -> Self {
        let starts = |parts: &[&str]| parts.iter().any(|part| symbol.starts_with(part));
        if has(&["bpf_", "tcx_", "tcf_", "sk_storage", "sock_map", "sch_handle"]) {
            Self::Bpf
        } else if has(&[
            "entry_SYSCALL",
            "do_syscall",
            "syscall_",
            "entry_SYSRET",
            "x64_sys_call",
            "__x64_sys",
        ]) || has(&["srso", "retbleed", "fdget", "fput", "fget", "ksys_", "vfs_"])
        {
            Self::SystemCalls
        } else if has(&[
            "irqentry",
            "exc_page_fault",
            "asm_exc",
            "asm_sysvec",
            "handle_mm_fault",
            "do_user_addr_fault",
        ]) {
            Self::Interrupts
        } else if has(&[
            "sched", "wake", "poll", "clock", "tsc", "ktime", "futex", "epoll", "ep_", "enqueue_",
            "dequeue_", "pick_", "task_rq",
        ]) || has(&[
            "switch_",
            "update_load",
            "update_curr",
            "rcu_",
            "hrtimer",
            "eventfd",
            "idle",
            "_raw_spin",
        ]) || has(&["reweight", "vruntime", "cpuacct", "psi_", "timer"])
        {
            Self::Scheduling
        } else if starts(&[
            "tcp_", "__tcp", "ip_", "__ip", "ip6", "ipv4", "ipv6", "inet", "__inet", "skb_", "__skb",
        ]) || starts(&[
            "sk_", "__sk", "sock_", "__sock", "dev_", "__dev", "net_", "netif", "__netif", "veth", "br_",
        ]) || has(&[
            "napi", "nf_", "neigh", "fib_", "eth_", "skb", "csum", "gro_", "gso", "softirq", "qdisc", "dst_",
        ]) || has(&[
            "tcp", "inet6", "udp", "sendmsg", "recvmsg", "sendto", "recvfrom", "route", "xmit", "packet",
        ]) {
            Self::Network
        } else if has(&[
            "kmem",
            "kmalloc",
            "kfree",
            "slab",
            "alloc",
            "free_",
            "page",
            "folio",
            "mem_cgroup",
            "obj_cgroup",
        ]) {
            Self::Memory
        } else {
            Self::OtherKernel
        }
    }
}

impl Profile {
    fn read(report: &str, threads: &[u32]) -> Result<Self> {
        let mut profile = Self::default();
        let mut busy = Share::default();
        for line in report.lines().filter(|line| !line.starts_with('#')) {
            let Some(sample) = Sample::read(line) else { continue };
            let own = threads.contains(&sample.thread);
            if sample.is_idle() || !(own || sample.is_of_load()) {
                continue;
            }
            let group = Group::of(sample.kernel, sample.symbol);
            for share in [
                &mut busy,
                profile.groups.entry(group).or_default(),
                profile.symbols.entry(sample.symbol.to_owned()).or_default(),
            ] {
                share.machine += sample.percent;
                share.ours += if own { sample.percent } else { 0.0 };
            }
        }
        ensure!(busy.machine > 0.0, "perf's report holds no sample");
        let scale = 100.0 / busy.machine;
        for share in profile.groups.values_mut().chain(profile.symbols.values_mut()) {
            share.machine *= scale;
            share.ours *= scale;
        }
        Ok(profile)
    }

    /// A Markdown table, to be pasted into the documentation as it is. `ours` names our processes.
    pub(crate) fn table(&self, title: &str, ours: &str) -> String {
        let mut out = format!(
            "\n{title}: share of the CPU time of client, server, kernel and {ours} (of it in {ours})\n\n"
        );
        let head = |what| format!("| {what} | all % | {ours} % |\n|---|---:|---:|\n");
        out.push_str(&head("where"));
        let mut groups: Vec<(&Group, &Share)> = self.groups.iter().collect();
        groups.sort_by(|a, b| b.1.machine.total_cmp(&a.1.machine));
        for (group, share) in groups {
            let _ = writeln!(out, "| {} | {:.1} | {:.1} |", group.name(), share.machine, share.ours);
        }
        let _ = write!(out, "\n{}", head("symbol"));
        let mut symbols: Vec<(&String, &Share)> = self.symbols.iter().collect();
        symbols.sort_by(|a, b| b.1.machine.total_cmp(&a.1.machine));
        for (symbol, share) in symbols.into_iter().take(30) {
            let _ = writeln!(out, "| `{symbol}` | {:.1} | {:.1} |", share.machine, share.ours);
        }
        out
    }
}

/// One line of the report: `12.34%|  1234:worker-0|[kernel.kallsyms]|[k] tcp_sendmsg`.
#[derive(Debug, PartialEq)]
struct Sample<'a> {
    percent: f64,
    thread: u32,
    command: &'a str,
    kernel: bool,
    symbol: &'a str,
}

impl<'a> Sample<'a> {
    fn read(line: &'a str) -> Option<Self> {
        let mut fields = line.splitn(4, '|').map(str::trim);
        let percent = fields.next()?.strip_suffix('%')?.trim().parse().ok()?;
        let (thread, command) = fields.next()?.split_once(':')?;
        let thread = thread.trim().parse().ok()?;
        let _object = fields.next()?;
        let (place, symbol) = fields.next()?.split_once(' ')?;
        // Behind the padded symbol there may be columns that nobody asked for.
        let symbol = symbol.split("  ").next()?.trim();
        Some(Self { percent, thread, command, kernel: place == "[k]", symbol })
    }

    /// Softirqs run on whoever is on the CPU, be it the idle task or their own thread.
    fn is_of_load(&self) -> bool {
        self.thread == 0 || self.command.starts_with("ksoftirqd") || LOAD.contains(&self.command)
    }

    fn is_idle(&self) -> bool {
        const HALTS: [&str; 5] =
            ["pv_native_safe_halt", "native_safe_halt", "default_idle", "acpi_idle", "intel_idle"];
        self.thread == 0 && HALTS.iter().any(|halt| self.symbol.contains(halt))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPORT: &str = "# Samples: 8K of event 'cpu-clock'\n\
        \x2050.00%|      0:swapper|[kernel.kallsyms]|[k] pv_native_safe_halt\n\
        \x2020.00%|   1234:ztunnel|[kernel.kallsyms]|[k] copy_user_generic_string\n\
        \x2090.00%|     77:rustc|rustc|[.] llvm::InstCombinePass::run\n\
        \x2020.00%|   1234:worker-0|ztunnel|[.] aes_gcm_enc_update_vaes_avx512\n\
        \x2010.00%|     99:nginx|[kernel.kallsyms]|[k] tcp_sendmsg_locked      -     -\n";

    #[test]
    fn idle_time_is_no_work_and_shares_are_of_the_busy_time() {
        let profile = Profile::read(REPORT, &[1234]).unwrap();
        assert_eq!(profile.groups[&Group::Copies], Share { machine: 40.0, ours: 40.0 });
        assert_eq!(profile.groups[&Group::Network], Share { machine: 20.0, ours: 0.0 });
        let table = profile.table("bulk-1, two nodes", "ztunnels");
        assert!(table.contains("| `tcp_sendmsg_locked` | 20.0 | 0.0 |"), "{table}");
        assert!(table.contains("| AES-GCM and other crypto | 40.0 | 40.0 |"), "{table}");
        assert!(Profile::read("# nothing\n", &[]).is_err());
    }
}
