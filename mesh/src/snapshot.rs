//! One immutable state of the mesh, and the editor that makes the next one from it.

use std::{net::IpAddr, sync::Arc};

use crate::{Policy, PolicyKey, Service, ServiceKey, Workload};

/// One immutable, indexed state of the mesh. Cloning is O(1); an edit shares what it does not change.
#[derive(Clone, Default)]
pub struct Snapshot {}

impl Snapshot {
    /// Whether a first complete state of workloads AND of policies has arrived.
    /// Nothing is planned or admitted before (an empty answer is complete, silence is not).
    pub fn is_complete(&self) -> bool {
        unimplemented_in_stub()
    }
    pub fn workload(&self, _uid: &str) -> Option<&Arc<Workload>> {
        unimplemented_in_stub()
    }
    /// The workload that holds `address` in `network`.
    pub fn workload_at(&self, _network: &str, _address: IpAddr) -> Option<&Arc<Workload>> {
        unimplemented_in_stub()
    }
    /// The pod of that namespace and name (any cluster; pods of ours first).
    pub fn pod(&self, _namespace: &str, _name: &str) -> Option<&Arc<Workload>> {
        unimplemented_in_stub()
    }
    pub fn service(&self, _key: &ServiceKey) -> Option<&Arc<Service>> {
        unimplemented_in_stub()
    }
    /// The service with the virtual address `address` in `network`.
    pub fn service_at(&self, _network: &str, _address: IpAddr) -> Option<&Arc<Service>> {
        unimplemented_in_stub()
    }
    pub fn policy(&self, _key: &PolicyKey) -> Option<&Arc<Policy>> {
        unimplemented_in_stub()
    }
    pub fn workloads(&self) -> impl Iterator<Item = &Arc<Workload>> {
        std::iter::empty()
    }
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        std::iter::empty()
    }
    pub fn policies(&self) -> impl Iterator<Item = &Arc<Policy>> {
        std::iter::empty()
    }
    /// Starts the next state.
    pub fn edit(&self) -> Editor {
        Editor { next: self.clone() }
    }
}

/// The next state in the making. Cheap to start; costs O(log n) per change.
pub struct Editor {
    next: Snapshot,
}

impl Editor {
    pub fn put_workload(&mut self, _workload: Workload) {}
    pub fn remove_workload(&mut self, _uid: &str) {}
    pub fn put_service(&mut self, _service: Service) {}
    pub fn remove_service(&mut self, _key: &ServiceKey) {}
    pub fn put_policy(&mut self, _policy: Policy) {}
    pub fn remove_policy(&mut self, _key: &PolicyKey) {}
    /// A policy that was sent, could not be understood and was never held: whoever it selects is refused.
    pub fn mark_policy_unusable(&mut self, _key: &PolicyKey) {}
    /// The first complete answer for workloads and services is in.
    pub fn mark_addresses_complete(&mut self) {}
    /// The first complete answer for policies is in.
    pub fn mark_policies_complete(&mut self) {}
    pub fn finish(self) -> Snapshot {
        self.next
    }
}

fn unimplemented_in_stub() -> ! {
    panic!("stub")
}
