//! `agent`: owns a node. It enrolls pods, loads and pins the kernel programs, hands the pods to
//! ztunnel and reports to control. It carries no traffic and holds no key in the clear: when it is
//! away, what it set up serves on.
//!
//! ```text
//!            control ◀── report ──▶ enroll ──▶ capture (kernel programs, pinned)
//!                                     │
//!                                  broker ──▶ ztunnel(s), over ZDS
//!                                handover ◀─▶ ztunnel → the next ztunnel
//! ```

mod args;
mod bpffs;
mod broker;
mod checks;
mod enroll;
mod handover;
mod kubelet;
mod metrics;
mod netns;
mod plugin;
mod report;
mod seqpacket;
mod splice;
mod state;

use std::{process::ExitCode, sync::Arc, time::Duration};

use anyhow::Context;
use capture::NodeOptions;
use runtime::{
    admin::{Handlers, Servers},
    config::Common,
    drain, logging,
    readiness::Readiness,
};
use serde_json::json;
use tokio::sync::{mpsc, oneshot};

use crate::{
    args::{Arguments, Command, MountBpffs, Serve, Uninstall},
    broker::Broker,
    enroll::{Enroller, Input},
    metrics::Metrics,
    report::Control,
    seqpacket::Listener,
    state::State,
};

