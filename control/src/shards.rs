//! The mesh, compiled namespace by namespace: what has not changed is not looked at again.
//!
//! Whatever one namespace's objects say concerns its own workloads, with four exceptions. Policies of the root
//! namespace concern everybody: they are part of each compilation, and a change of one compiles everything. The
//! nodes of its pods, likewise, for those that have pods there. And an endpoint that is named by its address alone
//! may be a workload of another namespace ([`Couplings`]), as what a route refers to may be of another: such namespaces
//! are compiled together, as one shard. So the shards' sum is what one compilation of everything gives, which a test
//! holds them to.

mod couplings;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use self::couplings::Couplings;
use crate::{
    compile::{
        Compiled, LocalPod, Options, ParentStatus, Word,
        automatic::{self, Given, Wants},
        compile,
    },
    manifest::{Kind, Object, ObjectKey, Problem, Uid},
    objects::{Changes, Objects},
    publish::{Edit, Resource, encode},
};

/// What is known of the mesh besides what is published.
#[derive(Debug, Clone, Default)]
pub struct Outline {
    /// By node: the pods that run there, by namespace and name. Every Node object is in it.
    pub nodes: BTreeMap<Arc<str>, Pods>,
    /// Whether the pods of each namespace are in the mesh, where they say nothing else.
    pub namespaces: Arc<BTreeMap<Arc<str>, bool>>,
    /// What is wrong with the objects.
    pub problems: Arc<BTreeSet<Problem>>,
    /// How each route stands with those of its parents that are ours.
    pub routes_status: Arc<RoutesStatus>,
    pub workloads: usize,
    pub services: usize,
}

/// How routes stand with their parents.
pub type RoutesStatus = BTreeMap<ObjectKey, Vec<ParentStatus>>;

/// The pods of a node.
pub type Pods = Arc<[Arc<LocalPod>]>;

/// What a turn has led to.
#[derive(Debug, Default)]
pub struct Turn {
    /// What is to be published.
    pub edit: Edit,
    /// Nodes of which something is not as it was.
    pub nodes: BTreeSet<Arc<str>>,
    /// Node objects came or went.
    pub node_objects: bool,
    /// How many namespaces were compiled.
    pub compiled: usize,
}

/// All that was compiled.
#[derive(Default)]
pub struct Shards {
    /// By the first of their namespaces.
    shards: BTreeMap<Arc<str>, Shard>,
    couplings: Couplings,
    /// What the ServiceEntries of each namespace that has any ask for: addresses that are nobody else's.
    wants: BTreeMap<Arc<str>, Wants>,
    given: Arc<Given>,
    outline: Outline,
    begun: bool,
}

/// Namespaces that are compiled together; mostly one.
#[derive(Default)]
struct Shard {
    namespaces: BTreeSet<Arc<str>>,
    addresses: Published,
    policies: Published,
    routes: Published,
    /// In the order of their nodes, and of namespaces and names there.
    pods: Box<[Placed]>,
    /// Whether the pods of each of its namespaces are in the mesh; not of those that have no Namespace object.
    enroll: BTreeMap<Arc<str>, bool>,
    problems: Vec<Problem>,
    routes_status: RoutesStatus,
    services: usize,
}

/// A pod on a node.
struct Placed {
    node: Arc<str>,
    pod: Arc<LocalPod>,
}

/// Resources in the order of their names.
type Published = Vec<Arc<Resource>>;

impl Shards {
    /// What is known now.
    pub fn outline(&self) -> &Outline {
        &self.outline
    }

