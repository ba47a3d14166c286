//! The objects that hold: the last good version of each, whatever its file says today. Pure.
//!
//! They are kept by namespace, since a change in one namespace is nothing to the others: what has changed since
//! the last look is known, and only that is compiled again.

mod behind;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    compile::automatic::Given,
    keys::{Fetched, FetchedKeys, Named, Wanted, share_out},
    manifest::{
        Authorization, BackendTlsPolicy, EndpointSlice, Gateway, KeySource, Kind, Object, ObjectKey, Parsed,
        Problem, RequestAuthentication, Route, Severity, Shared,
    },
};

/// Every file's objects and problems, or every object of the API server.
#[derive(Debug, Default)]
pub struct Objects {
    /// By namespace; what belongs to none is under the empty name.
    spaces: BTreeMap<Arc<str>, Space>,
    files: BTreeMap<FileName, File>,
    /// Of objects that have no file: what is wrong with what the API server has of them now.
    problems: BTreeMap<ObjectKey, Vec<Problem>>,
    changes: Changes,
    shared: Shared,
    /// Waypoints serve other namespaces, too: whoever compiles a namespace sees the Gateways of all, and the policies
    /// for them.
    far: BTreeSet<ObjectKey>,
    /// Every RequestAuthentication: their keys are fetched.
    authentications: BTreeSet<ObjectKey>,
    keys: Arc<Fetched>,
}

type Space = BTreeMap<(Kind, Arc<str>), Held>;

/// A file, in as few bytes as each of its objects can have.
type FileName = Arc<PathBuf>;

/// An object, and the files that name it.
#[derive(Debug)]
struct Held {
    object: Object,
    /// The one that sorts first, whose version holds; none for an object of the API server.
    file: Option<FileName>,
    /// The versions of further files.
    #[expect(clippy::box_collection, reason = "nearly always none: a third of the bytes in each object")]
    others: Option<Box<BTreeMap<FileName, Object>>>,
}

#[derive(Debug, Default, PartialEq)]
struct File {
    /// In their order.
    keys: Box<[ObjectKey]>,
    problems: Vec<Problem>,
}

/// What has changed since the last look.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Changes {
    /// Namespaces with an object that changed, the Namespace itself among them, and whether a policy did.
    pub namespaces: BTreeMap<Arc<str>, bool>,
    /// Node objects that came, went or changed.
    pub nodes: BTreeSet<Arc<str>>,
    /// What is wrong with some file or object.
    pub problems: bool,
    /// A Gateway or a policy for one came, went or changed.
    pub far: bool,
}

/// Whether those of the root namespace are for everybody.
fn is_policy(kind: Kind) -> bool {
    matches!(kind, Kind::AuthorizationPolicy | Kind::PeerAuthentication | Kind::RequestAuthentication)
}

impl Changes {
    fn note(&mut self, key: &ObjectKey) {
        match key.kind {
            Kind::Node => drop(self.nodes.insert(key.name.clone())),
            Kind::Namespace => {
                self.namespaces.entry(key.name.clone()).or_default();
            }
            kind => {
                let policy = is_policy(kind);
                *self.namespaces.entry(key.namespace.clone()).or_default() |= policy;
            }
        }
    }
}

impl Objects {
    /// Takes what a file holds now. Objects that it no longer names are gone; those that it names and
    /// got wrong keep their last good version; if a document can't even be told by name, nothing is
    /// forgotten. Whether anything differs from before.
    pub fn apply(&mut self, path: &Path, parsed: Parsed) -> bool {
        let (path, before) = match self.files.remove_entry(&path.to_owned()) {
            Some((path, file)) => (path, Some(file)),
            None => (Arc::new(path.to_owned()), None),
        };
        let mut problems = parsed.problems;
        let mut keys: BTreeSet<ObjectKey> = parsed.refused.into_iter().collect();
        // Of what is refused only that holds which held before.
        keys.retain(|key| before.as_ref().is_some_and(|file| file.keys.binary_search(key).is_ok()));
        let mut changed = before.is_none();
        let mut seen = BTreeSet::new();
        for (key, object) in parsed.objects {
            if !seen.insert(key.clone()) {
                let mut problem = Problem::about(
                    &key,
                    Severity::Warning,
                    "",
                    "named twice in this file; the last one holds",
                );
                problem.file = path.to_path_buf();
                problems.push(problem);
            }
            let key = self.own(key);
            changed |= self.insert(&key, Some(&path), object);
            keys.insert(key);
        }
        for (key, refused) in parsed.stand_ins {
            if seen.contains(&key) {
                continue;
            }
            let key = self.own(key);
            changed |= self.refuse(&key, Some(&path), refused);
            keys.insert(key);
        }
        let before = before.unwrap_or_default();
        for key in before.keys {
            if parsed.unreadable {
                keys.insert(key);
            } else if !keys.contains(&key) {
                self.take(&key, Some(&path));
                changed = true;
            }
        }
        self.changes.problems |= before.problems != problems;
        changed |= before.problems != problems;
        self.files.insert(path, File { keys: keys.into_iter().collect(), problems });
        changed
    }

