//! Finds the policies of one scope and action that match an attempt, without judging them all.
//!
//! Each rule hangs under keys (see [`crate::facet`]) of which an attempt that matches it has at least
//! one: those of one clause, since all clauses must match, and the ports of another. Where a rule offers
//! several, it is hung where the fullest bucket is the emptiest, so that the index adapts to whatever the
//! policies differ in. The answers do not depend on it: every rule found is judged in full, in the order
//! of the policies' names, and the first name wins.
//!
//! Rules that offer nothing to find them by (only `not_` fields) are judged one after another.

use std::{
    cmp::Ordering,
    collections::BTreeMap,
    hash::{BuildHasherDefault, Hasher, RandomState},
    sync::Arc,
};

use imbl::{GenericHashMap, OrdSet, shared_ptr::DefaultSharedPtr};

use crate::{
    Match, Policy, PolicyKey,
    compiled::{CompiledRule, Facts, compile},
    facet::{Shape, Want, key_of, ways},
    sorted::{Ranked, Sorted},
};

/// With callers and several ports in a rule, every pair of them is a key, up to this many.
const MOST_PAIRS: usize = 64;

/// A policy ready to be judged, and where it hangs.
pub(crate) struct Compiled {
    pub(crate) policy: Arc<Policy>,
    rules: Vec<CompiledRule>,
    hung: Vec<Hung>,
}

/// One rule under one key.
struct Hung {
    shape: Shape,
    key: u64,
    rule: usize,
}

impl Compiled {
    /// Compiles a policy that is judged by name only and hangs nowhere.
    pub(crate) fn alone(policy: Arc<Policy>) -> Self {
        let rules = compile(&policy).into_iter().map(|(rule, _)| rule).collect();
        Self { policy, rules, hung: Vec::new() }
    }

    pub(crate) fn matches(&self, facts: &Facts<'_>) -> bool {
        self.rules.iter().any(|rule| rule.matches(facts))
    }
}

/// The policies of one scope and action.
#[derive(Clone, Default)]
pub(crate) struct Index {
    policies: OrdSet<PolicyKey>,
    buckets: GenericHashMap<u64, Sorted<Entry>, BuildHasherDefault<AsIs>, DefaultSharedPtr>,
    /// How many keys of each shape there are: only those are looked for.
    shapes: Arc<BTreeMap<Shape, usize>>,
    hasher: RandomState,
}

#[derive(Clone)]
struct Entry {
    compiled: Arc<Compiled>,
    rule: usize,
}

impl Entry {
    fn place(&self) -> (&PolicyKey, usize) {
        (&self.compiled.policy.key, self.rule)
    }

    fn matches(&self, facts: &Facts<'_>) -> bool {
        self.compiled.rules[self.rule].matches(facts)
    }
}

impl Ranked for Entry {
    fn rank(&self, other: &Self) -> Ordering {
        self.place().cmp(&other.place())
    }
}

impl Index {
    pub(crate) fn is_empty(&self) -> bool {
        self.policies.is_empty()
    }

