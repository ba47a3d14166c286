//! Finds the network namespaces of pods that nobody named one for, through procfs: the pod's uid is in the
//! cgroups of its processes, and a process leads to its namespace.
//!
//! A namespace is pinned by its descriptor and never known by a pid, which the kernel gives to others: all that
//! is asked of a process goes through one descriptor of its folder in procfs, which answers for nobody else.
//! It only looks, and only while a wanted pod has no namespace.

mod cgroup;
mod given;

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{self, Read as _},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use capture::Netns;
use nix::{
    errno::Errno,
    fcntl::{AtFlags, OFlag, openat},
    sys::stat::{Mode, fstatat},
};

pub(crate) use self::given::Given;

/// One look at all processes serves every pod that is asked for this long after it.
const FRESH: Duration = Duration::from_millis(200);
/// Processes of one pod that are looked at; those nearest to the pod's own cgroup, and of these the oldest.
const MOST_PROCESSES: usize = 64;
/// A line for each cgroup hierarchy, each a path of 4 KiB at most.
const MOST_TEXT: u64 = 64 << 10;

/// Looks for the namespaces of pods.
#[derive(Debug)]
pub(crate) struct Finder {
    /// The node's procfs.
    proc: PathBuf,
    /// The inode of the node's own network namespace.
    node: u64,
    processes: Mutex<Processes>,
}

/// The processes of pods at the last look.
#[derive(Debug, Default)]
struct Processes {
    looked: Option<Instant>,
    by_pod: HashMap<String, Vec<Candidate>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    depth: usize,
    pid: u32,
}

/// A pod's namespace, and the process that showed it.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) netns: Netns,
    process: Process,
}

/// Why a pod's namespace is not found.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotFound {
    #[error(
        "no process under {} belongs to it: its containers have not been started yet, or have ended", proc.display()
    )]
    NoProcess { proc: PathBuf },
    /// Nothing is known then, of this pod or any other.
    #[error(
        "no process under {} belongs to any pod, so --host-proc is not this node's /proc (in folder mode the pod \
         needs the annotation culvert.dev/netns)", proc.display()
    )]
    NoPods { proc: PathBuf },
    #[error(
        "its processes are in the node's own network namespace: a pod of the host network is never enrolled"
    )]
    HostNetwork,
    #[error("{what}: {error}")]
    System { what: String, error: io::Error },
}

impl Finder {
    /// `proc`: the procfs of the node. `node`: the node's own network namespace, which is no pod's.
    pub(crate) fn new(proc: PathBuf, node: &Netns) -> Self {
        Self { proc, node: node.inode(), processes: Mutex::default() }
    }

    /// Finds the namespace of the pod. Blocks for the reading of `/proc`, some 20 µs for each process.
    pub(crate) fn find(&self, uid: &str) -> Result<Found, NotFound> {
        let mut processes = self.processes.lock().unwrap_or_else(PoisonError::into_inner);
        if processes.looked.is_none_or(|looked| looked.elapsed() > FRESH) {
            processes.by_pod = self.look()?;
            processes.looked = Some(Instant::now());
        }
        let any = !processes.by_pod.is_empty();
        let mut candidates = processes.by_pod.get(uid).cloned().unwrap_or_default();
        drop(processes);
        if !any {
            return Err(NotFound::NoPods { proc: self.proc.clone() });
        }
        candidates.sort_unstable();
        candidates.truncate(MOST_PROCESSES);
        // A pod's first process is the one that its runtime made with the namespace. What came later may have
        // made itself another one.
        let mut members: Vec<(usize, u64, Process)> = candidates
            .into_iter()
            .filter_map(|candidate| {
                let process = Process::open(&self.proc, candidate.pid).ok()?;
                Some((candidate.depth, process.started()?, process))
            })
            .collect();
        members.sort_by_key(|(depth, started, process)| (*depth, *started, process.pid));
        let mut seen = NotFound::NoProcess { proc: self.proc.clone() };
        for (_, _, process) in members {
            match process.netns() {
                // The pid may have been another's since the look.
                _ if !process.is_of(uid) => {}
                // The runtime's own, on its way into a new namespace, or a pod of the host network.
                Ok(netns) if netns.inode() == self.node => seen = NotFound::HostNetwork,
                Ok(netns) => return Ok(Found { netns, process }),
                Err(error) if is_gone(&error) => {}
                Err(error) => {
                    let what = format!(
                        "open the network namespace of process {} (needs CAP_SYS_PTRACE)",
                        process.pid
                    );
                    seen = NotFound::System { what, error };
                }
            }
        }
        Err(seen)
    }