    /// Takes what the API server has of the object `named` now. One that is wrong leaves the last good one. Whether
    /// anything differs from before.
    pub fn put(&mut self, named: &ObjectKey, parsed: Parsed) -> bool {
        let mut changed = false;
        for (key, object) in parsed.objects {
            let key = self.own(key);
            changed |= self.insert(&key, None, object);
        }
        for (key, refused) in parsed.stand_ins {
            let key = self.own(key);
            changed |= self.refuse(&key, None, refused);
        }
        let before = match parsed.problems.is_empty() {
            true => self.problems.remove(named).unwrap_or_default(),
            false => self.problems.insert(named.clone(), parsed.problems.clone()).unwrap_or_default(),
        };
        let other = before != parsed.problems;
        self.changes.problems |= other;
        changed | other
    }

    /// The API server has the object no more. Whether it was held.
    pub fn forget(&mut self, key: &ObjectKey) -> bool {
        let wrong = self.problems.remove(key).is_some();
        self.changes.problems |= wrong;
        self.take(key, None) || wrong
    }

    /// The file is gone, and its objects with it. Whether there was one.
    pub fn remove(&mut self, path: &Path) -> bool {
        let Some((path, file)) = self.files.remove_entry(&path.to_owned()) else { return false };
        for key in &file.keys {
            self.take(key, Some(&path));
        }
        self.changes.problems |= !file.problems.is_empty();
        true
    }

    /// The version of an object that holds.
    pub fn get(&self, key: &ObjectKey) -> Option<&Object> {
        let space = self.spaces.get(&key.namespace)?;
        Some(&space.get(&(key.kind, key.name.clone()))?.object)
    }

    /// Whether some version of an object was good, and holds.
    pub fn holds(&self, key: &ObjectKey) -> bool {
        self.get(key).is_some_and(|object| !object.is_stand_in())
    }

    /// Keeps what a file held and says why it can't be read now.
    pub fn unreadable(&mut self, path: &Path, reason: String) {
        let file = self.files.entry(Arc::new(path.to_owned())).or_default();
        let problems = vec![Problem {
            severity: Severity::Refused,
            file: path.to_owned(),
            line: None,
            document: 0,
            object: None,
            field: String::new(),
            reason,
        }];
        self.changes.problems |= file.problems != problems;
        file.problems = problems;
    }

    /// The names of all objects of a kind.
    pub fn of_kind(&self, kind: Kind) -> impl Iterator<Item = ObjectKey> {
        self.spaces.iter().flat_map(move |(namespace, space)| {
            names_of(space, kind).map(move |name| ObjectKey {
                kind,
                namespace: namespace.clone(),
                name: name.clone(),
            })
        })
    }

    /// The objects of a namespace.
    pub fn of_namespace(&self, namespace: &str) -> impl Iterator<Item = &Object> {
        self.spaces.get(namespace).into_iter().flat_map(BTreeMap::values).map(|held| &held.object)
    }

    /// The names of everything that belongs to no namespace, Nodes or Namespaces.
    pub fn cluster_wide(&self, kind: Kind) -> impl Iterator<Item = &Arc<str>> {
        self.spaces.get("").into_iter().flat_map(move |space| names_of(space, kind))
    }

    /// Every namespace that has an object, or is one.
    pub fn namespaces(&self) -> BTreeSet<Arc<str>> {
        let with_objects = self.spaces.keys().filter(|name| !name.is_empty());
        with_objects.chain(self.cluster_wide(Kind::Namespace)).cloned().collect()
    }

