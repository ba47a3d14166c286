//! Which places of keys are asked, and for whom: a namespace has so many and no more. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use crate::manifest::KeySource;

/// Where keys are to be fetched from.
pub type Wanted = BTreeMap<KeySource, Want>;

/// Who wants the keys of a place.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Want {
    /// How long that may take.
    pub patience: Duration,
    /// Those that may have it asked; none: each that names it names too many.
    pub namespaces: BTreeSet<Arc<str>>,
}

/// A place as a RequestAuthentication names it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Named<'o> {
    pub namespace: &'o Arc<str>,
    /// When the object was made, where that is known; compared as text.
    pub since: Option<&'o str>,
    pub source: &'o KeySource,
    pub timeout: Duration,
}

impl Want {
    /// The most places of one namespace.
    pub const MOST_OF_NAMESPACE: usize = 32;
}

/// Gives each namespace its places. Whoever had one `before` keeps it, for its keys are in use; of others the older
/// object comes first, and of two of one age the one that is named first.
pub(crate) fn share_out<'o>(named: impl Iterator<Item = Named<'o>>, before: &Wanted) -> Wanted {
    let had =
        |of: &Named<'_>| before.get(of.source).is_some_and(|want| want.namespaces.contains(of.namespace));
    let mut named: Vec<Named<'_>> = named.collect();
    named.sort_by_cached_key(|of| (!had(of), of.since));
    let mut wanted = Wanted::new();
    let mut of_namespaces: BTreeMap<&Arc<str>, BTreeSet<&KeySource>> = BTreeMap::new();
    for Named { namespace, source, timeout, .. } in named {
        let want = wanted.entry(source.clone()).or_default();
        let own = of_namespaces.entry(namespace).or_default();
        if own.len() < Want::MOST_OF_NAMESPACE || own.contains(source) {
            own.insert(source);
            want.namespaces.insert(namespace.clone());
            want.patience = timeout.max(want.patience);
        }
    }
    wanted
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use super::*;

    fn place(number: usize) -> KeySource {
        KeySource::Set(format!("https://keys.example/{number:02}").into())
    }

    /// What the objects of a namespace are given: each has its age and the numbers of its places.
    fn given(objects: &[(Option<&str>, Range<usize>)], before: &Wanted) -> Wanted {
        let namespace: Arc<str> = "shop".into();
        let places: Vec<(Option<&str>, KeySource)> = objects
            .iter()
            .flat_map(|(since, places)| places.clone().map(move |number| (*since, place(number))))
            .collect();
        let named = places.iter().map(|(since, source)| Named {
            namespace: &namespace,
            since: *since,
            source,
            timeout: Duration::from_secs(1),
        });
        share_out(named, before)
    }

    #[test]
    fn who_has_a_place_keeps_it_and_else_the_older_comes_first() {
        let (old, new) = (Some("2026-01-01T00:00:00Z"), Some("2026-02-01T00:00:00Z"));
        let none = Wanted::new();
        let of_32 = given(&[(new, 32..64)], &none);
        for (what, objects, before, asked) in [
            ("by name alone", vec![(None, 0..20), (None, 20..40)], &none, 0..32),
            ("by age", vec![(new, 0..20), (old, 20..40)], &none, 20..40),
            (
                "what was asked, though a new one is named first",
                vec![(None, 0..8), (None, 32..64)],
                &of_32,
                32..64,
            ),
            ("nor does age count then", vec![(old, 0..8), (new, 32..64)], &of_32, 32..64),
            ("what is let go is another's", vec![(None, 0..8), (None, 40..64)], &of_32, 40..64),
        ] {
            let wanted = given(&objects, before);
            let is_asked = |number: &usize| {
                wanted.get(&place(*number)).is_some_and(|want| want.namespaces.contains("shop"))
            };
            assert!(asked.clone().all(|number| is_asked(&number)), "{what}");
            let named: BTreeSet<usize> = objects.into_iter().flat_map(|(_, places)| places).collect();
            assert_eq!(named.iter().filter(|number| is_asked(number)).count(), named.len().min(32), "{what}");
            assert_eq!(wanted.len(), named.len(), "{what}: those beyond are told of");
        }
    }

    #[test]
    fn a_place_of_another_namespace_is_nobodys_right() {
        let before = Wanted::from([(
            place(1),
            Want { patience: Duration::from_secs(1), namespaces: ["bank".into()].into() },
        )]);
        let wanted = given(&[(None, 2..34), (None, 1..2)], &before);
        assert!(wanted[&place(1)].namespaces.is_empty());
    }
}