    /// Compiles what has changed: in the objects, and in what the agents of the `reported` nodes say.
    pub fn turn(
        &mut self,
        objects: &mut Objects,
        reported: &BTreeSet<String>,
        word: &dyn Fn(&str, &str) -> Word,
        options: &Options,
    ) -> Turn {
        let changes = objects.take_changes();
        let first = !std::mem::replace(&mut self.begun, true);
        if first {
            objects.compact();
        }
        let root = &options.root_namespace;
        let everything = first || changes.gateways || changes.namespaces.get(root) == Some(&true);
        let changed = if first { objects.namespaces() } else { changes.namespaces.keys().cloned().collect() };
        self.couplings.update(objects, &changed);
        let mut stale = if everything { objects.namespaces() } else { BTreeSet::new() };
        stale.extend(self.give(objects, &changed));
        stale.extend(changed);
        stale.extend(self.misses(&changes, reported, word));
        let groups = self.groups(stale);
        let before = self.dissolve(&groups);
        let mut after = Vec::new();
        let compiled: usize = groups.iter().map(BTreeSet::len).sum();
        for namespaces in groups {
            let mut view = objects.view_of(&namespaces, root);
            view.automatic = Some(self.given.clone());
            let mut result = compile(&view, word, options);
            // They are published by the shard of their own namespace.
            let foreign = |namespace: &str| !namespaces.contains(namespace);
            result.policies.retain(|key, _| {
                let (kind, namespace, name) =
                    (Kind::AuthorizationPolicy, key.namespace.clone(), key.name.clone());
                let own = ObjectKey { kind, namespace, name };
                !(foreign(&key.namespace) && view.get(&own).is_some())
            });
            drop(view);
            after.push(Shard::of(namespaces, result, &before));
        }
        let mut turn = Turn { compiled, node_objects: first || !changes.nodes.is_empty(), ..Turn::default() };
        self.compare(&before, &after, &mut turn);
        for shard in after {
            // A namespace that is gone leaves nothing.
            if let Some(name) = shard.namespaces.first().filter(|_| !shard.is_empty()).cloned() {
                self.shards.insert(name, shard);
            }
        }
        self.settle_policies(&mut turn.edit);
        turn.nodes.extend(changes.nodes.iter().cloned());
        if first {
            turn.nodes.extend(objects.cluster_wide(Kind::Node).cloned());
        }
        self.draw(objects, &before, &turn);
        if first || changes.problems || compiled > 0 || !changes.nodes.is_empty() {
            self.collect_problems(objects);
        }
        if first || compiled > 0 {
            let statuses = self.shards.values().flat_map(|shard| shard.routes_status.clone()).collect();
            if *self.outline.routes_status != statuses {
                self.outline.routes_status = Arc::new(statuses);
            }
        }
        turn
    }

    /// Gives hosts addresses. The namespaces of those whose addresses have changed: two hosts that collide may be of
    /// different ones.
    fn give(&mut self, objects: &Objects, changed: &BTreeSet<Arc<str>>) -> BTreeSet<Arc<str>> {
        let mut differs = false;
        for namespace in changed {
            let mut wants = Wants::default();
            for object in objects.of_namespace(namespace) {
                if let Object::ServiceEntry(entry) = object {
                    wants.add(namespace, entry);
                }
            }
            differs |= self.wants.get(namespace).map_or(!wants.is_empty(), |held| *held != wants);
            match wants.is_empty() {
                true => drop(self.wants.remove(namespace)),
                false => drop(self.wants.insert(namespace.clone(), wants)),
            }
        }
        if !differs {
            return BTreeSet::new();
        }
        let mut all = Wants::default();
        self.wants.values().for_each(|wants| all.extend(wants));
        let given = automatic::give(&all);
        let moved = |old: &Given, new: &Given| -> Vec<Arc<str>> {
            let moved = old.iter().filter(|(host, had)| new.get(*host) != Some(*had));
            moved.map(|(host, _)| host.namespace.clone()).collect()
        };
        let stale = [moved(&self.given, &given), moved(&given, &self.given)].concat();
        self.given = Arc::new(given);
        stale.into_iter().collect()
    }

    /// Namespaces whose own objects are as they were, and what they were compiled from is not.
    fn misses(
        &self,
        changes: &Changes,
        reported: &BTreeSet<String>,
        word: &dyn Fn(&str, &str) -> Word,
    ) -> BTreeSet<Arc<str>> {
        let mut stale = BTreeSet::new();
        for shard in self.shards.values() {
            if changes.nodes.iter().any(|node| !shard.of_node(node).is_empty()) {
                stale.extend(shard.namespaces.iter().cloned());
            }
        }
        for node in reported {
            for pod in self.outline.nodes.get(node.as_str()).into_iter().flat_map(|pods| pods.iter()) {
                if pod.annotated.captured(word(node, &pod.uid.text())) != pod.captured {
                    stale.insert(pod.namespace.clone());
                }
            }
        }
        stale
    }

    /// What is to be compiled together, from the namespaces that must be.
    fn groups(&self, mut stale: BTreeSet<Arc<str>>) -> BTreeSet<BTreeSet<Arc<str>>> {
        let coupled = self.couplings.groups();
        let group = |namespace: &Arc<str>| match coupled.get(namespace) {
            Some(group) => BTreeSet::clone(group),
            None => [namespace.clone()].into(),
        };
        for shard in self.shards.values() {
            if shard.namespaces.iter().any(|namespace| group(namespace) != shard.namespaces) {
                stale.extend(shard.namespaces.iter().cloned());
            }
        }
        stale.iter().map(group).collect()
    }

