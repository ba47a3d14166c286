//! ztunnel, the layer-4 proxy of a node: captured connections in, tunnels out, and back.
//!
//! Two kinds of threads. The main thread follows the agent and control, renews certificates and answers
//! the admin server; it touches no connection. The workers carry connections, and wait for nobody but
//! their sockets.
#![deny(unsafe_code)]

mod admin;
mod config;
mod dns;
mod failure;
mod fd;
mod foreign;
mod handover;
mod inbound;
mod live;
mod memory;
mod metrics;
mod outbound;
mod pods;
mod rejudge;
#[cfg(test)]
mod ring;
mod seqpacket;
mod shared;
mod sockets;
mod splice;
mod takeover;
mod vouch;
mod worker;
mod zds;

use std::{net::Ipv4Addr, process::ExitCode, sync::Arc, time::Duration};

use identity::{Store, StoreOptions};
use runtime::{
    admin::{Handlers, Servers},
    drain,
    logging::Logging,
    readiness::Readiness,
    record::Records,
};

use crate::{
    config::Args,
    pods::{Directory, Manager},
    shared::Shared,
    worker::Workers,
};

/// What the certificates are asked for; the authority may give less.
const CERTIFICATE_VALIDITY: Duration = Duration::from_secs(24 * 3600);

/// How often empty slots are looked for.
const WATCH_SLOTS_EVERY: Duration = Duration::from_millis(500);

/// How often the file of extra roots is looked at.
const WATCH_ROOTS_EVERY: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    memory::keep_freed();
    let args: Args = runtime::config::resolve_checked(Args::check);
    let common = args.proxy.common.clone();
    runtime::proxy::run("ztunnel", &common, async move |logging| run(args, logging).await)
}

async fn run(args: Args, logging: &Logging) -> anyhow::Result<()> {
    let metrics = runtime::metrics::Metrics::new("ztunnel");
    logging.register(&metrics);
    let readiness = Readiness::new();
    let state = readiness.task("mesh", "the first complete state of workloads and policies from control");
    let pods = readiness.task("pods", "the agent's list of pods");
    let handlers = Handlers::new();
    let servers = Servers::bind(
        "ztunnel",
        args.proxy.common.addresses(),
        metrics.clone(),
        readiness.clone(),
        logging.levels(),
        handlers.clone(),
    )
    .await?;
    let (ending, ending_watch) = drain::channel();
    servers.spawn(ending_watch);

    let (tunnels, tunnels_watch) = drain::channel();
    let shared = shared(&args, logging, &metrics, tunnels_watch)?;
    let imported = handover::take(&args.handover_socket, &shared.store).await;
    tokio::spawn(handover::keep(args.handover_socket.clone(), shared.store.clone()));
    if let Some(path) = args.extra_roots.clone() {
        tokio::spawn(follow_roots(path, shared.store.clone()));
    }
    let workers =
        Workers::start(args.proxy.worker_count(worker::available_cores()), args.bind_workers, &shared)?;
    admin::register(&handlers, &shared, &workers);
    tracing::info!(
        version = runtime::VERSION, node = %args.proxy.node, control = %args.proxy.control, workers = workers.count(),
        certificates_taken_over = imported, "ztunnel begins"
    );

    tokio::spawn(xds::run(xds_options(&args), shared.mesh.clone()));
    tokio::spawn(follow_mesh(shared.clone(), state));
    tokio::spawn(pods::watch_slots(shared.clone(), WATCH_SLOTS_EVERY));
    let mut manager = Manager::new(shared.clone(), workers.clone(), args.pins.clone(), pods);
    let zds_socket = args.zds_socket.clone();
    tokio::spawn(async move { zds::run(&zds_socket, &mut manager).await });

    let signal = drain::termination().await?;
    tracing::info!(signal, "told to end");
    ending.start();
    handover::give(&args.handover_socket, &shared.store).await;
    takeover::end(&shared, &workers, tunnels, args.proxy.drain_deadline).await;
    Ok(())
}

fn shared(
    args: &Args,
    logging: &Logging,
    metrics: &Arc<runtime::metrics::Metrics>,
    tunnels: drain::Watch,
) -> anyhow::Result<Arc<Shared>> {
    let issuer = xds::CaClient::new(control(args), &*args.proxy.cluster, CERTIFICATE_VALIDITY);
    let options = StoreOptions {
        trust_domains: args.proxy.trust_domains(),
        patience: args.proxy.patience,
        ..StoreOptions::default()
    };
    let store = Store::new(Arc::new(issuer), options);
    if let Some(path) = &args.extra_roots {
        store.set_roots(&std::fs::read_to_string(path)?)?;
    }
    let tally = Arc::default();
    Ok(Arc::new(Shared {
        settings: args.settings(),
        mesh: xds::Mesh::new(),
        store,
        assertions: identity::assertion::Assertions::default(),
        pods: Directory::default(),
        metrics: metrics::Metrics::new(metrics, &tally),
        tally,
        records: Records::new(metrics, args.proxy.access_log(logging), runtime::record::Options::default()),
        drain: tunnels,
        carried: Arc::default(),
    }))
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
            name: args.pod_name.clone().unwrap_or_else(|| format!("ztunnel-{}", args.proxy.node)),
            namespace: args.pod_namespace.clone(),
            address: Ipv4Addr::LOCALHOST.into(),
        },
        cluster: args.proxy.cluster.clone(),
        trust_domain: args.proxy.trust_domain.clone(),
        routes: false,
    }
}

/// Tells readiness and metrics of the mesh.
async fn follow_mesh(shared: Arc<Shared>, state: runtime::readiness::Task) {
    let mut changes = shared.mesh.subscribe();
    loop {
        {
            let snapshot = changes.borrow_and_update();
            if snapshot.is_complete() {
                state.ready();
            }
            let generation = i64::try_from(snapshot.policy_generation()).unwrap_or(i64::MAX);
            shared.metrics.policy_generation.set(generation);
        }
        if changes.changed().await.is_err() {
            return;
        }
    }
}

/// Reads the extra roots again when the file has changed; a bad file changes nothing.
async fn follow_roots(path: std::path::PathBuf, store: Arc<Store>) {
    let mut known = tokio::fs::read_to_string(&path).await.unwrap_or_default();
    loop {
        tokio::time::sleep(WATCH_ROOTS_EVERY).await;
        let Ok(pem) = tokio::fs::read_to_string(&path).await else { continue };
        if pem == known {
            continue;
        }
        match store.set_roots(&pem) {
            Ok(()) => tracing::info!(path = %path.display(), "trusting the changed roots"),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "the changed roots are of no use; the old ones stay")
            }
        }
        known = pem;
    }
}
