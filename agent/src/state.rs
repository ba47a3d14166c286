//! What control wants of this node's pods, and the file that remembers it: an agent that starts while
//! control is away keeps serving the same pods.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use nix::fcntl::{Flock, FlockArg};
use proto::node::NodePod;
use serde::{Deserialize, Serialize};

/// A node runs some hundred pods; a directive with more than this is cut, loudly.
pub(crate) const MAX_PODS: usize = 4096;
/// A name, namespace or service account of Kubernetes has 253 characters at most.
const MAX_NAME: usize = 253;
const FILE: &str = "wanted.json";

/// One pod of this node, as control names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Wanted {
    pub(crate) uid: String,
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) service_account: String,
    /// Path of its network namespace; empty where none is named.
    pub(crate) netns: PathBuf,
    /// Control knows an address of it, and with it the ztunnels.
    #[serde(default)]
    pub(crate) addressed: bool,
    pub(crate) enroll: bool,
    /// No peer is told to use HBONE any more.
    pub(crate) withdrawn: bool,
    /// Whether its DNS queries are answered, where it says so itself.
    #[serde(default)]
    pub(crate) answer_dns: Option<bool>,
}

/// The directory of an agent's state, locked for it alone.
#[derive(Debug)]
pub(crate) struct State {
    directory: PathBuf,
    _lock: Flock<File>,
}

/// Why the state cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StateError {
    #[error("the state directory {path} cannot be used: {error}")]
    Directory { path: PathBuf, error: io::Error },
    #[error("another agent runs with the state directory {path}: stop it first")]
    Busy { path: PathBuf },
}

impl State {
    /// Opens the directory, made if missing (0700), for this process alone.
    pub(crate) fn open(directory: &Path) -> Result<Self, StateError> {
        let failed = |error| StateError::Directory { path: directory.to_owned(), error };
        private_directory(directory).map_err(failed)?;
        let lock = File::create(directory.join("lock")).map_err(failed)?;
        let _lock = Flock::lock(lock, FlockArg::LockExclusiveNonblock)
            .map_err(|_| StateError::Busy { path: directory.to_owned() })?;
        Ok(Self { directory: directory.to_owned(), _lock })
    }

