//! Answers the plugin: may this pod start? Yes, once it is captured and a ztunnel holds it, or if it is not to be
//! captured. Each question is bounded in size and time; the answer comes before the plugin gives up.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use cni::{
    ask::{Answer, MAX_LINE, Refusal, Request},
    known::decide,
};
use prometheus_client::metrics::gauge::Gauge;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{UnixListener, UnixStream},
    sync::{Semaphore, mpsc, watch},
    time::timeout,
};

use super::Namespaces;
use crate::{
    enroll::{Input, Standing, Standings},
    metrics::Metrics,
    netns::Given,
};

/// How long control's word of a pod is waited for.
const KNOWN_PATIENCE: Duration = Duration::from_secs(5);
/// How long a pod's capture is waited for.
const CAPTURE_PATIENCE: Duration = Duration::from_secs(20);
const READ_PATIENCE: Duration = Duration::from_secs(2);
/// A node that boots starts all its pods at once.
const MAX_ASKING: usize = 256;

/// The socket that the plugin connects to; its file goes with it.
pub(crate) struct Listener {
    inner: UnixListener,
    path: PathBuf,
}

impl Listener {
    /// Listens at `path`, for root only. A file that an agent before this one left is replaced.
    pub(crate) fn bind(path: &Path) -> anyhow::Result<Self> {
        let bound = || -> io::Result<UnixListener> {
            if let Some(directory) = path.parent() {
                fs::create_dir_all(directory)?;
            }
            // Bound beside and renamed: nobody meets it before it has its mode.
            let beside = path.with_extension(format!("{}.new", std::process::id()));
            let _ = fs::remove_file(&beside);
            let listener = UnixListener::bind(&beside)?;
            fs::set_permissions(&beside, fs::Permissions::from_mode(0o600))?;
            fs::rename(&beside, path)?;
            Ok(listener)
        };
        let inner = bound().map_err(|error| {
            anyhow::anyhow!("the CNI plugin cannot be listened to on {}: {error}", path.display())
        })?;
        Ok(Self { inner, path: path.to_owned() })
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Where the plugin's questions are answered.
pub(crate) struct Desk {
    pub(crate) inputs: mpsc::UnboundedSender<Input>,
    pub(crate) standings: watch::Receiver<Standings>,
    pub(crate) namespaces: Arc<Namespaces>,
    pub(crate) exempt: Vec<String>,
    /// The node's procfs.
    pub(crate) proc: PathBuf,
    /// Whether control is connected.
    pub(crate) control: Gauge,
    pub(crate) metrics: Arc<Metrics>,
}

impl Desk {
    /// Answers for ever.
    pub(crate) async fn serve(self, listener: Listener) {
        let (desk, places) = (Arc::new(self), Arc::new(Semaphore::new(MAX_ASKING)));
        loop {
            let Ok(place) = places.clone().acquire_owned().await else { return };
            match listener.inner.accept().await {
                Ok((stream, _)) => {
                    let desk = desk.clone();
                    tokio::spawn(async move {
                        if let Err(error) = desk.converse(stream).await {
                            tracing::warn!(%error, "a question of the CNI plugin came to nothing");
                        }
                        drop(place);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "the CNI plugin's connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    async fn converse(&self, stream: UnixStream) -> io::Result<()> {
        let asks = stream.peer_cred()?.uid();
        if asks != 0 && asks != nix::unistd::Uid::effective().as_raw() {
            return Err(io::Error::other(format!("user {asks} asks, and only root may")));
        }
        let (reading, mut writing) = stream.into_split();
        let mut line = Vec::new();
        let mut reading = BufReader::new(reading.take(MAX_LINE as u64));
        timeout(READ_PATIENCE, reading.read_until(b'\n', &mut line)).await??;
        let request: Request = serde_json::from_slice(&line).map_err(io::Error::other)?;
        let (namespace, name) = (request.namespace.clone(), request.name.clone());
        let answer = self.judge(request).await;
        self.metrics.plugin_answered(matches!(answer, Answer::Start));
        match &answer {
            Answer::Start => tracing::debug!(namespace, pod = name, "the pod may start"),
            Answer::Refuse(refusal) => {
                tracing::warn!(
                    namespace,
                    pod = name,
                    refusal.message,
                    refusal.details,
                    "the pod may not start"
                );
            }
        }
        let mut line = serde_json::to_vec(&answer)?;
        line.push(b'\n');
        timeout(READ_PATIENCE, writing.write_all(&line)).await?
    }

    /// Whether the pod may start.
    async fn judge(&self, request: Request) -> Answer {
        if self.exempt.contains(&request.namespace) {
            return Answer::Start;
        }
        let mut standings = self.standings.clone();
        let named = |(uid, standing): &(&String, &Standing)| {
            if request.uid.is_empty() {
                standing.namespace == request.namespace && standing.name == request.name
            } else {
                **uid == request.uid
            }
        };
        let find = |standings: &Standings| {
            let found = standings.iter().find(named);
            found.map(|(uid, standing)| (uid.clone(), standing.clone()))
        };
        let known = standings.wait_for(|standings| find(standings).is_some());
        let known = match timeout(KNOWN_PATIENCE, known).await {
            Ok(Ok(standings)) => find(&standings),
            Ok(Err(_)) | Err(_) => None,
        };
        let Some((uid, standing)) = known else {
            let why = if self.control.get() == 1 {
                format!("control has not told this node of the pod within {KNOWN_PATIENCE:?}")
            } else {
                "control cannot be reached from this node, and the pod is not known".to_owned()
            };
            let decided = decide(&self.exempt, &self.namespaces.knowledge(), &request.namespace, &why);
            return decided.map_or_else(Answer::Refuse, |()| Answer::Start);
        };
        if !standing.enroll {
            return Answer::Start;
        }
        match self.capture(&request, &uid).await {
            Ok(()) => Answer::Start,
            Err(why) => Answer::Refuse(Refusal {
                message: format!("pod {}/{} is not captured: {why}", request.namespace, request.name),
                details: "it is tried again by itself; /pods on the admin port of this node's agent has more"
                    .to_owned(),
            }),
        }
    }

    /// Has the pod captured in the namespace that the runtime has made for it.
    async fn capture(&self, request: &Request, uid: &str) -> Result<(), String> {
        let (proc, path) = (self.proc.clone(), request.netns.clone());
        let opened = tokio::task::spawn_blocking(move || Given::open(&proc, &path)).await;
        let given = Arc::new(opened.map_err(|panic| panic.to_string())??);
        let inode = given.netns.inode();
        let _ = self.inputs.send(Input::Sandbox(uid.to_owned(), given));
        let mut standings = self.standings.clone();
        let over = |standings: &Standings| {
            standings.get(uid).is_none_or(|standing| !standing.enroll || standing.ready == Some(inode))
        };
        let waited = timeout(CAPTURE_PATIENCE, standings.wait_for(over)).await;
        let failed = match waited {
            Ok(Ok(standings)) if standings.contains_key(uid) => return Ok(()),
            Ok(Ok(_)) => "it was deleted meanwhile".to_owned(),
            Ok(Err(_)) => "the agent of this node is ending".to_owned(),
            Err(_) => {
                let why = self.standings.borrow().get(uid).map(|standing| standing.why.clone());
                format!("{} (waited {CAPTURE_PATIENCE:?})", why.unwrap_or_default())
            }
        };
        let _ = self.inputs.send(Input::SandboxOver(uid.to_owned(), inode));
        Err(failed)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use cni::ask::{NoAnswer, ask};
    use proto::node::{Namespace, NodeDirective};

    use super::*;

    struct Bed {
        _folder: tempfile::TempDir,
        socket: PathBuf,
        standings: watch::Sender<Standings>,
        inputs: mpsc::UnboundedReceiver<Input>,
    }

    fn bed() -> Bed {
        let folder = tempfile::tempdir().expect("a folder");
        let socket = folder.path().join("cni.sock");
        let namespaces = super::super::namespaces(folder.path());
        let named = [("shop", true), ("default", false)];
        let named = named.map(|(name, enroll)| Namespace { name: name.to_owned(), enroll });
        namespaces.directed(&NodeDirective {
            namespaces: named.to_vec(),
            all_namespaces: true,
            ..NodeDirective::default()
        });
        let standings = watch::Sender::new(Arc::default());
        let (sender, inputs) = mpsc::unbounded_channel();
        let desk = Desk {
            inputs: sender,
            standings: standings.subscribe(),
            namespaces,
            exempt: vec!["kube-system".to_owned()],
            proc: "/proc".into(),
            control: Gauge::default(),
            metrics: Arc::new(Metrics::new(&runtime::metrics::Metrics::new("agent"))),
        };
        tokio::spawn(desk.serve(Listener::bind(&socket).expect("listens")));
        Bed { _folder: folder, socket, standings, inputs }
    }

    impl Bed {
        fn stands(&self, enroll: bool, ready: Option<u64>) {
            let why = "no ztunnel on this node has taken the pod".to_owned();
            let standing = Standing { namespace: "shop".into(), name: "web".into(), enroll, ready, why };
            let standings: BTreeMap<_, _> = [("u1".to_owned(), standing)].into();
            self.standings.send_replace(Arc::new(standings));
        }

        fn ask(&self, namespace: &str) -> tokio::task::JoinHandle<Result<Answer, NoAnswer>> {
            let request = Request {
                container_id: "c".into(),
                netns: format!("/proc/{}/ns/net", std::process::id()).into(),
                ifname: "eth0".into(),
                namespace: namespace.into(),
                name: "web".into(),
                uid: "u1".into(),
                addresses: Vec::new(),
            };
            let socket = self.socket.clone();
            tokio::task::spawn_blocking(move || ask(&socket, &request, Duration::from_secs(60)))
        }
    }

    #[tokio::test]
    async fn a_pod_starts_when_the_namespace_it_was_given_was_measured() {
        let mut bed = bed();
        let asked = bed.ask("shop");
        bed.stands(true, None);
        let Some(Input::Sandbox(uid, given)) = bed.inputs.recv().await else { panic!("no sandbox") };
        assert_eq!(uid, "u1");
        // The one before, of the same pod, does not count.
        bed.stands(true, Some(given.netns.inode() + 1));
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(!asked.is_finished());
        bed.stands(true, Some(given.netns.inode()));
        assert_eq!(asked.await.expect("asked").expect("answered"), Answer::Start);
    }

    #[tokio::test]
    async fn a_pod_that_is_not_to_be_enrolled_starts_at_once() {
        let bed = bed();
        bed.stands(false, None);
        assert_eq!(bed.ask("shop").await.expect("asked").expect("answered"), Answer::Start);
        assert_eq!(bed.ask("kube-system").await.expect("asked").expect("answered"), Answer::Start);
    }

    #[tokio::test]
    async fn of_a_pod_that_control_does_not_name_the_namespace_decides() {
        let bed = bed();
        let (shop, default) = (bed.ask("shop"), bed.ask("default"));
        assert_eq!(default.await.expect("asked").expect("answered"), Answer::Start);
        let Ok(Answer::Refuse(refusal)) = shop.await.expect("asked") else { panic!("it started") };
        assert!(refusal.message.contains("shop is in the mesh"), "{refusal:?}");
        assert!(refusal.message.contains("control cannot be reached"), "{refusal:?}");
    }

    #[tokio::test]
    async fn a_pod_that_no_ztunnel_takes_does_not_start() {
        let mut bed = bed();
        bed.stands(true, None);
        let Ok(Answer::Refuse(refusal)) = bed.ask("shop").await.expect("asked") else { panic!("it started") };
        assert!(refusal.message.contains("no ztunnel on this node"), "{refusal:?}");
        assert!(matches!(bed.inputs.recv().await, Some(Input::Sandbox(..))));
        assert!(matches!(bed.inputs.recv().await, Some(Input::SandboxOver(..))));
    }
}
