//! What a pod knows of names: the resolvers that have served it, what they told of hosts, and what is being asked
//! now. Each host is asked for once at a time, however many connections need it. How it is asked is not known here.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::{FutureExt, future::Shared};
use tokio::{sync::oneshot, time::Instant};

use super::{
    forward::Waiting,
    message::{NEGATIVE, Told},
    resolve::Unresolved,
};

/// Names kept for a pod. Those that its ServiceEntries name are far fewer.
const KEPT: usize = 1024;

/// Bounds of how long an answer is kept.
const KEEP: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));

/// Resolvers remembered: as many as the resolvers of C libraries ask.
const MOST_RESOLVERS: usize = 3;

/// The addresses of a host, at least one.
pub(super) type Said = Result<Arc<[IpAddr]>, Arc<Unresolved>>;

/// A host, and whether its IPv4 addresses are meant.
type Key = (Arc<str>, bool);

/// A resolver, and the pod's address that asks it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) from: IpAddr,
    pub(super) at: SocketAddr,
}

#[derive(Default)]
pub(crate) struct Names {
    /// All that waits for a resolver: queries passed on, and our own.
    pub(super) waiting: Waiting,
    resolvers: Mutex<Resolvers>,
    hosts: Arc<Mutex<Hosts>>,
}

#[derive(Default)]
struct Resolvers {
    /// Those that have recursed for the pod, the last one first.
    good: Vec<Asked>,
    /// The one that the pod asked last for a name of ours. We have answered in its place, so nobody knows whether it
    /// is any good; but a pod that asks for nothing else has no other.
    untried: Option<Asked>,
}

#[derive(Default)]
struct Hosts {
    known: HashMap<Key, Known>,
    flights: HashMap<Key, Shared<oneshot::Receiver<Said>>>,
}

struct Known {
    said: Said,
    until: Instant,
}

impl Names {
    /// The pod asks this resolver, and we answer.
    pub(super) fn asks(&self, asked: Asked) {
        self.resolvers().untried = Some(asked);
    }

    /// This resolver has given a good answer.
    pub(super) fn served(&self, asked: Asked) {
        let good = &mut self.resolvers().good;
        if good.first() == Some(&asked) {
            return;
        }
        good.retain(|other| other.at != asked.at);
        good.insert(0, asked);
        good.truncate(MOST_RESOLVERS);
    }

    /// This resolver has given none: others are asked before it.
    pub(super) fn failed(&self, asked: Asked) {
        let good = &mut self.resolvers().good;
        if let Some(at) = good.iter().position(|other| *other == asked) {
            good[at..].rotate_left(1);
        }
    }

    /// Whom to ask, in this order.
    pub(super) fn to_ask(&self) -> Vec<Asked> {
        let resolvers = self.resolvers();
        let mut all = resolvers.good.clone();
        all.extend(resolvers.untried.filter(|untried| all.iter().all(|good| good.at != untried.at)));
        all
    }

    /// The addresses of a host, of one family: as they are known, or by `ask`, once for all who want them meanwhile.
    /// It goes on when those who wait have gone.
    pub(super) async fn addresses(
        &self,
        host: &Arc<str>,
        v4: bool,
        ask: impl Future<Output = Result<Told, Unresolved>> + 'static,
    ) -> Said {
        let key = (host.clone(), v4);
        let flight = {
            let mut hosts = lock(&self.hosts);
            if let Some(known) = hosts.known.get(&key).filter(|known| known.until > Instant::now()) {
                return known.said.clone();
            }
            match hosts.flights.get(&key) {
                Some(flight) => flight.clone(),
                None => {
                    let (tell, flight) = oneshot::channel();
                    let flight = flight.shared();
                    hosts.flights.insert(key.clone(), flight.clone());
                    let landing = Landing { hosts: self.hosts.clone(), key };
                    tokio::task::spawn_local(async move {
                        let said = landing.keep(ask.await);
                        drop(landing);
                        // Those who waited may have gone.
                        let _ = tell.send(said);
                    });
                    flight
                }
            }
        };
        flight.await.unwrap_or_else(|_| Err(Arc::new(Unresolved::Abandoned)))
    }