    /// Makes everything as small as it can be. For when a great deal was read in one go: maps that grew are half
    /// empty, and slices that came before their pods have texts of their own.
    pub fn compact(&mut self) {
        for space in self.spaces.values_mut() {
            let pods = space.keys().filter(|(kind, _)| *kind == Kind::Pod);
            let pods: BTreeSet<Arc<str>> = pods.map(|(_, name)| name.clone()).collect();
            for held in space.values_mut() {
                if let Object::EndpointSlice(slice) = &mut held.object {
                    slice.share_names(|name| pods.get(name).cloned());
                }
            }
            // A map that is made of what is sorted has no gaps.
            *space = std::mem::take(space).into_iter().collect();
        }
    }

    /// What has changed since this was asked last.
    pub fn take_changes(&mut self) -> Changes {
        std::mem::take(&mut self.changes)
    }

    /// Where keys of tokens are fetched from. Of what is for nobody none are, and a namespace has so many places and no
    /// more: those that it has `before`, and then the older ones.
    pub fn key_sources(&self, before: &Wanted) -> Wanted {
        let for_somebody = self.all_authentications().filter(|(_, of)| !of.targets.is_empty());
        let named = for_somebody.flat_map(|(key, of)| {
            let since = of.metadata.creation_timestamp.as_deref();
            let places = of.sources();
            places.map(move |(source, timeout)| Named { namespace: &key.namespace, since, source, timeout })
        });
        share_out(named, before)
    }

    fn all_authentications(&self) -> impl Iterator<Item = (&ObjectKey, &RequestAuthentication)> {
        self.authentications.iter().filter_map(|key| match self.get(key)? {
            Object::RequestAuthentication(authentication) => Some((key, &**authentication)),
            _ => None,
        })
    }

    /// Takes what has come of fetching keys. Whether anything differs from before.
    pub fn set_keys(&mut self, source: &KeySource, fetched: Option<FetchedKeys>) -> bool {
        if self.keys.get(source) == fetched.as_ref() {
            return false;
        }
        let all = Arc::make_mut(&mut self.keys);
        match fetched {
            Some(fetched) => drop(all.insert(source.clone(), fetched)),
            None => drop(all.remove(source)),
        }
        let uses = |of: &RequestAuthentication| of.sources().any(|(used, _)| used == source);
        let users = self.all_authentications().filter(|(_, authentication)| uses(authentication));
        let users: Vec<(ObjectKey, bool)> =
            users.map(|(key, of)| (key.clone(), of.is_for_gateways())).collect();
        for (key, is_far) in users {
            self.changes.note(&key);
            self.changes.far |= is_far;
        }
        true
    }

    /// What is wrong with the files and objects themselves.
    pub fn problems(&self) -> impl Iterator<Item = &Problem> {
        self.files.values().flat_map(|file| &file.problems).chain(self.problems.values().flatten())
    }

    /// Warnings of Nodes and Namespaces that several files name.
    pub fn cluster_wide_doubles(&self) -> impl Iterator<Item = Problem> {
        let held = self.spaces.get_key_value("").into_iter().flat_map(|(none, space)| {
            space.iter().filter(|(_, held)| held.others.is_some()).map(move |(at, held)| (none, at, held))
        });
        held.flat_map(|(none, (kind, name), held)| {
            let key = ObjectKey { kind: *kind, namespace: none.clone(), name: name.clone() };
            held.doubles(&key).collect::<Vec<_>>()
        })
    }

