//! Control on the Kubernetes API server: what a folder of manifests is elsewhere, the cluster itself is here.
//!
//! ```text
//! API server ─▶ follow (list, watch) ─▶ held ─▶ objects ─▶ the same compiling and publishing as a folder's
//!      ▲  ▲  ▲
//!      │  │  └─ review, judge: which node a service account's token proves
//!      │  └──── mark: what agents said of their pods, written on the pods
//!      └─────── authority, lease: the mesh's root, and which replica keeps what belongs to the whole mesh;
//!               verdicts: what is made of people's manifests, written in their status;
//!               routes: how they stand with their parents, likewise;
//!               waypoints: Gateways are deployed, and told what became of them
//! ```
//!
//! Nothing is compiled before every kind that exists was listed once; what cannot be seen is not gone.

mod authority;
mod backoff;
mod certificates;
mod conditions;
mod follow;
mod held;
mod judge;
mod kept;
mod kinds;
mod lease;
mod mark;
mod refused;
mod review;
mod rotation;
mod routes;
mod verdicts;
mod waypoints;

use std::{collections::BTreeSet, path::PathBuf, sync::Arc, time::Duration};

use apiserver::Api;
use identity::authority::Authority;
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use tokio::{sync::watch, task::JoinSet};
use tracing::{info, warn};

pub use self::{
    authority::{BUNDLE, BUNDLE_KEY, Found, OWN, PLUGGED, SecretError},
    judge::Account,
    review::Reviews,
    rotation::ROTATE,
    verdicts::ACCEPTED,
    waypoints::Pods as WaypointPods,
};
use self::{backoff::Backoff, follow::Follower, held::Held, lease::Election, mark::Marks, rotation::Keeper};
use crate::{
    compile::Options, manifest::Kind, metrics::Metrics, nodes::Nodes, objects::Objects, serve::Signer,
    shards::Outline,
};

/// Where control runs if nobody says so.
pub const NAMESPACE: &str = "culvert-system";
/// The audience of nodes' tokens if nobody says so: Istio's, so that its node side is understood, too.
pub const AUDIENCE: &str = "istio-ca";
/// Who speaks for nodes if nobody says so, in control's own namespace.
pub const NODE_ACCOUNTS: [&str; 2] = ["agent", "ztunnel"];
/// A pod's namespace, as Kubernetes tells it to the pod.
const OWN_NAMESPACE: &str = "/var/run/secrets/kubernetes.io/serviceaccount/namespace";
/// The trust bundle is looked after this often.
const LOOK_AFTER_BUNDLE: Duration = Duration::from_secs(30);
/// … and after a failure this soon again.
const AFTER_FAILURE: Duration = Duration::from_secs(3);
/// Objects are counted this often.
const COUNT: Duration = Duration::from_secs(10);

/// How the cluster is reached, and who speaks for its nodes.
#[derive(Clone)]
pub struct Settings {
    pub connection: Connection,
    /// Control's own namespace; without it the one that its pod runs in, else [`NAMESPACE`].
    pub namespace: Option<String>,
    /// Audiences of nodes' tokens; none means [`AUDIENCE`].
    pub audiences: Vec<String>,
    /// Service accounts that speak for the nodes of their pods; none means [`NODE_ACCOUNTS`].
    pub node_accounts: Vec<Account>,
    /// How waypoints are deployed; without it none is.
    pub waypoints: Option<Arc<WaypointPods>>,
}

/// How the API server is reached.
#[derive(Clone)]
pub enum Connection {
    /// By a file and one of its contexts; without a file by what `KUBECONFIG` names, else as a pod is told,
    /// else by the user's own file.
    Configured { kubeconfig: Option<PathBuf>, context: Option<String> },
    /// By a client of the caller's.
    Given(Client),
}

impl std::fmt::Debug for Settings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Settings").field("namespace", &self.namespace).finish_non_exhaustive()
    }
}

/// Why the cluster cannot be reached.
#[derive(Debug, thiserror::Error)]
#[error("no way to the API server: {0}; run control in a pod, or name a file with --kubeconfig")]
pub struct ConnectError(String);

