//! Who did not answer lately: peers that are passed over for a while where there are others.
//!
//! A peer that fails is marked for a second, and for twice as long each time that it fails again, up to half a minute.
//! When that time is over one connection tries it; its answer takes the mark away. A mark never closes a way: where all
//! are marked the choice is as if none were.

use std::{
    collections::{HashMap, hash_map::Entry},
    net::IpAddr,
    time::{Duration, Instant},
};

/// How long a peer is passed over at first, and at most. Up to a quarter more comes by chance, so that those who have
/// lost it together do not come back together.
const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(30);
/// Who tries it has it for himself for so long.
const TRIAL: Duration = Duration::from_secs(2);
/// Of a peer that nobody has tried for so long nothing is known any more.
const FORGOTTEN: Duration = Duration::from_secs(300);

/// The peers that did not answer, by address.
#[derive(Debug, Default)]
pub struct Absent {
    marks: HashMap<IpAddr, Mark>,
}

#[derive(Debug, Clone, Copy)]
struct Mark {
    since: Instant,
    /// When it failed last.
    last: Instant,
    /// It is passed over until then.
    until: Instant,
    failures: u32,
    /// The time until then is that of somebody who tries it.
    is_tried: bool,
}

/// How a peer stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    Present,
    /// It has failed, and its time is over: one may try it.
    Due,
    Absent,
}

/// What a failure came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lost {
    /// It is marked now, and was not.
    Marked { wait: Duration },
    /// Once more, and for longer.
    Again { wait: Duration },
    /// It is known, or there is no place to remember it.
    Known,
}

impl Absent {
    /// Peers that are remembered; of more, those that failed the longest ago are forgotten.
    pub const MOST: usize = 4096;

    /// A peer did not answer. What fails while it is passed over already, with what was on its way, counts once.
    pub fn lost(&mut self, peer: IpAddr, now: Instant, random: u32) -> Lost {
        if self.marks.len() >= Self::MOST && !self.marks.contains_key(&peer) {
            self.make_room(now);
        }
        match self.marks.entry(peer) {
            Entry::Vacant(place) => {
                let wait = wait(1, random);
                let until = now + wait;
                place.insert(Mark { since: now, last: now, until, failures: 1, is_tried: false });
                Lost::Marked { wait }
            }
            Entry::Occupied(mut held) => {
                let mark = held.get_mut();
                mark.last = now;
                if now < mark.until && !mark.is_tried {
                    return Lost::Known;
                }
                mark.failures = mark.failures.saturating_add(1);
                let wait = wait(mark.failures, random);
                (mark.until, mark.is_tried) = (now + wait, false);
                Lost::Again { wait }
            }
        }
    }

    /// A peer has answered: for how long it had been marked, if it was.
    pub fn answered(&mut self, peer: IpAddr, now: Instant) -> Option<Duration> {
        self.marks.remove(&peer).map(|mark| now.saturating_duration_since(mark.since))
    }

    pub fn standing(&self, peer: IpAddr, now: Instant) -> Standing {
        match self.marks.get(&peer) {
            None => Standing::Present,
            Some(mark) if mark.is_forgotten(now) => Standing::Present,
            Some(mark) if now >= mark.until => Standing::Due,
            Some(_) => Standing::Absent,
        }
    }

    /// Somebody tries a peer that is due: for others it is absent until that is decided.
    pub fn try_it(&mut self, peer: IpAddr, now: Instant) {
        if let Some(mark) = self.marks.get_mut(&peer).filter(|mark| now >= mark.until) {
            (mark.until, mark.is_tried) = (now + TRIAL, true);
        }
    }

    /// Peers that are marked; who was forgotten is let go of.
    pub fn sweep(&mut self, now: Instant) -> usize {
        self.marks.retain(|_, mark| !mark.is_forgotten(now));
        self.marks.len()
    }

    /// Marks that are held.
    pub fn len(&self) -> usize {
        self.marks.len()
    }

    pub fn is_empty(&self) -> bool {
        self.marks.is_empty()
    }

    fn make_room(&mut self, now: Instant) {
        if self.sweep(now) < Self::MOST {
            return;
        }
        let mut ages: Vec<Instant> = self.marks.values().map(|mark| mark.last).collect();
        // An eighth at a time, so that a flood does not look through all of them for each.
        let (_, oldest, _) = ages.select_nth_unstable(Self::MOST / 8);
        let oldest = *oldest;
        self.marks.retain(|_, mark| mark.last > oldest);
    }
}

impl Mark {
    fn is_forgotten(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.last) >= FORGOTTEN
    }
}

fn wait(failures: u32, random: u32) -> Duration {
    let times = 1_u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX);
    let wait = FIRST.saturating_mul(times).min(LONGEST);
    wait + (wait / 4).mul_f64(f64::from(random) / f64::from(u32::MAX))
}
