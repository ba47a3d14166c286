//! The endpoints of one service, so kept that a random pick costs no walk over them.
//!
//! They are sorted by (network, node, uid): those of the caller's network are one run of the list, and
//! those of one node one run within it. Nothing here knows ports or protocols.

use std::{cmp::Ordering, ops::Range, sync::Arc};

use crate::{
    Workload,
    sorted::{Ranked, Sorted},
};

impl Ranked for Arc<Workload> {
    fn rank(&self, other: &Self) -> Ordering {
        place(self).cmp(&place(other))
    }
}

fn place(workload: &Workload) -> (&str, &str, &str) {
    (&workload.network, &workload.node, &workload.uid)
}

/// The workloads that name one service.
#[derive(Clone, Default)]
pub(crate) struct Endpoints {
    healthy: Sorted<Arc<Workload>>,
    unhealthy: Sorted<Arc<Workload>>,
    /// Those known by host name only: nothing can be dialled.
    unaddressed: Sorted<Arc<Workload>>,
}

/// Which endpoints a pick may choose among.
pub(crate) struct Wanted<'a> {
    pub(crate) network: &'a str,
    /// Only those of this node.
    pub(crate) node: Option<&'a str>,
    pub(crate) allow_unhealthy: bool,
    pub(crate) seed: u64,
    /// Who is passed over while there is somebody else.
    pub(crate) avoided: Option<&'a dyn Fn(&Workload) -> bool>,
}

/// Draws by chance, before one after the other is looked at.
const DRAWS: u64 = 4;

/// Why a pick found none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoPick {
    /// There are healthy ones, all of them of other networks.
    OtherNetwork,
    /// There are healthy ones, none of them with an address.
    NoAddress,
    NoneHealthy,
}

impl Endpoints {
    pub(crate) fn put(&mut self, workload: &Arc<Workload>) {
        self.list_of(workload).insert(workload.clone());
    }

    pub(crate) fn remove(&mut self, workload: &Workload) {
        self.list_of(workload).remove(|held| place(held).cmp(&place(workload)));
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.healthy.is_empty() && self.unhealthy.is_empty() && self.unaddressed.is_empty()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.healthy.iter().chain(self.unhealthy.iter()).chain(self.unaddressed.iter())
    }

    /// Picks one endpoint: each that is wanted has the same chance over all seeds.
    pub(crate) fn pick(&self, wanted: &Wanted<'_>) -> Result<&Arc<Workload>, NoPick> {
        let healthy = run(&self.healthy, wanted);
        let unhealthy = if wanted.allow_unhealthy { run(&self.unhealthy, wanted) } else { 0..0 };
        let count = healthy.len() + unhealthy.len();
        let at = |index: usize| {
            if index < healthy.len() {
                self.healthy.get(healthy.start + index)
            } else {
                self.unhealthy.get(unhealthy.start + index - healthy.len()).filter(|_| !unhealthy.is_empty())
            }
        };
        let first = scale(wanted.seed, count);
        let picked = at(first).map(|drawn| match wanted.avoided {
            Some(avoided) if avoided(drawn) => another(wanted.seed, count, at, avoided).unwrap_or(drawn),
            _ => drawn,
        });
        picked.or_else(|| self.pick_unaddressed(wanted)).ok_or_else(|| self.why_none(wanted))
    }

    /// Where none has an address: one that is known by its host name. There are few of them.
    fn pick_unaddressed(&self, wanted: &Wanted<'_>) -> Option<&Arc<Workload>> {
        let named: Vec<_> = self
            .unaddressed
            .iter()
            .filter(|held| {
                !held.hostname.is_empty()
                    && (held.healthy || wanted.allow_unhealthy)
                    && *held.network == *wanted.network
                    && wanted.node.is_none_or(|node| *held.node == *node)
            })
            .collect();
        named.get(scale(wanted.seed, named.len())).copied()
    }

    fn why_none(&self, wanted: &Wanted<'_>) -> NoPick {
        let fits = |held: &Arc<Workload>| {
            (held.healthy || wanted.allow_unhealthy) && wanted.node.is_none_or(|node| *held.node == *node)
        };
        if self.unaddressed.iter().any(|held| fits(held) && *held.network == *wanted.network) {
            return NoPick::NoAddress;
        }
        match self.healthy.iter().chain(self.unhealthy.iter()).any(fits) {
            true => NoPick::OtherNetwork,
            false => NoPick::NoneHealthy,
        }
    }

    fn list_of(&mut self, workload: &Workload) -> &mut Sorted<Arc<Workload>> {
        match (workload.addresses.is_empty(), workload.healthy) {
            (true, _) => &mut self.unaddressed,
            (false, true) => &mut self.healthy,
            (false, false) => &mut self.unhealthy,
        }
    }
}

/// One that is not avoided, in the place of the first draw; `None` if all are.
fn another<'e>(
    seed: u64,
    count: usize,
    at: impl Fn(usize) -> Option<&'e Arc<Workload>>,
    avoided: &dyn Fn(&Workload) -> bool,
) -> Option<&'e Arc<Workload>> {
    let mut last = 0;
    for draw in 1..=DRAWS {
        // An odd step, so that each draw is a number of its own.
        last = scale(seed.wrapping_add(draw.wrapping_mul(0x9e37_79b9_7f4a_7c15)), count);
        if let Some(found) = at(last).filter(|found| !avoided(found)) {
            return Some(found);
        }
    }
    // Most are avoided. From where chance has led, so that no neighbour is everybody's.
    (1..=count).filter_map(|step| at((last + step) % count)).find(|found| !avoided(found))
}

/// The run of a list that is of the wanted network and node.
fn run(list: &Sorted<Arc<Workload>>, wanted: &Wanted<'_>) -> Range<usize> {
    let last = list.len().saturating_sub(1);
    if wanted.node.is_none()
        && [0, last].iter().all(|&end| list.get(end).is_some_and(|w| *w.network == *wanted.network))
    {
        return 0..list.len();
    }
    let order = |held: &Arc<Workload>| {
        let node = wanted.node.map_or(Ordering::Equal, |node| (*held.node).cmp(node));
        (*held.network).cmp(wanted.network).then(node)
    };
    list.partition_point(|held| order(held).is_lt())..list.partition_point(|held| order(held).is_le())
}

/// Maps a number on `0..len` evenly, with no more bias than len / 2^64. The number is mixed first
/// (splitmix64's finalizer), so that a counter serves as well as a random number.
fn scale(seed: u64, len: usize) -> usize {
    let mixed = (seed ^ (seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((u128::from(mixed ^ (mixed >> 31)) * len as u128) >> 64) as usize
}
