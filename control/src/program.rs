//! Control put together: from its settings to a running server. The binary adds flags and signals; tests
//! run it in their own process.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use identity::authority::{Authority, AuthorityError};
use tokio::{net::TcpListener, sync::watch};

use crate::{
    auth::Authenticator,
    compile::{Compiled, Options},
    engine::Engine,
    folder::{FirstLookError, Folder, Kept, watch as follow},
    metrics::Metrics,
    nodes::Nodes,
    publish::{Clients, Discovery, Store},
    serve::{Certificates, Entitled, Identities, NodeReports, Services, serve},
    tokens::{TokenFileError, Tokens},
};

/// What control is told.
#[derive(Debug, Clone)]
pub struct Settings {
    pub manifests: PathBuf,
    pub state: PathBuf,
    pub listen: SocketAddr,
    /// DNS names and addresses of control's certificate, besides `control`, `localhost` and the address
    /// that a client has dialled.
    pub names: Vec<String>,
    pub mesh: Options,
    /// Longest life of a workload's certificate.
    pub certificate_lifetime: Duration,
    /// A certificate authority from elsewhere: files of its chain and its key.
    pub authority: Option<(PathBuf, PathBuf)>,
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
    #[error("cannot listen on {address}: {source}; choose another address with --listen")]
    Listen { address: SocketAddr, source: io::Error },
}

/// A control plane that is listening and has read its folder.
pub struct Control {
    /// Where it listens.
    pub address: SocketAddr,
    pub nodes: Arc<Nodes>,
    pub clients: Arc<Clients>,
    pub store: Arc<Store>,
    pub tokens: Arc<Tokens>,
    pub compiled: watch::Sender<Arc<Compiled>>,
    root_pem: String,
    listener: TcpListener,
    identities: Arc<Identities>,
    services: Services,
    engine: Engine,
    folder: Folder,
}

impl Control {
    /// Reads the state directory and the folder, and listens; nobody is answered before [`Self::run`].
    ///
    /// # Errors
    /// Naming what cannot be had.
    pub async fn start(settings: Settings, metrics: Arc<Metrics>) -> Result<Self, StartError> {
        let Settings { manifests, state, listen, names, mesh, certificate_lifetime, authority } = settings;
        let file = |what: &'static str, path: &std::path::Path| {
            let path = path.to_owned();
            move |source| StartError::File { what, path, source }
        };
        let path = manifests.clone();
        std::fs::read_dir(&manifests).map_err(|source| StartError::Manifests { path, source })?;
        let tokens = Arc::new(Tokens::load_or_create(&state)?);
        let authority = Arc::new(self::authority(&state, authority, &mesh.trust_domain)?);
        let kept = Kept::open(&state).map_err(file("create", &state.join("last-good")))?;

        let mut folder = Folder::new(manifests, Some(kept));
        folder.first_look().await?;
        let (store, clients) = (Arc::new(Store::default()), Arc::new(Clients::default()));
        let nodes = Nodes::open(Some(state.join("nodes.json")));
        let auth = Arc::new(Authenticator::new(tokens.clone()));
        let entitled = Arc::new(Entitled::default());
        let compiled = watch::Sender::new(Arc::default());
        let engine = Engine {
            options: mesh,
            state,
            objects: folder.objects(),
            nodes: nodes.clone(),
            store: store.clone(),
            clients: clients.clone(),
            entitled: entitled.clone(),
            auth: auth.clone(),
            tokens: tokens.clone(),
            metrics: metrics.clone(),
            kept_tokens: Default::default(),
            compiled: compiled.clone(),
        };
        let listener = TcpListener::bind(listen)
            .await
            .map_err(|source| StartError::Listen { address: listen, source })?;
        let address =
            listener.local_addr().map_err(|source| StartError::Listen { address: listen, source })?;
        let (addresses, mut dns): (Vec<IpAddr>, Vec<String>) = (
            names.iter().filter_map(|name| name.parse().ok()).collect(),
            names.iter().filter(|name| name.parse::<IpAddr>().is_err()).cloned().collect(),
        );
        dns.extend(["control".to_owned(), "localhost".to_owned()]);
        let services = Services {
            discovery: Discovery {
                store: store.clone(),
                clients: clients.clone(),
                auth: auth.clone(),
                metrics: metrics.clone(),
            },
            certificates: Certificates {
                authority: authority.clone(),
                auth: auth.clone(),
                entitled,
                lifetime: certificate_lifetime,
                metrics,
            },
            nodes: NodeReports { nodes: nodes.clone(), auth },
        };
        let root_pem = authority.root_pem().to_owned();
        let identities = Arc::new(Identities::new(authority, dns, addresses));
        Ok(Self {
            address,
            nodes,
            clients,
            store,
            tokens,
            compiled,
            root_pem,
            listener,
            identities,
            services,
            engine,
            folder,
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
        let changes = follow(self.folder)?;
        // Before anybody is let in: an empty answer would be taken for an empty mesh.
        let known = self.engine.turn(Default::default());
        ready();
        let engine = tokio::spawn(self.engine.run(changes, known));
        let served = serve(self.listener, self.identities, self.services, end).await;
        engine.abort();
        served
    }
}

/// The authority of `state/ca`, or the one plugged in; either way nodes find its root in
/// `state/ca/root.pem`.
fn authority(
    state: &std::path::Path,
    plugged: Option<(PathBuf, PathBuf)>,
    trust_domain: &str,
) -> Result<Authority, StartError> {
    let folder = state.join("ca");
    let Some((chain, key)) = plugged else { return Ok(Authority::load_or_create(&folder, trust_domain)?) };
    let read = |path: &PathBuf| {
        std::fs::read_to_string(path).map_err(|source| StartError::File {
            what: "read",
            path: path.clone(),
            source,
        })
    };
    let authority = Authority::from_pem(&read(&chain)?, &read(&key)?)?;
    let root = folder.join("root.pem");
    std::fs::create_dir_all(&folder)
        .and_then(|()| std::fs::write(&root, authority.root_pem()))
        .map_err(|source| StartError::File { what: "write", path: root, source })?;
    Ok(authority)
}
