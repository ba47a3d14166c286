//! The addresses of a host that the mesh knows by name only: asked for when a connection needs them, and kept
//! for as long as the answer allows.
//!
//! The pod's own resolvers are asked, those that have served it last, from within the pod: the name means what it
//! means there. A pod that has asked nobody yet (since this ztunnel began) is served by the resolver of ztunnel's own
//! surroundings.

use std::{
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
    path::Path,
    pin::pin,
    sync::Arc,
    time::Duration,
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use hickory_proto::rr::RecordType;
use tokio::time::{sleep, timeout};

use super::{
    PORT,
    forward::{self, Failed},
    message::{self, Told},
    names::{Asked, Said},
    sockets,
};
use crate::pods::Pod;

/// How often we ask: nobody else repeats a query of ours that is lost.
const TRIES: u32 = 5;

/// How long a resolver is waited for before the next one is asked as well.
const STAGGER: Duration = Duration::from_secs(1);

/// How long the family wanted is waited for when the other one is there (RFC 8305 §3).
const GRACE: Duration = Duration::from_millis(50);

/// Where a Linux system names its resolvers (resolv.conf(5)).
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Why a name has no address.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unresolved {
    #[error("there is no resolver to ask: none in {RESOLV_CONF}, and the pod has asked none")]
    NoResolver,
    /// For as long as `ttl`.
    #[error("the resolver {at} knows no address of it")]
    NoAddress { at: SocketAddr, ttl: Duration },
    #[error("the resolver {0} has refused or failed, or its answer cannot be read")]
    Refused(SocketAddr),
    #[error(transparent)]
    Failed(#[from] Failed),
    #[error("it was asked for no further")]
    Abandoned,
}

/// An address of `host` for a connection of the pod's: of the family wanted if it has one; else of the other, where
/// `either` family will do. `seed` picks among several.
pub(crate) async fn resolve(
    pod: &Arc<Pod>,
    host: &Arc<str>,
    v4: bool,
    either: bool,
    seed: usize,
) -> Result<IpAddr, Arc<Unresolved>> {
    let look = |v4: bool| {
        let (its, of) = (pod.clone(), host.clone());
        pod.names.addresses(host, v4, async move { told(&its, &of, v4).await })
    };
    let addresses = if either { first(look(v4), look(!v4)).await? } else { look(v4).await? };
    addresses.get(seed % addresses.len().max(1)).copied().ok_or_else(|| Arc::new(Unresolved::Abandoned))
}

/// What is wanted, unless it is not to be had, or only much later than the other.
async fn first(wanted: impl Future<Output = Said>, other: impl Future<Output = Said>) -> Said {
    let (mut wanted, mut other) = (pin!(wanted), pin!(other));
    let there = tokio::select! {
        biased;
        said = &mut wanted => return match said {
            Ok(addresses) => Ok(addresses),
            Err(unresolved) => other.await.or(Err(unresolved)),
        },
        said = &mut other => said,
    };
    match there {
        Ok(addresses) => match timeout(GRACE, wanted).await {
            Ok(Ok(wanted)) => Ok(wanted),
            Ok(Err(_)) | Err(_) => Ok(addresses),
        },
        Err(_) => wanted.await,
    }
}

/// What the pod's resolvers say, with one address at least.
async fn told(pod: &Pod, host: &str, v4: bool) -> Result<Told, Unresolved> {
    let kind = if v4 { RecordType::A } else { RecordType::AAAA };
    let resolvers = pod.names.to_ask();
    if resolvers.is_empty() {
        let at = of_ours(Path::new(RESOLV_CONF)).await.ok_or(Unresolved::NoResolver)?;
        return ask(pod, at, host, kind, || here(at)).await.map(|(_, told)| told);
    }
    let one = async |asked: Asked| {
        let socket = || sockets::ask(&pod.netns, &pod.own, asked.from, asked.at);
        match ask(pod, asked.at, host, kind, socket).await {
            Ok((recursed, told)) => {
                if recursed {
                    pod.names.served(asked);
                }
                Ok(told)
            }
            Err(unresolved) => {
                match unresolved {
                    Unresolved::Refused(_)
                    | Unresolved::Failed(Failed::Silent(_) | Failed::Unreachable(..)) => {
                        pod.names.failed(asked);
                    }
                    // That is not its fault.
                    _ => {}
                }
                Err(unresolved)
            }
        }
    };
    in_turn(resolvers, one).await
}

/// Asks one after another: the next when one has failed or takes long. Who knows the name, or that it has no
/// address, is believed.
async fn in_turn<R>(
    resolvers: Vec<R>,
    ask: impl AsyncFn(R) -> Result<Told, Unresolved>,
) -> Result<Told, Unresolved> {
    let mut rest = resolvers.into_iter();
    let mut asked = FuturesUnordered::new();
    let mut first_failure = None;
    loop {
        match rest.next() {
            Some(next) => asked.push(ask(next)),
            None if asked.is_empty() => return Err(first_failure.unwrap_or(Unresolved::NoResolver)),
            None => {}
        }
        tokio::select! {
            biased;
            Some(said) = asked.next() => match said {
                Ok(told) => return Ok(told),
                Err(none @ Unresolved::NoAddress { .. }) => return Err(none),
                Err(failed) => {
                    first_failure.get_or_insert(failed);
                }
            },
            () = sleep(STAGGER), if rest.len() > 0 => {}
        }
    }
}

/// Asks one resolver; also says whether it recurses.
async fn ask(
    pod: &Pod,
    at: SocketAddr,
    host: &str,
    kind: RecordType,
    socket: impl FnOnce() -> io::Result<UdpSocket>,
) -> Result<(bool, Told), Unresolved> {
    let query = message::ask(rand::random(), host, kind).ok_or(Unresolved::Refused(at))?;
    let _place = pod.names.waiting.enter()?;
    let socket = socket().map_err(|error| Failed::Unreachable(at, error))?;
    let answer = forward::exchange(socket, at, &query, TRIES).await?;
    let told = message::read_addresses(&answer).ok_or(Unresolved::Refused(at))?;
    // Part of them is enough to dial one.
    match (told.addresses.is_empty(), told.truncated) {
        (false, _) => Ok((message::is_of_a_resolver(&answer), told)),
        (true, false) => Err(Unresolved::NoAddress { at, ttl: told.ttl }),
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

    fn to(last: u8) -> IpAddr {
        [192, 0, 2, last].into()
    }

    fn told_of(last: u8) -> Result<Told, Unresolved> {
        Ok(Told { addresses: vec![to(last)], ttl: Duration::from_secs(60), truncated: false })
    }

    #[tokio::test(start_paused = true)]
    async fn the_next_resolver_is_asked_when_one_refuses_or_takes_long_and_only_then() {
        let at = SocketAddr::from(([10, 0, 0, 1], PORT));
        let (refuses, none) =
            (|| Err(Unresolved::Refused(at)), || Err(Unresolved::NoAddress { at, ttl: Duration::ZERO }));
        let begun = tokio::time::Instant::now();
        let ask = async |script: Vec<(u64, Result<Told, Unresolved>)>| {
            let one = async |(after, said)| {
                sleep(Duration::from_millis(after)).await;
                said
            };
            let before = begun.elapsed();
            let said = in_turn(script, one).await.map(|told| told.addresses[0]);
            (said, (begun.elapsed() - before).as_millis())
        };
        let (said, took) = ask(vec![(10, refuses()), (10, told_of(2)), (0, told_of(3))]).await;
        assert_eq!((said.expect("told"), took), (to(2), 20));
        let (said, took) = ask(vec![(9000, told_of(1)), (10, refuses()), (10, told_of(3))]).await;
        assert_eq!((said.expect("told"), took), (to(3), 1020));
        let (said, took) = ask(vec![(1500, told_of(1)), (9000, told_of(2))]).await;
        assert_eq!((said.expect("told"), took), (to(1), 1500), "who is slow is still heard");
        let (said, took) = ask(vec![(10, none()), (0, told_of(2))]).await;
        assert!(matches!(said, Err(Unresolved::NoAddress { .. })) && took == 10, "who knows is believed");
        let (said, _) = ask(vec![(10, refuses()), (10, Err(Unresolved::NoResolver))]).await;
        assert!(matches!(said, Err(Unresolved::Refused(_))), "what the first one said is told");
        assert!(matches!(ask(Vec::new()).await.0, Err(Unresolved::NoResolver)));
    }

    #[tokio::test(start_paused = true)]
    async fn both_families_are_asked_for_at_once_and_the_wanted_one_is_preferred() {
        let begun = tokio::time::Instant::now();
        let say = async |after: u64, said: Option<u8>| -> Said {
            sleep(Duration::from_millis(after)).await;
            said.map(|last| Arc::from([to(last)])).ok_or_else(|| Arc::new(Unresolved::NoResolver))
        };
        for (wanted, other, said, took) in [
            ((10, Some(4)), (500, Some(6)), Some(4), 10),
            ((40, Some(4)), (10, Some(6)), Some(4), 40),
            ((500, Some(4)), (10, Some(6)), Some(6), 60),
            ((30, None), (10, Some(6)), Some(6), 30),
            ((10, None), (30, Some(6)), Some(6), 30),
            ((500, Some(4)), (10, None), Some(4), 500),
            ((20, None), (30, None), None, 30),
        ] {
            let before = begun.elapsed();
            let found = first(say(wanted.0, wanted.1), say(other.0, other.1)).await;
            assert_eq!(found.ok().map(|addresses| addresses[0]), said.map(to));
            assert_eq!((begun.elapsed() - before).as_millis(), took);
        }
    }
}
