//! What is held of the cluster: every object in the store that folders use too, and of which kinds everything was seen.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde_json::Value;
use tokio::{sync::watch, time};

use super::{
    kept::{Kept, is_kept},
    kinds::{Place, strip},
    refused::{Instead, strictest},
    verdicts::{Said, is_judged},
};
use crate::{
    manifest::{Kind, Object, ObjectKey, Parsed, Pod, TrustManifest, parse_json},
    objects::Objects,
};

/// Changes are passed on when nothing has changed for this long …
const SETTLED: Duration = Duration::from_millis(20);
/// … or this long after the first of them.
const LATEST: Duration = Duration::from_millis(100);

/// Whether everything of a kind was seen once.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Look {
    /// Not yet, for this reason (empty if none is known).
    Pending(String),
    Listed,
    /// The API server does not have the kind.
    Absent,
}

/// Shared by all who follow the API server, and by who compiles.
pub struct Held {
    objects: Arc<Mutex<Objects>>,
    looks: watch::Sender<BTreeMap<Kind, Look>>,
    changes: watch::Sender<u64>,
    certificates: watch::Sender<u64>,
    /// What people's manifests say of themselves.
    said: Mutex<BTreeMap<ObjectKey, Said>>,
    /// Objects whose status is written, with all that is in them.
    pub kept: Kept,
}

/// An object's name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name {
    pub namespace: String,
    pub name: String,
}

impl Name {
    /// The name in `object`'s metadata.
    pub fn of(object: &Value) -> Option<Self> {
        let metadata = &object["metadata"];
        let name = metadata["name"].as_str().filter(|name| !name.is_empty())?;
        let namespace = metadata["namespace"].as_str().unwrap_or_default();
        Some(Self { namespace: namespace.to_owned(), name: name.to_owned() })
    }

    /// As it is named in the store.
    pub fn key(&self, kind: Kind) -> ObjectKey {
        ObjectKey { kind, namespace: self.namespace.as_str().into(), name: self.name.as_str().into() }
    }
}

impl Default for Held {
    fn default() -> Self {
        let looks = Kind::ALL.map(|kind| (kind, Look::Pending(String::new())));
        Self {
            objects: Arc::default(),
            looks: watch::Sender::new(looks.into_iter().collect()),
            changes: watch::Sender::new(0),
            certificates: watch::Sender::new(0),
            said: Mutex::default(),
            kept: Kept::default(),
        }
    }
}

impl Held {
    pub fn objects(&self) -> Arc<Mutex<Objects>> {
        self.objects.clone()
    }

    /// Takes a version of an object in. What holds instead of one that is wrong: see [`Instead`]. The key, if the object
    /// has a name.
    pub fn put(&self, kind: Kind, place: &Place, mut object: Value) -> Option<ObjectKey> {
        let name = Name::of(&object)?;
        let mut key = name.key(kind);
        let said = is_judged(kind).then(|| Said::of(place, &name, &object));
        if is_kept(kind) {
            self.kept.put(&key, place, &name, &object);
        }
        strip(kind, place, &mut object);
        let mut parsed = parse_json(&object);
        let mut objects = self.lock();
        if let Some(mut said) = said {
            said.instead = self.replace(&mut objects, &key, &object, &said, &mut parsed);
            self.lock_said().insert(key.clone(), said);
        }
        let changed = objects.put(&key, parsed);
        key = objects.own(key);
        drop(objects);
        if changed {
            self.changed(kind);
        }
        Some(key)
    }

    /// Puts in the place of what is refused what holds instead, and says so; `None` if nothing is refused.
    fn replace(
        &self,
        objects: &mut Objects,
        key: &ObjectKey,
        object: &Value,
        said: &Said,
        parsed: &mut Parsed,
    ) -> Option<Instead> {
        let refusal = parsed.problems.last_mut().filter(|_| !parsed.refused.is_empty())?;
        let before = self.lock_said().get(key).and_then(|before| before.instead);
        let was_closed = before == Some(Instead::Strictest);
        let strict = strictest(key.kind, object).filter(|_| said.was_accepted() || was_closed);
        let instead = match (objects.holds(key), strict) {
            (true, _) if !was_closed => Instead::Last,
            (_, Some(strict)) => {
                parsed.objects = parse_json(&strict).objects;
                Instead::Strictest
            }
            _ => {
                if was_closed {
                    objects.forget(key);
                }
                Instead::Nothing
            }
        };
        refusal.reason.push_str(instead.words());
        Some(instead)
    }

