//! The word of each node: what its agent measured, what it is to do, and when a withdrawal is complete.
//!
//! What a node last said holds until it says something else. An agent that restarts, or a control that
//! does, must not make peers send plaintext to pods that are captured all the while; so the reports
//! are also kept in `state/nodes.json`.
//!
//! Where several replicas share the nodes, they are kept in marks on the pods instead
//! ([`crate::compile::Mark`]): a word is fresh as long as the agent that gave it is connected here, and stale
//! afterwards, since the agent may tell another replica something else.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use proto::node::{CaptureState, Namespace, NodeDirective, NodePod, NodeReport};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tracing::{info, warn};

use crate::{
    compile::{Mark, Word},
    manifest::Uid,
    publish::Clients,
    shards::{Outline, Pods},
    tokens,
};

/// A peer that has not acknowledged a withdrawal by then is not waited for.
const WITHDRAWAL_PATIENCE: Duration = Duration::from_secs(5);
/// Reports name at most this many pods; a node runs some hundred.
const MAX_PODS: usize = 10_000;
/// Longest reason that is kept.
const MAX_REASON: usize = 1000;

/// How a pod stands with its node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Capture {
    /// Captured, and a connection proved it.
    Measured,
    /// Captured; leaves as soon as no peer uses the tunnel any more.
    Withdrawing,
    None,
    /// Not captured, for the reason given.
    Failed,
}

/// A pod as its node reports it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodStatus {
    pub capture: Capture,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    #[serde(default, skip_deserializing)]
    pub captured_connections: u64,
    /// Its agent said so on a stream that is still open.
    #[serde(default, skip_deserializing)]
    pub fresh: bool,
    /// How far its withdrawal is; begins anew with a new control.
    #[serde(default, skip_deserializing)]
    withdrawal: Withdrawal,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Withdrawal {
    #[default]
    None,
    /// Peers are being told.
    Waiting,
    /// Peers were told.
    Done,
}

/// A node as status shows it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// The agent's version.
    #[serde(default)]
    pub version: String,
    /// Agents connected now.
    #[serde(default, skip_deserializing)]
    pub agents: usize,
    /// By pod uid.
    #[serde(default)]
    pub pods: BTreeMap<String, PodStatus>,
}

/// What all nodes are to do.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Directives {
    /// By node; of one that is not in it, nothing is known.
    nodes: BTreeMap<Arc<str>, Wanted>,
    /// Whether the pods of each namespace are in the mesh. The same for every node.
    namespaces: Arc<BTreeMap<Arc<str>, bool>>,
    trust_domain: Arc<str>,
}

/// What one node is to do.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Wanted {
    pods: Pods,
    /// Uids of pods that are let go and of which all peers know.
    withdrawn: BTreeSet<Uid>,
}

impl Wanted {
    fn pods(&self, trust_domain: &str) -> Vec<NodePod> {
        let pods = self.pods.iter().map(|pod| NodePod {
            uid: pod.uid.to_string(),
            namespace: pod.namespace.to_string(),
            name: pod.name.to_string(),
            service_account: pod.service_account.to_string(),
            addresses: pod.addresses.iter().map(ToString::to_string).collect(),
            netns: pod.netns.to_string(),
            enroll: pod.enroll,
            withdrawn: self.withdrawn.contains(&pod.uid),
            trust_domain: trust_domain.to_owned(),
            answer_dns: pod.answer_dns,
        });
        pods.collect()
    }
}

impl Directives {
    /// What is wanted of a node, if it is known.
    pub(crate) fn of(&self, node: &str) -> Option<&Wanted> {
        self.nodes.get(node)
    }

