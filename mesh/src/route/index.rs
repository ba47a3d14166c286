//! Which entries of a table can be for a path: found by the path itself, so that a thousand rules cost a request hardly
//! more than ten.

use std::collections::HashMap;

use super::{RouteKind, kinds::Followed};

/// What an entry can be found by.
#[derive(Debug, PartialEq)]
pub(super) enum Key<'a> {
    /// The whole path.
    Exact(String),
    /// What the path begins with, up to its end or a slash.
    Prefix(&'a str),
    /// By nothing: it is asked of every path.
    Any,
}

/// The places of entries by what they are found by; what comes first in the table comes first.
#[derive(Debug, Clone, Default)]
pub(super) struct Index(Vec<Group>);

/// Entries that are followed together.
#[derive(Debug, Clone)]
struct Group {
    namespace: Option<Box<str>>,
    kind: RouteKind,
    exact: Places,
    /// By their length in bytes.
    prefixes: Vec<(usize, Places)>,
    any: Vec<usize>,
}

type Places = HashMap<Box<str>, Vec<usize>>;

impl Index {
    /// Takes the entry that is at `place`; a later one is at a later place.
    pub(super) fn push(&mut self, place: usize, of: Followed<'_>, key: Key<'_>) {
        let group = match self.0.iter().position(|group| group.is(of)) {
            Some(at) => &mut self.0[at],
            None => self.0.push_mut(Group {
                namespace: of.namespace.map(Into::into),
                kind: of.kind,
                exact: Places::new(),
                prefixes: Vec::new(),
                any: Vec::new(),
            }),
        };
        match key {
            Key::Exact(path) => group.exact.entry(path.into()).or_default().push(place),
            Key::Prefix(prefix) => group.under(prefix.len()).entry(prefix.into()).or_default().push(place),
            Key::Any => group.any.push(place),
        }
    }

    /// The first place of which `holds` says that its entry is for the request of that path.
    pub(super) fn first(
        &self,
        followed: Followed<'_>,
        path: &str,
        mut holds: impl FnMut(usize) -> bool,
    ) -> Option<usize> {
        let group = self.0.iter().find(|group| group.is(followed))?;
        let prefixes = group.prefixes.iter().filter_map(|(length, places)| {
            let (prefix, rest) = path.split_at_checked(*length)?;
            places.get(prefix).filter(|_| rest.is_empty() || rest.starts_with('/'))
        });
        let mut first = None;
        for places in group.exact.get(path).into_iter().chain([&group.any]).chain(prefixes) {
            let before = |place: &usize| first.is_none_or(|first| *place < first);
            let found = places.iter().copied().take_while(before).find(|place| holds(*place));
            first = found.or(first);
        }
        first
    }
}

impl Group {
    fn is(&self, of: Followed<'_>) -> bool {
        self.kind == of.kind && self.namespace.as_deref() == of.namespace
    }

    fn under(&mut self, length: usize) -> &mut Places {
        let at = match self.prefixes.binary_search_by_key(&length, |(of, _)| *of) {
            Ok(at) => at,
            Err(at) => {
                self.prefixes.insert(at, (length, Places::new()));
                at
            }
        };
        &mut self.prefixes[at].1
    }
}