    /// Whether the pod still has the namespace: shown by the process known, or else by another one.
    pub(crate) fn still(&self, uid: &str, found: &mut Found) -> Result<(), String> {
        if found.process.shows(&found.netns) {
            return Ok(());
        }
        match self.find(uid) {
            Ok(again) if again.netns.inode() == found.netns.inode() => {
                found.process = again.process;
                Ok(())
            }
            // Nothing is known: what stands stays.
            Err(NotFound::NoPods { .. } | NotFound::System { .. }) => Ok(()),
            Ok(_) => Err("the pod has another network namespace now".to_owned()),
            Err(reason) => Err(format!("its network namespace is gone: {reason}")),
        }
    }

    /// The processes of every pod.
    fn look(&self) -> Result<HashMap<String, Vec<Candidate>>, NotFound> {
        let failed = |error| NotFound::System { what: format!("list {}", self.proc.display()), error };
        let mut by_pod: HashMap<String, Vec<Candidate>> = HashMap::new();
        for entry in fs::read_dir(&self.proc).map_err(failed)?.flatten() {
            let name = entry.file_name();
            let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
            // One that has ended meanwhile is nobody's.
            let Ok(text) = Process::open(&self.proc, pid).and_then(|process| process.read("cgroup")) else {
                continue;
            };
            for member in cgroup::memberships(&text) {
                by_pod.entry(member.uid).or_default().push(Candidate { depth: member.depth, pid });
            }
        }
        Ok(by_pod)
    }
}

/// A process, by a descriptor of its folder in procfs: once it has ended, every question fails.
#[derive(Debug)]
struct Process {
    pid: u32,
    folder: OwnedFd,
}

impl Process {
    fn open(proc: &Path, pid: u32) -> io::Result<Self> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let folder = nix::fcntl::open(&proc.join(pid.to_string()), flags, Mode::empty())?;
        Ok(Self { pid, folder })
    }

    fn read(&self, name: &str) -> io::Result<String> {
        let file = openat(&self.folder, name, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
        let mut text = String::new();
        File::from(file).take(MOST_TEXT).read_to_string(&mut text)?;
        Ok(text)
    }

    fn is_of(&self, uid: &str) -> bool {
        self.read("cgroup")
            .is_ok_and(|text| cgroup::memberships(&text).iter().any(|member| member.uid == uid))
    }

    /// When it was started, in ticks since boot: field 22 of `stat`, of which the second may hold anything but ends
    /// with the last parenthesis.
    fn started(&self) -> Option<u64> {
        let stat = self.read("stat").ok()?;
        stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
    }

    fn netns(&self) -> io::Result<Netns> {
        let fd = openat(&self.folder, "ns/net", OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
        Netns::from_fd(fd).map_err(|error| io::Error::other(error.to_string()))
    }

    /// Whether it lives, and in that namespace.
    fn shows(&self, netns: &Netns) -> bool {
        fstatat(&self.folder, "ns/net", AtFlags::empty()).is_ok_and(|stat| stat.st_ino == netns.inode())
    }
}

/// The process has ended, or is a zombie without namespaces.
fn is_gone(error: &io::Error) -> bool {
    error.raw_os_error().is_some_and(|code| matches!(Errno::from_raw(code), Errno::ENOENT | Errno::ESRCH))
}

/// Whether the text of a `/proc/PID/cgroup` is that of a process in a pod.
pub(crate) fn is_in_pod(cgroup: &str) -> bool {
    cgroup.contains("kubepods") || !cgroup::memberships(cgroup).is_empty()
}

#[cfg(test)]
mod tests;