    /// What to tell a node that was `told` this before, on the same stream; `None` where that is nothing.
    pub(crate) fn news(&self, node: &str, told: Option<(&Self, &Wanted)>) -> Option<NodeDirective> {
        let wanted = self.nodes.get(node)?;
        let before = told.map(|(told, _)| &told.namespaces);
        let unchanged = before.is_some_and(|before| Arc::ptr_eq(before, &self.namespaces));
        let now = self.namespaces.iter().filter(|_| !unchanged);
        let changed =
            now.filter(|(name, enroll)| before.is_none_or(|before| before.get(*name) != Some(*enroll)));
        let namespaces: Vec<Namespace> =
            changed.map(|(name, enroll)| Namespace { name: name.to_string(), enroll: *enroll }).collect();
        let known = before.into_iter().filter(|_| !unchanged).flat_map(|before| before.keys());
        let gone = known.filter(|name| !self.namespaces.contains_key(*name));
        let gone_namespaces: Vec<String> = gone.map(ToString::to_string).collect();
        let same = |(_, told): (&Self, &Wanted)| {
            let equal = Arc::ptr_eq(&told.pods, &wanted.pods) && told.withdrawn == wanted.withdrawn;
            // What is not told of a pod may differ.
            equal || told.pods(&self.trust_domain) == wanted.pods(&self.trust_domain)
        };
        if told.is_some_and(same) && namespaces.is_empty() && gone_namespaces.is_empty() {
            return None;
        }
        let pods = wanted.pods(&self.trust_domain);
        Some(NodeDirective { pods, namespaces, gone_namespaces, all_namespaces: told.is_none() })
    }
}

/// All nodes.
pub struct Nodes {
    nodes: Mutex<BTreeMap<String, NodeStatus>>,
    /// Nodes of which a word has changed since the last turn.
    reported: Mutex<BTreeSet<String>>,
    /// Fires when what was reported changes what is to be published.
    changes: watch::Sender<()>,
    directives: watch::Sender<Arc<Directives>>,
    file: Option<PathBuf>,
    /// Other replicas publish too, and learn from marks on the pods.
    shared: bool,
    started: Instant,
}

impl Nodes {
    /// With what was kept in `file`; a file that does not read is as good as none.
    pub fn open(file: Option<PathBuf>) -> Arc<Self> {
        let kept = file.as_ref().and_then(|file| std::fs::read(file).ok());
        let nodes = kept.map_or_else(BTreeMap::new, |kept| {
            serde_json::from_slice(&kept).unwrap_or_else(|error| {
                warn!("the reports kept from before do not read ({error}): nodes will report again");
                BTreeMap::new()
            })
        });
        Arc::new(Self::new(nodes, file, false))
    }

    /// Beside other replicas of control. Nothing is kept here.
    pub fn shared() -> Arc<Self> {
        Arc::new(Self::new(BTreeMap::new(), None, true))
    }

    fn new(nodes: BTreeMap<String, NodeStatus>, file: Option<PathBuf>, shared: bool) -> Self {
        Self {
            nodes: Mutex::new(nodes),
            reported: Mutex::default(),
            changes: watch::Sender::new(()),
            directives: watch::Sender::new(Arc::default()),
            file,
            shared,
            started: Instant::now(),
        }
    }

    /// To be told when a report changes what is to be published.
    pub fn subscribe(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }

    /// The nodes of which a word has changed since this was asked last.
    pub(crate) fn take_reported(&self) -> BTreeSet<String> {
        std::mem::take(&mut self.reported.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Something of these nodes is to be looked at.
    fn changed(&self, nodes: impl IntoIterator<Item = String>) {
        self.reported.lock().unwrap_or_else(PoisonError::into_inner).extend(nodes);
        self.changes.send_replace(());
    }

    /// What `node` said of the pod, and what that is worth.
    pub fn word(&self, node: &str, uid: &str) -> Word {
        let nodes = self.lock();
        let Some(pod) = nodes.get(node).and_then(|status| status.pods.get(uid)) else { return Word::None };
        let measured = pod.capture == Capture::Measured;
        if pod.fresh { Word::Fresh { measured } } else { Word::Stale { measured } }
    }

    /// What the agent of `node`, connected here, says of the pod.
    pub fn fresh_word(&self, node: &str, uid: &str) -> Option<Capture> {
        let nodes = self.lock();
        let pod = nodes.get(node)?.pods.get(uid)?;
        pod.fresh.then_some(pod.capture)
    }

    /// What `node` last said of the pod.
    pub fn capture(&self, node: &str, uid: &str) -> Option<Capture> {
        Some(self.lock().get(node)?.pods.get(uid)?.capture)
    }

    /// For status.
    pub fn list(&self) -> BTreeMap<String, NodeStatus> {
        self.lock().clone()
    }

    /// How many nodes have an agent connected.
    pub fn connected(&self) -> usize {
        self.lock().values().filter(|node| node.agents > 0).count()
    }

    /// Takes a report of `node` in. Pods that it does not name are as they were: an agent that has just
    /// started does not know of all yet, and says so of each when it does.
    pub(crate) fn report(&self, node: &str, report: NodeReport) {
        let mut changed = false;
        let mut nodes = self.lock();
        let status = nodes.entry(node.to_owned()).or_default();
        status.version = bounded(report.version);
        for pod in report.pods.into_iter().take(MAX_PODS) {
            let capture = match CaptureState::try_from(pod.state) {
                Ok(CaptureState::CaptureMeasured) => Capture::Measured,
                Ok(CaptureState::CaptureWithdrawing) => Capture::Withdrawing,
                Ok(CaptureState::CaptureNone) => Capture::None,
                Ok(CaptureState::CaptureFailed) => Capture::Failed,
                Ok(CaptureState::CaptureUnspecified) | Err(_) => continue,
            };
            let known = status.pods.len() < MAX_PODS || status.pods.contains_key(&pod.uid);
            if !known {
                continue;
            }
            let before = status.pods.get(&pod.uid);
            let (reason, captured_connections) = (bounded(pod.reason), pod.captured_connections);
            let withdrawal = match before {
                Some(before) if capture == Capture::Withdrawing => before.withdrawal,
                Some(_) | None => Withdrawal::None,
            };
            changed |= self.shared && before.is_some_and(|before| !before.fresh);
            if before.map(|before| before.capture) != Some(capture) {
                changed = true;
                info!(node, namespace = pod.namespace, pod = pod.name, ?capture, reason, "pod");
            }
            let status_of = PodStatus { capture, reason, captured_connections, fresh: true, withdrawal };
            status.pods.insert(pod.uid, status_of);
        }
        if changed {
            self.keep(&nodes);
            drop(nodes);
            self.changed([node.to_owned()]);
        }
    }

    /// Goes on from what is published now as `generation`: tells the nodes, and lets withdrawals that
    /// wait for it go on. Of nodes that are not among the `touched` ones nothing has changed.
    pub(crate) fn settle(
        self: &Arc<Self>,
        outline: &Outline,
        touched: &BTreeSet<Arc<str>>,
        generation: u64,
        clients: &Arc<Clients>,
        trust_domain: &str,
    ) {
        let mut nodes = self.lock();
        let mut forgotten = false;
        for (node, status) in nodes.iter_mut().filter(|(node, _)| touched.contains(node.as_str())) {
            let local = outline.nodes.get(node.as_str());
            let before = status.pods.len();
            status.pods.retain(|uid, _| local.is_some_and(|pods| pods.iter().any(|pod| pod.uid == **uid)));
            forgotten |= status.pods.len() != before;
        }
        let known = |node: &str| outline.nodes.contains_key(node);
        nodes.retain(|node, status| known(node) || status.agents > 0);
        if forgotten {
            self.keep(&nodes);
        }
        let mut waiting = Vec::new();
        for (node, status) in nodes.iter_mut().filter(|(node, _)| touched.contains(node.as_str())) {
            let local = outline.nodes.get(node.as_str());
            // Peers of other replicas are told HBONE as long as the mark says so: it is waited for.
            let marked = |uid: &str| {
                let pod = local.and_then(|pods| pods.iter().find(|pod| pod.uid == *uid));
                self.shared && pod.is_some_and(|pod| pod.annotated.mark == Some(Mark::Measured))
            };
            for (uid, pod) in &mut status.pods {
                if pod.capture == Capture::Withdrawing && pod.withdrawal == Withdrawal::None && !marked(uid) {
                    pod.withdrawal = Withdrawal::Waiting;
                    waiting.push((node.clone(), uid.clone()));
                }
            }
        }
        drop(nodes);
        if !waiting.is_empty() {
            let (nodes, clients) = (self.clone(), clients.clone());
            tokio::spawn(async move { nodes.withdraw(waiting, generation, &clients).await });
        }
        self.direct(outline, touched, trust_domain);
    }

    /// Waits until no peer holds what was published before `generation`, then says so.
    async fn withdraw(&self, pods: Vec<(String, String)>, generation: u64, clients: &Clients) {
        // Right after a start nobody is connected yet who could acknowledge; who is connected to another
        // replica never does so here.
        let (least, most) = if self.shared {
            (WITHDRAWAL_PATIENCE, 2 * WITHDRAWAL_PATIENCE)
        } else {
            (WITHDRAWAL_PATIENCE.saturating_sub(self.started.elapsed()), WITHDRAWAL_PATIENCE)
        };
        let told = async {
            tokio::time::sleep(least).await;
            clients.acknowledged(generation).await;
        };
        if tokio::time::timeout(most, told).await.is_err() {
            warn!("not every node acknowledged a withdrawal within {most:?}; it goes on");
        }
        let mut nodes = self.lock();
        for (node, uid) in &pods {
            let pod = nodes.get_mut(node).and_then(|status| status.pods.get_mut(uid));
            if let Some(pod) = pod.filter(|pod| pod.withdrawal == Withdrawal::Waiting) {
                pod.withdrawal = Withdrawal::Done;
            }
        }
        drop(nodes);
        self.changed(pods.into_iter().map(|(node, _)| node));
    }

    fn direct(&self, outline: &Outline, touched: &BTreeSet<Arc<str>>, trust_domain: &str) {
        let mut directives = Directives::clone(&self.directives.borrow());
        directives.namespaces = outline.namespaces.clone();
        directives.trust_domain = trust_domain.into();
        let nodes = self.lock();
        for node in touched {
            let Some(pods) = outline.nodes.get(node) else {
                directives.nodes.remove(node);
                continue;
            };
            let status = nodes.get(&**node);
            let done = |uid: &str| {
                let pod = status.and_then(|status| status.pods.get(uid));
                pod.is_some_and(|pod| pod.withdrawal == Withdrawal::Done)
            };
            let withdrawn = pods.iter().filter(|pod| !pod.enroll && done(&pod.uid.text()));
            let withdrawn = withdrawn.map(|pod| pod.uid.clone()).collect();
            directives.nodes.insert(node.clone(), Wanted { pods: pods.clone(), withdrawn });
        }
        drop(nodes);
        self.directives.send_if_modified(|held| {
            let changed = **held != directives;
            if changed {
                *held = Arc::new(directives);
            }
            changed
        });
    }

    /// What each node is to do.
    pub(crate) fn directives(&self) -> watch::Receiver<Arc<Directives>> {
        self.directives.subscribe()
    }

    pub(crate) fn count_agent(&self, node: &str, more: bool) {
        let mut nodes = self.lock();
        let status = nodes.entry(node.to_owned()).or_default();
        status.agents = if more { status.agents + 1 } else { status.agents.saturating_sub(1) };
        if status.agents == 0 {
            status.pods.values_mut().for_each(|pod| pod.fresh = false);
            drop(nodes);
            self.changed([node.to_owned()]);
        }
    }

    fn keep(&self, nodes: &BTreeMap<String, NodeStatus>) {
        let Some(file) = &self.file else { return };
        let kept = serde_json::to_vec(nodes).map_err(|error| error.to_string());
        let written =
            kept.and_then(|kept| tokens::write_private(file, &kept).map_err(|error| error.to_string()));
        if let Err(error) = written {
            warn!("the reports of the nodes are not kept for the next start: {error}");
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, NodeStatus>> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn bounded(text: String) -> String {
    if text.len() <= MAX_REASON { text } else { text.chars().take(MAX_REASON / 4).collect() }
}