    /// One version of each object, and every problem. Of an object named in two files the one in the
    /// file that sorts first holds.
    pub fn view(&self) -> View<'_> {
        let mut view = View { keys: self.keys.clone(), ..View::default() };
        view.problems.extend(self.problems().cloned());
        for namespace in self.spaces.keys() {
            self.show(namespace, |_| true, &mut view);
        }
        view
    }

    /// These namespaces alone, as they look to whoever compiles them: their objects, the Namespaces
    /// themselves, the nodes of their pods, and the policies of the root namespace. Not what is wrong with files.
    pub fn view_of(&self, namespaces: &BTreeSet<Arc<str>>, root: &str) -> View<'_> {
        let (own, keys) = (Some(namespaces.clone()), self.keys.clone());
        let mut view = View { own, keys, ..View::default() };
        for namespace in namespaces {
            self.show(namespace, |_| true, &mut view);
        }
        for key in self.far.iter().filter(|key| !namespaces.contains(&key.namespace)) {
            match self.get(key) {
                Some(Object::Gateway(gateway)) => view.foreign_gateways.push((key.clone(), gateway)),
                // Those of the root namespace are all here.
                Some(Object::AuthorizationPolicy(policy)) if *key.namespace != *root => {
                    view.foreign_policies.push((key.clone(), policy));
                }
                Some(Object::RequestAuthentication(policy)) if *key.namespace != *root => {
                    view.foreign_authentications.push((key.clone(), policy));
                }
                _ => {}
            }
        }
        if !namespaces.contains(root) {
            self.show(root, is_policy, &mut view);
        }
        let nodes: BTreeSet<Arc<str>> = view
            .objects
            .values()
            .filter_map(|object| match object {
                Object::Pod(pod) => pod.node.clone(),
                _ => None,
            })
            .collect();
        let nodes = nodes.into_iter().map(|name| (Kind::Node, name));
        for key in namespaces.iter().map(|name| (Kind::Namespace, name.clone())).chain(nodes) {
            let space = self.spaces.get_key_value("");
            if let Some((none, held)) = space.and_then(|(none, space)| Some((none, space.get(&key)?))) {
                held.show(ObjectKey { kind: key.0, namespace: none.clone(), name: key.1 }, &mut view);
            }
        }
        view
    }

    fn show<'a>(&'a self, namespace: &str, wanted: impl Fn(Kind) -> bool, view: &mut View<'a>) {
        let Some((namespace, space)) = self.spaces.get_key_value(namespace) else { return };
        for ((kind, name), held) in space.iter().filter(|((kind, _), _)| wanted(*kind)) {
            held.show(ObjectKey { kind: *kind, namespace: namespace.clone(), name: name.clone() }, view);
        }
    }

    /// The key with the texts that all share.
    pub fn own(&mut self, mut key: ObjectKey) -> ObjectKey {
        self.shared.replace(&mut key.namespace);
        let held = self
            .spaces
            .get(&key.namespace)
            .and_then(|space| space.get_key_value(&(key.kind, key.name.clone())));
        if let Some(((_, name), _)) = held {
            key.name = name.clone();
        }
        key
    }

    /// Puts a file's version of an object in. Whether it is another than before.
    fn insert(&mut self, key: &ObjectKey, file: Option<&FileName>, mut object: Object) -> bool {
        object.share(&mut self.shared);
        let space = self.spaces.entry(key.namespace.clone()).or_default();
        if let Object::EndpointSlice(slice) = &mut object {
            share_names(slice, space);
        }
        let changed = match space.get_mut(&(key.kind, key.name.clone())) {
            None => {
                let held = Held { object, file: file.cloned(), others: None };
                space.insert((key.kind, key.name.clone()), held);
                true
            }
            Some(held) => held.put(file, object),
        };
        if changed {
            self.changes.note(key);
            self.note_far(key);
        }
        changed
    }

    /// Keeps in mind what concerns other namespaces, once it has changed.
    fn note_far(&mut self, key: &ObjectKey) {
        let is_far = self.get(key).is_some_and(Object::is_far);
        let was_far = if is_far { !self.far.insert(key.clone()) } else { self.far.remove(key) };
        self.changes.far |= is_far || was_far;
        if key.kind == Kind::RequestAuthentication {
            match self.get(key).is_some() {
                true => drop(self.authentications.insert(key.clone())),
                false => drop(self.authentications.remove(key)),
            }
        }
    }

    /// Puts in that a file's version of an object is refused: the last good one holds, and knows of it; else what holds
    /// in its place. Whether that was known.
    fn refuse(&mut self, key: &ObjectKey, file: Option<&FileName>, mut refused: Object) -> bool {
        let held = self.spaces.get(&key.namespace).and_then(|space| space.get(&(key.kind, key.name.clone())));
        let good = held.and_then(|held| held.version(file)).filter(|good| !good.is_stand_in());
        match (good, &mut refused) {
            (Some(Object::BackendTLSPolicy(good)), Object::BackendTLSPolicy(refused)) => {
                let why = refused.refused.take();
                **refused = BackendTlsPolicy { refused: why, ..BackendTlsPolicy::clone(good) };
            }
            (Some(good), refused) => {
                if let (Some(good), Some(refused)) = (good.route(), refused.route_mut()) {
                    let why = refused.refused.take();
                    *refused = Route { refused: why, ..good.clone() };
                }
            }
            (None, _) => {}
        }
        self.insert(key, file, refused)
    }

    /// Takes a file's version of an object out. Whether there was one.
    fn take(&mut self, key: &ObjectKey, file: Option<&FileName>) -> bool {
        let Some(space) = self.spaces.get_mut(&key.namespace) else { return false };
        let at = (key.kind, key.name.clone());
        let Some(held) = space.get_mut(&at) else { return false };
        if held.file.as_ref() != file {
            let others = held.others.as_mut().zip(file);
            let taken = others.is_some_and(|(others, file)| others.remove(file).is_some());
            if taken {
                self.changes.note(key);
            }
            return taken;
        }
        match held.others.as_mut().and_then(|others| others.pop_first()) {
            Some((file, object)) => (held.file, held.object) = (Some(file), object),
            None => drop(space.remove(&at)),
        }
        if space.is_empty() {
            self.spaces.remove(&key.namespace);
        }
        self.changes.note(key);
        self.note_far(key);
        true
    }
}