    /// The first policy by name.
    pub(crate) fn first(&self) -> Option<&PolicyKey> {
        self.policies.get_min()
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &PolicyKey> {
        self.policies.iter()
    }

    /// Compiles and hangs a policy; one of the same name must have been removed before.
    pub(crate) fn put(&mut self, policy: Arc<Policy>) -> Arc<Compiled> {
        let mut compiled = Compiled { policy, rules: Vec::new(), hung: Vec::new() };
        let rules = compile(&compiled.policy);
        for (number, (rule, clauses)) in rules.into_iter().enumerate() {
            compiled.hung.extend(self.places(&clauses).into_iter().map(|(shape, key)| Hung {
                shape,
                key,
                rule: number,
            }));
            compiled.rules.push(rule);
        }
        let compiled = Arc::new(compiled);
        for Hung { shape, key, rule } in &compiled.hung {
            *Arc::make_mut(&mut self.shapes).entry(*shape).or_default() += 1;
            self.buckets.entry(*key).or_default().insert(Entry { compiled: compiled.clone(), rule: *rule });
        }
        self.policies.insert(compiled.policy.key.clone());
        compiled
    }

    pub(crate) fn remove(&mut self, compiled: &Compiled) {
        self.policies.remove(&compiled.policy.key);
        for Hung { shape, key, rule } in &compiled.hung {
            let shapes = Arc::make_mut(&mut self.shapes);
            if let Some(count) = shapes.get_mut(shape) {
                *count -= 1;
                if *count == 0 {
                    shapes.remove(shape);
                }
            }
            let sought = (&compiled.policy.key, *rule);
            let Some(bucket) = self.buckets.get_mut(key) else { continue };
            bucket.remove(|entry| entry.place().cmp(&sought));
            if bucket.is_empty() {
                self.buckets.remove(key);
            }
        }
    }

    /// The policy with the first name that matches, if its name comes before that of `best`.
    pub(crate) fn first_match<'s>(
        &'s self,
        facts: &Facts<'_>,
        mut best: Option<&'s Compiled>,
    ) -> Option<&'s Compiled> {
        for bucket in self.buckets_of(facts) {
            for entry in bucket.iter() {
                if best.is_some_and(|best| best.policy.key <= entry.compiled.policy.key) {
                    break;
                }
                if entry.matches(facts) {
                    best = Some(&entry.compiled);
                    break;
                }
            }
        }
        best
    }

    /// Every policy that matches.
    pub(crate) fn all_matches<'s>(&'s self, facts: &Facts<'_>) -> impl Iterator<Item = &'s PolicyKey> {
        let entries = self.buckets_of(facts).flat_map(|bucket| bucket.iter());
        entries.filter(|entry| entry.matches(facts)).map(|entry| &entry.compiled.policy.key)
    }

    fn buckets_of<'s>(&'s self, facts: &Facts<'_>) -> impl Iterator<Item = &'s Sorted<Entry>> {
        let keys = self.shapes.keys().filter_map(|&shape| key_of(facts, shape, &self.hasher));
        keys.filter_map(|key| self.buckets.get(&key))
    }

    /// The keys to hang a rule under, chosen by how full their buckets are now.
    fn places(&self, clauses: &[Vec<Match>]) -> Vec<(Shape, u64)> {
        let mut choices: Vec<_> = clauses.iter().filter_map(|clause| self.choose(clause, &[None])).collect();
        if let Some(ports) = clauses.iter().filter_map(|clause| ports_of(clause)).min_by_key(Vec::len) {
            choices.extend(clauses.iter().filter_map(|clause| self.choose(clause, &ports)));
            choices.push(self.choice(&[Want::ANY], &ports));
        }
        if choices.is_empty() {
            choices.push(self.choice(&[Want::ANY], &[None]));
        }
        choices.into_iter().min().map(|choice| choice.keys).unwrap_or_default()
    }

    /// The best wants of a clause: for each of its matches those whose fullest bucket is the emptiest.
    /// `None` when a match of the clause offers nothing to find it by, or too many pairs with the ports.
    fn choose(&self, clause: &[Match], ports: &[Option<u16>]) -> Option<Choice> {
        let few = |wants: usize| ports.len() == 1 || wants.saturating_mul(ports.len()) <= MOST_PAIRS;
        let mut wants = Vec::new();
        for m in clause {
            let ways = ways(m).into_iter().filter(|way| few(way.len()));
            wants.extend(ways.min_by_key(|way| self.choice(way, ports))?);
        }
        few(wants.len()).then(|| self.choice(&wants, ports))
    }

    fn choice(&self, wants: &[Want], ports: &[Option<u16>]) -> Choice {
        let keys = wants.iter().flat_map(|want| {
            let shape = |port: &Option<u16>| Shape { facet: want.facet, with_port: port.is_some() };
            ports.iter().map(move |port| (shape(port), want.key(*port, &self.hasher)))
        });
        let mut keys: Vec<_> = keys.collect();
        keys.sort_unstable();
        keys.dedup();
        let fullest = keys.iter().filter_map(|(_, key)| self.buckets.get(key)).map(Sorted::len).max();
        Choice { fullest: fullest.unwrap_or(0), paired: ports != [None], keys }
    }
}

/// One way to hang a rule; the least is the best.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Choice {
    fullest: usize,
    paired: bool,
    /// In order, so that of choices otherwise equal the one with the more telling facet is less.
    keys: Vec<(Shape, u64)>,
}

/// The ports of a clause, if it cannot match at any other.
fn ports_of(clause: &[Match]) -> Option<Vec<Option<u16>>> {
    let mut ports = Vec::new();
    for m in clause {
        if m.destination_ports.is_empty() {
            return None;
        }
        ports.extend(m.destination_ports.iter().copied().map(Some));
    }
    ports.sort_unstable();
    ports.dedup();
    Some(ports)
}

/// The hasher of what is a hash already.
#[derive(Default)]
struct AsIs(u64);

impl Hasher for AsIs {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = value;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}
