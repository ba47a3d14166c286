//! Control put together: from its settings to a running server. The binary adds flags and signals; tests
//! run it in their own process.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use identity::authority::{Authority, AuthorityError};
use tokio::{net::TcpListener, sync::watch};

use crate::{
    auth::{Authenticator, Proof},
    compile::{Compiled, Options},
    engine::{self, Engine, TokenFiles},
    folder::{FirstLookError, Folder, Kept, watch as follow},
    keys::{self, Keeper},
    kubernetes::{self, Cluster, ConnectError, Signing},
    metrics::Metrics,
    nodes::Nodes,
    objects::Objects,
    publish::{Clients, Discovery, Store},
    serve::{Certificates, Entitled, Identities, NodeReports, Services, Signer, serve},
    shards::Outline,
    tokens::{TokenFileError, Tokens},
};

/// How long keys of tokens are waited for before anything is published.
const FIRST_KEYS: Duration = Duration::from_secs(5);

/// What control is told.
#[derive(Debug, Clone)]
pub struct Settings {
    pub source: Source,
    pub listen: SocketAddr,
    /// DNS names and addresses of control's certificate, besides `control`, `localhost` and the address
    /// that a client has dialled.
    pub names: Vec<String>,
    pub mesh: Options,
    /// Longest life of a workload's certificate.
    pub certificate_lifetime: Duration,
    /// A certificate authority from elsewhere: files of its chain and its key.
    pub authority: Option<(PathBuf, PathBuf)>,
    /// How keys of tokens are fetched.
    pub keys: keys::Settings,
}

/// Where the objects come from.
#[derive(Debug, Clone)]
pub enum Source {
    /// A folder of manifests; `state` is control's own.
    Folder { manifests: PathBuf, state: PathBuf },
    /// The Kubernetes API server, which holds control's own state, too.
    Kubernetes(kubernetes::Settings),
}