/// Steps under way when the agent is told to end have this long.
const STOP_PATIENCE: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    let arguments: Arguments = runtime::config::resolve_checked(args::check);
    let done = match (arguments.command, arguments.serve) {
        (Some(Command::Uninstall(uninstall)), _) => self::uninstall(&uninstall),
        (Some(Command::MountBpffs(mount)), _) => mount_bpffs(&mount),
        (None, Some(serve)) => self::serve(serve, arguments.common),
        (None, None) => Err(anyhow::anyhow!("there is nothing to do; see agent --help")),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn serve(args: Serve, common: Common) -> anyhow::Result<()> {
    let logging = logging::init(common.log_format, &common.log_level)?;
    let registry = runtime::metrics::Metrics::new("agent");
    logging.register(&registry);
    let metrics = Arc::new(Metrics::new(&registry));
    let readiness = Readiness::new();
    let wanted = readiness.task("pods", "the first word of control on what is wanted");
    let handlers = Handlers::new();
    let (drain, watch) = drain::channel();

    // The admin first: while the kernel programs are being loaded, it can be asked how things stand.
    let kernel = readiness.task("capture", "the kernel programs");
    let addresses = common.addresses();
    let servers =
        Servers::bind("agent", addresses, registry, readiness, logging.levels(), handlers.clone()).await?;
    servers.spawn(watch);

    let state = State::open(&args.state)?;
    let zds = Listener::bind(&args.zds_socket)?;
    let handover = Listener::bind(&args.handover_socket)?;
    let plugin = plugin_options(&args)?;
    let desk = plugin.as_ref().map(|plugin| plugin::Listener::bind(&plugin.socket)).transpose()?;
    let namespaces = plugin::namespaces(&args.state);
    let (inputs, received) = mpsc::unbounded_channel();
    let broker = Broker::new(holdings(&inputs), metrics.ztunnels.clone());
    let options = enroll::Options {
        capture: NodeOptions {
            pins: args.pins.clone(),
            cgroup: args.cgroup.clone(),
            kernel_log: args.kernel_log,
            foreign: args.foreign_ztunnel,
        },
        splice: args.splice.then(|| splice::Options { cgroup: args.splice_cgroup.clone() }),
        probe_every: args.probe_every,
        earlier: args.earlier_connections,
        host_proc: args.host_proc.clone(),
    };
    let enroller = Enroller::open(options, state, broker.clone(), metrics.clone(), inputs.clone());
    let enroller = enroller.await.map_err(|error| {
        anyhow::anyhow!("the capture of this node cannot be set up: {}", enroll::told(&error))
    })?;
    kernel.ready();
    if args.foreign_ztunnel {
        tracing::warn!(
            "captured for a foreign ztunnel: a pod with NET_ADMIN can forge its mark and pass by, see --help"
        );
    }
    register(&handlers, &args, &inputs);
    let looked = checks::Looked {
        node: args.node.clone(),
        pins: args.pins.clone(),
        cgroup: args.cgroup.clone(),
        plugin: plugin.clone().map(|plugin| (plugin, namespaces.clone())),
        kubelet: args.kubelet_probes.then(|| metrics.kubelet.clone()),
        control: metrics.control.clone(),
        ztunnels: metrics.ztunnels.clone(),
    };
    handlers.add("/checks", "what the agent finds on its node, each with what to do about it", move |_| {
        let found = looked.json();
        async move { Ok(found) }
    });

    tokio::spawn(broker.serve(zds));
    tokio::spawn(handover::serve(handover));
    let control = Control {
        node: args.node.clone(),
        uri: args.control.clone(),
        ca: args.control_ca.clone(),
        token: args.token_file.clone(),
    };
    let reports = enroller.reports();
    if args.kubelet_probes {
        let known = metrics.kubelet.clone();
        tokio::spawn(kubelet::follow(args.host_proc.clone(), known, enroller.kubelet()));
    } else {
        // An agent before this one may have told.
        enroller.kubelet()(None).context("the kernel programs cannot be told that no probes pass")?;
    }
    let heard = directives(&inputs, plugin.is_some().then(|| namespaces.clone()));
    tokio::spawn(report::run(control, reports, heard, metrics.control.clone()));
    let installed = plugin.clone().zip(desk).map(|(plugin, listener)| {
        let desk = plugin::Desk {
            inputs: inputs.clone(),
            standings: enroller.standings(),
            namespaces: namespaces.clone(),
            exempt: plugin.exempt.clone(),
            proc: args.host_proc.clone(),
            control: metrics.control.clone(),
            metrics: metrics.clone(),
        };
        tokio::spawn(desk.serve(listener));
        let namespaces = namespaces.clone();
        tokio::spawn(async move {
            let kept = plugin.keep(&namespaces).await;
            kept.inspect_err(|error| tracing::error!(%error, "the CNI plugin cannot be kept installed"))
        })
    });
    tokio::spawn(enroller.run(received, move || wanted.ready()));
    tracing::info!(node = args.node, pins = %args.pins.display(), "the agent runs");

    let signal = drain::termination().await.context("signals cannot be waited for")?;
    tracing::info!(signal, "the agent ends; what it captured stays captured");
    drain.start();
    let (done, stopped) = oneshot::channel();
    let _ = inputs.send(Input::Stop(done));
    // The sender is dropped when the last step is over.
    let _ = tokio::time::timeout(STOP_PATIENCE, stopped).await;
    // Before anything is removed: nobody is to put it back.
    if let Some(installed) = installed {
        installed.abort();
        drop(installed.await);
    }
    if args.leave_nothing && plugin.is_some() && namespaces.any_in_the_mesh() {
        tracing::info!("namespaces are in the mesh: all stays, and their pods wait for the next agent");
    } else if args.leave_nothing {
        match bpffs::leave_nothing(&args.pins, &args.state) {
            Ok(true) => {
                tracing::info!("no pod is captured: nothing is left on this node");
                if let Some(plugin) = &plugin {
                    leave_no_plugin(plugin, &args.state);
                }
            }
            Ok(false) => tracing::info!("pods are captured: all stays for the next agent"),
            Err(error) => tracing::warn!(%error, "what is left on this node cannot be removed"),
        }
    }
    Ok(())
}

/// How the CNI plugin is to be set up, if it is.
fn plugin_options(args: &Serve) -> anyhow::Result<Option<plugin::Options>> {
    if !args.cni {
        return Ok(None);
    }
    let program = match &args.cni_plugin {
        Some(program) => program.clone(),
        None => std::env::current_exe().context("the agent's own program")?.with_file_name(cni::PLUGIN),
    };
    let install = plugin::Install { bin_dir: args.cni_bin_dir.clone(), conf_dir: args.cni_conf_dir.clone() };
    let (socket, exempt) = (args.cni_socket.clone(), args.cni_exempt.clone());
    Ok(Some(plugin::Options { socket, install, program, exempt }))
}

fn leave_no_plugin(plugin: &plugin::Options, state: &std::path::Path) {
    match plugin::remove(&plugin.install, &plugin.socket, state) {
        Ok(removed) => tracing::info!(?removed, "the CNI plugin is removed"),
        Err(error) => tracing::warn!(%error, "the CNI plugin cannot be removed: run `agent uninstall` here"),
    }
}

fn mount_bpffs(args: &MountBpffs) -> anyhow::Result<()> {
    let had_to = bpffs::ensure(&args.at)?;
    let at = args.at.display();
    println!("{}", if had_to { format!("mounted a bpffs at {at}") } else { format!("{at} is a bpffs") });
    Ok(())
}

/// What the admin server can be asked.
fn register(handlers: &Handlers, args: &Serve, inputs: &mpsc::UnboundedSender<Input>) {
    let pods = inputs.clone();
    handlers.add("/pods", "the pods of this node, how they stand, and the connected ztunnels", move |_| {
        let inputs = pods.clone();
        async move {
            let (reply, answer) = oneshot::channel();
            let _ = inputs.send(Input::Dump(reply));
            answer.await.map_err(|_| "the agent is ending".to_owned())
        }
    });
    let config = json!({
        "node": args.node,
        "control": args.control,
        "control_ca": args.control_ca,
        "token_file": args.token_file,
        "pins": args.pins,
        "host_proc": args.host_proc,
        "kubelet_probes": args.kubelet_probes,
        "cgroup": args.cgroup,
        "splice": args.splice,
        "splice_cgroup": args.splice_cgroup,
        "foreign_ztunnel": args.foreign_ztunnel,
        "probe_every_ms": u64::try_from(args.probe_every.as_millis()).unwrap_or(u64::MAX),
        "earlier_connections_s": args.earlier_connections.map(|limit| limit.as_secs()),
        "kernel_log": args.kernel_log,
        "cni": args.cni,
        "cni_exempt": args.cni_exempt,
        "zds_socket": args.zds_socket,
        "handover_socket": args.handover_socket,
        "state": args.state,
    });
    handlers.add("/config_dump", "the agent's configuration", move |_| {
        let config = config.clone();
        async move { Ok(config) }
    });
}

/// Turns who holds a pod into inputs.
fn holdings(inputs: &mpsc::UnboundedSender<Input>) -> mpsc::UnboundedSender<broker::Holding> {
    let (sender, mut receiver) = mpsc::unbounded_channel();
    let inputs = inputs.clone();
    tokio::spawn(async move {
        while let Some(holding) = receiver.recv().await {
            let _ = inputs.send(Input::Holding(holding));
        }
    });
    sender
}

/// Turns directives into inputs, and what they say of namespaces into knowledge.
fn directives(
    inputs: &mpsc::UnboundedSender<Input>,
    namespaces: Option<Arc<plugin::Namespaces>>,
) -> mpsc::Sender<proto::node::NodeDirective> {
    let (sender, mut receiver) = mpsc::channel::<proto::node::NodeDirective>(4);
    let inputs = inputs.clone();
    tokio::spawn(async move {
        while let Some(directive) = receiver.recv().await {
            if let Some(namespaces) = &namespaces {
                namespaces.directed(&directive);
            }
            let _ = inputs.send(Input::Directive(state::wanted(directive.pods)));
        }
    });
    sender
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn uninstall(args: &Uninstall) -> anyhow::Result<()> {
    let _logging = logging::init(logging::Format::Text, "warn")?;
    let state = State::open(&args.state)?;
    // First: pods start without the mesh again.
    let install = plugin::Install { bin_dir: args.cni_bin_dir.clone(), conf_dir: args.cni_conf_dir.clone() };
    for removed in plugin::remove(&install, &args.cni_socket, &args.state)? {
        println!("removed the CNI plugin from {}", removed.display());
    }
    let shown = args.pins.display();
    let in_bpffs = match bpffs::is_there(&args.pins) {
        Err(nix::errno::Errno::ENOENT) => {
            println!("nothing is pinned in {shown}");
            return Ok(());
        }
        looked => looked.with_context(|| format!("{shown} cannot be looked at"))?,
    };
    if !in_bpffs {
        anyhow::bail!("{shown} is not in a bpffs: nothing there is touched");
    }
    let zds = Listener::bind(&args.zds_socket)?;
    let options = NodeOptions { pins: args.pins.clone(), cgroup: None, kernel_log: false, foreign: false };
    let removed = enroll::uninstall(options, &args.host_proc, &state, zds).await;
    let removed = removed.map_err(|error| anyhow::anyhow!(enroll::told(&error)))?;
    if removed.untold {
        let zds = args.zds_socket.display();
        eprintln!(
            "agent: the ztunnel that served the pods did not come to {zds}: end it, or it keeps its listeners"
        );
    }
    if !removed.failures.is_empty() {
        anyhow::bail!("not everything was taken away:\n  {}", removed.failures.join("\n  "));
    }
    // What all pods of the node shared.
    std::fs::remove_dir_all(&args.pins).with_context(|| format!("{shown} cannot be removed"))?;
    state.forget().context("what control wanted last cannot be forgotten")?;
    println!("the capture of {} pods was taken away; nothing is pinned in {shown} any more", removed.pods);
    Ok(())
}
