//! Passes a query on to the resolver that the pod asked, and gives back what it says: every byte as it is, both
//! ways.
//!
//! Each query has a socket of its own, whose port the kernel chooses at random, so that one answer can neither be
//! taken for another's nor be guessed. How many there are at a time is bounded for each pod.

use std::{
    cell::RefCell,
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

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

/// Asks `resolver` as `client`, an address of the pod's, does.
pub(super) async fn ask(
    pod: &Pod,
    client: SocketAddr,
    resolver: SocketAddr,
    query: &[u8],
) -> Result<Vec<u8>, Failed> {
    let unreachable = |error| Failed::Unreachable(resolver, error);
    let socket = sockets::ask(&pod.netns, &pod.own, client.ip(), resolver).map_err(unreachable)?;
    let socket = UdpSocket::from_std(socket).map_err(unreachable)?;
    socket.send(query).await.map_err(unreachable)?;
    let answer = async {
        loop {
            // A refusal (ICMP) is an error of the socket and nothing to read.
            if socket.ready(Interest::READABLE | Interest::ERROR).await?.is_error() {
                let error = socket.take_error()?;
                return Err(error.unwrap_or_else(|| io::ErrorKind::ConnectionRefused.into()));
            }
            let read = BUFFER.with_borrow_mut(|buffer| {
                let length = socket.try_recv(buffer)?;
                let bytes = &buffer[..length];
                Ok(message::answers(bytes, query).then(|| bytes.to_vec()))
            });
            match read {
                Ok(Some(bytes)) => return Ok(bytes),
                // Not the answer to this query, or not yet there.
                Ok(None) => {}
                Err(error) if matches!(io::Error::kind(&error), io::ErrorKind::WouldBlock) => {}
                Err(error) => return Err(error),
            }
        }
    };
    match timeout(PATIENCE, answer).await {
        Ok(answer) => answer.map_err(unreachable),
        Err(_) => Err(Failed::Silent(resolver)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