    fn resolvers(&self) -> MutexGuard<'_, Resolvers> {
        self.resolvers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn lock(hosts: &Mutex<Hosts>) -> MutexGuard<'_, Hosts> {
    hosts.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The end of a question that is on its way, come what may.
struct Landing {
    hosts: Arc<Mutex<Hosts>>,
    key: Key,
}

impl Landing {
    fn keep(&self, told: Result<Told, Unresolved>) -> Said {
        lock(&self.hosts).keep(&self.key, told)
    }
}

impl Drop for Landing {
    fn drop(&mut self) {
        lock(&self.hosts).flights.remove(&self.key);
    }
}

impl Hosts {
    fn keep(&mut self, key: &Key, told: Result<Told, Unresolved>) -> Said {
        let before = self.known.get(key).and_then(|known| known.said.clone().ok());
        let (said, keep) = match (told, before) {
            (Ok(told), _) => (Ok(told.addresses.into()), told.ttl.clamp(KEEP.0, KEEP.1)),
            (Err(Unresolved::NoAddress { at, ttl }), _) => {
                (Err(Arc::new(Unresolved::NoAddress { at, ttl })), ttl.clamp(KEEP.0, NEGATIVE))
            }
            // Where nobody answers, what was known before is better than nothing, however old.
            (Err(_), Some(before)) => (Ok(before), NEGATIVE),
            (Err(failed), None) => (Err(Arc::new(failed)), KEEP.0),
        };
        let now = Instant::now();
        if self.known.len() >= KEPT && !self.known.contains_key(key) {
            self.known.retain(|_, known| known.until > now);
        }
        if self.known.len() >= KEPT
            && !self.known.contains_key(key)
            && let Some(first) =
                self.known.iter().min_by_key(|(_, known)| known.until).map(|(key, _)| key.clone())
        {
            self.known.remove(&first);
        }
        self.known.insert(key.clone(), Known { said: said.clone(), until: now + keep });
        said
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, rc::Rc};

    use tokio::{
        task::LocalSet,
        time::{advance, sleep},
    };

    use super::*;

    fn told(ttl: u64) -> Result<Told, Unresolved> {
        let addresses = vec!["192.0.2.1".parse().unwrap()];
        Ok(Told { addresses, ttl: Duration::from_secs(ttl), truncated: false })
    }

    fn none(ttl: u64) -> Result<Told, Unresolved> {
        Err(Unresolved::NoAddress { at: resolver(1).at, ttl: Duration::from_secs(ttl) })
    }

    fn resolver(last: u8) -> Asked {
        Asked { from: [10, 0, 0, 1].into(), at: SocketAddr::from(([10, 0, 1, last], 53)) }
    }

    /// Asks for `host`, is told this after 100 ms, and counts what reaches the resolver.
    #[derive(Default, Clone)]
    struct Bench(Rc<(Names, Cell<usize>)>);

    impl Bench {
        async fn ask(&self, host: &str, v4: bool, told: Result<Told, Unresolved>) -> Said {
            let bench = self.clone();
            let ask = async move {
                bench.0.1.set(bench.0.1.get() + 1);
                sleep(Duration::from_millis(100)).await;
                told
            };
            self.0.0.addresses(&host.into(), v4, ask).await
        }