    /// What was wanted when last it was kept; `None` where nothing was, or nothing readable.
    pub(crate) fn load(&self) -> Option<Vec<Wanted>> {
        let path = self.directory.join(FILE);
        let kept = match fs::read(&path) {
            Ok(kept) => kept,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "what control wanted last cannot be read");
                return None;
            }
        };
        match serde_json::from_slice::<Vec<Wanted>>(&kept) {
            Ok(pods) => Some(pods.into_iter().filter(|pod| pod.problem().is_none()).collect()),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "what control wanted last does not parse");
                None
            }
        }
    }

    /// Keeps what is wanted: written beside, synced and renamed, so that a crash leaves the old or the new.
    pub(crate) fn keep(&self, pods: &[Wanted]) -> io::Result<()> {
        let (path, beside) = (self.directory.join(FILE), self.directory.join("wanted.json.new"));
        let mut file = File::create(&beside)?;
        file.write_all(&serde_json::to_vec_pretty(pods)?)?;
        file.sync_all()?;
        fs::rename(&beside, &path)?;
        File::open(&self.directory)?.sync_all()
    }

    /// Forgets everything.
    pub(crate) fn forget(&self) -> io::Result<()> {
        match fs::remove_file(self.directory.join(FILE)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

impl Wanted {
    /// Whether its enrollment can begin. The namespace of a pod may be found before the API server is told of
    /// its address; a ztunnel that knows the pod without one resets what comes from it.
    pub(crate) fn is_ready(&self) -> bool {
        self.addressed || !self.netns.as_os_str().is_empty()
    }

    /// What is wrong with the pod, if anything: its uid becomes the name of a directory.
    fn problem(&self) -> Option<&'static str> {
        let named = |text: &str| !text.is_empty() && text.len() <= MAX_NAME;
        if !named(&self.uid) || self.uid.starts_with('.') || self.uid.contains(['/', '\0']) {
            return Some("its uid cannot name a directory");
        }
        let names = [&self.namespace, &self.name, &self.service_account];
        (!names.into_iter().all(|name| named(name))).then_some("a name is missing or too long")
    }
}

/// The pods of a directive; what is wrong with one costs only that one.
pub(crate) fn wanted(pods: Vec<NodePod>) -> Vec<Wanted> {
    if pods.len() > MAX_PODS {
        tracing::error!(
            pods = pods.len(),
            most = MAX_PODS,
            "control names too many pods; the rest is ignored"
        );
    }
    let mut seen = std::collections::BTreeSet::new();
    let pods = pods.into_iter().take(MAX_PODS).map(|pod| Wanted {
        uid: pod.uid,
        namespace: pod.namespace,
        name: pod.name,
        service_account: pod.service_account,
        netns: pod.netns.into(),
        addressed: !pod.addresses.is_empty(),
        enroll: pod.enroll,
        withdrawn: pod.withdrawn,
        answer_dns: pod.answer_dns,
    });
    pods.filter(|pod| match pod.problem() {
        None => seen.insert(pod.uid.clone()),
        Some(problem) => {
            tracing::error!(uid = pod.uid, pod = pod.name, problem, "control names a pod that cannot be");
            false
        }
    })
    .collect()
}

/// Makes a directory that only its owner may enter; one that is there already keeps its mode.
fn private_directory(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(uid: &str) -> NodePod {
        NodePod {
            uid: uid.into(),
            namespace: "shop".into(),
            name: "cart".into(),
            service_account: "cart".into(),
            netns: "/run/netns/cart".into(),
            enroll: true,
            ..NodePod::default()
        }
    }

    #[test]
    fn what_is_kept_is_found_again_and_one_agent_has_it() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("a/b");
        let state = State::open(&path).expect("opens");
        assert_eq!(state.load(), None);
        let pods = wanted(vec![pod("u1"), pod("u2")]);
        state.keep(&pods).expect("keeps");
        assert_eq!(state.load(), Some(pods));
        assert!(matches!(State::open(&path), Err(StateError::Busy { .. })));
        drop(state);
        let state = State::open(&path).expect("opens again");
        fs::write(path.join(FILE), "[{").expect("writes");
        assert_eq!(state.load(), None);
        state.forget().expect("forgets");
        state.forget().expect("forgets what is forgotten");
    }

    #[test]
    fn a_pod_to_be_found_is_ready_when_it_has_an_address() {
        let unnamed = NodePod { netns: String::new(), ..pod("u1") };
        let addressed = NodePod { addresses: vec!["10.1.0.2".into()], ..unnamed.clone() };
        let ready = |pod: NodePod| wanted(vec![pod])[0].is_ready();
        assert_eq!([ready(pod("u1")), ready(unnamed), ready(addressed)], [true, false, true]);
        // What an agent before this version kept: adopted by its pins, else when control has spoken.
        let kept = r#"[{"uid":"u","namespace":"n","name":"p","service_account":"s","netns":"","enroll":true,"withdrawn":false}]"#;
        let kept: Vec<Wanted> = serde_json::from_str(kept).expect("an earlier version's file");
        assert!(!kept[0].is_ready());
    }

    #[test]
    fn a_pod_that_cannot_be_costs_only_itself() {
        let nameless = NodePod { name: String::new(), ..pod("u") };
        let named = wanted(vec![pod("../x"), pod("ok"), pod(""), pod("."), pod("ok"), nameless]);
        assert_eq!(named.iter().map(|pod| pod.uid.as_str()).collect::<Vec<_>>(), ["ok"]);
        assert_eq!(wanted((0..MAX_PODS + 5).map(|n| pod(&n.to_string())).collect()).len(), MAX_PODS);
    }
}
