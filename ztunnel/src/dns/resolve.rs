//! The addresses of a host that the mesh knows by name only: asked for when a connection needs them, and kept
//! for as long as the answer allows.
//!
//! The pod's own resolver is asked, the one that the pod itself asked last, from within the pod: the name means
//! what it means there. A pod that has asked nobody yet (since this ztunnel began) is served by the resolver of
//! ztunnel's own surroundings.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use hickory_proto::rr::RecordType;

use super::{
    PORT,
    forward::{self, Failed},
    message::{self, Told},
    sockets,
};
use crate::pods::Pod;

/// Names kept for a pod. Those that its ServiceEntries name are far fewer.
const KEPT: usize = 1024;

/// How often we ask: nobody else repeats a query of ours that is lost.
const TRIES: u32 = 5;

/// Bounds of how long an answer is kept.
const KEEP: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));

/// Where a Linux system names its resolvers (resolv.conf(5)).
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Why a name has no address.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unresolved {
    #[error("there is no resolver to ask: none in {RESOLV_CONF}, and the pod has asked none")]
    NoResolver,
    #[error("the resolver {0} knows no address of it")]
    NoAddress(SocketAddr),
    #[error("the resolver {0} has refused or failed, or its answer cannot be read")]
    Refused(SocketAddr),
    #[error(transparent)]
    Failed(#[from] Failed),
}

/// What a pod knows of names.
#[derive(Default)]
pub(crate) struct Names {
    /// Whom the pod asked last.
    resolver: Mutex<Option<(IpAddr, SocketAddr)>>,
    known: Mutex<HashMap<(Arc<str>, bool), Known>>,
}

#[derive(Clone)]
struct Known {
    addresses: Vec<IpAddr>,
    until: Instant,
}

impl Known {
    fn is_fresh(&self) -> bool {
        self.until > Instant::now()
    }
}

impl Names {
    /// The pod asks `resolver`, from its address `from`.
    pub(super) fn asked(&self, from: IpAddr, resolver: SocketAddr) {
        *self.resolver.lock().unwrap_or_else(PoisonError::into_inner) = Some((from, resolver));
    }

    fn known(&self, host: &Arc<str>, v4: bool) -> Option<Known> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(&(host.clone(), v4)).cloned()
    }

    fn keep(&self, host: &Arc<str>, v4: bool, told: &Told) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if known.len() >= KEPT {
            known.retain(|_, known| known.until > now);
        }
        if known.len() < KEPT {
            let until = now + told.ttl.clamp(KEEP.0, KEEP.1);
            known.insert((host.clone(), v4), Known { addresses: told.addresses.clone(), until });
        }
    }
}

/// An address of `host` for a connection of the pod's: of the family wanted if it has one, else of the other.
/// `seed` picks among several.
pub(crate) async fn resolve(pod: &Pod, host: &Arc<str>, v4: bool, seed: usize) -> Result<IpAddr, Unresolved> {
    let mut last = None;
    for family in [v4, !v4] {
        match addresses(pod, host, family).await {
            Ok(addresses) => return Ok(addresses[seed % addresses.len()]),
            // A resolver that is away for one family is for both.
            Err(failed @ Unresolved::Failed(_)) => return Err(failed),
            Err(unresolved) => last = Some(unresolved),
        }
    }
    Err(last.unwrap_or(Unresolved::NoResolver))
}

/// The addresses of one family, at least one. Where no resolver can be reached, what was known before is better
/// than nothing, however old.
async fn addresses(pod: &Pod, host: &Arc<str>, v4: bool) -> Result<Vec<IpAddr>, Unresolved> {
    let known = pod.names.known(host, v4);
    if let Some(known) = known.as_ref().filter(|known| known.is_fresh()) {
        return Ok(known.addresses.clone());
    }
    match (told(pod, host, v4).await, known) {
        (Ok(told), _) => {
            pod.names.keep(host, v4, &told);
            Ok(told.addresses)
        }
        (Err(Unresolved::Failed(_) | Unresolved::Refused(_) | Unresolved::NoResolver), Some(known)) => {
            Ok(known.addresses)
        }
        (Err(unresolved), _) => Err(unresolved),
    }
}

