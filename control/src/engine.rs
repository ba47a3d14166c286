//! Control's one loop: whenever the objects or a report change, everything is compiled and what differs
//! is published.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use mesh::Identity;
use tokio::sync::watch;
use tracing::{debug, error, info, warn};

use crate::{
    auth::Authenticator,
    compile::{Compiled, LocalPod, Mark, Options, compile},
    manifest::{Kind, Problem, Severity},
    metrics::Metrics,
    nodes::{Capture, Nodes},
    objects::Objects,
    publish::{Clients, Store, Type},
    serve::Entitled,
    tokens::Tokens,
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
    /// The newest compiled state, for status.
    pub compiled: watch::Sender<Arc<Compiled>>,
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
    /// Runs until the objects are followed no more. `known` are the problems that were logged before.
    pub async fn run(self, mut objects: watch::Receiver<u64>, mut known: BTreeSet<Problem>) {
        let mut reports = self.nodes.subscribe();
        loop {
            // Marked before the turn: what changes in its course is for the next.
            objects.mark_unchanged();
            reports.mark_unchanged();
            known = self.turn(known);
            tokio::select! {
                changed = objects.changed() => if changed.is_err() { return },
                _ = reports.changed() => {}
                () = tokio::time::sleep(LOOK_AFTER_TOKENS) => {}
            }
        }
    }

    /// Compiles and publishes once. Problems that are not among `known` are logged; all are returned.
    pub fn turn(&self, known: BTreeSet<Problem>) -> BTreeSet<Problem> {
        let (compiled, nodes) = self.compile();
        let compiled = Arc::new(compiled);
        let known = self.tell(&compiled, &known);
        self.admit(&compiled, nodes);
        let generation = self.store.publish(
            compiled.workloads.values().cloned(),
            compiled.services.values().cloned(),
            compiled.policies.values().cloned(),
        );
        debug!(generation, "published");
        self.nodes.settle(&compiled, generation, &self.clients, &self.options.trust_domain);
        self.metrics.set_published(Type::Address, compiled.workloads.len() + compiled.services.len());
        self.metrics.set_published(Type::Authorization, compiled.policies.len());
        self.compiled.send_replace(compiled);
        known
    }

    /// The compiled state, and the names of the Node objects.
    fn compile(&self) -> (Compiled, BTreeSet<String>) {
        let objects = self.objects.lock().unwrap_or_else(PoisonError::into_inner);
        let view = objects.view();
        let word = |node: &str, uid: &str| self.nodes.word(node, uid);
        let nodes = view.objects.keys().filter(|key| key.kind == Kind::Node).map(|key| key.name.to_string());
        (compile(&view, &word, &self.options), nodes.collect())
    }

    fn tell(&self, compiled: &Compiled, known: &BTreeSet<Problem>) -> BTreeSet<Problem> {
        let now: BTreeSet<Problem> = compiled.problems.iter().cloned().collect();
        for problem in now.difference(known) {
            match problem.severity {
                Severity::Refused => error!("refused: {problem}"),
                Severity::Warning => warn!("{problem}"),
            }
        }
        for problem in known.difference(&now).filter(|problem| problem.severity == Severity::Refused) {
            info!("no longer refused: {problem}");
        }
        let refused = now.iter().filter(|problem| problem.severity == Severity::Refused).count();
        self.metrics.set_refused_objects(refused);
        now
    }

    /// Who may call, and as whom, is settled before anybody is told of anything.
    fn admit(&self, compiled: &Compiled, nodes: BTreeSet<String>) {
        let (proper, improper): (BTreeSet<_>, BTreeSet<_>) =
            nodes.into_iter().partition(|node| crate::tokens::check_node(node).is_ok());
        for node in improper {
            warn!("{node:?} is not a name a node may have: it is not let in");
        }
        if let Some(files) = &self.token_files {
            files.keep(&proper);
        }
        self.auth.set_nodes(proper);
        let mut entitled: BTreeMap<String, BTreeSet<Identity>> = BTreeMap::new();
        for (node, pods) in &compiled.nodes {
            // By its agent's word or, if that went to another replica of control, by the mark it left.
            let captured = |pod: &LocalPod| {
                matches!(self.nodes.capture(node, &pod.uid), Some(Capture::Measured | Capture::Withdrawing))
                    || matches!(pod.annotated.mark, Some(Mark::Measured | Mark::Withdrawing))
            };
            let identities = pods.iter().filter(|pod| pod.enroll || captured(pod)).map(|pod| {
                let trust_domain = self.options.trust_domain.clone();
                Identity::new(trust_domain, pod.namespace.clone(), pod.service_account.clone())
            });
            entitled.insert(node.to_string(), identities.collect());
        }
        self.entitled.set(entitled);
    }
}