    /// Takes out the shards of these namespaces.
    fn dissolve(&mut self, groups: &BTreeSet<BTreeSet<Arc<str>>>) -> Vec<Shard> {
        let namespaces: BTreeSet<&Arc<str>> = groups.iter().flatten().collect();
        let gone =
            |_: &Arc<str>, shard: &mut Shard| shard.namespaces.iter().any(|name| namespaces.contains(name));
        self.shards.extract_if(.., gone).map(|(_, shard)| shard).collect()
    }

    /// What differs between the shards that were and those that are.
    fn compare(&self, before: &[Shard], after: &[Shard], turn: &mut Turn) {
        (turn.edit.addresses, turn.edit.gone_addresses) = difference(before, after, |shard| &shard.addresses);
        (turn.edit.policies, turn.edit.gone_policies) = difference(before, after, |shard| &shard.policies);
        (turn.edit.routes, turn.edit.gone_routes) = difference(before, after, |shard| &shard.routes);
        let (old, new) = (pods_of(before), pods_of(after));
        for node in old.keys().chain(new.keys()) {
            if old.get(node) != new.get(node) {
                turn.nodes.insert(Arc::clone(node));
            }
        }
    }

    /// A policy that control makes itself may be that of several shards: it is gone when the last has it no more.
    fn settle_policies(&self, edit: &mut Edit) {
        edit.gone_policies.retain(|name| {
            let has = |shard: &Shard| shard.policies.binary_search_by(|held| held.name().cmp(name)).is_ok();
            !self.shards.values().any(has)
        });
    }

    /// Brings the outline up to date.
    fn draw(&mut self, objects: &Objects, before: &[Shard], turn: &Turn) {
        let known: BTreeSet<&Arc<str>> = objects.cluster_wide(Kind::Node).collect();
        for node in &turn.nodes {
            let mut pods: Vec<Arc<LocalPod>> =
                self.shards.values().flat_map(|shard| shard.of_node(node)).map(|at| at.pod.clone()).collect();
            if pods.is_empty() && !known.contains(node) {
                self.outline.nodes.remove(node);
                continue;
            }
            pods.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
            one_of_each(&mut pods);
            self.outline.nodes.insert(node.clone(), pods.into());
        }
        let enroll = self.shards.values().flat_map(|shard| &shard.enroll);
        if turn.compiled > 0 || !before.is_empty() {
            let namespaces = enroll.map(|(name, enroll)| (name.clone(), *enroll)).collect();
            if *self.outline.namespaces != namespaces {
                self.outline.namespaces = Arc::new(namespaces);
            }
        }
        self.outline.services = self.shards.values().map(|shard| shard.services).sum();
        let addresses: usize = self.shards.values().map(|shard| shard.addresses.len()).sum();
        self.outline.workloads = addresses - self.outline.services;
    }

    fn collect_problems(&mut self, objects: &Objects) {
        let of_shards = self.shards.values().flat_map(|shard| &shard.problems);
        let mut problems: BTreeSet<Problem> = objects.problems().chain(of_shards).cloned().collect();
        // No shard has the nodes on which no pod is.
        problems.extend(objects.cluster_wide_doubles());
        if problems != *self.outline.problems {
            self.outline.problems = Arc::new(problems);
        }
    }
}

impl Shard {
    /// What was compiled of these namespaces. What is as it was `before` is taken from there.
    fn of(namespaces: BTreeSet<Arc<str>>, compiled: Compiled, before: &[Shard]) -> Self {
        let mut tails = encode::Tails::of(before.iter().flat_map(|shard| &shard.addresses));
        let workloads = compiled.workloads.into_values();
        let workloads = workloads.map(|workload| encode::workload(&workload, &mut tails));
        let services = compiled.services.len();
        let of_services = compiled.services.into_values().map(|service| encode::service(&service));
        let policies = compiled.policies.into_values().map(|policy| encode::policy(&policy));
        let routes = compiled.routes.into_values().map(|routes| encode::routes(&routes));
        let old_nodes = pods_of(before);
        let pods = compiled.nodes.into_iter().flat_map(|(node, mut pods)| {
            // Equal pods are kept once, whoever holds them.
            for pod in &mut pods {
                let same = old_nodes.get(&node).and_then(|old| old.iter().find(|old| ***old == *pod));
                if let Some(same) = same {
                    *pod = Arc::clone(same);
                }
            }
            pods.into_iter().map(move |pod| Placed { node: node.clone(), pod })
        });
        Self {
            addresses: keep(workloads.chain(of_services), before, |shard| &shard.addresses),
            policies: keep(policies, before, |shard| &shard.policies),
            routes: keep(routes, before, |shard| &shard.routes),
            pods: pods.collect(),
            enroll: compiled.namespaces,
            problems: compiled.problems,
            routes_status: compiled.routes_status,
            services,
            namespaces,
        }
    }

