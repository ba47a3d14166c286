//! Objects whose status the leader writes, as the API server has them: with what the mesh itself does not read.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde_json::{Value, json};
use tokio::sync::watch;

use super::{held::Name, kinds::Place};
use crate::manifest::{Kind, ObjectKey};

/// Whether objects of this kind are kept so.
pub fn is_kept(kind: Kind) -> bool {
    kind == Kind::Gateway || kind.has_standings()
}

/// An object and where it is.
#[derive(Debug, PartialEq)]
pub struct Whole {
    /// Its path at the API server.
    pub path: String,
    pub object: Value,
}

impl Whole {
    /// The version of what its writer wants.
    pub fn generation(&self) -> i64 {
        self.object["metadata"]["generation"].as_i64().unwrap_or_default()
    }
}

/// All of them.
pub struct Kept {
    objects: Mutex<BTreeMap<ObjectKey, Arc<Whole>>>,
    changes: watch::Sender<u64>,
}

impl Default for Kept {
    fn default() -> Self {
        Self { objects: Mutex::default(), changes: watch::Sender::new(0) }
    }
}

impl Kept {
    /// Takes a version in, before anything is taken out of it.
    pub fn put(&self, key: &ObjectKey, place: &Place, name: &Name, object: &Value) {
        let whole = Arc::new(Whole { path: place.object(name), object: trimmed(key.kind, object) });
        self.lock().insert(key.clone(), whole);
        self.changed();
    }

    pub fn remove(&self, key: &ObjectKey) {
        if self.lock().remove(key).is_some() {
            self.changed();
        }
    }

    /// Of this kind only those stay.
    pub fn retain(&self, kind: Kind, keep: impl Fn(&ObjectKey) -> bool) {
        self.lock().retain(|key, _| key.kind != kind || keep(key));
        self.changed();
    }

    /// All of these kinds.
    pub fn all(&self, is: impl Fn(Kind) -> bool) -> BTreeMap<ObjectKey, Arc<Whole>> {
        let objects = self.lock();
        let all = objects.iter().filter(|(key, _)| is(key.kind));
        all.map(|(key, whole)| (key.clone(), whole.clone())).collect()
    }

    /// The number grows when something has changed.
    pub fn follow(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    fn changed(&self) {
        self.changes.send_modify(|number| *number += 1);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<ObjectKey, Arc<Whole>>> {
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Of a route only who it is and its status; there may be thousands.
fn trimmed(kind: Kind, object: &Value) -> Value {
    if kind != Kind::Gateway {
        let metadata = &object["metadata"];
        return json!({
            "metadata": {"generation": metadata["generation"]},
            "status": {"parents": object["status"]["parents"]},
        });
    }
    let mut object = object.clone();
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("managedFields");
    }
    object
}
