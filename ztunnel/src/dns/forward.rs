//! Passes a query on to the resolver that the pod asked, and gives back what it says: every byte as it is, both
//! ways.
//!
//! Each query has a socket of its own, whose port the kernel chooses at random, so that one answer can neither be
//! taken for another's nor be guessed. How many there are at a time is bounded for each pod.

use std::{
    cell::RefCell,
    io::{self, Read},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use socket2::SockRef;
use tokio::{io::Interest, net::UdpSocket, time::timeout};

use super::{message, sockets};
use crate::pods::Pod;

/// How long a resolver may take: as long as the resolvers of C libraries wait.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// Queries of one pod that may wait for its resolver at a time. Each holds a descriptor.
const IN_FLIGHT: usize = 1024;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failed {
    #[error("{IN_FLIGHT} queries of the pod wait for its resolver already")]
    TooMany,
    #[error("the pod's resolver {0} did not answer within {wait} s", wait = PATIENCE.as_secs())]
    Silent(SocketAddr),
    #[error("the pod's resolver {0} cannot be asked: {1}")]
    Unreachable(SocketAddr, io::Error),
}

impl Failed {
    /// The reason's name in metrics.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::TooMany => "too-many",
            Self::Silent(_) => "timeout",
            Self::Unreachable(..) => "unreachable",
        }
    }
}

/// The queries of a pod that wait.
#[derive(Default)]
pub(super) struct Waiting(Arc<AtomicUsize>);

/// One of them.
pub(super) struct Place(Arc<AtomicUsize>);

impl Waiting {
    pub(super) fn enter(&self) -> Result<Place, Failed> {
        // Over the limit, dropping the place takes the count back.
        let place = Place(self.0.clone());
        if self.0.fetch_add(1, Ordering::Relaxed) < IN_FLIGHT { Ok(place) } else { Err(Failed::TooMany) }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

thread_local! {
    /// For an answer of any size; each worker has one.
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; sockets::LONGEST]);
}

/// Asks `resolver` as `client`, an address of the pod's, does: once, since who waits for the answer asks again.
pub(super) async fn ask(
    pod: &Pod,
    client: SocketAddr,
    resolver: SocketAddr,
    query: &[u8],
) -> Result<Vec<u8>, Failed> {
    let socket = sockets::ask(&pod.netns, &pod.own, client.ip(), resolver)
        .map_err(|error| Failed::Unreachable(resolver, error))?;
    exchange(socket, resolver, query, 1).await
}

/// Sends a query up to `tries` times, in equal parts of [`PATIENCE`], over a socket that is connected to
/// `resolver`, until it is answered or refused.
pub(super) async fn exchange(
    socket: std::net::UdpSocket,
    resolver: SocketAddr,
    query: &[u8],
    tries: u32,
) -> Result<Vec<u8>, Failed> {
    let unreachable = |error| Failed::Unreachable(resolver, error);
    let socket = UdpSocket::from_std(socket).map_err(unreachable)?;
    for _ in 0..tries {
        socket.send(query).await.map_err(unreachable)?;
        if let Ok(answer) = timeout(PATIENCE / tries, hear(&socket, query)).await {
            return answer.map_err(unreachable);
        }
    }
    Err(Failed::Silent(resolver))
}

