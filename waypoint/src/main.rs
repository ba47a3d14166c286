//! The waypoint: what is called through it is routed by its HTTP content (Gateway API), and carried on in the
//! caller's name.
//!
//! ```text
//! ztunnel ──HBONE──▶ door ─▶ arrival ─▶ detect ─┬─▶ http ─▶ request: who, may he, match, filter, pick, send, retry
//!                                               └─▶ tcp                                         │
//!                                          destination's ztunnel ◀──HBONE, the assertion──  upstream
//! ```
//! Two kinds of threads, as in ztunnel: the main thread follows control, renews the certificate and answers the admin
//! server; the workers carry connections, and wait for nobody but their sockets.
#![forbid(unsafe_code)]

mod admin;
mod arrival;
mod authenticate;
mod authorize;
mod body;
mod config;
mod detect;
mod door;
mod head;
mod http;
mod lent;
mod limits;
mod memory;
mod metrics;
mod request;
mod shared;
mod tcp;
mod trace;
mod upstream;
mod vault;
mod worker;

use std::{process::ExitCode, sync::Arc, time::Duration};

use identity::{Identity, Store, StoreOptions};
use runtime::{
    admin::{Handlers, Servers},
    drain,
    logging::Logging,
    readiness::Readiness,
    record::{Records, Requests},
};

use crate::{
    config::Args,
    shared::Shared,
    trace::{
        Tracer,
        export::{self, Exporter},
    },
    worker::Workers,
};

/// What the certificate is asked for; the authority may give less.
const CERTIFICATE_VALIDITY: Duration = Duration::from_secs(24 * 3600);

fn main() -> ExitCode {
    let args: Args = runtime::config::resolve_checked(Args::check);
    let common = args.proxy.common.clone();
    runtime::proxy::run("waypoint", &common, async move |logging| run(args, logging).await)
}

async fn run(args: Args, logging: &Logging) -> anyhow::Result<()> {
    let metrics = runtime::metrics::Metrics::new("waypoint");
    logging.register(&metrics);
    let readiness = Readiness::new();
    let state =
        readiness.task("mesh", "the first complete state of workloads, policies and routes from control");
    let certificate = readiness.task("certificate", "this waypoint's certificate");
    let handlers = Handlers::new();
    let servers = Servers::bind(
        "waypoint",
        args.proxy.common.addresses(),
        metrics.clone(),
        readiness.clone(),
        logging.levels(),
        handlers.clone(),
    )
    .await?;
    let (ending, ending_watch) = drain::channel();
    servers.spawn(ending_watch);

    let (drain, drain_watch) = drain::channel();
    let peers = Arc::<hbone::client::Peers>::default();
    let own_metrics = Arc::new(metrics::Metrics::new(&metrics, peers.tally()));
    let (tracer, exporter) = tracer(&args, &own_metrics)?.unzip();
    let shared = shared(&args, logging, &metrics, own_metrics, peers, tracer, drain_watch);
    let listener = worker::listen(args.listen)?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let workers = Workers::start(args.proxy.worker_count(cores), &shared)?;
    admin::register(&handlers, &shared, &workers);
    tracing::info!(
        version = runtime::VERSION, identity = %shared.settings.identity, control = %args.proxy.control,
        listen = %args.listen, workers = workers.count(), "waypoint begins"
    );
    tokio::spawn(xds::run(xds_options(&args), shared.mesh.clone()));
    tokio::spawn(follow_mesh(shared.clone(), state));
    tokio::spawn(first_certificate(shared.clone(), certificate));
    tokio::spawn(worker::accept(listener, workers.clone(), shared.clone()));

    let signal = drain::termination().await?;
    tracing::info!(signal, "told to end");
    // Not ready from here on: nobody new is sent here, once that is known everywhere. Who is here then is told to go
    // elsewhere, and served to the end.
    ending.start();
    tokio::time::sleep(args.linger).await;
    drain.start();
    if tokio::time::timeout(args.proxy.drain_deadline, drain.finished()).await.is_err() {
        tracing::warn!(connections = drain.holds(), "the time to end is over; what is left is cut");
    }
    if let Some(exporter) = exporter {
        exporter.finish().await;
    }
    Ok(())
}

/// Who records traces, and who sends them, where there is a collector.
fn tracer(args: &Args, metrics: &Arc<metrics::Metrics>) -> anyhow::Result<Option<(Arc<Tracer>, Exporter)>> {
    let Some(uri) = &args.otlp_endpoint else { return Ok(None) };
    let endpoint = export::endpoint(uri, args.otlp_ca.as_deref()).map_err(anyhow::Error::msg)?;
    let (exporter, recorder) = Exporter::start(&endpoint, &args.reporter(), metrics.clone());
    tracing::info!(collector = %uri, sampling = %args.trace_sampling, "spans are sent");
    Ok(Some((Arc::new(Tracer { sampling: args.trace_sampling, recorder }), exporter)))
}

fn shared(
    args: &Args,
    logging: &Logging,
    metrics: &Arc<runtime::metrics::Metrics>,
    own_metrics: Arc<metrics::Metrics>,
    peers: Arc<hbone::client::Peers>,
    tracer: Option<Arc<Tracer>>,
    drain: drain::Watch,
) -> Arc<Shared> {
    let access_log = || args.proxy.access_log(logging);
    let options = StoreOptions {
        trust_domains: args.proxy.trust_domains(),
        patience: args.proxy.patience,
        ..StoreOptions::default()
    };
    let issuer = xds::CaClient::new(control(args), &*args.proxy.cluster, CERTIFICATE_VALIDITY);
    let store = Store::new(Arc::new(issuer), options);
    let settings = args.settings();
    store.hold(&settings.identity);
    Arc::new(Shared {
        limits: limits::Limits::new(settings.max_connections, settings.max_connections_per_source),
        settings,
        mesh: xds::Mesh::new(),
        store,
        vault: vault::Vault::default(),
        peers,
        metrics: own_metrics,
        records: Records::new(metrics, access_log(), runtime::record::Options::default()),
        requests: Requests::new(metrics, access_log(), runtime::record::Options::default()),
        tracer,
        drain,
    })
}

fn control(args: &Args) -> xds::Control {
    xds::Control {
        uri: args.proxy.control.clone(),
        ca: args.proxy.control_ca.clone(),
        token: args.proxy.token_file.clone(),
        server_name: args.proxy.control_name.clone(),
    }
}

fn xds_options(args: &Args) -> xds::Options {
    xds::Options {
        control: control(args),
        proxy: xds::Proxy {
            node: args.proxy.node.clone(),
            name: args.name.clone(),
            namespace: args.namespace.clone(),
            address: args.listen.ip(),
        },
        cluster: args.proxy.cluster.clone(),
        trust_domain: args.proxy.trust_domain.clone(),
        routes: true,
    }
}

/// Tells readiness of the mesh.
async fn follow_mesh(shared: Arc<Shared>, state: runtime::readiness::Task) {
    let mut changes = shared.mesh.subscribe();
    // The sender lives as long as `shared`.
    if changes.wait_for(|snapshot| snapshot.is_complete() && snapshot.has_routes()).await.is_ok() {
        state.ready();
    }
}

/// Without a certificate nobody can be answered.
async fn first_certificate(shared: Arc<Shared>, ready: runtime::readiness::Task) {
    let identity: &Identity = &shared.settings.identity;
    while let Err(error) = shared.store.certified(identity).await {
        tracing::warn!(%error, "no certificate yet; trying again");
    }
    ready.ready();
}
