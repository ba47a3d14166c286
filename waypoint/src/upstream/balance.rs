//! Which endpoint: of two that chance names the one that has less to do.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
};

use mesh::{Choice, Chosen, PlanError, Service, Snapshot, Target};

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
pub(crate) fn endpoint_in(worker: &Worker, call: &Call, snapshot: &Snapshot) -> Result<Target, Failure> {
    match &call.called {
        Called::Service(service) => {
            // As it is now: the connection may be older than the state.
            let service = snapshot.service(&service.key).unwrap_or(service);
            choose(worker, call, snapshot, service, call.port)
        }
        Called::Workload(workload) => {
            let workload = snapshot.workload(&workload.uid).unwrap_or(workload).clone();
            let like = |ip: &&std::net::IpAddr| ip.is_ipv4() == call.claims.address.is_ipv4();
            let address = workload.addresses.iter().find(like).or(workload.addresses.first()).copied();
            let address =
                address.ok_or_else(|| Failure::NoSuchPort(call.claims.behind.clone(), call.port))?;
            Ok(Target { workload, address: SocketAddr::new(address, call.port), service: None })
        }
    }
}

/// An endpoint of a service.
pub(crate) fn choose(
    worker: &Worker,
    call: &Call,
    snapshot: &Snapshot,
    service: &Arc<Service>,
    port: u16,
) -> Result<Target, Failure> {
    let draw = || {
        let choice = Choice {
            network: &worker.shared.settings.network,
            // Where only endpoints of the caller's node will do, it is the caller's that counts.
            node: call.workload.as_ref().map_or("", |workload| &workload.node),
            like: call.claims.address,
            seed: rand::random(),
        };
        match snapshot.choose(service, port, &choice)? {
            Chosen::Target(target) => Ok(target),
            Chosen::Named { .. } => Err(PlanError::NoAddress(service.key.clone())),
        }
    };
    let (first, second) = (draw()?, draw()?);
    let load = |target: &Target| worker.upstream.loads.now(target.address);
    Ok(if load(&second) < load(&first) { second } else { first })
}
