//! `control`: the control plane's program. Flags in, one running [`control::program::Control`] out.
#![deny(unsafe_code)]

mod memory;

use std::{
    net::SocketAddr,
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
    time::{Duration, SystemTime},
};

use clap::{Parser, Subcommand};
use control::{
    compile::Options,
    keys,
    kubernetes::{self, Account},
    metrics::Metrics,
    program::{Control, Settings, Source},
    status, tokens,
};
use ipnet::IpNet;
use runtime::{
    admin::{Handlers, Servers},
    config::{Common, Problems, values},
    drain, logging,
    readiness::Readiness,
};

/// The control plane: follows a Kubernetes cluster or a folder of Kubernetes manifests, tells every node what
/// the mesh looks like, and signs certificates.
#[derive(Debug, Parser)]
#[command(name = "control", version, args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
struct Args {
    #[command(subcommand)]
    command: Option<Command>,

    #[command(flatten)]
    common: Common,

    /// Folder of manifests (*.yaml, *.yml, with sub-folders), followed live. Either this or --kubernetes
    #[arg(long, value_name = "DIR")]
    manifests: Option<PathBuf>,

    /// Folder of control's own state: ca/root.pem (for clients to trust), the keys, and tokens/NODE. Needed
    /// with --manifests; on Kubernetes control's state is in the cluster
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,

    /// Address that nodes connect to
    #[arg(long, value_name = "ADDR", default_value = "[::]:15010")]
    listen: SocketAddr,

    /// Further DNS name or address of control's certificate; may be repeated. It always names `control`,
    /// `localhost` and the address that a client has dialled
    #[arg(long, value_name = "NAME")]
    san: Vec<String>,

    /// Longest life of a workload's certificate
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = values::duration)]
    certificate_lifetime: Duration,

    /// Certificate authority from elsewhere, PEM from its certificate up to the root; without it control
    /// makes a root of its own on first start
    #[arg(long, value_name = "FILE", requires = "ca_key")]
    ca_cert: Option<PathBuf>,

    /// Key of --ca-cert, PKCS#8 PEM
    #[arg(long, value_name = "FILE", requires = "ca_cert")]
    ca_key: Option<PathBuf>,

    /// Further roots of the servers that keys of tokens (JWKS) are fetched from, PEM
    #[arg(long, value_name = "FILE")]
    jwks_ca: Option<PathBuf>,

    /// Addresses that are control's own, of Services that lead to it, link-local or those of clouds' metadata, in CIDR
    /// notation, and that keys of tokens may be fetched from all the same; may be repeated
    #[arg(long, value_name = "CIDR")]
    jwks_allow: Vec<IpNet>,

    /// How old keys of tokens become before they are fetched again
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = values::duration)]
    jwks_refresh: Duration,

    #[command(flatten)]
    cluster: ClusterArgs,

    #[command(flatten)]
    mesh: MeshArgs,
}

/// How control works on Kubernetes.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Kubernetes")]
struct ClusterArgs {
    /// Follow the Kubernetes API server: the cluster that control runs in, or that of --kubeconfig
    #[arg(long)]
    kubernetes: bool,

    /// How to reach the API server from elsewhere; without it KUBECONFIG, else what a pod is told
    #[arg(long, value_name = "FILE", requires = "kubernetes")]
    kubeconfig: Option<PathBuf>,

    /// Context of the kubeconfig
    #[arg(long, value_name = "NAME", requires = "kubernetes")]
    context: Option<String>,

    /// Control's own namespace: its Secrets, ConfigMap and Lease are there. By default that of its pod, else
    /// culvert-system
    #[arg(long, value_name = "NAME", requires = "kubernetes")]
    namespace: Option<String>,

    /// Audience that nodes' tokens must be for; may be repeated. By default istio-ca
    #[arg(long, value_name = "NAME", requires = "kubernetes")]
    audience: Vec<String>,

    /// Service account that may speak for the nodes of its pods; may be repeated. By default agent and ztunnel
    /// of control's own namespace
    #[arg(long, value_name = "NAMESPACE/NAME", requires = "kubernetes")]
    node_service_account: Vec<Account>,

    #[command(flatten)]
    waypoints: WaypointArgs,
}

/// How control deploys waypoints, one for each Gateway of class culvert-waypoint.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Waypoints")]
struct WaypointArgs {
    /// Image of waypoints; without it none is deployed
    #[arg(long, value_name = "NAME", requires = "kubernetes")]
    waypoint_image: Option<String>,

    /// When nodes pull it; without it by the cluster's own rule
    #[arg(long, value_name = "POLICY", requires = "waypoint_image", value_parser = ["Always", "IfNotPresent", "Never"])]
    waypoint_pull_policy: Option<String>,