/// Who signs, and where that is kept.
pub struct Signing {
    pub signer: Signer,
    /// The authority's fingerprint, where it is kept in the cluster and may be exchanged there.
    pub kept: Option<String>,
    /// Longest life of a certificate that is signed.
    pub lifetime: Duration,
}

/// A cluster that is followed. Whatever it does ends with it.
pub struct Cluster {
    pub namespace: String,
    api: Api,
    held: Arc<Held>,
    metrics: Arc<Metrics>,
    audiences: Vec<String>,
    accounts: BTreeSet<Account>,
    waypoints: Option<Arc<WaypointPods>>,
    tasks: JoinSet<()>,
}

impl Cluster {
    /// Finds the API server, without a word to it.
    ///
    /// # Errors
    /// If there is no configuration, or it is not usable.
    pub async fn connect(settings: Settings, metrics: Arc<Metrics>) -> Result<Self, ConnectError> {
        let Settings { connection, namespace, audiences, node_accounts, waypoints } = settings;
        let client = match connection {
            Connection::Given(client) => client,
            Connection::Configured { kubeconfig, context } => client(kubeconfig, context).await?,
        };
        let namespace = namespace.or_else(own_namespace).unwrap_or_else(|| NAMESPACE.to_owned());
        let accounts = if node_accounts.is_empty() {
            let account = |name: &str| Account { namespace: namespace.clone(), name: name.to_owned() };
            NODE_ACCOUNTS.into_iter().map(account).collect()
        } else {
            node_accounts.into_iter().collect()
        };
        let audiences = if audiences.is_empty() { vec![AUDIENCE.to_owned()] } else { audiences };
        let (api, held, tasks) = (Api::new(client), Arc::default(), JoinSet::new());
        Ok(Self { namespace, api, held, metrics, audiences, accounts, waypoints, tasks })
    }

    /// The certificate authority of the mesh. Waits for an API server that does not answer; a Secret that is
    /// not usable is waited for, too: somebody must repair it, and may do so at any time. `waiting` is told.
    pub async fn authority(&self, trust_domain: &str, waiting: impl Fn(String)) -> Found {
        let mut backoff = Backoff::default();
        loop {
            match authority::load_or_create(&self.api, &self.namespace, trust_domain).await {
                Ok(found) => return found,
                Err(error) => {
                    warn!("no certificate authority yet: {error}");
                    waiting(format!("the certificate authority: {error}"));
                    backoff.wait().await;
                }
            }
        }
    }

    /// Follows every kind, and returns when all that is there was seen once.
    pub async fn first_look(&mut self, waiting: impl Fn(String)) {
        // Those alone that others refer to are looked at, each by itself.
        let followed = Kind::ALL.into_iter().filter(|kind| *kind != Kind::ConfigMap);
        self.tasks.spawn(certificates::keep(self.api.clone(), self.held.clone()));
        for kind in followed {
            let (api, held, metrics) = (self.api.clone(), self.held.clone(), self.metrics.clone());
            self.tasks.spawn(Follower { api, held, kind, metrics }.run());
        }
        self.held.complete(waiting).await;
        let objects: usize = self.held.count().values().sum();
        info!(objects, "the first look at the cluster is complete");
    }

    /// What is held; shared with whoever compiles it.
    pub fn objects(&self) -> Arc<std::sync::Mutex<Objects>> {
        self.held.objects()
    }

