//! Finds the node's kubelet, so that its health probes reach the pods: by the cgroup of the sockets on which it
//! listens, which the kernel programs compare with that of whoever sends a SYN.
//!
//! Who poses as the kubelet gets plaintext past every policy, so it has to be root's, in the node's own process
//! and network namespaces, and in no pod's cgroup. Kubernetes distributions that run the kubelet within a process of
//! their own (k3s) are known by the names of those.

use std::{
    collections::BTreeSet,
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

use capture::sockdiag::{Diag, Listening};
use prometheus_client::metrics::gauge::Gauge;

/// As `/proc/PID/comm` has them.
const NAMES: [&str; 5] = ["kubelet", "k3s-server", "k3s-agent", "kubelite", "k0s"];

/// Between two looks: a kubelet that was restarted may be in a new cgroup, and its probes are refused until then.
const EVERY: Duration = Duration::from_secs(5);

/// Keeps `tell` told of the cgroup, for ever. `known`: whether there is one.
pub(crate) async fn follow<T>(proc: PathBuf, known: Gauge, tell: T)
where
    T: Fn(Option<u64>) -> Result<(), capture::Error> + Clone + Send + 'static,
{
    let mut told: Option<Option<u64>> = None;
    loop {
        let looked = {
            let proc = proc.clone();
            tokio::task::spawn_blocking(move || find(&proc)).await
        };
        let found = match looked {
            Ok(Ok(found)) => found,
            Ok(Err(error)) => {
                // What was found before still is the best there is.
                tracing::debug!(%error, "the kubelet cannot be looked for");
                told.flatten()
            }
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        };
        if told != Some(found) {
            match tell(found) {
                Ok(()) => {
                    match found {
                        Some(cgroup) => tracing::info!(cgroup, "probes of the kubelet pass to the pods"),
                        None => tracing::warn!(
                            "no kubelet was found on this node: its probes are captured, and refused where mutual \
                             TLS is STRICT"
                        ),
                    }
                    told = Some(found);
                    known.set(i64::from(found.is_some()));
                }
                Err(error) => tracing::warn!(%error, "the kernel programs are not told who the kubelet is"),
            }
        }
        tokio::time::sleep(EVERY).await;
    }
}

/// The id of the cgroup that the kubelet's listening sockets were made in.
fn find(proc: &Path) -> io::Result<Option<u64>> {
    let mut inodes = BTreeSet::new();
    for process in processes(proc)? {
        if is_kubelet(&process, proc) {
            inodes.extend(sockets(&process));
        }
    }
    if inodes.is_empty() {
        return Ok(None);
    }
    Ok(cgroup_of(&inodes, &Diag::open()?.listeners()?))
}

fn cgroup_of(inodes: &BTreeSet<u64>, listening: &[Listening]) -> Option<u64> {
    listening.iter().filter(|socket| inodes.contains(&socket.inode)).find_map(|socket| socket.cgroup)
}

fn processes(proc: &Path) -> io::Result<Vec<PathBuf>> {
    let is_process = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_digit())
    };
    Ok(fs::read_dir(proc)?.flatten().map(|entry| entry.path()).filter(is_process).collect())
}

/// Whether the process is the node's kubelet, as far as nobody else can make it seem so.
fn is_kubelet(process: &Path, proc: &Path) -> bool {
    let named = fs::read_to_string(process.join("comm")).is_ok_and(|name| NAMES.contains(&name.trim()));
    if !named {
        return false;
    }
    let of_root = fs::metadata(process).is_ok_and(|process| process.uid() == 0);
    let shares = |namespace: &str| {
        let of = |process: &Path| fs::read_link(process.join("ns").join(namespace)).ok();
        let theirs = of(process);
        theirs.is_some() && theirs == of(&proc.join("1"))
    };
    let in_pod = fs::read_to_string(process.join("cgroup")).is_ok_and(|cgroup| cgroup.contains("kubepods"));
    of_root && shares("pid") && shares("net") && !in_pod
}

/// The inodes of the process's sockets.
fn sockets(process: &Path) -> Vec<u64> {
    let Ok(descriptors) = fs::read_dir(process.join("fd")) else { return Vec::new() };
    let inode = |path: PathBuf| {
        let target = fs::read_link(path).ok()?;
        target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
    };
    descriptors.flatten().filter_map(|descriptor| inode(descriptor.path())).collect()
}

#[cfg(test)]
mod tests {
    use std::{net::TcpListener, os::unix::fs::symlink, process};

    use super::*;

    /// A procfs with process 1, and process 7 as told.
    fn procfs(comm: &str, net: &str, cgroup: &str) -> tempfile::TempDir {
        let proc = tempfile::tempdir().unwrap();
        for (id, net) in [("1", "net:[1]"), ("7", net)] {
            let process = proc.path().join(id);
            fs::create_dir_all(process.join("ns")).unwrap();
            symlink("pid:[1]", process.join("ns/pid")).unwrap();
            symlink(net, process.join("ns/net")).unwrap();
        }
        let process = proc.path().join("7");
        fs::write(process.join("comm"), format!("{comm}\n")).unwrap();
        fs::write(process.join("cgroup"), cgroup).unwrap();
        fs::create_dir(process.join("fd")).unwrap();
        symlink("socket:[4711]", process.join("fd/5")).unwrap();
        symlink("/dev/null", process.join("fd/0")).unwrap();
        proc
    }

    #[test]
    fn only_a_process_of_the_node_is_the_kubelet() {
        let kubelet = |proc: &tempfile::TempDir| is_kubelet(&proc.path().join("7"), proc.path());
        let node = "0::/system.slice/kubelet.service\n";
        let proc = procfs("kubelet", "net:[1]", node);
        // The files are root's where the tests run as root, as they do.
        assert!(kubelet(&proc));
        assert_eq!(sockets(&proc.path().join("7")), [4711]);
        assert!(!kubelet(&procfs("kubelets", "net:[1]", node)), "another name");
        assert!(!kubelet(&procfs("kubelet", "net:[2]", node)), "a container with its own network");
        let pod = "0::/kubepods.slice/kubepods-pod1.slice/cri-containerd-1.scope\n";
        assert!(!kubelet(&procfs("kubelet", "net:[1]", pod)), "a pod on the node's network");
    }

    #[test]
    fn a_listener_of_this_process_tells_its_cgroup() {
        let _listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let own = PathBuf::from(format!("/proc/{}", process::id()));
        let inodes: BTreeSet<u64> = sockets(&own).into_iter().collect();
        let listening = Diag::open().unwrap().listeners().unwrap();
        assert!(cgroup_of(&inodes, &listening).is_some(), "{inodes:?} among {listening:?}");
        assert_eq!(cgroup_of(&BTreeSet::from([0]), &[]), None);
    }
}