    /// Secret with which it is pulled, in each Gateway's own namespace; may be repeated
    #[arg(long, value_name = "NAME", requires = "waypoint_image")]
    waypoint_pull_secret: Vec<String>,

    /// Resources of a waypoint's container, as Kubernetes has them
    #[arg(long, value_name = "JSON", default_value = "{}", value_parser = json_object, requires = "waypoint_image")]
    waypoint_resources: serde_json::Value,

    /// Whether a Prometheus is to find waypoints by their annotations
    #[arg(long, requires = "waypoint_image")]
    waypoint_scrape: bool,

    /// Further flag of waypoints; may be repeated
    #[arg(long, value_name = "--FLAG=VALUE", requires = "waypoint_image", allow_hyphen_values = true)]
    waypoint_arg: Vec<String>,
}

fn json_object(text: &str) -> Result<serde_json::Value, String> {
    match serde_json::from_str(text) {
        Ok(value @ serde_json::Value::Object(_)) => Ok(value),
        Ok(_) => Err("write an object, such as {\"requests\": {\"cpu\": \"100m\"}}".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// What holds for the whole mesh.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Mesh")]
struct MeshArgs {
    /// Trust domain of every identity
    #[arg(long, value_name = "NAME", default_value = "cluster.local", value_parser = mesh::identity::trust_domain)]
    trust_domain: String,

    /// Name of the cluster
    #[arg(long, value_name = "NAME", default_value = "Kubernetes")]
    cluster: String,

    /// Network of pods that name none
    #[arg(long, value_name = "NAME", default_value = "")]
    network: String,

    /// Policies without selector in this namespace are for the whole mesh
    #[arg(long, value_name = "NAME", default_value = "istio-system")]
    root_namespace: String,

    /// Suffix of service host names
    #[arg(long, value_name = "NAME", default_value = "cluster.local", value_parser = mesh::identity::cluster_domain)]
    cluster_domain: String,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Reads a folder of manifests, says what would be refused and why, and exits with 1 if anything is
    Check {
        /// Folder of manifests
        #[arg(long, value_name = "DIR")]
        manifests: PathBuf,

        #[command(flatten)]
        mesh: MeshArgs,
    },
    /// Prints a token with which a node proves itself; a Node object of that name must exist for it to be
    /// accepted
    Token {
        /// Control's state folder
        #[arg(long, value_name = "DIR")]
        state: PathBuf,

        /// Name of the node
        #[arg(long, value_name = "NAME")]
        node: String,

        /// How long it is good for
        #[arg(long, value_name = "TIME", default_value = "24h", value_parser = values::duration)]
        lifetime: Duration,
    },
}

fn main() -> ExitCode {
    let args: Args = runtime::config::resolve_checked(check_source);
    let outcome = match &args.command {
        Some(Command::Check { manifests, mesh }) => return check(manifests, mesh),
        Some(Command::Token { state, node, lifetime }) => token(state, node, *lifetime),
        None => run(args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("control: {error}");
            ExitCode::FAILURE
        }
    }
}

/// There is exactly one source of objects.
fn check_source(args: &Args, problems: &mut Problems) {
    if args.command.is_some() {
        return;
    }
    let place = "--manifests, --kubernetes";
    match (&args.manifests, args.cluster.kubernetes) {
        (Some(_), false) if args.state.is_none() => {
            problems.add("--state", None, "needed with --manifests: a folder for control's keys and tokens");
        }
        (Some(_), true) => problems.add(
            place,
            None,
            "both are given; give exactly one: --manifests DIR for a folder, --kubernetes for a cluster",
        ),
        (None, false) => problems.add(
            place,
            None,
            "neither is given; give exactly one: --manifests DIR for a folder, --kubernetes for a cluster",
        ),
        (Some(_), false) | (None, true) => {}
    }
}

fn check(manifests: &std::path::Path, mesh: &MeshArgs) -> ExitCode {
    if let Err(error) = std::fs::read_dir(manifests) {
        eprintln!("control: {} cannot be listed: {error}", manifests.display());
        return ExitCode::from(2);
    }
    let checked = status::check(manifests, &mesh.options());
    print!("{}", checked.text);
    if checked.refused == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn token(state: &std::path::Path, node: &str, lifetime: Duration) -> anyhow::Result<()> {
    tokens::check_node(node)?;
    let tokens = tokens::Tokens::load_or_create(state)?;
    println!("{}", tokens.make(node, SystemTime::now() + lifetime));
    Ok(())
}

fn run(args: Args) -> anyhow::Result<()> {
    // The client's own complaints are ours over again, and louder. Who names it gets to see them.
    let levels = format!("kube_client=off,{}", args.common.log_level);
    let logging = logging::init(args.common.log_format, &levels)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let outcome = runtime.block_on(serve(args, &logging));
    logging.flush();
    outcome
}

async fn serve(args: Args, logging: &logging::Logging) -> anyhow::Result<()> {
    let registry = runtime::metrics::Metrics::new("control");
    logging.register(&registry);
    let metrics = Arc::new(Metrics::default());
    registry.under("culvert_control", |registry| {
        metrics.register(registry);
        if args.cluster.kubernetes {
            metrics.register_kubernetes(registry);
        }
    });
    let readiness = Readiness::new();
    let first = if args.cluster.kubernetes { "the API server" } else { "the first state of the folder" };
    let published = readiness.task("mesh", first);
    let handlers = Handlers::new();
    let servers = Servers::bind(
        "control",
        args.common.addresses(),
        registry,
        readiness,
        logging.levels(),
        handlers.clone(),
    )
    .await?;
    let (ending, watch) = drain::channel();
    servers.spawn(watch);

    let end = async {
        match drain::termination().await {
            Ok(signal) => tracing::info!(signal, "told to end"),
            Err(error) => tracing::error!("signals cannot be waited for: {error}"),
        }
        ending.start();
    };
    let serving = async {
        let waiting = |what| published.not_ready(what);
        let control = Control::start(args.settings()?, metrics.clone(), waiting).await?;
        status::register(&handlers, &control);
        tokio::spawn(observe(control.clients.clone(), control.nodes.clone(), metrics));
        tracing::info!(version = runtime::VERSION, listen = %control.address, "control begins");
        control.run(|| published.ready(), std::future::pending()).await?;
        Ok(())
    };
    tokio::select! {
        served = serving => served,
        // Streams are open for ever: they are cut, and their clients keep what they have.
        () = end => Ok(()),
    }
}

/// Counts what comes and goes.
async fn observe(
    clients: Arc<control::publish::Clients>,
    nodes: Arc<control::nodes::Nodes>,
    metrics: Arc<Metrics>,
) {
    loop {
        metrics.observe(clients.count(), nodes.connected());
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

impl Args {
    fn settings(&self) -> anyhow::Result<Settings> {
        let source = match (&self.manifests, &self.state) {
            (Some(manifests), Some(state)) => {
                Source::Folder { manifests: manifests.clone(), state: state.clone() }
            }
            (None, _) => Source::Kubernetes(self.cluster.settings()),
            (Some(_), None) => anyhow::bail!("--state is missing"),
        };
        Ok(Settings {
            source,
            listen: self.listen,
            names: self.san.clone(),
            mesh: self.mesh.options(),
            certificate_lifetime: self.certificate_lifetime,
            authority: self.ca_cert.clone().zip(self.ca_key.clone()),
            keys: keys::Settings {
                roots: self.jwks_ca.clone(),
                allow: self.jwks_allow.clone(),
                refresh: self.jwks_refresh.max(Duration::from_secs(1)),
            },
        })
    }
}

impl ClusterArgs {
    fn settings(&self) -> kubernetes::Settings {
        kubernetes::Settings {
            connection: kubernetes::Connection::Configured {
                kubeconfig: self.kubeconfig.clone(),
                context: self.context.clone(),
            },
            namespace: self.namespace.clone(),
            audiences: self.audience.clone(),
            node_accounts: self.node_service_account.clone(),
            waypoints: self.waypoints.pods().map(Arc::new),
        }
    }
}

impl WaypointArgs {
    fn pods(&self) -> Option<kubernetes::WaypointPods> {
        Some(kubernetes::WaypointPods {
            image: self.waypoint_image.clone()?,
            pull_policy: self.waypoint_pull_policy.clone(),
            pull_secrets: self.waypoint_pull_secret.clone(),
            resources: self.waypoint_resources.clone(),
            arguments: self.waypoint_arg.clone(),
            scrape: self.waypoint_scrape,
        })
    }
}

impl MeshArgs {
    fn options(&self) -> Options {
        Options {
            trust_domain: self.trust_domain.as_str().into(),
            cluster_id: self.cluster.as_str().into(),
            network: self.network.as_str().into(),
            root_namespace: self.root_namespace.as_str().into(),
            cluster_domain: self.cluster_domain.as_str().into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn domains_that_no_certificate_can_bear_are_refused_at_the_start() {
        let with = |flag: &str, value: &str| Args::try_parse_from(["control", "--kubernetes", flag, value]);
        assert!(with("--trust-domain", "prod_1.example").is_ok());
        assert!(with("--cluster-domain", "k8s.example").is_ok());
        for (flag, bad) in
            [("--trust-domain", "Foo Bar"), ("--trust-domain", ""), ("--cluster-domain", "a_b")]
        {
            let refused = with(flag, bad).unwrap_err().to_string();
            assert!(refused.contains(flag) && refused.contains("such as cluster.local"), "{refused}");
        }
    }
}
