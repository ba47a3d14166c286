//! DNS for the pods: names of the mesh are answered here, everything else is the business of the resolver that
//! the pod asked.
//!
//! A query over UDP comes through the slot [`capture::Role::Dns`], one over TCP is a captured connection to port
//! 53. What a name means is decided by `mesh` ([`mesh::Snapshot::resolve`]); `message` reads and writes, `forward`
//! passes on, `udp` and `tcp` serve. Without us (no ztunnel, or not for this pod) queries over UDP reach their
//! resolver as ever: names of the mesh that only we know are unknown then, and nothing else.

mod forward;
mod message;
mod metrics;
mod names;
mod resolve;
mod sockets;
mod tcp;
mod udp;

use std::{
    io,
    net::UdpSocket,
    os::fd::AsFd,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use capture::{Netns, PodSlots, Role, socket_cookie};
use mesh::{Asker, Family};
use rand::seq::SliceRandom;

use self::message::{Kind, Question};
use crate::{pods::Pod, shared::Shared, sockets::Own};

pub(crate) use self::{
    metrics::Metrics,
    names::Names,
    resolve::{Unresolved, resolve},
    sockets::{PORT, listen},
    tcp::carry,
    udp::serve,
};

/// Addresses in one answer: a message has room for about twice as many of IPv6.
const MOST_ADDRESSES: usize = 1000;

/// Failures in a row, of whatever kind, after which a pod's resolver is better off without us.
const MOST_FAILURES: u32 = 16;

/// How long we stay out of the way after a failure, at least and at most: twice as long each time that it happens
/// again.
const OUT: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// How long all must have gone well for what was before not to count.
const FORGIVEN: Duration = Duration::from_secs(300);

/// By what a query came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Transport {
    Udp,
    Tcp,
}

/// What a pod whose queries are answered needs for it.
pub(crate) struct Dns {
    /// `None` once no further query is taken.
    socket: Mutex<Option<Arc<UdpSocket>>>,
    cookie: u64,
    /// Somebody in the pod is in the way of our answers, so its queries go past us.
    aside: AtomicBool,
    failures: AtomicU32,
    backoff: Mutex<Backoff>,
}

impl Dns {
    /// Opens the socket of a pod's queries, in no slot yet.
    pub(crate) fn open(netns: &Netns, own: &Own) -> io::Result<Self> {
        let socket = Arc::new(listen(netns, own)?);
        let cookie = socket_cookie(socket.as_fd())?;
        let socket = Mutex::new(Some(socket));
        Ok(Self {
            socket,
            cookie,
            aside: AtomicBool::new(false),
            failures: AtomicU32::new(0),
            backoff: Mutex::default(),
        })
    }

