//! How each route stands with each of its parents: the conditions of the Gateway API, in its own words, written back on
//! Kubernetes and printed in folder mode.

use super::Compiler;
use crate::manifest::{ObjectKey, Reference, Refused};

/// Words of a condition that are more than a person reads.
const MOST_WORDS: usize = 1024;

/// How a route stands with one of its parents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParentStatus {
    /// Exactly as the route wrote it.
    pub parent: Reference,
    pub conditions: Vec<Condition>,
}

/// One condition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    /// `Accepted`, `ResolvedRefs` or `PartiallyInvalid`.
    pub kind: &'static str,
    pub status: bool,
    pub reason: &'static str,
    pub message: String,
}

impl Condition {
    pub(super) fn accepted() -> Self {
        Self::of("Accepted", true, "Accepted", "the route is followed by the waypoint".to_owned())
    }

    pub(super) fn not_accepted(reason: &'static str, message: String) -> Self {
        Self::of("Accepted", false, reason, message)
    }

    pub(super) fn partially_invalid(message: String) -> Self {
        Self::of("PartiallyInvalid", true, "UnsupportedValue", message)
    }

    /// What the references came to: those that were found in vain.
    pub(super) fn references(unresolved: &[Unresolved]) -> Self {
        let Some(first) = unresolved.first() else {
            let message = "everything that the route refers to was found".to_owned();
            return Self::of("ResolvedRefs", true, "ResolvedRefs", message);
        };
        let words: Vec<&str> = unresolved.iter().map(|one| one.message.as_str()).collect();
        Self::of("ResolvedRefs", false, first.reason, words.join("; "))
    }

    pub(super) fn of(kind: &'static str, status: bool, reason: &'static str, mut message: String) -> Self {
        if message.len() > MOST_WORDS {
            message.truncate(message.floor_char_boundary(MOST_WORDS));
            message.push('…');
        }
        Self { kind, status, reason, message }
    }
}

/// A reference that leads nowhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Unresolved {
    /// The field within the reference that is why.
    pub(super) part: &'static str,
    /// The specification's word for it.
    pub(super) reason: &'static str,
    pub(super) message: String,
}

impl Unresolved {
    pub(super) fn new(part: &'static str, reason: &'static str, message: String) -> Self {
        Self { part, reason, message }
    }
}

impl Compiler<'_, '_> {
    /// Tells each parent that is ours that what is written now is refused.
    pub(super) fn refused_route(&mut self, key: &ObjectKey, refused: &Refused) {
        let reason = if refused.is_by_combination() { "IncompatibleFilters" } else { "UnsupportedValue" };
        let message = match refused.field.as_str() {
            "" => refused.reason.clone(),
            field => format!("{field}: {}", refused.reason),
        };
        let ours = refused.parents.iter().filter(|parent| self.is_parent_of_ours(key, parent));
        let statuses = ours.map(|parent| ParentStatus {
            parent: parent.clone(),
            conditions: vec![Condition::not_accepted(reason, message.clone())],
        });
        let statuses: Vec<ParentStatus> = statuses.collect();
        if !statuses.is_empty() {
            self.out.routes_status.insert(key.clone(), statuses);
        }
    }
}
