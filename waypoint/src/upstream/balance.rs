//! Which endpoint: of two that chance names the one that has less to do.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    rc::Rc,
    sync::Arc,
};

use mesh::{Choice, Chosen, Service, Snapshot, Target, Tunnel};

use super::{Endpoint, Same};
use crate::{
    arrival::{Call, Called, Failure},
    worker::Worker,
};

/// Requests that each endpoint has now, of this worker.
#[derive(Default)]
pub(super) struct Loads(RefCell<HashMap<SocketAddr, Rc<Cell<u32>>>>);

impl Loads {
    pub(super) fn of(&self, address: SocketAddr) -> Rc<Cell<u32>> {
        self.0.borrow_mut().entry(address).or_default().clone()
    }

    fn now(&self, address: SocketAddr) -> u32 {
        self.0.borrow().get(&address).map_or(0, |count| count.get())
    }

    /// Forgets those that have nothing to do.
    pub(super) fn sweep(&self) {
        self.0.borrow_mut().retain(|_, count| count.get() > 0);
    }
}

/// An endpoint of what was called.
pub(crate) async fn endpoint_in(
    worker: &Worker,
    call: &Call,
    snapshot: &Snapshot,
) -> Result<Endpoint, Failure> {
    match &call.called {
        Called::Service(service) => {
            // As it is now: the connection may be older than the state.
            let service = snapshot.service(&service.key).unwrap_or(service);
            choose(worker, call, snapshot, service, call.port).await
        }
        Called::Workload(workload) => {
            let workload = snapshot.workload(&workload.uid).unwrap_or(workload).clone();
            let like = |ip: &&IpAddr| ip.is_ipv4() == call.claims.address.is_ipv4();
            let address = workload.addresses.iter().find(like).or(workload.addresses.first()).copied();
            let address =
                address.ok_or_else(|| Failure::NoSuchPort(call.claims.behind.clone(), call.port))?;
            let target = Target { workload, address: SocketAddr::new(address, call.port), service: None };
            Ok(Endpoint { target, tls: None, is_hasty: false })
        }
    }
}

/// An endpoint of a service.
pub(crate) async fn choose(
    worker: &Worker,
    call: &Call,
    snapshot: &Snapshot,
    service: &Arc<Service>,
    port: u16,
) -> Result<Endpoint, Failure> {
    let network = &worker.shared.settings.network;
    let avoided = |ip| worker.shared.peers.is_absent(ip);
    let draw = async || {
        let choice = Choice {
            network,
            // Where only endpoints of the caller's node will do, it is the caller's that counts.
            node: call.workload.as_ref().map_or("", |workload| &workload.node),
            like: call.claims.address,
            seed: rand::random(),
            avoided: Some(&avoided),
        };
        match snapshot.choose(service, port, &choice)? {
            Chosen::Target(target) => Ok(target),
            Chosen::Named { workload, port } => {
                let unknown = |reason| Failure::NoName { name: workload.hostname.clone(), reason };
                let found = Box::pin(worker.upstream.names.resolve(&workload.hostname)).await;
                let found = found.map_err(unknown)?;
                let address = one_of(&found, call.claims.address, rand::random());
                let address = address.ok_or_else(|| unknown("DNS has no address of it".into()))?;
                may_be(snapshot, network, service, address)?;
                let address = SocketAddr::new(address, port);
                Ok::<_, Failure>(Target { workload, address, service: Some(service.clone()) })
            }
        }
    };
    let (first, second) = (draw().await?, draw().await?);
    let load = |target: &Target| worker.upstream.loads.now(target.address);
    let target = if load(&second) < load(&first) { second } else { first };
    worker.shared.peers.turn_to(target.address.ip());
    let tls = snapshot.routes(&service.key).and_then(|routes| routes.tls(port));
    Ok(Endpoint { target, tls: tls.cloned().map(Same), is_hasty: false })
}

/// One of the addresses: of the caller's family, if there are any.
fn one_of(addresses: &[IpAddr], like: IpAddr, random: u32) -> Option<IpAddr> {
    let alike: Vec<IpAddr> =
        addresses.iter().copied().filter(|address| address.is_ipv4() == like.is_ipv4()).collect();
    let among = if alike.is_empty() { addresses } else { &alike };
    among.get((random as usize).checked_rem(among.len())?).copied()
}

/// Whether what a name leads to may be dialled plainly: what the mesh has there is met by its own name, with whatever is
/// said of it.
fn may_be(snapshot: &Snapshot, network: &str, service: &Service, address: IpAddr) -> Result<(), Failure> {
    let another = snapshot.service_at(network, address).is_some_and(|found| found.key != service.key);
    let of_mesh =
        snapshot.workload_at(network, address).is_some_and(|workload| workload.tunnel == Tunnel::Hbone);
    if another || of_mesh { Err(Failure::NoBackend(address)) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use mesh::{NetworkAddress, ServiceKey, Workload};

    use super::*;

    #[test]
    fn of_a_names_addresses_one_like_the_callers_is_taken() {
        let all = ["10.0.0.1", "fd00::1", "10.0.0.2"].map(|address| address.parse().unwrap());
        let found = |like: &str, random| one_of(&all, like.parse().unwrap(), random).unwrap().to_string();
        assert_eq!((found("10.9.9.9", 0), found("10.9.9.9", 3)), ("10.0.0.1".into(), "10.0.0.2".into()));
        assert_eq!(found("fd00::9", 5), "fd00::1");
        assert_eq!(one_of(&all[..1], "fd00::9".parse().unwrap(), 7), Some(all[0]));
        assert_eq!(one_of(&[], all[0], 7), None);
    }

    #[test]
    fn by_a_name_nobody_gets_round_what_the_mesh_says_of_an_address() {
        let service = |hostname: &str, address: &str| {
            let key = ServiceKey { namespace: "shop".into(), hostname: hostname.into() };
            let addresses = vec![NetworkAddress { network: "".into(), address: address.parse().unwrap() }];
            Service { addresses, ..Service::named(key, hostname) }
        };
        let mut pod = Workload::named("c//Pod/shop/web", "shop", "web");
        pod.addresses = vec!["10.0.0.1".parse().unwrap()];
        pod.tunnel = Tunnel::Hbone;
        let mut machine = Workload::named("c//Pod/shop/old", "shop", "old");
        machine.addresses = vec!["10.0.0.2".parse().unwrap()];
        let bank = service("bank.example", "10.0.0.9");
        let mut editor = Snapshot::default().edit();
        editor.put_workload(pod);
        editor.put_workload(machine);
        editor.put_service(bank.clone());
        editor.put_service(service("web", "10.96.0.1"));
        let snapshot = editor.finish();
        let may = |address: &str| may_be(&snapshot, "", &bank, address.parse().unwrap()).is_ok();
        assert!(may("192.0.2.1") && may("10.0.0.2"), "nobody's, and what has no tunnel");
        assert!(may("10.0.0.9"), "its own");
        assert!(!may("10.0.0.1") && !may("10.96.0.1"), "a pod of the mesh, and another service");
    }
}
