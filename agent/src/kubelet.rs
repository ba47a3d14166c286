//! Finds the node's kubelet, so that its health probes reach the pods: by the cgroup of the sockets on which it
//! listens, which the kernel programs compare with that of whoever sends a SYN.
//!
//! Who poses as the kubelet gets plaintext past every policy. So it has to be the program of that name, root's in every
//! respect, in the node's own process and network namespaces, and in a cgroup2 that holds no container. Where the
//! kubelet shares a process or a cgroup with others (k3s, or a node without a cgroup2 of its own for pods), its
//! probes cannot be told apart, and are captured.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use capture::sockdiag::{Diag, Listening};
use prometheus_client::metrics::gauge::Gauge;

use crate::netns;

const NAME: &str = "kubelet";
/// What it runs: a program of its own, or the one of all of Kubernetes.
const PROGRAMS: [&str; 2] = [NAME, "hyperkube"];

/// Between two looks: a kubelet that was restarted may be in a new cgroup, and its probes are refused until then.
const EVERY: Duration = Duration::from_secs(5);

/// Keeps `tell` told of the cgroup, for ever. `known`: whether there is one.
pub(crate) async fn follow<T>(proc: PathBuf, known: Gauge, tell: T)
where
    T: Fn(Option<u64>) -> Result<(), capture::Error> + Clone + Send + 'static,
{
    let mut told: Option<Result<u64, String>> = None;
    loop {
        let looked = {
            let proc = proc.clone();
            tokio::task::spawn_blocking(move || find(&proc)).await
        };
        match looked {
            Ok(Ok(found)) if told.as_ref() != Some(&found) => match tell(found.as_ref().ok().copied()) {
                Ok(()) => {
                    match &found {
                        Ok(cgroup) => tracing::info!(cgroup, "probes of the kubelet pass to the pods"),
                        Err(reason) => tracing::warn!(
                            reason,
                            "probes of the kubelet are captured like any call, and refused where mutual TLS is STRICT"
                        ),
                    }
                    known.set(i64::from(found.is_ok()));
                    told = Some(found);
                }
                Err(error) => tracing::warn!(%error, "the kernel programs are not told who the kubelet is"),
            },
            Ok(Ok(_same)) => {}
            // What was told before, by an agent before this one perhaps, still is the best there is.
            Ok(Err(error)) => tracing::debug!(%error, "the kubelet cannot be looked for"),
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        }
        tokio::time::sleep(EVERY).await;
    }
}

/// The id of the cgroup that the kubelet's listening sockets were made in, or why there is none to go by.
fn find(proc: &Path) -> io::Result<Result<u64, String>> {
    let all = processes(proc)?;
    let kubelets: Vec<&PathBuf> = all.iter().filter(|process| is_kubelet(process, proc)).collect();
    let [kubelet] = kubelets[..] else {
        let count = kubelets.len();
        return Ok(Err(format!("{count} processes of this node are its kubelet; one is to be")));
    };
    if let Err(reason) = has_cgroup_of_its_own(kubelet, &all, proc) {
        return Ok(Err(reason));
    }
    let found = cgroup_of(&sockets(kubelet), &Diag::open()?.listeners()?);
    Ok(found.ok_or_else(|| "the kubelet listens nowhere, or in several cgroups".to_owned()))
}

fn cgroup_of(inodes: &BTreeSet<u64>, listening: &[Listening]) -> Option<u64> {
    // A listener of another user was handed to it.
    let its_own = listening.iter().filter(|socket| inodes.contains(&socket.inode) && socket.uid == 0);
    let cgroups: BTreeSet<u64> = its_own.filter_map(|socket| socket.cgroup).collect();
    cgroups.first().copied().filter(|_| cgroups.len() == 1)
}

fn processes(proc: &Path) -> io::Result<Vec<PathBuf>> {
    let is_process = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_digit())
    };
    Ok(fs::read_dir(proc)?.flatten().map(|entry| entry.path()).filter(is_process).collect())
}

/// Whether the process is the node's kubelet, as far as nobody but root can make it seem so.
fn is_kubelet(process: &Path, proc: &Path) -> bool {
    let named = fs::read_to_string(process.join("comm")).is_ok_and(|name| name.trim() == NAME);
    if !named {
        return false;
    }
    // The name of a process is that of a link, too; what it runs is not.
    let runs = fs::read_link(process.join("exe")).is_ok_and(|program| {
        let program = program.to_string_lossy();
        let name = program.trim_end_matches(" (deleted)").rsplit('/').next().unwrap_or_default();
        PROGRAMS.contains(&name)
    });
    let of_root = fs::read_to_string(process.join("status")).is_ok_and(|status| {
        let users = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap_or_default();
        let mut users = users.split_whitespace().peekable();
        users.peek().is_some() && users.all(|user| user == "0")
    });
    let in_pod = fs::read_to_string(process.join("cgroup")).map_or(true, |cgroup| netns::is_in_pod(&cgroup));
    runs && of_root && is_of_node(process, proc) && !in_pod
}

/// Whether the process is in the node's own process and network namespaces.
fn is_of_node(process: &Path, proc: &Path) -> bool {
    ["pid", "net"].into_iter().all(|namespace| {
        let of = |process: &Path| fs::read_link(process.join("ns").join(namespace)).ok();
        let theirs = of(process);
        theirs.is_some() && theirs == of(&proc.join("1"))
    })
}

/// The cgroup2 of a process, as this process sees it.
fn cgroup2(text: &str) -> Option<&str> {
    text.lines().find_map(|line| line.strip_prefix("0::"))
}

