//! Control's one loop: whenever the objects or a report change, what they concern is compiled and what differs
//! is published.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use tokio::sync::watch;
use tracing::{debug, error, info, warn};

use crate::{
    auth::Authenticator,
    compile::{Compiled, LocalPod, Mark, Options, compile},
    keys,
    manifest::{Kind, Problem, Severity},
    metrics::Metrics,
    nodes::{Capture, Nodes},
    objects::Objects,
    publish::{Clients, Store, Type},
    serve::Entitled,
    shards::{Outline, Pods, Shards, Turn},
    tokens::{self, Tokens},
};

/// Token files are looked after this often even if nothing changes.
const LOOK_AFTER_TOKENS: Duration = Duration::from_secs(600);

/// What the loop reads and writes.
pub struct Engine {
    pub options: Options,
    pub objects: Arc<Mutex<Objects>>,
    pub nodes: Arc<Nodes>,
    pub store: Arc<Store>,
    pub clients: Arc<Clients>,
    pub entitled: Arc<Entitled>,
    pub auth: Arc<Authenticator>,
    /// The files of nodes' tokens, where control makes these.
    pub token_files: Option<TokenFiles>,
    pub metrics: Arc<Metrics>,
    /// Who fetches the keys of tokens.
    pub keys: keys::Handle,
    /// What is known of the mesh, for status.
    pub outline: watch::Sender<Arc<Outline>>,
    pub compiled: State,
}

/// What the engine remembers from turn to turn.
#[derive(Default)]
pub struct State {
    shards: Shards,
    /// The nodes that are let in.
    proper: BTreeSet<String>,
    /// By node: the waypoints that run there, each a caller of its own, and whom they may be.
    waypoints: BTreeMap<Arc<str>, BTreeMap<String, Arc<LocalPod>>>,
    /// The problems that were told.
    known: Arc<BTreeSet<Problem>>,
}

/// A token file for each node.
pub struct TokenFiles {
    pub state: PathBuf,
    pub tokens: Arc<Tokens>,
    /// The nodes that they were last written for, and when.
    pub kept: Mutex<Option<(BTreeSet<String>, Instant)>>,
}

impl TokenFiles {
    /// Writes them when nodes came or went, and from time to time.
    fn keep(&self, nodes: &BTreeSet<String>) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if kept.as_ref().is_some_and(|(of, at)| of == nodes && now < *at + LOOK_AFTER_TOKENS) {
            return;
        }
        match self.tokens.keep_files(&self.state, nodes, SystemTime::now()) {
            Ok(()) => *kept = Some((nodes.clone(), now)),
            Err(error) => error!("node tokens: {error}"),
        }
    }
}

impl Engine {
    /// Runs until the objects are followed no more.
    pub async fn run(mut self, mut objects: watch::Receiver<u64>) {
        let mut reports = self.nodes.subscribe();
        loop {
            // Marked before the turn: what changes in its course is for the next.
            objects.mark_unchanged();
            reports.mark_unchanged();
            self.keys.changes.mark_unchanged();
            self.turn();
            tokio::select! {
                changed = objects.changed() => if changed.is_err() { return },
                _ = reports.changed() => {}
                Ok(()) = self.keys.changes.changed() => {}
                () = tokio::time::sleep(LOOK_AFTER_TOKENS) => {}
            }
        }
    }

    /// Compiles and publishes once. Problems that were not there before are logged.
    pub fn turn(&mut self) {
        let begun = Instant::now();
        let reported = self.nodes.take_reported();
        let (turn, nodes) = self.compile(&reported);
        let outline = Arc::new(self.compiled.shards.outline().clone());
        self.tell(&outline);
        let mut touched = turn.nodes;
        touched.extend(reported.iter().map(|node| node.as_str().into()));
        self.admit(&outline, &touched, nodes);
        let generation = self.store.update(turn.edit);
        let namespaces = turn.compiled;
        debug!(generation, namespaces, nodes = touched.len(), took = ?begun.elapsed(), "published");
        self.nodes.settle(&outline, &touched, generation, &self.clients, &self.options.trust_domain);
        let (policies, routes) = {
            let state = self.store.subscribe();
            let state = state.borrow();
            (state.policies.len(), state.routes.len())
        };
        self.metrics.set_published(Type::Address, outline.workloads + outline.services);
        self.metrics.set_published(Type::Authorization, policies);
        self.metrics.set_published(Type::Routes, routes);
        self.outline.send_replace(outline);
    }

