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
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
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
}

impl Dns {
    /// Opens the socket of a pod's queries, in no slot yet.
    pub(crate) fn open(netns: &Netns, own: &Own) -> io::Result<Self> {
        let socket = Arc::new(listen(netns, own)?);
        let cookie = socket_cookie(socket.as_fd())?;
        let socket = Mutex::new(Some(socket));
        Ok(Self { socket, cookie, aside: AtomicBool::new(false) })
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
            && let Err(error) = self.offer(pod, slots)
        {
            tracing::debug!(pod = %pod.uid, %error, "the slot for the pod's DNS queries cannot be taken");
        }
    }

    /// Lets the pod's queries go past us.
    fn step_aside(&self, pod: &Pod, slots: &PodSlots, why: &io::Error) {
        if !self.aside.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                pod = %pod.uid, error = %why,
                "answers to the pod's DNS queries cannot be sent from port 53, so its resolver answers them; does an \
                 app of the pod have that port, or is ztunnel without CAP_NET_BIND_SERVICE?"
            );
        }
        self.leave(pod, slots);
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
