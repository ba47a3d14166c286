//! The finder on a procfs of folders, whose processes and namespaces are real ones.

use std::{
    fs,
    os::unix::fs::symlink,
    path::Path,
    process::{Child, Command, Stdio},
};

use super::*;

const UID: &str = "0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9";

/// A process in a network namespace of its own, ended with the value.
struct Isolated(Child);

impl Isolated {
    fn start() -> Self {
        let mut unshare = Command::new("unshare");
        unshare.args(["--net", "sh", "-c", "echo ready; exec sleep 1000"]).stdout(Stdio::piped());
        let mut child = unshare.spawn().expect("unshare");
        let mut ready = [0; 5];
        child
            .stdout
            .take()
            .expect("its output")
            .read_exact(&mut ready)
            .expect("root, for a network namespace");
        Self(child)
    }

    fn inode(&self) -> u64 {
        Netns::open(&self.link()).expect("its namespace").inode()
    }

    fn link(&self) -> PathBuf {
        format!("/proc/{}/ns/net", self.0.id()).into()
    }
}

impl Drop for Isolated {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Puts a process into a procfs of folders.
fn put(proc: &Path, pid: u32, path: &str, started: u64, netns: &Path) {
    let folder = proc.join(pid.to_string());
    fs::create_dir_all(folder.join("ns")).expect("a folder");
    fs::write(folder.join("cgroup"), format!("0::{path}\n")).expect("cgroup");
    let stat = format!("{pid} (a) b) c) S{} {started} 0\n", " 1".repeat(18));
    fs::write(folder.join("stat"), stat).expect("stat");
    symlink(netns, folder.join("ns/net")).expect("ns");
}

fn remove(proc: &Path, pid: u32) {
    fs::remove_dir_all(proc.join(pid.to_string())).expect("removes");
}

/// So that the next question looks anew.
fn later() {
    std::thread::sleep(FRESH + Duration::from_millis(20));
}

fn finder(proc: &Path) -> Finder {
    Finder::new(proc.to_owned(), &Netns::current().expect("our namespace"))
}

#[test]
fn a_pod_is_found_by_its_first_process_and_lost_with_its_last() {
    let folder = tempfile::tempdir().expect("a folder");
    let (proc, own) = (folder.path(), Path::new("/proc/self/ns/net"));
    let (pause, nested) = (Isolated::start(), Isolated::start());
    let finder = finder(proc);
    put(proc, 1, "/init.scope", 1, own);
    // Nothing is said of a pod by a procfs that knows none.
    assert!(matches!(finder.find(UID), Err(NotFound::NoPods { .. })));
    put(proc, 2, "/kubepods/podffffffff-4e5f-6071-8293-a4b5c6d7e8f9/x", 1, own);
    later();
    assert!(matches!(finder.find(UID), Err(NotFound::NoProcess { .. })));
    // The runtime is on its way into the namespace.
    put(proc, 50, &format!("/kubepods/pod{UID}/runtime"), 5, own);
    later();
    assert!(matches!(finder.find(UID), Err(NotFound::HostNetwork)));
    // A namespace that a container made is not the pod's, whichever process is the older or has the lower pid.
    put(proc, 60, &format!("/kubepods/pod{UID}/pause"), 10, &pause.link());
    put(proc, 55, &format!("/kubepods/pod{UID}/app/docker/x"), 2, &nested.link());
    put(proc, 57, &format!("/kubepods/pod{UID}/app"), 20, &nested.link());
    later();
    let mut found = finder.find(UID).expect("is found");
    assert_eq!(found.netns.inode(), pause.inode());
    // Another process shows it when the first one has ended, and none when all have.
    put(proc, 61, &format!("/kubepods/pod{UID}/app"), 15, &pause.link());
    remove(proc, 60);
    later();
    finder.still(UID, &mut found).expect("shown by another process");
    assert_eq!(found.process.pid, 61);
    remove(proc, 61);
    later();
    let lost = finder.still(UID, &mut found).expect_err("another namespace");
    assert!(lost.contains("another network namespace"), "{lost}");
    remove(proc, 57);
    remove(proc, 55);
    later();
    let lost = finder.still(UID, &mut found).expect_err("no namespace");
    assert!(lost.contains("node's own"), "{lost}");
    // Held by its descriptor, the namespace can be entered when nobody is left in it.
    drop(pause);
    found.netns.enter(|| ()).expect("is still there");
}

#[test]
fn a_pid_that_is_anothers_since_the_look_is_not_believed() {
    let folder = tempfile::tempdir().expect("a folder");
    let proc = folder.path();
    let (one, other) = (Isolated::start(), Isolated::start());
    let finder = finder(proc);
    put(proc, 60, &format!("/kubepods/pod{UID}/pause"), 10, &one.link());
    finder.find(UID).expect("is found");
    remove(proc, 60);
    put(proc, 60, "/kubepods/podffffffff-4e5f-6071-8293-a4b5c6d7e8f9/pause", 10, &other.link());
    assert!(matches!(finder.find(UID), Err(NotFound::NoProcess { .. })));
}

#[test]
fn a_real_process_answers_until_it_ends() {
    let isolated = Isolated::start();
    let process = Process::open(Path::new("/proc"), isolated.0.id()).expect("opens");
    let netns = process.netns().expect("its namespace");
    assert!(process.started().is_some_and(|ticks| ticks > 0));
    assert!(process.shows(&netns));
    drop(isolated);
    assert!(!process.shows(&netns));
    assert!(process.read("cgroup").is_err());
    assert!(process.netns().is_err_and(|error| is_gone(&error)));
}

#[test]
fn a_proc_that_is_none_is_told() {
    let Err(told) = finder(Path::new("/nonexistent")).find(UID) else { panic!("found") };
    assert!(told.to_string().contains("list /nonexistent"), "{told}");
}