    /// The object is gone.
    pub fn remove(&self, kind: Kind, name: &Name) {
        let key = name.key(kind);
        self.lock_said().remove(&key);
        self.kept.remove(&key);
        if self.lock().forget(&key) {
            self.changed(kind);
        }
    }

    /// Everything of a kind was listed: what is not among `keys` is gone.
    pub fn listed(&self, kind: Kind, keys: &HashSet<ObjectKey>) {
        let named = |key: &ObjectKey| keys.contains(key);
        self.retain(kind, named);
        self.lock_said().retain(|key, _| key.kind != kind || named(key));
        self.kept.retain(kind, named);
        self.look(kind, Look::Listed);
    }

    /// The API server does not have the kind.
    pub fn absent(&self, kind: Kind) {
        self.retain(kind, |_| false);
        self.lock_said().retain(|key, _| key.kind != kind);
        self.kept.retain(kind, |_| false);
        self.look(kind, Look::Absent);
    }

    /// Of a kind that was not seen yet: why not.
    pub fn failed(&self, kind: Kind, reason: String) {
        if self.is_pending(kind) {
            self.look(kind, Look::Pending(reason));
        }
    }

    /// Whether nothing is known of the kind yet.
    pub fn is_pending(&self, kind: Kind) -> bool {
        matches!(self.looks.borrow().get(&kind), Some(Look::Pending(_)))
    }

    /// The kinds that were not seen wholly yet, in words; `None` when there is none left.
    pub fn pending(&self) -> Option<String> {
        let looks = self.looks.borrow();
        let pending: Vec<String> = looks
            .iter()
            .filter_map(|(kind, look)| match look {
                Look::Pending(reason) if reason.is_empty() => Some(format!("{kind:?}")),
                Look::Pending(reason) => Some(format!("{kind:?} ({reason})")),
                Look::Listed | Look::Absent => None,
            })
            .collect();
        (!pending.is_empty()).then(|| format!("the first list of {}", pending.join(", ")))
    }

    /// Waits until every kind that the API server has was listed once. An incomplete look would be taken for
    /// a mesh without what it misses. `waiting` is told what is missing.
    pub async fn complete(&self, waiting: impl Fn(String)) {
        let mut looks = self.looks.subscribe();
        loop {
            looks.mark_unchanged();
            match self.pending() {
                Some(pending) => waiting(pending),
                None => return,
            }
            // The sender lives as long as `self`.
            let _ = looks.changed().await;
        }
    }

    /// Follows the changes, several as one.
    pub fn follow(self: &Arc<Self>) -> watch::Receiver<u64> {
        let mut changes = self.changes.subscribe();
        let (settled, followers) = watch::channel(0);
        tokio::spawn(async move {
            while tokio::select! {
                changed = changes.changed() => changed.is_ok(),
                () = settled.closed() => false,
            } {
                let latest = time::Instant::now() + LATEST;
                while let Ok(Ok(())) = time::timeout(SETTLED, changes.changed()).await {
                    if time::Instant::now() >= latest {
                        break;
                    }
                }
                settled.send_replace(*changes.borrow_and_update());
            }
        });
        followers
    }

    /// The number grows with each change of what refers to certificates.
    pub fn certificates(&self) -> watch::Receiver<u64> {
        self.certificates.subscribe()
    }

    /// Waits until everything of a kind was seen once, or it is known not to be there.
    pub async fn seen(&self, kind: Kind) {
        let mut looks = self.looks.subscribe();
        // The sender lives as long as `self`.
        let _ = looks.wait_for(|looks| !matches!(looks.get(&kind), Some(Look::Pending(_)))).await;
    }

    /// The ConfigMaps in which certificates are to be.
    pub fn wanted_certificates(&self) -> BTreeSet<Name> {
        let objects = self.lock();
        let policies: Vec<ObjectKey> = objects.of_kind(Kind::BackendTLSPolicy).collect();
        let mut wanted = BTreeSet::new();
        for key in policies {
            let Some(Object::BackendTLSPolicy(policy)) = objects.get(&key) else { continue };
            let TrustManifest::Certificates(references) = &policy.trust else { continue };
            let names = references.iter().filter(|reference| reference.is_config_map());
            wanted.extend(
                names.map(|of| Name { namespace: key.namespace.to_string(), name: of.name.to_string() }),
            );
        }
        wanted
    }

    /// What people's manifests say of themselves now.
    pub fn said(&self) -> BTreeMap<ObjectKey, Said> {
        self.lock_said().clone()
    }