    /// The pods of a node.
    fn of_node(&self, node: &str) -> &[Placed] {
        let start = self.pods.partition_point(|at| &*at.node < node);
        let end = start + self.pods[start..].partition_point(|at| &*at.node == node);
        &self.pods[start..end]
    }

    fn is_empty(&self) -> bool {
        self.addresses.is_empty()
            && self.policies.is_empty()
            && self.routes.is_empty()
            && self.pods.is_empty()
            && self.enroll.is_empty()
            && self.problems.is_empty()
            && self.routes_status.is_empty()
    }
}

/// Encoded, in the order of names; what is as it was is the very same.
fn keep(
    resources: impl Iterator<Item = Resource>,
    before: &[Shard],
    of: impl Fn(&Shard) -> &Published,
) -> Published {
    let mut kept: Published = resources
        .map(|resource| {
            let same = before.iter().find_map(|shard| held(of(shard), resource.name()));
            same.filter(|held| ***held == resource).cloned().unwrap_or_else(|| Arc::new(resource))
        })
        .collect();
    kept.sort_by(|a, b| a.name().cmp(b.name()));
    kept.shrink_to_fit();
    kept
}

fn held<'p>(published: &'p Published, name: &str) -> Option<&'p Arc<Resource>> {
    let at = published.binary_search_by(|held| held.name().cmp(name)).ok()?;
    published.get(at)
}

/// What is new, and the names of what is gone.
fn difference(
    before: &[Shard],
    after: &[Shard],
    of: impl Fn(&Shard) -> &Published,
) -> (Vec<Arc<Resource>>, Vec<Arc<str>>) {
    let lacks = |shards: &[Shard], name: &str| shards.iter().all(|shard| held(of(shard), name).is_none());
    // What was kept is the same in memory: a look at the names is spared for most.
    let old: BTreeSet<*const Resource> = before.iter().flat_map(&of).map(Arc::as_ptr).collect();
    let new: BTreeSet<*const Resource> = after.iter().flat_map(&of).map(Arc::as_ptr).collect();
    let added = after.iter().flat_map(&of).filter(|resource| !old.contains(&Arc::as_ptr(resource)));
    let gone = before.iter().flat_map(&of).filter(|resource| !new.contains(&Arc::as_ptr(resource)));
    let gone = gone.filter(|resource| lacks(after, resource.name())).map(|resource| resource.name().into());
    (added.cloned().collect(), gone.collect())
}

/// The pods of each node, in the order of their names.
fn pods_of(shards: &[Shard]) -> BTreeMap<&Arc<str>, Vec<&Arc<LocalPod>>> {
    let mut pods: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for Placed { node, pod } in shards.iter().flat_map(|shard| &shard.pods) {
        pods.entry(node).or_default().push(pod);
    }
    for of_node in pods.values_mut() {
        of_node.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
    }
    pods
}

/// Leaves one pod of each uid. The API server sees to that, but for images of static pods, which whoever may create a
/// pod can forge: none leads a captured pod out, and none takes the place of an older one.
fn one_of_each(pods: &mut Vec<Arc<LocalPod>>) {
    let since = |pod: &LocalPod| pod.image().map(|image| image.since.clone());
    let mut chosen: HashMap<Uid, Arc<LocalPod>> = HashMap::with_capacity(pods.len());
    for pod in pods.iter() {
        let held = chosen.entry(pod.uid.clone()).or_insert_with(|| pod.clone());
        if (!pod.enroll, since(pod)) < (!held.enroll, since(held)) {
            *held = pod.clone();
        }
    }
    if chosen.len() < pods.len() {
        pods.retain(|pod| chosen.get(&pod.uid).is_some_and(|held| Arc::ptr_eq(held, pod)));
    }
}
