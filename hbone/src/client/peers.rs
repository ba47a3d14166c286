//! The peers that do not answer, as those know them who dial from one place, and how long each connection waits for whom.
//!
//! Pools tell what became of their dials and tunnels; who chooses a peer asks. Here are the lock, the clock and the log;
//! what follows from what is [`mesh::Absent`]'s.

use std::{
    cell::RefCell,
    net::IpAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use aws_lc_rs::rand;
use mesh::{Absent, Lost, Standing};

use super::OpenError;

/// How long a connection waits for a tunnel before it turns to another peer: a SYN that is lost once is sent again
/// after a second.
pub const PATIENCE: Duration = Duration::from_secs(2);
/// …for one that has not answered before. Its dial goes on without the connection.
pub(super) const TRIAL: Duration = Duration::from_millis(200);
/// Peers that one connection tries; the last of them is waited for.
const MOST: usize = 3;
/// Lines of log in so much time.
const LINES: u32 = 10;
const LINES_IN: Duration = Duration::from_secs(10);

/// See the module. Shared by all threads; as long as nobody is marked no lock is taken.
///
/// What one place cannot reach another may, and who is in one place may see to it that something is not reached from
/// there: places do not share what they know.
#[derive(Debug, Default)]
pub struct Peers {
    absent: Mutex<Absent>,
    marked: AtomicUsize,
    tally: Arc<Tally>,
}

/// What the peers of all places of a program come to, for its metrics and its log.
#[derive(Debug, Default)]
pub struct Tally {
    marked: AtomicUsize,
    lost: AtomicU64,
    lines: Mutex<Option<Lines>>,
}

/// What was said of late.
#[derive(Debug, Clone, Copy)]
struct Lines {
    since: Instant,
    said: u32,
    unsaid: u32,
}

impl Peers {
    /// None is marked yet; what becomes of them counts in `tally`.
    pub fn counted(tally: Arc<Tally>) -> Self {
        Self { tally, absent: Mutex::default(), marked: AtomicUsize::default() }
    }

    pub fn tally(&self) -> &Arc<Tally> {
        &self.tally
    }

    /// A peer did not answer, for this reason.
    pub fn lost(&self, peer: IpAddr, reason: &dyn std::fmt::Display) {
        let now = Instant::now();
        let lost = self.change(|absent| {
            // Who was forgotten is a stranger.
            absent.sweep(now);
            absent.lost(peer, now, random())
        });
        match lost {
            Lost::Marked { wait } => {
                self.tally.lost.fetch_add(1, Ordering::Relaxed);
                if let Some(unsaid) = self.tally.may_say(now) {
                    tracing::warn!(%peer, %reason, for_ms = wait.as_millis(), unsaid, "a peer does not answer; others are chosen");
                }
            }
            Lost::Again { wait } => {
                tracing::debug!(%peer, %reason, for_ms = wait.as_millis(), "a peer does not answer yet");
            }
            Lost::Known => {}
        }
    }

    /// A peer has answered.
    pub fn answered(&self, peer: IpAddr) {
        if self.marked() == 0 {
            return;
        }
        let now = Instant::now();
        if let Some(after) = self.change(|absent| absent.answered(peer, now))
            && let Some(unsaid) = self.tally.may_say(now)
        {
            tracing::info!(%peer, after_ms = after.as_millis(), unsaid, "a peer answers again");
        }
    }

    /// Whether a peer is passed over where there are others. Of one whose time is over one caller is told that it is
    /// not: he tries it.
    pub fn avoids(&self, peer: IpAddr) -> bool {
        if self.marked() == 0 {
            return false;
        }
        let now = Instant::now();
        let mut absent = lock(&self.absent);
        // Does nothing to those whose time is not over, or who have none.
        let is_absent = absent.standing(peer, now) == Standing::Absent;
        absent.try_it(peer, now);
        is_absent
    }

    /// The same for who may choose another all the same, and says so with [`Self::turn_to`] if he does not.
    pub fn is_absent(&self, peer: IpAddr) -> bool {
        self.marked() > 0 && lock(&self.absent).standing(peer, Instant::now()) == Standing::Absent
    }

    /// It is chosen: if its time was over, it is tried by this.
    pub fn turn_to(&self, peer: IpAddr) {
        if self.marked() > 0 {
            lock(&self.absent).try_it(peer, Instant::now());
        }
    }

    /// How long a connection waits for a peer, if it may turn to another then.
    pub fn patience(&self, peer: IpAddr) -> Duration {
        if self.marked() == 0 {
            return PATIENCE;
        }
        match lock(&self.absent).standing(peer, Instant::now()) {
            Standing::Present => PATIENCE,
            Standing::Due | Standing::Absent => TRIAL,
        }
    }

    /// Peers that are marked now.
    pub fn marked(&self) -> usize {
        self.marked.load(Ordering::Relaxed)
    }

    fn change<T>(&self, change: impl FnOnce(&mut Absent) -> T) -> T {
        let mut absent = lock(&self.absent);
        let changed = change(&mut absent);
        let before = self.marked.swap(absent.len(), Ordering::Relaxed);
        self.tally.marked.fetch_add(absent.len(), Ordering::Relaxed);
        self.tally.marked.fetch_sub(before, Ordering::Relaxed);
        changed
    }
}

impl Drop for Peers {
    fn drop(&mut self) {
        self.tally.marked.fetch_sub(self.marked(), Ordering::Relaxed);
    }
}

impl Tally {
    /// Peers that are marked now; one that is lost to several places counts for each.
    pub fn marked(&self) -> usize {
        self.marked.load(Ordering::Relaxed)
    }

    /// How often one was marked.
    pub fn losses(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// Whether there is a line left to say something, and how many had none.
    fn may_say(&self, now: Instant) -> Option<u32> {
        let mut held = lock(&self.lines);
        let lines = held.get_or_insert(Lines { since: now, said: 0, unsaid: 0 });
        if now.saturating_duration_since(lines.since) >= LINES_IN {
            (lines.since, lines.said) = (now, 0);
        }
        if lines.said >= LINES {
            lines.unsaid += 1;
            return None;
        }
        lines.said += 1;
        Some(std::mem::take(&mut lines.unsaid))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn random() -> u32 {
    let mut bytes = [0; 4];
    // Without chance they come back together; that is all.
    let _ = rand::fill(&mut bytes);
    u32::from_ne_bytes(bytes)
}

/// The peers that one connection tries, one after the other, within one time for all of them.
///
/// The first two to three seconds go to whoever is chosen first; who does not answer is left and another is chosen. When
/// there is no other one, it is waited for after all.
#[derive(Debug)]
pub struct Tries<'a> {
    peers: &'a Peers,
    end: Instant,
    tried: RefCell<Vec<IpAddr>>,
}

impl<'a> Tries<'a> {
    /// `limit` is for all of them.
    pub fn new(peers: &'a Peers, limit: Duration) -> Self {
        Self { peers, end: Instant::now() + limit, tried: RefCell::default() }
    }

    /// Whether the choice is to pass over a peer.
    pub fn avoids(&self, peer: IpAddr) -> bool {
        self.has_tried(peer) || self.peers.avoids(peer)
    }

    /// How long the one that was chosen is waited for.
    pub fn patience(&self, peer: IpAddr) -> Duration {
        let rest = self.end.saturating_duration_since(Instant::now());
        if self.has_tried(peer) || self.is_last() { rest } else { self.peers.patience(peer).min(rest) }
    }

    /// Whether another may be tried after this failure. One that has come twice has no other in its place.
    pub fn again(&self, failure: &OpenError) -> bool {
        let Some(peer) = failure.unanswered() else { return false };
        if self.has_tried(peer.ip()) || self.is_last() || Instant::now() >= self.end {
            return false;
        }
        self.tried.borrow_mut().push(peer.ip());
        true
    }

    fn is_last(&self) -> bool {
        self.tried.borrow().len() + 1 >= MOST
    }

    fn has_tried(&self, peer: IpAddr) -> bool {
        self.tried.borrow().contains(&peer)
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr};

    use super::*;

    fn silent(number: u8) -> OpenError {
        let peer = SocketAddr::from(([10, 0, 0, number], 15008));
        OpenError::Timeout { peer, what: "finish the TLS handshake", after: PATIENCE }
    }

    fn ip(number: u8) -> IpAddr {
        Ipv4Addr::new(10, 0, 0, number).into()
    }

    #[test]
    fn each_peer_has_its_time_and_the_last_one_all_that_is_left() {
        let peers = Peers::default();
        let tries = Tries::new(&peers, Duration::from_secs(20));
        assert!(!tries.avoids(ip(1)));
        assert_eq!(tries.patience(ip(1)), PATIENCE);
        peers.lost(ip(1), &silent(1));
        assert!(tries.again(&silent(1)) && tries.avoids(ip(1)));
        assert!(tries.patience(ip(1)) > Duration::from_secs(19), "there is no other one");
        assert!(!tries.again(&silent(1)), "and it was waited for");
        // Another connection, which has nobody else either.
        let others = Tries::new(&peers, Duration::from_secs(20));
        assert!(others.avoids(ip(1)));
        assert_eq!((others.patience(ip(1)), others.patience(ip(2))), (TRIAL, PATIENCE));
        assert!(others.again(&silent(1)) && others.patience(ip(1)) > PATIENCE);
        peers.answered(ip(1));
        assert_eq!((peers.marked(), peers.tally().losses(), peers.avoids(ip(1))), (0, 1, false));
    }

    #[test]
    fn who_is_asked_about_and_not_chosen_is_left_for_another_to_try() {
        let peers = Peers::default();
        peers.lost(ip(1), &silent(1));
        assert!(peers.is_absent(ip(1)) && !peers.is_absent(ip(2)));
        let long_ago =
            Instant::now().checked_sub(Duration::from_secs(60)).expect("a clock that runs that long");
        peers.change(|absent| {
            absent.answered(ip(1), long_ago);
            absent.lost(ip(1), long_ago, 0)
        });
        assert!(!peers.is_absent(ip(1)) && !peers.is_absent(ip(1)), "its time is over for whoever asks");
        peers.turn_to(ip(1));
        assert!(peers.is_absent(ip(1)), "one tries it");
    }

    #[test]
    fn the_third_is_waited_for_however_many_there_are() {
        let peers = Peers::default();
        let tries = Tries::new(&peers, Duration::from_secs(20));
        assert!(tries.again(&silent(1)) && tries.again(&silent(2)));
        assert!(tries.patience(ip(3)) > PATIENCE);
        assert!(!tries.again(&silent(3)));
    }

    #[test]
    fn what_one_place_cannot_reach_another_may_and_both_are_counted() {
        let tally = Arc::<Tally>::default();
        let [one, other] = [(); 2].map(|()| Peers::counted(tally.clone()));
        one.lost(ip(1), &silent(1));
        assert!(one.avoids(ip(1)) && !other.avoids(ip(1)));
        other.lost(ip(1), &silent(1));
        assert_eq!((tally.marked(), tally.losses()), (2, 2));
        other.answered(ip(1));
        drop(one);
        assert_eq!((tally.marked(), tally.losses()), (0, 2));
    }

    #[test]
    fn all_tries_together_have_one_time_and_what_has_answered_is_not_tried_again() {
        let peers = Peers::default();
        let over = Tries::new(&peers, Duration::ZERO);
        assert_eq!(over.patience(ip(1)), Duration::ZERO);
        assert!(!over.again(&silent(1)));
        let tries = Tries::new(&peers, Duration::from_secs(20));
        let peer = ([10, 0, 0, 1], 15008).into();
        assert!(!tries.again(&OpenError::Refused { peer, status: http::StatusCode::UNAUTHORIZED }));
        assert!(!tries.again(&OpenError::Broken { peer, reason: "reset".into() }));
    }

    #[test]
    fn a_lost_node_does_not_fill_the_log() {
        let (tally, now) = (Tally::default(), Instant::now());
        let said = (0..200).filter(|_| tally.may_say(now).is_some()).count();
        assert_eq!(said, 10);
        assert_eq!(tally.may_say(now + LINES_IN), Some(190), "how many were not said");
    }
}