    /// A pod as it is now.
    pub fn pod(&self, namespace: &str, name: &str) -> Option<Pod> {
        let key = ObjectKey { kind: Kind::Pod, namespace: namespace.into(), name: name.into() };
        match self.lock().get(&key) {
            Some(Object::Pod(pod)) => Some(Pod::clone(pod)),
            _ => None,
        }
    }

    /// The pods of a namespace with a label of this value, and how many of these are ready.
    pub fn pods_with(&self, namespace: &str, label: &str, value: &str) -> (usize, usize) {
        let objects = self.lock();
        let (mut all, mut ready) = (0, 0);
        for object in objects.of_namespace(namespace) {
            let Object::Pod(pod) = object else { continue };
            if pod.label(label) == Some(value) && !pod.ended() {
                all += 1;
                ready += usize::from(pod.ready());
            }
        }
        (all, ready)
    }

    /// The addresses of a Service as it is now.
    pub fn addresses(&self, namespace: &str, name: &str) -> Vec<IpAddr> {
        let key = ObjectKey { kind: Kind::Service, namespace: namespace.into(), name: name.into() };
        match self.lock().get(&key) {
            Some(Object::Service(service)) => service.addresses.to_vec(),
            _ => Vec::new(),
        }
    }

    /// How many objects of each kind are held.
    pub fn count(&self) -> BTreeMap<Kind, usize> {
        let mut counts: BTreeMap<Kind, usize> = Kind::ALL.into_iter().map(|kind| (kind, 0)).collect();
        let objects = self.lock();
        for kind in Kind::ALL {
            counts.insert(kind, objects.of_kind(kind).count());
        }
        drop(objects);
        counts
    }

    fn retain(&self, kind: Kind, keep: impl Fn(&ObjectKey) -> bool) {
        let mut objects = self.lock();
        let gone: Vec<ObjectKey> = objects.of_kind(kind).filter(|key| !keep(key)).collect();
        for key in &gone {
            objects.forget(key);
        }
        drop(objects);
        if !gone.is_empty() {
            self.changed(kind);
        }
    }

    fn look(&self, kind: Kind, look: Look) {
        self.looks.send_if_modified(|looks| looks.insert(kind, look.clone()).as_ref() != Some(&look));
    }

    fn changed(&self, kind: Kind) {
        if kind == Kind::BackendTLSPolicy {
            self.certificates.send_modify(|number| *number += 1);
        }
        self.changes.send_modify(|number| *number += 1);
    }

    fn lock_said(&self) -> MutexGuard<'_, BTreeMap<ObjectKey, Said>> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, Objects> {
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn place() -> Place {
        Place::of("v1")
    }

    fn nodes(names: &[&str]) -> HashSet<ObjectKey> {
        let key = |name: &&str| ObjectKey { kind: Kind::Node, namespace: "".into(), name: (*name).into() };
        names.iter().map(key).collect()
    }

    #[tokio::test]
    async fn the_first_look_is_complete_when_every_kind_is() {
        let held = Held::default();
        for kind in Kind::ALL {
            assert!(held.pending().unwrap().contains(&format!("{kind:?}")));
            if kind == Kind::ServiceEntry {
                held.absent(kind);
            } else {
                held.listed(kind, &HashSet::new());
            }
        }
        assert_eq!(held.pending(), None);
        // It does not become incomplete again.
        held.failed(Kind::Pod, "broken".to_owned());
        held.complete(|pending| panic!("{pending}")).await;
    }

    #[test]
    fn why_a_kind_is_missing_is_said() {
        let held = Held::default();
        held.failed(Kind::Pod, "403".to_owned());
        assert!(held.pending().unwrap().contains("Pod (403)"));
    }

    #[test]
    fn a_relist_forgets_what_is_gone_and_only_of_its_kind() {
        let held = Held::default();
        for name in ["a", "b"] {
            held.put(Kind::Node, &place(), json!({"metadata": {"name": name}}));
            held.put(Kind::Namespace, &place(), json!({"metadata": {"name": name}}));
        }
        let before = *held.changes.borrow();
        held.put(Kind::Node, &place(), json!({"metadata": {"name": "a"}, "status": {"heartbeat": 2}}));
        assert_eq!(*held.changes.borrow(), before, "what is not read is no change");
        held.listed(Kind::Node, &nodes(&["b", "new"]));
        let counts = held.count();
        assert_eq!((counts[&Kind::Node], counts[&Kind::Namespace]), (1, 2));
        held.absent(Kind::Namespace);
        assert_eq!(held.count()[&Kind::Namespace], 0);
    }
}