    /// What a worker is to read; `None` when all is over.
    pub(crate) fn socket(&self) -> Option<Arc<UdpSocket>> {
        self.socket.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes no further query. A socket that stayed in the slot, and in the process until that ends, would swallow
    /// queries that nobody reads: a successor that leaves DNS alone does not displace it.
    pub(crate) fn close(&self, pod: &Pod, slots: &PodSlots) {
        if self.socket.lock().unwrap_or_else(PoisonError::into_inner).take().is_some() {
            self.leave(pod, slots);
        }
    }

    /// Empties the slot if it is ours.
    fn leave(&self, pod: &Pod, slots: &PodSlots) {
        if slots.holder(Role::Dns) == Some(self.cookie)
            && let Err(error) = slots.clear(Role::Dns)
        {
            tracing::warn!(pod = %pod.uid, %error, "DNS queries still come here; they are not answered");
        }
    }

    /// Puts the socket into its slot, unless answers cannot be sent there.
    pub(crate) fn offer(&self, pod: &Pod, slots: &PodSlots) -> Result<(), capture::Error> {
        let Some(socket) = self.socket() else { return Ok(()) };
        match sockets::can_pose(&pod.netns, &pod.own) {
            Ok(()) => {
                if self.aside.swap(false, Ordering::Relaxed) {
                    tracing::info!(pod = %pod.uid, "the pod's DNS queries are answered again");
                }
                slots.set(Role::Dns, socket.as_fd())
            }
            Err(error) => {
                self.step_aside(pod, slots, &error);
                Ok(())
            }
        }
    }

    /// Offers the socket again where the slot is empty: whoever took over from us has died, or what was in the way
    /// may have gone.
    pub(crate) fn offer_again(&self, pod: &Pod, slots: &PodSlots) {
        if slots.holder(Role::Dns).is_none()
            && self.backoff().is_over(Instant::now())
            && let Err(error) = self.offer(pod, slots)
        {
            tracing::debug!(pod = %pod.uid, %error, "the slot for the pod's DNS queries cannot be taken");
        }
    }

    /// An answer has been sent.
    fn worked(&self) {
        if self.failures.load(Ordering::Relaxed) != 0 {
            self.failures.store(0, Ordering::Relaxed);
        }
    }

    /// A query could not be read or an answer not be sent: once is nothing, unless somebody has the port.
    fn failed(&self, pod: &Pod, why: &io::Error) {
        let before = self.failures.fetch_add(1, Ordering::Relaxed);
        if sockets::is_in_the_way(why) || before + 1 >= MOST_FAILURES {
            self.failures.store(0, Ordering::Relaxed);
            pod.with_slots(|slots| self.step_aside(pod, slots, why));
        }
    }

    fn backoff(&self) -> MutexGuard<'_, Backoff> {
        self.backoff.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets the pod's queries go past us.
    fn step_aside(&self, pod: &Pod, slots: &PodSlots, why: &io::Error) {
        if !self.aside.swap(true, Ordering::Relaxed) {
            self.backoff().fail(Instant::now());
            tracing::warn!(
                pod = %pod.uid, error = %why,
                "answers to the pod's DNS queries cannot be sent from port 53, so its resolver answers them; does an \
                 app of the pod have that port, or is ztunnel without CAP_NET_BIND_SERVICE?"
            );
        }
        self.leave(pod, slots);
    }
}

/// When to come back after having stepped aside.
#[derive(Default)]
struct Backoff {
    last: Option<Instant>,
    wait: Duration,
}

impl Backoff {
    fn fail(&mut self, now: Instant) {
        let again = self.last.is_some_and(|last| now < last + FORGIVEN);
        self.wait = if again { (self.wait * 2).min(OUT.1) } else { OUT.0 };
        self.last = Some(now);
    }

    fn is_over(&self, now: Instant) -> bool {
        self.last.is_none_or(|last| now >= last + self.wait)
    }
}

/// The answer to a question about a name of the mesh, as one snapshot has it; `None` where the pod's resolver is to
/// be asked. `limit` is the size of the answer, `None` by what the client takes over UDP.
fn answer(shared: &Shared, pod: &Pod, question: &Question, limit: Option<usize>) -> Option<Vec<u8>> {
    let snapshot = shared.mesh.current();
    if !snapshot.is_complete() {
        return None;
    }
    let network = snapshot.pod(&pod.namespace, &pod.name).map(|workload| workload.network.clone());
    let asker = Asker {
        namespace: &pod.namespace,
        network: network.as_deref().unwrap_or_default(),
        cluster_domain: &shared.settings.cluster_domain,
    };
    let named = snapshot.resolve(&asker, &question.name)?;
    let mut addresses: Vec<_> = match question.kind {
        Kind::A => named.of(Family::V4).collect(),
        Kind::Aaaa => named.of(Family::V6).collect(),
        // What the outer world's resolver says of it, of addresses above all, is not how the mesh goes there.
        Kind::Service if named.addresses.iter().all(mesh::is_automatic) => Vec::new(),
        Kind::Service | Kind::Other => return None,
    };
    addresses.shuffle(&mut rand::rng());
    addresses.truncate(MOST_ADDRESSES);
    question.answer(named.alias.as_deref(), &addresses, limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_fails_again_and_again_stays_out_of_the_way_for_longer() {
        let mut backoff = Backoff::default();
        let mut now = Instant::now();
        assert!(backoff.is_over(now));
        for seconds in [1, 2, 4, 8, 16, 32, 60, 60] {
            backoff.fail(now);
            let wait = Duration::from_secs(seconds);
            assert!(!backoff.is_over(now + wait - Duration::from_millis(1)) && backoff.is_over(now + wait));
            now += wait;
        }
        now += FORGIVEN;
        backoff.fail(now);
        assert!(backoff.is_over(now + OUT.0), "what is long ago does not count");
    }
}
