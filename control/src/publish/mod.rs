//! The compiled mesh as discovery resources, and delta discovery over them.
//!
//! Each state is immutable and shares what did not change with the one before, so a client needs no
//! queue: what it is to be sent is the difference between what it holds and the newest state, however
//! many states came between.

mod answer;
mod clients;
pub(crate) mod encode;
mod requests;
mod routes;
mod server;
mod stream;
mod subscription;
mod tokens;

use std::{
    borrow::Borrow,
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, OnceLock},
};

use imbl::OrdMap;
use mesh::{Policy, Service, Workload};
use tokio::sync::watch;

pub use clients::{ClientStatus, Clients};
pub use encode::Resource;
pub use server::Discovery;

/// Resources of one type, by name.
pub type Resources = OrdMap<Named, Arc<Resource>>;

/// A resource as the key to itself: its name is kept once.
#[derive(Debug, Clone)]
pub struct Named(Arc<Resource>);

impl Borrow<str> for Named {
    fn borrow(&self) -> &str {
        self.0.name()
    }
}

impl PartialEq for Named {
    fn eq(&self, other: &Self) -> bool {
        self.0.name() == other.0.name()
    }
}

impl Eq for Named {}

impl PartialOrd for Named {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Named {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.name().cmp(other.0.name())
    }
}

/// Puts a resource in, under its name. What was there goes whole: its key is the resource itself.
fn put(into: &mut Resources, resource: Arc<Resource>) {
    into.remove(resource.name());
    into.insert(Named(resource.clone()), resource);
}

/// One immutable state of everything that is published.
#[derive(Debug, Clone, Default)]
pub struct State {
    /// Grows with every state that differs from the one before; 0 is before the first.
    pub generation: u64,
    pub addresses: Resources,
    pub policies: Resources,
    /// Of services behind waypoints.
    pub routes: Resources,
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
    Routes,
}

impl Type {
    /// By its URL; `None` for types we do not have.
    pub fn of(url: &str) -> Option<Self> {
        match url {
            proto::ADDRESS_TYPE => Some(Self::Address),
            proto::AUTHORIZATION_TYPE => Some(Self::Authorization),
            proto::ROUTES_TYPE => Some(Self::Routes),
            _ => None,
        }
    }

    pub fn url(self) -> &'static str {
        match self {
            Self::Address => proto::ADDRESS_TYPE,
            Self::Authorization => proto::AUTHORIZATION_TYPE,
            Self::Routes => proto::ROUTES_TYPE,
        }
    }

    /// The short name, for logs and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Address => "address",
            Self::Authorization => "authorization",
            Self::Routes => "routes",
        }
    }
}

impl State {
    /// All resources of a type.
    pub fn resources(&self, r#type: Type) -> &Resources {
        match r#type {
            Type::Address => &self.addresses,
            Type::Authorization => &self.policies,
            Type::Routes => &self.routes,
        }
    }

    /// What one asked-for name stands for: the resource of that name, or of that `network/IP`; with a
    /// service come its endpoints, without which it is of no use.
    pub fn resolve(&self, r#type: Type, asked: &str) -> Vec<&Arc<Resource>> {
        if r#type != Type::Address {
            return self.resources(r#type).get(asked).into_iter().collect();
        }
        let index = self.index.get_or_init(|| Index::of(&self.addresses));
        let name = index.aliases.get(asked).map_or(asked, |name| name);
        let endpoints =
            index.endpoints.get(name).into_iter().flatten().filter_map(|uid| self.addresses.get(&**uid));
        self.addresses.get(name).into_iter().chain(endpoints).collect()
    }
}

impl Index {
    fn of(addresses: &Resources) -> Self {
        let mut index = Self::default();
        for resource in addresses.values() {
            let name: Arc<str> = resource.name().into();
            for alias in resource.aliases() {
                index.aliases.entry(alias).or_insert_with(|| name.clone());
            }
            for service in resource.services() {
                index.endpoints.entry(service).or_default().push(name.clone());
            }
        }
        index
    }
}

/// What is published. One writer, many followers.
pub struct Store {
    state: watch::Sender<Arc<State>>,
}

impl Default for Store {
    fn default() -> Self {
        Self { state: watch::Sender::new(Arc::default()) }
    }
}