    /// The number grows when something has changed; several changes in a row count as one.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.held.follow()
    }

    /// Who tells which node a token proves.
    pub fn reviews(&self) -> Reviews {
        let (api, held, metrics) = (self.api.clone(), self.held.clone(), self.metrics.clone());
        Reviews::new(api, held, self.audiences.clone(), self.accounts.clone(), metrics)
    }

    /// The names under which nodes reach control.
    pub fn names(&self, cluster_domain: &str) -> Vec<String> {
        let short = format!("control.{}", self.namespace);
        vec![format!("{short}.svc.{cluster_domain}"), format!("{short}.svc"), short]
    }

    /// Begins to write: marks on the pods of connected agents, and, when leading, the roots that are to be trusted,
    /// conditions on people's manifests, and waypoints.
    pub fn begin_writing(
        &mut self,
        nodes: &Arc<Nodes>,
        outline: &watch::Sender<Arc<Outline>>,
        signing: Signing,
        mesh: &Options,
    ) {
        let Signing { signer, kept, lifetime } = signing;
        let marks = Marks::new(self.api.clone(), nodes.clone(), self.metrics.clone());
        self.tasks.spawn(marks.run(outline.subscribe()));
        let pod = std::env::var("HOSTNAME").unwrap_or_else(|_| "control".to_owned());
        let election = Election::new(self.api.clone(), &self.namespace, &pod, self.metrics.clone());
        self.tasks.spawn(keep_bundle(
            self.api.clone(),
            self.namespace.clone(),
            signer.follow(),
            election.leading(),
        ));
        let waypoints = waypoints::Keeper {
            api: self.api.clone(),
            held: self.held.clone(),
            pods: self.waypoints.clone(),
            mesh: waypoints::Mesh {
                system: self.namespace.clone(),
                trust_domain: mesh.trust_domain.to_string(),
                cluster: mesh.cluster_id.to_string(),
                network: mesh.network.to_string(),
            },
            signs: signer.follow(),
            leading: election.leading(),
        };
        self.tasks.spawn(waypoints.run());
        if let Some(fingerprint) = kept {
            let keeper = Keeper {
                api: self.api.clone(),
                namespace: self.namespace.clone(),
                trust_domain: mesh.trust_domain.to_string(),
                signer,
                leading: election.leading(),
                fingerprint,
                lifetime,
            };
            self.tasks.spawn(keeper.run());
        }
        let (api, held) = (self.api.clone(), self.held.clone());
        self.tasks.spawn(routes::keep(api.clone(), held.clone(), outline.subscribe(), election.leading()));
        self.tasks.spawn(verdicts::keep(api, held, outline.subscribe(), election.leading()));
        self.tasks.spawn(election.run());
        let (held, metrics) = (self.held.clone(), self.metrics.clone());
        self.tasks.spawn(async move {
            loop {
                held.count().into_iter().for_each(|(kind, objects)| metrics.set_held(kind, objects));
                tokio::time::sleep(COUNT).await;
            }
        });
    }
}

async fn client(kubeconfig: Option<PathBuf>, context: Option<String>) -> Result<Client, ConnectError> {
    let wrong = |error: &dyn std::error::Error| ConnectError(error.to_string());
    let options = KubeConfigOptions { context, ..KubeConfigOptions::default() };
    let named = kubeconfig.is_some() || std::env::var_os("KUBECONFIG").is_some();
    let in_pod = std::env::var_os("KUBERNETES_SERVICE_HOST").is_some();
    let config = match kubeconfig {
        Some(file) => {
            let kubeconfig = Kubeconfig::read_from(file).map_err(|error| wrong(&error))?;
            Config::from_custom_kubeconfig(kubeconfig, &options).await.map_err(|error| wrong(&error))?
        }
        None if in_pod && !named && options.context.is_none() => {
            Config::incluster().map_err(|error| wrong(&error))?
        }
        None => Config::from_kubeconfig(&options).await.map_err(|error| wrong(&error))?,
    };
    info!(server = %config.cluster_url, "API server");
    Client::try_from(config).map_err(|error| wrong(&error))
}

fn own_namespace() -> Option<String> {
    let namespace = std::fs::read_to_string(OWN_NAMESPACE).ok()?;
    let namespace = namespace.trim();
    (!namespace.is_empty()).then(|| namespace.to_owned())
}

/// Keeps the roots published for as long as we lead.
async fn keep_bundle(
    api: Api,
    namespace: String,
    mut signs: watch::Receiver<Arc<Authority>>,
    mut leading: watch::Receiver<bool>,
) {
    while leading.wait_for(|leads| *leads).await.is_ok() {
        let bundle = signs.borrow_and_update().trusted_pem().to_owned();
        let pause = match authority::publish(&api, &namespace, &bundle).await {
            Ok(()) => LOOK_AFTER_BUNDLE,
            Err(error) => {
                warn!("the roots are not published in ConfigMap {namespace}/{BUNDLE}: {error}");
                AFTER_FAILURE
            }
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            Ok(()) = signs.changed() => {}
        }
    }
}
