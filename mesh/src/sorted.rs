//! A sorted list that shares what an edit does not change, and finds its k-th item without a walk.
//!
//! It is what balancing and the policy index stand on: a pick among 10,000 endpoints is one index, and
//! an edit copies one chunk and the list of chunks (n / 64 pointers at worst), never the items. The
//! order is that of the content, not of history, so the same state gives the same answers.

use std::{cmp::Ordering, sync::Arc};

/// The most items one chunk holds; a chunk is copied whole when a shared one is edited.
const CHUNK: usize = 128;

/// A total order of items; two items of equal rank are the same item in two versions.
pub(crate) trait Ranked {
    fn rank(&self, other: &Self) -> Ordering;
}

#[derive(Clone)]
pub(crate) enum Sorted<T> {
    /// Most lists of a mesh hold one item: it costs no allocation.
    Few(Option<T>),
    Chunk(Arc<Vec<T>>),
    Spine(Arc<Spine<T>>),
}

#[derive(Clone)]
pub(crate) struct Spine<T> {
    /// None is empty.
    chunks: Vec<Arc<Vec<T>>>,
    /// The index of each chunk's first item.
    starts: Vec<usize>,
    len: usize,
}

impl<T> Default for Sorted<T> {
    fn default() -> Self {
        Self::Few(None)
    }
}

impl<T: Ranked + Clone> Sorted<T> {
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Few(item) => usize::from(item.is_some()),
            Self::Chunk(chunk) => chunk.len(),
            Self::Spine(spine) => spine.len,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(crate) fn get(&self, index: usize) -> Option<&T> {
        match self {
            Self::Few(item) => item.as_ref().filter(|_| index == 0),
            Self::Chunk(chunk) => chunk.get(index),
            Self::Spine(spine) => {
                let at = spine.starts.partition_point(|&start| start <= index) - 1;
                spine.chunks[at].get(index - spine.starts[at])
            }
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        let (first, rest): (&[T], &[Arc<Vec<T>>]) = match self {
            Self::Few(item) => (item.as_slice(), &[]),
            Self::Chunk(chunk) => (chunk, &[]),
            Self::Spine(spine) => (&[], &spine.chunks),
        };
        first.iter().chain(rest.iter().flat_map(|chunk| chunk.iter()))
    }

    /// The number of leading items for which `before` holds; it must hold for a prefix of the list.
    pub(crate) fn partition_point(&self, mut before: impl FnMut(&T) -> bool) -> usize {
        match self {
            Self::Few(item) => usize::from(item.as_ref().is_some_and(before)),
            Self::Chunk(chunk) => chunk.partition_point(before),
            Self::Spine(spine) => {
                let at = spine.chunks.partition_point(|chunk| chunk.last().is_some_and(&mut before));
                match spine.chunks.get(at) {
                    Some(chunk) => spine.starts[at] + chunk.partition_point(before),
                    None => spine.len,
                }
            }
        }
    }

    /// Puts an item in its place; one of equal rank is replaced.
    pub(crate) fn insert(&mut self, item: T) {
        match self {
            Self::Few(held) => match held {
                Some(one) if one.rank(&item) != Ordering::Equal => {
                    let pair = if one.rank(&item).is_lt() {
                        vec![one.clone(), item]
                    } else {
                        vec![item, one.clone()]
                    };
                    *self = Self::Chunk(Arc::new(pair));
                }
                _ => *held = Some(item),
            },
            Self::Chunk(chunk) => {
                if let Some(right) = insert_in(chunk, item) {
                    let left = chunk.clone();
                    *self = Self::Spine(Arc::new(Spine::of(vec![left, right])));
                }
            }
            Self::Spine(spine) => Arc::make_mut(spine).insert(item),
        }
    }

    /// Takes out the item for which `place` says `Equal`; `place` compares an item with the one sought.
    pub(crate) fn remove(&mut self, place: impl Fn(&T) -> Ordering) {
        match self {
            Self::Few(held) => {
                if held.as_ref().is_some_and(|item| place(item).is_eq()) {
                    *held = None;
                }
            }
            Self::Chunk(chunk) => {
                if let Ok(at) = chunk.binary_search_by(place) {
                    Arc::make_mut(chunk).remove(at);
                    if chunk.len() == 1 {
                        *self = Self::Few(chunk.first().cloned());
                    }
                }
            }
            Self::Spine(spine) => {
                Arc::make_mut(spine).remove(place);
                if spine.chunks.len() == 1 {
                    *self = Self::Chunk(spine.chunks[0].clone());
                }
            }
        }
    }
}

impl<T: Ranked + Clone> Spine<T> {
    fn of(chunks: Vec<Arc<Vec<T>>>) -> Self {
        let mut spine = Self { chunks, starts: Vec::new(), len: 0 };
        spine.recount(0);
        spine
    }