        fn asked(&self) -> usize {
            self.0.1.get()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn many_who_want_a_host_ask_for_it_once_and_none_of_them_can_stop_it() {
        let bench = Bench::default();
        let many = async {
            let early = tokio::time::timeout(Duration::from_millis(10), bench.ask("h", true, told(60)));
            assert!(early.await.is_err(), "not told yet");
            let all = futures_util::future::join_all((0..100).map(|_| bench.ask("h", true, told(60))));
            assert!(all.await.iter().all(Result::is_ok));
            assert_eq!(bench.asked(), 1);
            assert!(bench.ask("h", false, none(60)).await.is_err());
            assert_eq!(bench.asked(), 2, "of the other family nothing is known");
            assert!(lock(&bench.0.0.hosts).flights.is_empty());
        };
        LocalSet::new().run_until(many).await;
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_told_holds_for_its_time_and_that_there_is_nothing_for_seconds() {
        let bench = Bench::default();
        let hold = async {
            for (seconds, what, asks) in [
                (60, told(60), 59),
                (1, told(0), 0),
                (300, told(9000), 299),
                (5, none(60), 4),
                (1, none(0), 0),
            ] {
                let host = format!("h{seconds}{asks}{}", what.is_ok());
                let (before, ok) = (bench.asked(), what.is_ok());
                assert_eq!(bench.ask(&host, true, what).await.is_ok(), ok);
                advance(Duration::from_secs(asks)).await;
                assert_eq!(bench.ask(&host, true, none(1)).await.is_ok(), ok, "{host}");
                assert_eq!(bench.asked(), before + 1, "{host}");
                advance(Duration::from_secs(seconds - asks)).await;
                let _ = bench.ask(&host, true, none(1)).await;
                assert_eq!(bench.asked(), before + 2, "{host}");
            }
        };
        LocalSet::new().run_until(hold).await;
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_known_is_a_last_resort_and_a_failure_is_not_repeated_at_once() {
        let bench = Bench::default();
        let fail = async {
            assert!(bench.ask("h", true, told(1)).await.is_ok());
            advance(Duration::from_secs(100)).await;
            assert!(bench.ask("h", true, Err(Unresolved::NoResolver)).await.is_ok());
            assert!(bench.ask("h", true, none(60)).await.is_ok(), "not asked again at once");
            advance(NEGATIVE).await;
            assert!(bench.ask("h", true, none(60)).await.is_err(), "there is no such host any more");
            let before = bench.asked();
            for _ in 0..3 {
                assert!(bench.ask("new", true, Err(Unresolved::NoResolver)).await.is_err());
            }
            assert_eq!(bench.asked(), before + 1);
        };
        LocalSet::new().run_until(fail).await;
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_kept_is_bounded() {
        let mut hosts = Hosts::default();
        let key = |n: usize| (Arc::from(format!("h{n}")), true);
        for n in 0..KEPT {
            assert!(hosts.keep(&key(n), told(if n == 7 { 30 } else { 60 })).is_ok());
        }
        assert!(hosts.keep(&key(KEPT), told(60)).is_ok());
        assert_eq!(hosts.known.len(), KEPT);
        assert!(!hosts.known.contains_key(&key(7)), "what would have been over first makes room");
        advance(Duration::from_secs(61)).await;
        assert!(hosts.keep(&key(0), told(60)).is_ok());
        assert!(hosts.keep(&key(KEPT + 1), told(60)).is_ok());
        assert_eq!(hosts.known.len(), 2, "and all that is over");
    }

    #[test]
    fn resolvers_that_serve_are_asked_and_the_last_one_first() {
        let names = Names::default();
        assert_eq!(names.to_ask(), []);
        let [a, b, c, d] = [1, 2, 3, 4].map(resolver);
        names.asks(d);
        assert_eq!(names.to_ask(), [d], "better than none");
        for asked in [a, b, b, a] {
            names.served(asked);
        }
        assert_eq!(names.to_ask(), [a, b, d]);
        names.failed(a);
        assert_eq!(names.to_ask(), [b, a, d]);
        names.served(d);
        assert_eq!(names.to_ask(), [d, b, a]);
        names.served(c);
        assert_eq!(names.to_ask(), [c, d, b], "only the last few");
    }
}
