//! What one client has asked for of one type, what it holds, and so what it is to be sent next. No I/O.

use std::{collections::BTreeSet, mem, sync::Arc};

use imbl::ordmap::DiffItem;
use proto::discovery::DeltaDiscoveryRequest;

use super::{Named, Resource, Resources, State, Type, answer::Answer, put};

/// Names beyond this number in one client's subscription end its stream: a bound on what it may cost.
const MAX_NAMES: usize = 100_000;

/// One client's subscription to one type.
pub(super) struct Subscription {
    r#type: Type,
    /// It asked at all.
    open: bool,
    wildcard: bool,
    /// Asked for by name; each name or alias as it was given.
    names: BTreeSet<String>,
    /// What the client holds, as far as we know.
    held: Resources,
    /// Asked for since the last answer: to be answered even where nothing is known or nothing changed.
    asked: BTreeSet<String>,
    /// An answer is owed even if it is empty.
    owed: bool,
    /// The nonce of the answer that is not acknowledged yet, and the generation it brings the client to.
    in_flight: Option<(String, u64)>,
    /// The generation whose objects the client was last sent, and the last that it acknowledged.
    sent: u64,
    acknowledged: u64,
    /// The generation of which at least the early part is sent.
    early: u64,
    nonces: u64,
}

/// What of the difference is to be sent, so that policies and the workloads that name them never meet
/// in a combination that is neither the old nor the new state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// Everything.
    Whole,
    /// What may come before the workloads: new policies, and new versions of old ones.
    Early,
}

/// What a request was.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Received {
    Request,
    Acknowledged,
    /// The client refused (part of) the answer, in these words.
    Refused(String),
}

/// The client asks for more names than we keep.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TooMany;

impl Subscription {
    pub(super) fn new(r#type: Type) -> Self {
        Self {
            r#type,
            open: false,
            wildcard: false,
            names: BTreeSet::new(),
            held: Resources::new(),
            asked: BTreeSet::new(),
            owed: false,
            in_flight: None,
            sent: 0,
            acknowledged: 0,
            early: 0,
            nonces: 0,
        }
    }

    /// Takes a request in.
    pub(super) fn receive(
        &mut self,
        request: DeltaDiscoveryRequest,
        state: &State,
    ) -> Result<Received, TooMany> {
        let first = !mem::replace(&mut self.open, true);
        let received = self.acknowledge(&request);
        if first {
            self.owed = true;
            for (name, version) in request.initial_resource_versions {
                put(&mut self.held, Arc::new(Resource::held(&name, &version)));
            }
            // A first request without names asks for everything, as it always did.
            self.wildcard = request.resource_names_subscribe.is_empty();
        }
        for name in request.resource_names_subscribe {
            if name == "*" {
                self.wildcard = true;
                self.owed = true;
            } else {
                self.ask(name, state, first);
            }
        }
        for name in request.resource_names_unsubscribe {
            if name == "*" {
                self.wildcard = false;
            } else {
                self.names.remove(&name);
                self.asked.remove(&name);
            }
        }
        if !self.wildcard && !first {
            // It holds what it no longer asks for as long as it likes; it is not told of it any more.
            let target = self.target(state);
            let kept = self.held.iter().filter(|(name, _)| target.contains_key(*name));
            self.held = kept.map(|(name, resource)| (name.clone(), resource.clone())).collect();
        }
        if self.names.len() > MAX_NAMES { Err(TooMany) } else { Ok(received) }
    }

    fn ask(&mut self, name: String, state: &State, first: bool) {
        // Whoever asks again may have forgotten what it held, unless this is a stream's first request.
        if !first {
            for resource in state.resolve(self.r#type, &name) {
                self.held.remove(resource.name());
            }
        }
        self.asked.insert(name.clone());
        self.names.insert(name);
    }

    fn acknowledge(&mut self, request: &DeltaDiscoveryRequest) -> Received {
        if request.response_nonce.is_empty() {
            return Received::Request;
        }
        match self.in_flight.take() {
            Some((nonce, generation)) if nonce == request.response_nonce => {
                self.acknowledged = self.acknowledged.max(generation);
            }
            // An acknowledgement of something older changes nothing.
            other => {
                self.in_flight = other;
                return Received::Request;
            }
        }
        match &request.error_detail {
            Some(detail) => Received::Refused(detail.message.clone()),
            None => Received::Acknowledged,
        }
    }

    pub(super) fn is_open(&self) -> bool {
        self.open
    }

    /// The newest generation that the client is known to have in force.
    pub(super) fn acknowledged(&self) -> u64 {
        self.acknowledged
    }

    /// Whether everything of `state` is sent; trivially so for who did not ask.
    pub(super) fn is_sent(&self, state: &State) -> bool {
        !self.open || self.sent >= state.generation
    }

    /// Whether at least the early part of `state` is sent; trivially so for who did not ask.
    pub(super) fn is_early_sent(&self, state: &State) -> bool {
        !self.open || self.early >= state.generation
    }

    /// The next answer, unless one is still to be acknowledged or there is none to give.
    pub(super) fn next(&mut self, state: &State, part: Part) -> Option<Answer> {
        if !self.open || self.in_flight.is_some() || state.generation == 0 {
            return None;
        }
        self.early = state.generation;
        let target = self.target(state);
        let (mut resources, mut removed): (Vec<Arc<Resource>>, Vec<Arc<str>>) = Default::default();
        let mut held = self.held.clone();
        let mut whole = true;
        for difference in self.held.diff(&target) {
            match difference {
                DiffItem::Remove(..) if part == Part::Early => whole = false,
                DiffItem::Update { old: (_, old), new: (_, new) }
                    if part == Part::Early && new.by_selector && !old.by_selector =>
                {
                    // Taken from everyone and given to the selected: not before they are told.
                    whole = false;
                }
                DiffItem::Remove(_, resource) => {
                    removed.push(resource.name().into());
                    if part == Part::Early {
                        held.remove(resource.name());
                    }
                }
                DiffItem::Add(_, resource) | DiffItem::Update { new: (_, resource), .. } => {
                    resources.push(resource.clone());
                    if part == Part::Early {
                        put(&mut held, resource.clone());
                    }
                }
            }
        }
        for name in mem::take(&mut self.asked) {
            if state.resolve(self.r#type, &name).is_empty() {
                removed.push(name.into());
            }
        }
        // The stored resources rather than what the client said it holds.
        self.held = if whole { target } else { held };
        let empty = resources.is_empty() && removed.is_empty();
        // An answer that is owed counts as the complete state: a part of it is none.
        let owed = self.owed && whole;
        if empty && !owed {
            if whole {
                self.sent = state.generation;
                self.acknowledged = self.acknowledged.max(state.generation);
            }
            return None;
        }
        self.owed = self.owed && !whole;
        self.nonces += 1;
        let nonce = self.nonces.to_string();
        let generation = if whole { state.generation } else { self.sent };
        self.sent = generation;
        self.in_flight = Some((nonce.clone(), generation));
        Some(Answer { r#type: self.r#type, generation: state.generation, nonce, resources, removed })
    }

    /// What the client is to hold.
    fn target(&self, state: &State) -> Resources {
        if self.wildcard {
            return state.resources(self.r#type).clone();
        }
        self.names
            .iter()
            .flat_map(|name| state.resolve(self.r#type, name))
            .map(|resource| (Named(resource.clone()), resource.clone()))
            .collect()
    }
}

#[cfg(test)]
#[path = "subscription_tests.rs"]
mod tests;
