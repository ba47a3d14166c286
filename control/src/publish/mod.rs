//! The compiled mesh as discovery resources, and delta discovery over them.
//!
//! Each state is immutable and shares what did not change with the one before, so a client needs no
//! queue: what it is to be sent is the difference between what it holds and the newest state, however
//! many states came between.

mod clients;
mod encode;
mod server;
mod stream;
mod subscription;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use imbl::OrdMap;
use mesh::{Policy, Service, Workload};
use tokio::sync::watch;

pub use clients::{ClientStatus, Clients};
pub use encode::Resource;
pub use server::Discovery;

/// Resources of one type, by name.
pub type Resources = OrdMap<Arc<str>, Arc<Resource>>;

/// One immutable state of everything that is published.
#[derive(Debug, Clone, Default)]
pub struct State {
    /// Grows with every state that differs from the one before; 0 is before the first.
    pub generation: u64,
    pub addresses: Resources,
    pub policies: Resources,
    index: Arc<OnceLock<Index>>,
}

/// For look-ups on demand; made when the first is asked of a state.
#[derive(Debug, Default)]
struct Index {
    /// `network/IP` → name.
    aliases: BTreeMap<String, Arc<str>>,
    /// Service → its endpoints.
    endpoints: BTreeMap<String, Vec<Arc<str>>>,
}

/// The types that are published.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Type {
    Address,
    Authorization,
}

impl Type {
    /// By its URL; `None` for types we do not have.
    pub fn of(url: &str) -> Option<Self> {
        match url {
            proto::ADDRESS_TYPE => Some(Self::Address),
            proto::AUTHORIZATION_TYPE => Some(Self::Authorization),
            _ => None,
        }
    }

    pub fn url(self) -> &'static str {
        match self {
            Self::Address => proto::ADDRESS_TYPE,
            Self::Authorization => proto::AUTHORIZATION_TYPE,
        }
    }

    /// The short name, for logs and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Address => "address",
            Self::Authorization => "authorization",
        }
    }
}

impl State {
    /// All resources of a type.
    pub fn resources(&self, r#type: Type) -> &Resources {
        match r#type {
            Type::Address => &self.addresses,
            Type::Authorization => &self.policies,
        }
    }

    /// What one asked-for name stands for: the resource of that name, or of that `network/IP`; with a
    /// service come its endpoints, without which it is of no use.
    pub fn resolve(&self, r#type: Type, asked: &str) -> Vec<&Arc<Resource>> {
        if r#type == Type::Authorization {
            return self.policies.get(asked).into_iter().collect();
        }
        let index = self.index.get_or_init(|| Index::of(&self.addresses));
        let name = index.aliases.get(asked).map_or(asked, |name| name);
        let endpoints =
            index.endpoints.get(name).into_iter().flatten().filter_map(|uid| self.addresses.get(uid));
        self.addresses.get(name).into_iter().chain(endpoints).collect()
    }
}

impl Index {
    fn of(addresses: &Resources) -> Self {
        let mut index = Self::default();
        for (name, resource) in addresses {
            for alias in &resource.aliases {
                index.aliases.entry(alias.clone()).or_insert_with(|| name.clone());
            }
            for service in &resource.services {
                index.endpoints.entry(service.clone()).or_default().push(name.clone());
            }
        }
        index
    }
}

/// What is published. One writer, many followers.
pub struct Store {
    state: watch::Sender<Arc<State>>,
    /// The objects of the newest state: what is equal is not encoded again.
    objects: Mutex<Objects>,
}

#[derive(Default)]
struct Objects {
    workloads: BTreeMap<Arc<str>, Workload>,
    services: BTreeMap<mesh::ServiceKey, Service>,
    policies: BTreeMap<mesh::PolicyKey, Policy>,
}

impl Default for Store {
    fn default() -> Self {
        Self { state: watch::Sender::new(Arc::default()), objects: Mutex::default() }
    }
}

impl Store {
    /// The newest state, and to be told of newer ones.
    pub fn subscribe(&self) -> watch::Receiver<Arc<State>> {
        self.state.subscribe()
    }

    /// Makes these the published objects. Returns the generation they are published as: that of the
    /// state before, where nothing differs.
    pub fn publish(
        &self,
        workloads: impl IntoIterator<Item = Workload>,
        services: impl IntoIterator<Item = Service>,
        policies: impl IntoIterator<Item = Policy>,
    ) -> u64 {
        let mut objects = self.objects.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.state.borrow().clone();
        let (mut addresses, mut rules) = (before.addresses.clone(), before.policies.clone());
        let keyed = workloads.into_iter().map(|workload| (workload.uid.clone(), workload));
        let mut changed =
            replace(&mut objects.workloads, keyed, &mut addresses, encode::workload, |uid| uid.clone());
        let keyed = services.into_iter().map(|service| (service.key.clone(), service));
        changed |= replace(&mut objects.services, keyed, &mut addresses, encode::service, name_of);
        let keyed = policies.into_iter().map(|policy| (policy.key.clone(), policy));
        changed |= replace(&mut objects.policies, keyed, &mut rules, encode::policy, name_of);
        // The first state is one even if it is empty: an empty mesh is an answer.
        if !changed && before.generation > 0 {
            return before.generation;
        }
        let generation = before.generation + 1;
        let index = Arc::default();
        self.state.send_replace(Arc::new(State { generation, addresses, policies: rules, index }));
        generation
    }
}

