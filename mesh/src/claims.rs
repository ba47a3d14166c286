//! Who holds an address or a name when several claim it: the one that was put last, of those to whom the cluster gave
//! it if there are any: what somebody wrote into a ServiceEntry or WorkloadEntry takes no pod's and no Service's.
//!
//! All claims are kept, in the order they were put. Removing the holder hands the address to the last
//! put of those that still claim it; removing any other changes nothing. (Two pods share an address
//! when one is on its way out and the address is given again, or when they are on the host network.)

use std::sync::Arc;

use crate::{Service, Workload};

/// Whether two values are versions of one object.
pub(crate) trait Object: Clone {
    fn is_same(&self, other: &Self) -> bool;
    /// Whether the cluster gave it its addresses.
    fn is_given(&self) -> bool;
}

impl Object for Workload {
    fn is_same(&self, other: &Self) -> bool {
        self.uid == other.uid
    }

    fn is_given(&self) -> bool {
        self.is_pod()
    }
}

impl Object for Service {
    fn is_same(&self, other: &Self) -> bool {
        self.key == other.key
    }

    fn is_given(&self) -> bool {
        self.canonical
    }
}

/// The claims to one address or name; never empty within a map.
#[derive(Clone)]
pub(crate) enum Claims<T> {
    One(Arc<T>),
    Many(Arc<Vec<Arc<T>>>),
}

impl<T: Object> Claims<T> {
    /// The last put.
    pub(crate) fn holder(&self) -> &Arc<T> {
        match self {
            Self::One(object) => object,
            Self::Many(objects) => &objects[objects.len() - 1],
        }
    }

    /// The last put first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<T>> {
        let all = match self {
            Self::One(object) => std::slice::from_ref(object),
            Self::Many(objects) => objects.as_slice(),
        };
        all.iter().rev()
    }

    /// Adds a claim as the last one of its like; an earlier claim of the same object goes.
    pub(crate) fn put(&mut self, object: &Arc<T>) {
        match self {
            Self::One(held) if held.is_same(object) => *held = object.clone(),
            Self::One(held) if held.is_given() && !object.is_given() => {
                *self = Self::Many(Arc::new(vec![object.clone(), held.clone()]));
            }
            Self::One(held) => *self = Self::Many(Arc::new(vec![held.clone(), object.clone()])),
            Self::Many(objects) => {
                let objects = Arc::make_mut(objects);
                objects.retain(|held| !held.is_same(object));
                // Claims come before what is given.
                let end = if object.is_given() {
                    objects.len()
                } else {
                    objects.partition_point(|held| !held.is_given())
                };
                objects.insert(end, object.clone());
            }
        }
    }

    /// Takes the claim of an object away; true when none is left.
    pub(crate) fn remove(&mut self, object: &T) -> bool {
        match self {
            Self::One(held) => return held.is_same(object),
            Self::Many(objects) => {
                let objects = Arc::make_mut(objects);
                objects.retain(|held| !held.is_same(object));
                if let [one] = objects.as_slice() {
                    *self = Self::One(one.clone());
                }
            }
        }
        false
    }
}