/// The objects of a kind, which are beside each other, with their names.
fn objects_of(space: &Space, kind: Kind) -> impl Iterator<Item = (&Arc<str>, &Object)> {
    let first: (Kind, Arc<str>) = (kind, "".into());
    let all = space.range(first..).take_while(move |((of, _), _)| *of == kind);
    all.map(|((_, name), held)| (name, &held.object))
}

fn names_of(space: &Space, kind: Kind) -> impl Iterator<Item = &Arc<str>> {
    objects_of(space, kind).map(|(name, _)| name)
}

/// The names of pods, once for both.
fn share_names(slice: &mut EndpointSlice, space: &Space) {
    slice.share_names(|name| {
        space.get_key_value(&(Kind::Pod, name.clone())).map(|((_, name), _)| name.clone())
    });
}

impl Held {
    /// The version of a file.
    fn version(&self, file: Option<&FileName>) -> Option<&Object> {
        if self.file.as_ref() == file {
            return Some(&self.object);
        }
        self.others.as_ref()?.get(file?)
    }

    /// Whether the file's version is another than before.
    fn put(&mut self, file: Option<&FileName>, object: Object) -> bool {
        let first = match (file, &self.file) {
            (Some(file), Some(held)) => file.cmp(held),
            (_, _) => std::cmp::Ordering::Equal,
        };
        if first.is_eq() {
            let changed = self.object != object;
            self.object = object;
            return changed;
        }
        let Some(file) = file.cloned() else { return false };
        let others = self.others.get_or_insert_default();
        if first.is_gt() {
            return others.insert(file, object.clone()).as_ref() != Some(&object);
        }
        let before = std::mem::replace(&mut self.object, object);
        if let Some(held) = self.file.replace(file.clone()) {
            others.insert(held, before);
        }
        others.remove(&file);
        true
    }

    fn show<'a>(&'a self, key: ObjectKey, view: &mut View<'a>) {
        view.problems.extend(self.doubles(&key));
        view.objects.insert(key, &self.object);
    }

    /// A warning for each further file that names it.
    fn doubles(&self, key: &ObjectKey) -> impl Iterator<Item = Problem> {
        self.others.iter().flat_map(|others| others.keys()).map(|file| {
            let mut problem =
                Problem::about(key, Severity::Warning, "", "another file names it first, and holds");
            problem.file = file.to_path_buf();
            problem
        })
    }
}

/// All objects, each once, in the order of their keys.
#[derive(Debug, Default)]
pub struct View<'a> {
    pub objects: BTreeMap<ObjectKey, &'a Object>,
    pub problems: Vec<Problem>,
    /// Addresses that were given to hosts of all ServiceEntries, where these are not all of them.
    pub(crate) automatic: Option<Arc<Given>>,
    /// Gateways of namespaces whose other objects are not here.
    pub(crate) foreign_gateways: Vec<(ObjectKey, &'a Gateway)>,
    /// Policies for these.
    pub(crate) foreign_policies: Vec<(ObjectKey, &'a Authorization)>,
    pub(crate) foreign_authentications: Vec<(ObjectKey, &'a RequestAuthentication)>,
    /// Keys of tokens, as far as they were fetched.
    pub(crate) keys: Arc<Fetched>,
    /// The namespaces of which everything is here; `None`: of all.
    pub(crate) own: Option<BTreeSet<Arc<str>>>,
}

impl<'a> View<'a> {
    pub fn get(&self, key: &ObjectKey) -> Option<&'a Object> {
        self.objects.get(key).copied()
    }
}

#[cfg(test)]
mod tests;