async fn hear(socket: &UdpSocket, query: &[u8]) -> io::Result<Vec<u8>> {
    // A refusal (ICMP) is an error of the socket that makes nothing readable: whoever waits for what can be read
    // alone waits in vain.
    loop {
        let ready = socket.ready(Interest::READABLE | Interest::ERROR).await?;
        // Of both at once tokio knows nothing in `try_io`; the one call tells either.
        let which = if ready.is_error() { Interest::ERROR } else { Interest::READABLE };
        let heard = BUFFER.with_borrow_mut(|buffer| {
            let length = socket.try_io(which, || (&*SockRef::from(socket)).read(buffer))?;
            let bytes = &buffer[..length];
            Ok::<_, io::Error>(message::answers(bytes, query).then(|| bytes.to_vec()))
        });
        match heard {
            Ok(Some(bytes)) => return Ok(bytes),
            // Of another query, or forged.
            Ok(None) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{net::UdpSocket as Socket, thread};

    use super::*;

    const QUERY: &[u8] = b"\xbe\xef\x01\0\0\x01\0\0\0\0\0\0 and whatever";

    /// An answer to [`QUERY`] with `id`.
    fn answer(id: u16, text: &[u8]) -> Vec<u8> {
        [&id.to_be_bytes()[..], &[0x81; 10], text].concat()
    }

    fn on_loopback() -> Socket {
        Socket::bind("127.0.0.1:0").expect("a port")
    }

    /// Asks a resolver that does this.
    async fn asked(tries: u32, resolver: impl FnOnce(Socket) + Send + 'static) -> Result<Vec<u8>, Failed> {
        let (ours, theirs) = (on_loopback(), on_loopback());
        let at = theirs.local_addr().unwrap();
        ours.connect(at).unwrap();
        ours.set_nonblocking(true).unwrap();
        theirs.set_read_timeout(Some(PATIENCE)).unwrap();
        let resolver = thread::spawn(move || resolver(theirs));
        let heard = exchange(ours, at, QUERY, tries).await;
        resolver.join().expect("the resolver");
        heard
    }

    fn hear_query(socket: &Socket) -> SocketAddr {
        let mut buffer = [0; 64];
        let (length, from) = socket.recv_from(&mut buffer).expect("a query");
        assert_eq!(&buffer[..length], QUERY);
        from
    }

    #[tokio::test]
    async fn a_resolver_that_does_not_listen_is_not_waited_for() {
        let (ours, theirs) = (on_loopback(), on_loopback());
        let at = theirs.local_addr().unwrap();
        ours.connect(at).unwrap();
        ours.set_nonblocking(true).unwrap();
        drop(theirs);
        let failed = exchange(ours, at, QUERY, 1).await.expect_err("nobody is there");
        assert!(
            matches!(&failed, Failed::Unreachable(_, error) if error.kind() == io::ErrorKind::ConnectionRefused),
            "{failed}"
        );
    }

    #[tokio::test]
    async fn a_slow_resolver_is_waited_for() {
        let slow = |socket: Socket| {
            let from = hear_query(&socket);
            thread::sleep(Duration::from_millis(700));
            socket.send_to(&answer(0xbeef, b"late"), from).unwrap();
        };
        assert_eq!(asked(1, slow).await.expect("an answer"), answer(0xbeef, b"late"));
    }

    #[tokio::test]
    async fn what_others_say_and_what_answers_another_query_is_not_heard() {
        let forger = |socket: Socket| {
            let from = hear_query(&socket);
            on_loopback().send_to(&answer(0xbeef, b"from elsewhere"), from).unwrap();
            socket.send_to(&answer(0xbeee, b"of another query"), from).unwrap();
            socket.send_to(QUERY, from).unwrap();
            socket.send_to(b"\xbe\xef\x81", from).unwrap();
            socket.send_to(&answer(0xbeef, b"the first"), from).unwrap();
            // Refused, unless it is not yet read: nobody is left.
            let _ = socket.send_to(&answer(0xbeef, b"the second"), from);
        };
        assert_eq!(asked(1, forger).await.expect("an answer"), answer(0xbeef, b"the first"));
    }

    #[tokio::test]
    async fn our_own_query_is_sent_again_when_it_is_lost() {
        let losing = |socket: Socket| {
            hear_query(&socket);
            let from = hear_query(&socket);
            socket.send_to(&answer(0xbeef, b"again"), from).unwrap();
        };
        assert_eq!(asked(5, losing).await.expect("an answer"), answer(0xbeef, b"again"));
    }

    #[test]
    fn a_pod_waits_for_so_many_answers_and_no_more() {
        let waiting = Waiting::default();
        let places: Vec<Place> = (0..IN_FLIGHT).map(|_| waiting.enter().expect("a place")).collect();
        assert!(matches!(waiting.enter(), Err(Failed::TooMany)));
        assert!(matches!(waiting.enter(), Err(Failed::TooMany)), "a refused one takes no place");
        drop(places);
        assert!(waiting.enter().is_ok());
    }
}