/// What the next state differs in.
#[derive(Debug, Default)]
pub struct Edit {
    /// New, or in a new version.
    pub addresses: Vec<Arc<Resource>>,
    pub policies: Vec<Arc<Resource>>,
    pub routes: Vec<Arc<Resource>>,
    /// Names of what is gone; one that is among the new ones is not.
    pub gone_addresses: Vec<Arc<str>>,
    pub gone_policies: Vec<Arc<str>>,
    pub gone_routes: Vec<Arc<str>>,
}

impl Edit {
    fn apply(held: &mut Resources, gone: Vec<Arc<str>>, new: Vec<Arc<Resource>>) -> bool {
        let mut changed = false;
        for name in gone {
            changed |= held.remove(&*name).is_some();
        }
        for resource in new {
            changed = true;
            put(held, resource);
        }
        changed
    }
}

impl Store {
    /// The newest state, and to be told of newer ones.
    pub fn subscribe(&self) -> watch::Receiver<Arc<State>> {
        self.state.subscribe()
    }

    /// Publishes the next state. Returns its generation: that of the state before, where nothing differs.
    pub fn update(&self, edit: Edit) -> u64 {
        let before = self.state.borrow().clone();
        let (mut addresses, mut policies) = (before.addresses.clone(), before.policies.clone());
        let mut changed = Edit::apply(&mut addresses, edit.gone_addresses, edit.addresses);
        changed |= Edit::apply(&mut policies, edit.gone_policies, edit.policies);
        let mut routes = before.routes.clone();
        changed |= Edit::apply(&mut routes, edit.gone_routes, edit.routes);
        // The first state is one even if it is empty: an empty mesh is an answer.
        if !changed && before.generation > 0 {
            return before.generation;
        }
        let generation = before.generation + 1;
        self.state.send_replace(Arc::new(State {
            generation,
            addresses,
            policies,
            routes,
            index: Arc::default(),
        }));
        generation
    }

    /// Makes these all that is published. Returns the generation, as [`Self::update`] does.
    pub fn publish(
        &self,
        workloads: impl IntoIterator<Item = Workload>,
        services: impl IntoIterator<Item = Service>,
        policies: impl IntoIterator<Item = Policy>,
    ) -> u64 {
        let before = self.state.borrow().clone();
        let mut tails = encode::Tails::of(before.addresses.values());
        let workloads = workloads.into_iter().map(|workload| encode::workload(&workload, &mut tails));
        let services = services.into_iter().map(|service| encode::service(&service));
        let (addresses, gone_addresses) = difference(&before.addresses, workloads.chain(services));
        let policies = policies.into_iter().map(|policy| encode::policy(&policy));
        let (policies, gone_policies) = difference(&before.policies, policies);
        self.update(Edit { addresses, policies, gone_addresses, gone_policies, ..Edit::default() })
    }
}

/// What of `all` is not held, and what is held and not among `all`.
fn difference(held: &Resources, all: impl Iterator<Item = Resource>) -> (Vec<Arc<Resource>>, Vec<Arc<str>>) {
    let (mut new, mut names) = (Vec::new(), BTreeSet::new());
    for resource in all {
        names.insert(resource.name().to_owned());
        if held.get(resource.name()).is_none_or(|held| **held != resource) {
            new.push(Arc::new(resource));
        }
    }
    let gone = held.values().map(|resource| resource.name()).filter(|name| !names.contains(*name));
    (new, gone.map(Arc::from).collect())
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
            state.addresses.get("c//Pod/a/one").unwrap().version()
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
            addresses: vec![mesh::NetworkAddress {
                network: "".into(),
                address: "10.1.0.1".parse().unwrap(),
            }],
            canonical: false,
            ..Service::named(key, "web")
        };
        store.publish([one, workload("two", "10.0.0.2")], [service], []);
        let state = store.subscribe().borrow().clone();
        let names = |asked: &str| -> Vec<String> {
            state.resolve(Type::Address, asked).iter().map(|resource| resource.name().to_owned()).collect()
        };
        assert_eq!(names("/10.0.0.2"), ["c//Pod/a/two"]);
        assert_eq!(names("c//Pod/a/two"), ["c//Pod/a/two"]);
        assert_eq!(names("/10.1.0.1"), ["a/web.a", "c//Pod/a/one"]);
        assert_eq!(names("a/web.a"), ["a/web.a", "c//Pod/a/one"]);
        assert_eq!(names("/10.9.9.9"), Vec::<String>::new());
    }
}