    fn insert(&mut self, item: T) {
        let at = self
            .chunks
            .partition_point(|chunk| chunk.last().is_some_and(|last| last.rank(&item).is_lt()))
            .min(self.chunks.len() - 1);
        if let Some(right) = insert_in(&mut self.chunks[at], item) {
            self.chunks.insert(at + 1, right);
        }
        self.recount(at);
    }

    fn remove(&mut self, place: impl Fn(&T) -> Ordering) {
        let at = self.chunks.partition_point(|chunk| chunk.last().is_some_and(|last| place(last).is_lt()));
        let Some(chunk) = self.chunks.get_mut(at) else { return };
        let Ok(within) = chunk.binary_search_by(place) else { return };
        Arc::make_mut(chunk).remove(within);
        // Neighbours that fit in half a chunk become one, so that a list that shrinks stays dense.
        let left = at.saturating_sub(1);
        for first in (left..=at).rev() {
            if first + 1 < self.chunks.len()
                && self.chunks[first].len() + self.chunks[first + 1].len() <= CHUNK / 2
            {
                let right = self.chunks.remove(first + 1);
                Arc::make_mut(&mut self.chunks[first]).extend(right.iter().cloned());
            }
        }
        self.chunks.retain(|chunk| !chunk.is_empty());
        self.recount(left);
    }

    fn recount(&mut self, from: usize) {
        self.starts.truncate(from);
        let mut next = match from.checked_sub(1) {
            Some(before) => self.starts[before] + self.chunks[before].len(),
            None => 0,
        };
        for chunk in &self.chunks[from..] {
            self.starts.push(next);
            next += chunk.len();
        }
        self.len = next;
    }
}

/// Inserts into one chunk; the right half comes back when the chunk had to be split.
fn insert_in<T: Ranked + Clone>(chunk: &mut Arc<Vec<T>>, item: T) -> Option<Arc<Vec<T>>> {
    let chunk = Arc::make_mut(chunk);
    match chunk.binary_search_by(|held| held.rank(&item)) {
        Ok(at) => chunk[at] = item,
        Err(at) => chunk.insert(at, item),
    }
    (chunk.len() > CHUNK).then(|| Arc::new(chunk.split_off(CHUNK / 2)))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Copy, Debug, PartialEq)]
    struct Item(u16, u32);

    impl Ranked for Item {
        fn rank(&self, other: &Self) -> Ordering {
            self.0.cmp(&other.0)
        }
    }

    fn check(list: &Sorted<Item>, model: &BTreeMap<u16, u32>) {
        assert_eq!(list.len(), model.len());
        assert_eq!(list.is_empty(), model.is_empty());
        let expected: Vec<Item> = model.iter().map(|(&key, &value)| Item(key, value)).collect();
        assert_eq!(list.iter().copied().collect::<Vec<_>>(), expected);
        for (index, item) in expected.iter().enumerate() {
            assert_eq!(list.get(index), Some(item));
            assert_eq!(list.partition_point(|held| held.0 < item.0), index);
        }
        assert_eq!(list.get(model.len()), None);
        assert_eq!(list.partition_point(|_| true), model.len());
        if let Sorted::Spine(spine) = list {
            assert!(spine.chunks.iter().all(|chunk| !chunk.is_empty() && chunk.len() <= CHUNK));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

        /// Grows past several chunks and shrinks again; a clone taken on the way never changes.
        #[test]
        fn behaves_as_a_sorted_map(
            grow in prop::collection::vec((0u16..600, any::<u32>()), 0..800),
            shrink in prop::collection::vec(0u16..600, 0..900),
        ) {
            let mut list = Sorted::default();
            let mut model = BTreeMap::new();
            for (key, value) in grow {
                list.insert(Item(key, value));
                model.insert(key, value);
            }
            check(&list, &model);
            let (before, model_before) = (list.clone(), model.clone());
            for key in shrink {
                list.remove(|held| held.0.cmp(&key));
                model.remove(&key);
            }
            check(&list, &model);
            check(&before, &model_before);
        }
    }

    #[test]
    fn a_list_that_shrinks_to_nothing_is_empty() {
        let mut list = Sorted::default();
        for key in 0..1000 {
            list.insert(Item(key, 0));
        }
        for key in (0..1000).rev() {
            list.remove(|held| held.0.cmp(&key));
            assert_eq!(list.len(), usize::from(key));
        }
        assert!(matches!(list, Sorted::Few(None)));
    }
}