/// Why control does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("cannot {what} {}: {source}", path.display())]
    File { what: &'static str, path: PathBuf, source: io::Error },
    #[error("the folder of manifests {} cannot be listed: {source}; make it, or name another with --manifests", path.display())]
    Manifests { path: PathBuf, source: io::Error },
    #[error(transparent)]
    FirstLook(#[from] FirstLookError),
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    #[error(transparent)]
    Tokens(#[from] TokenFileError),
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error(transparent)]
    Roots(#[from] keys::BadRoots),
    #[error("cannot listen on {address}: {source}; choose another address with --listen")]
    Listen { address: SocketAddr, source: io::Error },
}

/// A control plane that is listening and has seen everything once.
pub struct Control {
    /// Where it listens.
    pub address: SocketAddr,
    pub nodes: Arc<Nodes>,
    pub clients: Arc<Clients>,
    pub store: Arc<Store>,
    pub outline: watch::Sender<Arc<Outline>>,
    /// Compiles everything anew.
    pub whole: Whole,
    root_pem: String,
    listener: TcpListener,
    identities: Arc<Identities>,
    services: Services,
    engine: Engine,
    keeper: Keeper,
    followed: Followed,
}

/// Gives everything as it would be published now.
pub type Whole = Arc<dyn Fn() -> Compiled + Send + Sync>;

/// What the two sources differ in.
struct Begun {
    followed: Followed,
    objects: Arc<Mutex<Objects>>,
    nodes: Arc<Nodes>,
    proof: Proof,
    token_files: Option<TokenFiles>,
    authority: Authority,
    /// Further names of control's certificate.
    names: Vec<String>,
}

/// What is followed from now on.
enum Followed {
    Folder(Folder),
    /// With the fingerprint of its authority, where that is kept there, too.
    Cluster(Cluster, Option<String>),
}

impl Control {
    /// Sees everything once, and listens; nobody is answered before [`Self::run`]. `waiting` is told what is
    /// waited for.
    ///
    /// # Errors
    /// Naming what cannot be had. Of an API server nothing is an error: it is waited for.
    pub async fn start(
        settings: Settings,
        metrics: Arc<Metrics>,
        waiting: impl Fn(String),
    ) -> Result<Self, StartError> {
        let Settings { source, listen, names, mesh, certificate_lifetime, authority, keys } = settings;
        let client = keys::Client::new(&keys)?;
        let begun = match source {
            Source::Folder { manifests, state } => {
                begin_folder(manifests, &state, authority, &mesh.trust_domain).await?
            }
            Source::Kubernetes(settings) => {
                let cluster = Cluster::connect(settings, metrics.clone()).await?;
                begin_cluster(cluster, authority, &mesh, waiting).await?
            }
        };
        let Begun { followed, objects, nodes, proof, token_files, authority, names: further } = begun;
        let root_pem = authority.root_pem().to_owned();
        let signer = Signer::new(authority);
        let (store, clients) = (Arc::new(Store::default()), Arc::new(Clients::default()));
        let auth = Arc::new(Authenticator::new(proof));
        let entitled = Arc::new(Entitled::new(mesh.trust_domain.clone()));
        let outline = watch::Sender::new(Arc::default());
        let whole: Whole = {
            let (objects, nodes, options) = (objects.clone(), nodes.clone(), mesh.clone());
            Arc::new(move || engine::whole(&objects, &nodes, &options))
        };
        let (keeper, keys) = Keeper::new(client, keys.refresh, objects.clone(), metrics.clone());
        let engine = Engine {
            options: mesh,
            objects,
            nodes: nodes.clone(),
            store: store.clone(),
            clients: clients.clone(),
            entitled: entitled.clone(),
            auth: auth.clone(),
            token_files,
            metrics: metrics.clone(),
            keys,
            outline: outline.clone(),
            compiled: engine::State::default(),
        };
        let cannot = |source| StartError::Listen { address: listen, source };
        let listener = TcpListener::bind(listen).await.map_err(cannot)?;
        let address = listener.local_addr().map_err(cannot)?;
        let (addresses, mut dns): (Vec<IpAddr>, Vec<String>) = (
            names.iter().filter_map(|name| name.parse().ok()).collect(),
            names.iter().filter(|name| name.parse::<IpAddr>().is_err()).cloned().collect(),
        );
        dns.extend(further);
        dns.extend(["control".to_owned(), "localhost".to_owned()]);
        let services = Services {
            discovery: Discovery {
                store: store.clone(),
                clients: clients.clone(),
                auth: auth.clone(),
                metrics: metrics.clone(),
            },
            certificates: Certificates {
                signer: signer.clone(),
                auth: auth.clone(),
                entitled,
                lifetime: certificate_lifetime,
                metrics,
            },
            nodes: NodeReports { nodes: nodes.clone(), auth },
        };
        let identities = Arc::new(Identities::new(signer.clone(), dns, addresses));
        Ok(Self {
            address,
            nodes,
            clients,
            store,
            outline,
            whole,
            root_pem,
            listener,
            identities,
            services,
            engine,
            keeper,
            followed,
        })
    }

    /// The root that clients must trust, PEM.
    pub fn root_pem(&self) -> &str {
        &self.root_pem
    }

    /// Serves until `end`. `ready` is called when the first state is published.
    ///
    /// # Errors
    /// When the folder cannot be followed, or the server breaks.
    pub async fn run(self, ready: impl FnOnce(), end: impl Future<Output = ()>) -> io::Result<()> {
        // What follows a cluster ends when this is dropped.
        let mut held = None;
        let changes = match self.followed {
            Followed::Folder(folder) => follow(folder)?,
            Followed::Cluster(mut cluster, kept) => {
                let changes = cluster.changes();
                let signing = Signing {
                    signer: self.services.certificates.signer.clone(),
                    kept,
                    lifetime: self.services.certificates.lifetime,
                };
                cluster.begin_writing(&self.nodes, &self.outline, signing, &self.engine.options);
                held = Some(cluster);
                changes
            }
        };
        // Before anybody is let in: an empty answer would be taken for an empty mesh.
        let mut engine = self.engine;
        // It ends with what it is asked by.
        tokio::spawn(self.keeper.run());
        let asked = engine.keys.settled.wait_for(|settled| *settled);
        // Whoever does not answer is not waited for: his tokens are refused until he does.
        let _ = tokio::time::timeout(FIRST_KEYS, asked).await;
        engine.turn();
        ready();
        let engine = tokio::spawn(engine.run(changes));
        let served = serve(self.listener, self.identities, self.services, end).await;
        engine.abort();
        drop(held);
        served
    }
}

/// Reads the state directory, and the folder for the first time.
async fn begin_folder(
    manifests: PathBuf,
    state: &Path,
    plugged: Option<(PathBuf, PathBuf)>,
    trust_domain: &str,
) -> Result<Begun, StartError> {
    let path = manifests.clone();
    std::fs::read_dir(&manifests).map_err(|source| StartError::Manifests { path, source })?;
    let tokens = Arc::new(Tokens::load_or_create(state)?);
    let authority = authority(state, plugged, trust_domain)?;
    let last_good = state.join("last-good");
    let kept =
        Kept::open(state).map_err(|source| StartError::File { what: "create", path: last_good, source })?;
    let mut folder = Folder::new(manifests, Some(kept));
    folder.first_look().await?;
    let (state, kept) = (state.to_owned(), Mutex::default());
    Ok(Begun {
        objects: folder.objects(),
        nodes: Nodes::open(Some(state.join("nodes.json"))),
        proof: Proof::Ours(tokens.clone()),
        token_files: Some(TokenFiles { state, tokens, kept }),
        authority,
        names: Vec::new(),
        followed: Followed::Folder(folder),
    })
}

/// Finds the authority, and looks at the cluster until everything was seen once.
async fn begin_cluster(
    mut cluster: Cluster,
    plugged: Option<(PathBuf, PathBuf)>,
    mesh: &Options,
    waiting: impl Fn(String),
) -> Result<Begun, StartError> {
    let (authority, kept) = match plugged {
        Some((chain, key)) => (Authority::from_pem(&read(&chain)?, &read(&key)?)?, None),
        None => {
            let found = cluster.authority(&mesh.trust_domain, &waiting).await;
            (found.authority, Some(found.fingerprint))
        }
    };
    cluster.first_look(&waiting).await;
    Ok(Begun {
        objects: cluster.objects(),
        nodes: Nodes::shared(),
        proof: Proof::Pods(Box::new(cluster.reviews())),
        token_files: None,
        authority,
        names: cluster.names(&mesh.cluster_domain),
        followed: Followed::Cluster(cluster, kept),
    })
}

fn read(path: &Path) -> Result<String, StartError> {
    std::fs::read_to_string(path).map_err(|source| StartError::File {
        what: "read",
        path: path.to_owned(),
        source,
    })
}

/// The authority of `state/ca`, or the one plugged in; either way nodes find its root in
/// `state/ca/root.pem`.
fn authority(
    state: &Path,
    plugged: Option<(PathBuf, PathBuf)>,
    trust_domain: &str,
) -> Result<Authority, StartError> {
    let folder = state.join("ca");
    let Some((chain, key)) = plugged else { return Ok(Authority::load_or_create(&folder, trust_domain)?) };
    let authority = Authority::from_pem(&read(&chain)?, &read(&key)?)?;
    let root = folder.join("root.pem");
    std::fs::create_dir_all(&folder)
        .and_then(|()| std::fs::write(&root, authority.root_pem()))
        .map_err(|source| StartError::File { what: "write", path: root, source })?;
    Ok(authority)
}