fn name_of(key: &impl ToString) -> Arc<str> {
    key.to_string().into()
}

/// Replaces the objects of one kind, encoding only those that differ. Whether any did.
fn replace<K: Ord, T: PartialEq>(
    held: &mut BTreeMap<K, T>,
    objects: impl Iterator<Item = (K, T)>,
    resources: &mut Resources,
    encode: impl Fn(&T) -> Resource,
    name: impl Fn(&K) -> Arc<str>,
) -> bool {
    let mut next = BTreeMap::new();
    let mut changed = false;
    for (key, object) in objects {
        if held.remove(&key).as_ref() != Some(&object) {
            let resource = encode(&object);
            resources.insert(resource.name.clone(), Arc::new(resource));
            changed = true;
        }
        next.insert(key, object);
    }
    for key in held.keys() {
        resources.remove(&name(key));
        changed = true;
    }
    *held = next;
    changed
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workload(name: &str, address: &str) -> Workload {
        let mut workload = Workload::named(format!("c//Pod/a/{name}"), "a", name);
        workload.addresses = vec![address.parse().unwrap()];
        workload
    }

    #[test]
    fn a_state_differs_only_where_an_object_does() {
        let store = Store::default();
        assert_eq!(store.subscribe().borrow().generation, 0);
        assert_eq!(store.publish([], [], []), 1, "an empty mesh is published, too");
        let two = || [workload("one", "10.0.0.1"), workload("two", "10.0.0.2")];
        assert_eq!(store.publish(two(), [], []), 2);
        let before = store.subscribe().borrow().clone();
        assert_eq!(store.publish(two(), [], []), 2);
        let changed = [workload("one", "10.0.0.1"), workload("two", "10.0.0.9")];
        assert_eq!(store.publish(changed, [], []), 3);
        let after = store.subscribe().borrow().clone();
        let of = |state: &State, name: &str| state.addresses.get(name).unwrap().clone();
        assert!(Arc::ptr_eq(&of(&before, "c//Pod/a/one"), &of(&after, "c//Pod/a/one")));
        assert_ne!(of(&before, "c//Pod/a/two"), of(&after, "c//Pod/a/two"));
        assert_eq!(store.publish([workload("one", "10.0.0.1")], [], []), 4);
        assert_eq!(store.subscribe().borrow().addresses.len(), 1);
    }

    #[test]
    fn a_restart_gives_equal_objects_equal_versions() {
        let version = || {
            let store = Store::default();
            store.publish([workload("one", "10.0.0.1")], [], []);
            let state = store.subscribe().borrow().clone();
            state.addresses.get("c//Pod/a/one").unwrap().version.clone()
        };
        assert_eq!(version(), version());
    }

    #[test]
    fn names_on_demand_are_uids_addresses_and_services_with_their_endpoints() {
        let store = Store::default();
        let key = mesh::ServiceKey { namespace: "a".into(), hostname: "web.a".into() };
        let mut one = workload("one", "10.0.0.1");
        one.services.insert(key.clone(), Vec::new());
        let service = Service {
            key,
            name: "web".into(),
            addresses: vec![mesh::NetworkAddress {
                network: "".into(),
                address: "10.1.0.1".parse().unwrap(),
            }],
            ports: Vec::new(),
            subject_alt_names: Vec::new(),
            waypoint: None,
            allow_unhealthy: false,
            node_local: false,
            families: mesh::Families::Any,
            passthrough: false,
        };
        store.publish([one, workload("two", "10.0.0.2")], [service], []);
        let state = store.subscribe().borrow().clone();
        let names = |asked: &str| -> Vec<String> {
            state.resolve(Type::Address, asked).iter().map(|resource| resource.name.to_string()).collect()
        };
        assert_eq!(names("/10.0.0.2"), ["c//Pod/a/two"]);
        assert_eq!(names("c//Pod/a/two"), ["c//Pod/a/two"]);
        assert_eq!(names("/10.1.0.1"), ["a/web.a", "c//Pod/a/one"]);
        assert_eq!(names("a/web.a"), ["a/web.a", "c//Pod/a/one"]);
        assert_eq!(names("/10.9.9.9"), Vec::<String>::new());
    }
}