/// What the resolver says, with one address at least.
async fn told(pod: &Pod, host: &str, v4: bool) -> Result<Told, Unresolved> {
    let resolver = *pod.names.resolver.lock().unwrap_or_else(PoisonError::into_inner);
    let (from, at) = match resolver {
        Some((from, at)) => (Some(from), at),
        None => (None, of_ours(Path::new(RESOLV_CONF)).await.ok_or(Unresolved::NoResolver)?),
    };
    let (kind, id) = (if v4 { RecordType::A } else { RecordType::AAAA }, rand::random());
    let query = message::ask(id, host, kind).ok_or(Unresolved::NoAddress(at))?;
    let socket = match from {
        Some(from) => sockets::ask(&pod.netns, &pod.own, from, at),
        None => here(at),
    };
    let socket = socket.map_err(|error| Failed::Unreachable(at, error))?;
    let answer = forward::exchange(socket, at, &query, TRIES).await?;
    let told = message::read_addresses(&answer).ok_or(Unresolved::Refused(at))?;
    // Part of them is enough to dial one.
    match (told.addresses.is_empty(), told.truncated) {
        (false, _) => Ok(told),
        (true, false) => Err(Unresolved::NoAddress(at)),
        (true, true) => Err(Unresolved::Refused(at)),
    }
}

/// A socket that asks from ztunnel's own surroundings.
fn here(at: SocketAddr) -> io::Result<UdpSocket> {
    let any: SocketAddr = if at.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0; 16], 0).into() };
    let socket = UdpSocket::bind(any)?;
    socket.connect(at)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// The first resolver that ztunnel's own surroundings have.
async fn of_ours(file: &Path) -> Option<SocketAddr> {
    first_resolver(&tokio::fs::read_to_string(file).await.ok()?)
}

fn first_resolver(text: &str) -> Option<SocketAddr> {
    let named = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        (words.next()? == "nameserver").then(|| words.next()?.parse().ok()).flatten()
    });
    named.map(|ip: IpAddr| SocketAddr::new(ip, PORT)).next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_resolver_of_a_file_is_taken() {
        let text = "# nameserver 192.0.2.1\nsearch shop.svc.cluster.local\nnameserver fe80::1%eth0\n nameserver  fd00::a\nnameserver 10.96.0.10\n";
        assert_eq!(first_resolver(text), Some("[fd00::a]:53".parse().unwrap()));
        assert_eq!(first_resolver("nameserver\noptions ndots:5\n"), None);
    }

    #[test]
    fn what_is_kept_is_bounded_and_forgotten_in_time() {
        let names = Names::default();
        let told = |ttl| Told {
            addresses: vec!["192.0.2.1".parse().unwrap()],
            ttl: Duration::from_secs(ttl),
            truncated: false,
        };
        for n in 0..KEPT + 10 {
            names.keep(&format!("h{n}").into(), true, &told(60));
        }
        assert_eq!(names.known.lock().unwrap().len(), KEPT);
        assert!(names.known(&"h0".into(), true).is_some());
        assert!(names.known(&"h0".into(), false).is_none(), "of the other family nothing is known");
        names.known.lock().unwrap().values_mut().for_each(|known| known.until = Instant::now());
        assert!(names.known(&"h0".into(), true).is_some_and(|known| !known.is_fresh()), "a last resort");
        names.keep(&"new".into(), true, &told(0));
        assert_eq!(names.known.lock().unwrap().len(), 1, "what is over makes room");
        assert!(names.known(&"h0".into(), true).is_none());
        assert!(
            names.known(&"new".into(), true).is_some_and(|known| known.is_fresh()),
            "kept for a second, whatever the answer says"
        );
    }
}