    /// Compiles what has changed; the names of the Node objects, if there are others than before.
    fn compile(&mut self, reported: &BTreeSet<String>) -> (Turn, Option<BTreeSet<String>>) {
        let mut objects = self.objects.lock().unwrap_or_else(PoisonError::into_inner);
        let word = |node: &str, uid: &str| self.nodes.word(node, uid);
        let turn = self.compiled.shards.turn(&mut objects, reported, &word, &self.options);
        let nodes =
            turn.node_objects.then(|| objects.cluster_wide(Kind::Node).map(ToString::to_string).collect());
        let sources = objects.key_sources(&self.keys.wanted.borrow());
        self.keys.wanted.send_if_modified(|wanted| {
            let differs = *wanted != sources;
            *wanted = sources;
            differs
        });
        (turn, nodes)
    }

    fn tell(&mut self, outline: &Outline) {
        let now = &outline.problems;
        let known = std::mem::replace(&mut self.compiled.known, now.clone());
        if Arc::ptr_eq(now, &known) {
            return;
        }
        for problem in now.difference(&known) {
            match problem.severity {
                Severity::Refused => error!("refused: {problem}"),
                Severity::Warning => warn!("{problem}"),
            }
        }
        for problem in known.difference(now).filter(|problem| problem.severity == Severity::Refused) {
            info!("no longer refused: {problem}");
        }
        let refused = now.iter().filter(|problem| problem.severity == Severity::Refused).count();
        self.metrics.set_refused_objects(refused);
    }

    /// Who may call, and as whom, is settled before anybody is told of anything.
    fn admit(&mut self, outline: &Outline, touched: &BTreeSet<Arc<str>>, nodes: Option<BTreeSet<String>>) {
        if let Some(nodes) = nodes {
            let (proper, improper): (BTreeSet<_>, BTreeSet<_>) =
                nodes.into_iter().partition(|node| crate::tokens::check_node(node).is_ok());
            for node in improper {
                warn!("{node:?} is not a name a node may have: it is not let in");
            }
            self.compiled.proper = proper;
        }
        let mut entitled: BTreeMap<Arc<str>, Option<Pods>> = BTreeMap::new();
        for node in touched {
            let waypoints = waypoints_on(outline, node);
            let before = self.compiled.waypoints.insert(node.clone(), waypoints).unwrap_or_default();
            entitled.extend(before.into_keys().map(|gone| (gone.into(), None)));
        }
        self.compiled.waypoints.retain(|_, waypoints| !waypoints.is_empty());
        let waypoints = || self.compiled.waypoints.values().flatten();
        entitled.extend(waypoints().map(|(name, pod)| (name.as_str().into(), Some([pod.clone()].into()))));
        let mut callers = self.compiled.proper.clone();
        callers.extend(waypoints().map(|(name, _)| name.clone()));
        if let Some(files) = &self.token_files {
            files.keep(&callers);
        }
        self.auth.set_callers(callers);
        for node in touched {
            // By its agent's word or, if that went to another replica of control, by the mark it left.
            let captured = |pod: &LocalPod| {
                matches!(
                    self.nodes.capture(node, &pod.uid.text()),
                    Some(Capture::Measured | Capture::Withdrawing)
                ) || matches!(pod.annotated.mark, Some(Mark::Measured | Mark::Withdrawing))
            };
            let may = |pods: &Pods| -> Pods {
                let may = |pod: &&Arc<LocalPod>| pod.enroll || captured(pod);
                match pods.iter().all(|pod| may(&pod)) {
                    true => pods.clone(),
                    false => pods.iter().filter(may).cloned().collect(),
                }
            };
            entitled.insert(node.clone(), outline.nodes.get(node).map(may));
        }
        self.entitled.update(entitled);
    }
}

/// The waypoints of a node. Each proves itself: its node is not trusted with its certificate, nor it with others'.
fn waypoints_on(outline: &Outline, node: &Arc<str>) -> BTreeMap<String, Arc<LocalPod>> {
    let pods = outline.nodes.get(node).into_iter().flat_map(|pods| pods.iter());
    let waypoints = pods.filter(|pod| pod.waypoint);
    waypoints.map(|pod| (tokens::waypoint(&pod.namespace, &pod.name), pod.clone())).collect()
}

/// Everything as it would be published now, compiled anew: for who wants to see all of it.
pub fn whole(objects: &Mutex<Objects>, nodes: &Nodes, options: &Options) -> Compiled {
    let objects = objects.lock().unwrap_or_else(PoisonError::into_inner);
    compile(&objects.view(), &|node, uid| nodes.word(node, uid), options)
}
