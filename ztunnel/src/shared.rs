//! What all threads of this ztunnel share. Everything a connection needs is read without a lock.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use capture::Netns;
use mesh::{Snapshot, Workload};
use tokio::time::timeout;

use crate::{
    metrics::Metrics,
    pods::{Directory, Pod},
    sockets::SocketOptions,
};

/// The resolved configuration, as far as connections need it.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// The node this ztunnel serves, as the mesh names it.
    pub(crate) node: Arc<str>,
    pub(crate) trust_domain: Arc<str>,
    /// The suffix of the host names of Kubernetes services.
    pub(crate) cluster_domain: Arc<str>,
    /// Whether DNS queries of pods are answered, where a pod says nothing else.
    pub(crate) dns: bool,
    /// Who answers what is not ours to answer, where a pod's own resolver is not known; `None` where there is none.
    pub(crate) resolver: Option<SocketAddr>,
    pub(crate) sockets: SocketOptions,
    pub(crate) hbone: hbone::Settings,
    pub(crate) connections_per_pod: usize,
    /// How long the connections of a pod that is gone may go on.
    pub(crate) pod_grace: Duration,
    /// How long a new connection waits for the state of the mesh, or for its pod to appear in it.
    pub(crate) patience: Duration,
}

pub(crate) struct Shared {
    pub(crate) settings: Settings,
    pub(crate) mesh: Arc<xds::Mesh>,
    pub(crate) store: Arc<identity::Store>,
    pub(crate) assertions: identity::assertion::Assertions,
    pub(crate) pods: Directory,
    /// Who does not answer.
    pub(crate) tally: Arc<hbone::client::Tally>,
    pub(crate) metrics: Metrics,
    pub(crate) records: runtime::record::Records,
    /// Started when a successor is to get the tunnels of our peers.
    pub(crate) drain: runtime::drain::Watch,
    /// Connections of all workers; tunnels do not count.
    pub(crate) carried: Arc<AtomicUsize>,
}

/// Why the state of the mesh is of no use for a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unknown {
    #[error("the mesh state is not complete yet; is control reachable?")]
    Incomplete,
    #[error("control does not know this pod")]
    Pod,
    #[error("control knows a pod of this name with another service account or trust domain")]
    Identity,
}

impl Unknown {
    /// The reason's name in metrics.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Incomplete => "state-incomplete",
            Self::Pod => "pod-unknown",
            Self::Identity => "pod-identity",
        }
    }
}

impl Shared {
    /// How many connections are carried now.
    pub(crate) fn carried(&self) -> usize {
        self.carried.load(Ordering::Relaxed)
    }

    /// One snapshot, and the pod's own workload in it, which has `address`. A pod that has just started may connect
    /// before control's word of it has come, which is waited for, bounded; and before control knows the address that
    /// its network has given it: then the pod's own kernel is believed. What is there when waiting is over is
    /// returned without the address.
    pub(crate) async fn state_for(
        &self,
        pod: &Pod,
        address: IpAddr,
    ) -> Result<(Arc<Snapshot>, Arc<Workload>), Unknown> {
        let find = |snapshot: &Snapshot| {
            let workload = find(snapshot, pod)?;
            Ok(with_address(workload, address, |address| is_local(&pod.netns, address)))
        };
        arrival(&self.mesh, self.settings.patience, find, address).await
    }

    /// Whether the state of the mesh has what is to be known of a pod.
    pub(crate) fn knows(&self, pod: &Pod) -> bool {
        is_settled(find(&self.mesh.glance(), pod))
    }

    /// Waits until it has, and no longer than that.
    pub(crate) async fn until_known(&self, pod: &Pod, patience: Duration) {
        settled(&self.mesh, patience, |snapshot| find(snapshot, pod)).await;
    }
}

/// Whether waiting would change nothing: another identity of the pod's name does not go away.
fn is_settled<T>(found: Result<T, Unknown>) -> bool {
    !matches!(found, Err(Unknown::Incomplete | Unknown::Pod))
}

async fn settled<T>(mesh: &xds::Mesh, patience: Duration, find: impl Fn(&Snapshot) -> Result<T, Unknown>) {
    let mut changes = mesh.subscribe();
    let arrival = changes.wait_for(|snapshot| is_settled(find(snapshot)));
    // What is there then is taken as it is.
    let _ = timeout(patience, arrival).await;
}

/// The workload, with an address that control does not know yet where it `is_local` to the pod.
fn with_address(
    workload: Arc<Workload>,
    address: IpAddr,
    is_local: impl FnOnce(IpAddr) -> bool,
) -> Arc<Workload> {
    let address = address.to_canonical();
    if workload.addresses.contains(&address) || !is_local(address) {
        return workload;
    }
    Arc::new(Workload { addresses: vec![address], ..Workload::clone(&workload) })
}

/// Whether an address belongs to the network namespace: a socket without privileges of its own can be bound to no
/// other one.
fn is_local(netns: &Netns, address: IpAddr) -> bool {
    netns.enter(|| std::net::UdpSocket::bind((address, 0)).is_ok()).unwrap_or(false)
}