/// Nobody whose sockets could be taken for the kubelet's is in its cgroup.
fn has_cgroup_of_its_own(kubelet: &Path, all: &[PathBuf], proc: &Path) -> Result<(), String> {
    let of = |process: &Path| fs::read_to_string(process.join("cgroup")).unwrap_or_default();
    let text = of(kubelet);
    let Some(cgroup) = cgroup2(&text).filter(|path| *path != "/") else {
        return Err("the kubelet is in no cgroup2 of its own".to_owned());
    };
    for process in all.iter().filter(|process| **process != kubelet) {
        let text = of(process);
        if cgroup2(&text) == Some(cgroup) && (netns::is_in_pod(&text) || !is_of_node(process, proc)) {
            let process = process.file_name().unwrap_or_default().display();
            return Err(format!("the kubelet shares its cgroup2 with containers (process {process})"));
        }
    }
    Ok(())
}

/// The inodes of the process's sockets.
fn sockets(process: &Path) -> BTreeSet<u64> {
    let Ok(descriptors) = fs::read_dir(process.join("fd")) else { return BTreeSet::new() };
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

    const NODE: &str = "0::/system.slice/kubelet.service\n";
    const POD: &str = "0::/../../pod0f3e2c1a-1111-2222-3333-444455556666/c1\n";

    /// A procfs with process 1.
    struct Proc(tempfile::TempDir);

    impl Proc {
        fn new() -> Self {
            let proc = Self(tempfile::tempdir().unwrap());
            proc.process(1, "init", "net:[1]", "0::/init.scope\n");
            proc
        }

        fn process(&self, id: u32, name: &str, net: &str, cgroup: &str) -> PathBuf {
            let process = self.0.path().join(id.to_string());
            fs::create_dir_all(process.join("ns")).unwrap();
            fs::create_dir(process.join("fd")).unwrap();
            symlink("pid:[1]", process.join("ns/pid")).unwrap();
            symlink(net, process.join("ns/net")).unwrap();
            symlink(format!("/usr/bin/{name}"), process.join("exe")).unwrap();
            symlink("socket:[4711]", process.join("fd/5")).unwrap();
            symlink("/dev/null", process.join("fd/0")).unwrap();
            fs::write(process.join("comm"), format!("{name}\n")).unwrap();
            fs::write(process.join("cgroup"), cgroup).unwrap();
            fs::write(process.join("status"), "Name:\tx\nUid:\t0\t0\t0\t0\n").unwrap();
            process
        }
    }

    #[test]
    fn only_a_program_of_root_on_the_node_is_the_kubelet() {
        let proc = Proc::new();
        let is = |process: &Path| is_kubelet(process, proc.0.path());
        let kubelet = proc.process(2, "kubelet", "net:[1]", NODE);
        assert!(is(&kubelet));
        assert_eq!(sockets(&kubelet), BTreeSet::from([4711]));
        assert!(!is(&proc.process(3, "kubelets", "net:[1]", NODE)), "another name");
        assert!(!is(&proc.process(4, "kubelet", "net:[2]", NODE)), "a container with its own network");
        assert!(!is(&proc.process(5, "kubelet", "net:[1]", POD)), "a pod on the node's network");
        let linked = proc.process(6, "kubelet", "net:[1]", NODE);
        fs::remove_file(linked.join("exe")).unwrap();
        symlink("/usr/bin/su", linked.join("exe")).unwrap();
        assert!(!is(&linked), "another program under its name");
        fs::remove_file(linked.join("exe")).unwrap();
        symlink("/usr/bin/hyperkube (deleted)", linked.join("exe")).unwrap();
        assert!(is(&linked), "the program of all of Kubernetes, upgraded meanwhile");
        let user = proc.process(7, "kubelet", "net:[1]", NODE);
        fs::write(user.join("status"), "Uid:\t1000\t0\t0\t0\n").unwrap();
        assert!(!is(&user), "another user, who runs something as root");
    }

    #[test]
    fn a_cgroup_shared_with_containers_tells_nobody_apart() {
        let proc = Proc::new();
        let kubelet = proc.process(2, "kubelet", "net:[1]", NODE);
        let own = || has_cgroup_of_its_own(&kubelet, &processes(proc.0.path()).unwrap(), proc.0.path());
        proc.process(3, "helper", "net:[1]", NODE);
        proc.process(4, "app", "net:[2]", POD);
        own().unwrap();
        proc.process(5, "app", "net:[2]", NODE);
        assert!(own().unwrap_err().contains("process 5"));
        fs::write(kubelet.join("cgroup"), "0::/\n").unwrap();
        assert!(own().unwrap_err().contains("no cgroup2 of its own"));
        fs::write(kubelet.join("cgroup"), "4:memory:/kubelet\n").unwrap();
        assert!(own().is_err());
    }

    #[test]
    fn a_listener_of_this_process_tells_its_cgroup() {
        let _listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let inodes = sockets(&PathBuf::from(format!("/proc/{}", process::id())));
        let listening = Diag::open().unwrap().listeners().unwrap();
        let found = cgroup_of(&inodes, &listening);
        assert!(found.is_some(), "{inodes:?} among {listening:?}");
        let of_user: Vec<Listening> =
            listening.iter().map(|socket| Listening { uid: 1000, ..*socket }).collect();
        assert_eq!(cgroup_of(&inodes, &of_user), None, "handed over by somebody else");
    }
}
