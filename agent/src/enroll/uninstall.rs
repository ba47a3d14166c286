//! The way out: takes the capture of every pod of the node away, then tells the ztunnels.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use capture::{NodeOptions, Pins, Role};
use prometheus_client::metrics::gauge::Gauge;
use proto::workload::zds::WorkloadInfo;
use tokio::{sync::mpsc, time::timeout};

use super::{
    kernel::{Hand, Kernel},
    machine::{Answer, Step},
};
use crate::{broker::Broker, seqpacket::Listener, state::State};

/// A ztunnel that lost its agent comes back within 6.25 s.
const ZTUNNEL_PATIENCE: Duration = Duration::from_secs(10);

/// What was done.
pub(crate) struct Removed {
    /// Pods whose capture was taken away.
    pub(crate) pods: usize,
    /// Each pod whose capture could not be taken away, and why.
    pub(crate) failures: Vec<String>,
    /// A ztunnel served pods, and could not be told that it has them no more.
    pub(crate) untold: bool,
}

/// Takes the capture of every pod away, those whose connections are alive included. The ztunnels that come
/// to `zds` are then told which pods are left: none, if all went well. In that order, since a pod that is
/// still captured and served by nobody is cut off.
///
/// # Errors
/// When nothing could be looked at.
pub(crate) async fn uninstall(
    options: NodeOptions,
    host_proc: &Path,
    state: &State,
    zds: Listener,
) -> Result<Removed, capture::Error> {
    let (holdings, _nobody) = mpsc::unbounded_channel();
    let broker = Broker::new(holdings, Gauge::default());
    let serving = tokio::spawn(broker.clone().serve(zds));
    let wanted = state.load().unwrap_or_default();
    let netns = wanted.into_iter().map(|pod| (pod.uid, pod.netns)).collect();
    let host_proc = host_proc.to_owned();
    let detached = match tokio::task::spawn_blocking(move || detach_all(options, host_proc, &netns)).await {
        Ok(detached) => detached?,
        Err(panic) => std::panic::resume_unwind(panic.into_panic()),
    };
    for uid in detached.failures.keys() {
        broker.keep(uid, WorkloadInfo::default());
    }
    broker.complete();
    let told = timeout(ZTUNNEL_PATIENCE, async {
        if detached.served {
            broker.informed().await;
        }
    });
    let untold = told.await.is_err();
    serving.abort();
    let failures = detached.failures.iter().map(|(uid, reason)| format!("pod {uid}: {reason}"));
    Ok(Removed { pods: detached.pods, failures: failures.collect(), untold })
}

struct Detached {
    pods: usize,
    /// By uid.
    failures: BTreeMap<String, String>,
    /// A ztunnel listened for one at least.
    served: bool,
}

fn detach_all(
    options: NodeOptions,
    host_proc: PathBuf,
    netns: &BTreeMap<String, PathBuf>,
) -> Result<Detached, capture::Error> {
    let pins = options.pins.clone();
    let kernel = Kernel::open(options, None, host_proc)?;
    // First: what is spliced goes through ztunnel again, for as long as that can carry it.
    if let Err(error) = kernel.splice(None) {
        tracing::error!(%error, "splicing stays switched on; the pods are detached all the same");
    }
    let pinned = kernel.pinned()?;
    let mut detached = Detached { pods: 0, failures: BTreeMap::new(), served: false };
    for uid in pinned {
        detached.served |= is_served(&pins, &uid);
        let netns = netns.get(&uid).map(PathBuf::as_path).unwrap_or(Path::new(""));
        let mut hand = Hand::default();
        // Through its namespace the routing goes too; without one the programs and pins go.
        let _ = kernel.perform(&uid, netns, None, Step::Attach, &mut hand);
        match kernel.perform(&uid, netns, None, Step::Detach, &mut hand) {
            Answer::Failed(reason) => drop(detached.failures.insert(uid, reason)),
            _ => detached.pods += 1,
        }
    }
    Ok(detached)
}

/// Whether a ztunnel listens for the pod. One whose slots cannot be asked is not waited for.
fn is_served(pins: &Path, uid: &str) -> bool {
    let slots = Pins::open(pins).and_then(|pins| pins.pod(uid));
    slots.is_ok_and(|slots| slots.holder(Role::Outbound).is_some())
}