/// Waits for a snapshot in which `find` finds a workload that has the address.
async fn arrival(
    mesh: &xds::Mesh,
    patience: Duration,
    find: impl Fn(&Snapshot) -> Result<Arc<Workload>, Unknown>,
    address: IpAddr,
) -> Result<(Arc<Snapshot>, Arc<Workload>), Unknown> {
    let address = address.to_canonical();
    let first = mesh.current();
    match find(&first) {
        Ok(workload) if workload.addresses.contains(&address) => return Ok((first, workload)),
        Err(Unknown::Identity) => return Err(Unknown::Identity),
        Ok(_) | Err(Unknown::Incomplete | Unknown::Pod) => {}
    }
    let mut changes = mesh.subscribe();
    let arrival = async {
        loop {
            let snapshot = mesh.current();
            if let Ok(workload) = find(&snapshot)
                && workload.addresses.contains(&address)
            {
                return (snapshot, workload);
            }
            if changes.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    };
    match timeout(patience, arrival).await {
        Ok(found) => Ok(found),
        Err(_) => {
            let snapshot = mesh.current();
            find(&snapshot).map(|workload| (snapshot.clone(), workload))
        }
    }
}

fn find(snapshot: &Snapshot, pod: &Pod) -> Result<Arc<Workload>, Unknown> {
    if !snapshot.is_complete() {
        return Err(Unknown::Incomplete);
    }
    let workload = snapshot.pod(&pod.namespace, &pod.name).ok_or(Unknown::Pod)?;
    if pod.is(workload) { Ok(workload.clone()) } else { Err(Unknown::Identity) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(addresses: &[&str]) -> Snapshot {
        let mut workload = Workload::named("c//Pod/shop/web", "shop", "web");
        workload.addresses = addresses.iter().map(|address| address.parse().expect("an address")).collect();
        let mut edit = Snapshot::default().edit();
        edit.put_workload(workload);
        edit.finish()
    }

    fn web(snapshot: &Snapshot) -> Result<Arc<Workload>, Unknown> {
        snapshot.pod("shop", "web").cloned().ok_or(Unknown::Pod)
    }

    #[test]
    fn an_address_is_local_where_it_can_be_bound_to() {
        let here = Netns::current().expect("a namespace");
        let is = |address: &str| is_local(&here, address.parse().expect("an address"));
        assert!(is("127.0.0.1") && is("::1"));
        assert!(!is("192.0.2.1") && !is("2001:db8::1"));
    }

    const ADDRESS: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 1, 0, 5));
    const PATIENCE: Duration = Duration::from_secs(5);

    #[tokio::test(start_paused = true)]
    async fn the_first_connection_of_a_new_pod_waits_for_the_pods_address() {
        let mesh = xds::Mesh::new();
        mesh.publish(snapshot(&[]));
        let later = async {
            tokio::time::sleep(Duration::from_millis(300)).await;
            // Not that of the pod's former sandbox.
            mesh.publish(snapshot(&["10.1.0.4"]));
            tokio::time::sleep(Duration::from_millis(300)).await;
            mesh.publish(snapshot(&["10.1.0.5"]));
        };
        let begun = tokio::time::Instant::now();
        let (found, ()) = tokio::join!(arrival(&mesh, PATIENCE, web, ADDRESS), later);
        let (_, workload) = found.expect("found");
        assert_eq!(workload.addresses, [ADDRESS]);
        assert_eq!(begun.elapsed(), Duration::from_millis(600));
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_is_waited_for_until_it_is_known_and_no_longer_than_patience() {
        let mesh = xds::Mesh::new();
        let begun = tokio::time::Instant::now();
        settled(&mesh, PATIENCE, web).await;
        assert_eq!(begun.elapsed(), PATIENCE);
        let later = async {
            tokio::time::sleep(Duration::from_millis(300)).await;
            // Whatever address it has.
            mesh.publish(snapshot(&[]));
        };
        tokio::join!(settled(&mesh, PATIENCE, web), later);
        settled(&mesh, PATIENCE, web).await;
        settled(&mesh, PATIENCE, |_| Err::<(), _>(Unknown::Identity)).await;
        assert_eq!(begun.elapsed(), PATIENCE + Duration::from_millis(300));
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_that_the_pod_has_is_not_waited_for() {
        let mesh = xds::Mesh::new();
        let find = |local: bool| {
            move |snapshot: &Snapshot| {
                Ok(with_address(web(snapshot)?, ADDRESS, |address| local && address == ADDRESS))
            }
        };
        let begun = tokio::time::Instant::now();
        for known in [&[][..], &["10.1.0.4"]] {
            mesh.publish(snapshot(known));
            let (_, workload) = arrival(&mesh, PATIENCE, find(true), ADDRESS).await.expect("found");
            assert_eq!(workload.addresses, [ADDRESS], "and none of a former sandbox");
        }
        assert_eq!(begun.elapsed(), Duration::ZERO);
        arrival(&mesh, PATIENCE, find(false), ADDRESS).await.expect("the pod, as it is known");
        assert_eq!(begun.elapsed(), PATIENCE, "an address of nobody is waited for");
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_that_does_not_come_is_waited_for_no_longer_than_patience() {
        let mesh = xds::Mesh::new();
        mesh.publish(snapshot(&["10.1.0.4"]));
        let begun = tokio::time::Instant::now();
        let (_, workload) = arrival(&mesh, PATIENCE, web, ADDRESS).await.expect("the pod, as it is known");
        assert!(!workload.addresses.contains(&ADDRESS));
        assert_eq!(begun.elapsed(), PATIENCE);
        let nobody = |_: &Snapshot| Err(Unknown::Identity);
        assert_eq!(arrival(&mesh, PATIENCE, nobody, ADDRESS).await.err(), Some(Unknown::Identity));
        assert_eq!(begun.elapsed(), PATIENCE, "nobody waits for another identity");
    }
}
