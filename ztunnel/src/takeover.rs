//! How this ztunnel ends: never before its connections if that can be helped, and never with the
//! handshakes of new ones in its hands.
//!
//! A successor writes its listeners into the pods' slots. From then on no new connection comes here, but
//! those whose handshake began are still completed on our listeners, so these stay open a while. Without
//! a successor we go on as before, until the deadline.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use runtime::drain::Drain;

use crate::{
    shared::Shared,
    worker::{Command, Workers},
};

/// How long listeners stay open after a successor has taken the slots (measured: closed at once, 2 % of
/// the handshakes in flight were reset at 20 ms of round-trip time; after 1.5 s none).
const LISTEN_ON: Duration = Duration::from_millis(1500);

const LOOK_EVERY: Duration = Duration::from_millis(50);

/// What is left for the resets to leave this machine.
const LAST_WORDS: Duration = Duration::from_millis(100);

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// Serve as ever: nobody else does.
    Serve,
    /// A successor takes what is new; complete what is on its way here.
    ListenOn,
    /// Only what is carried is left to do.
    Finish,
    Exit,
}

#[derive(Debug, Clone, Copy)]
struct Situation {
    since_successor: Option<Duration>,
    connections: usize,
    left: Duration,
}

fn next(situation: Situation) -> Step {
    let Situation { since_successor, connections, left } = situation;
    match since_successor {
        Some(since) if since < LISTEN_ON => Step::ListenOn,
        _ if connections == 0 || left.is_zero() => Step::Exit,
        Some(_) => Step::Finish,
        None => Step::Serve,
    }
}

/// Ends this ztunnel's work; returns when the process may go.
pub(crate) async fn end(shared: &Arc<Shared>, workers: &Workers, tunnels: Drain, deadline: Duration) {
    let deadline = Instant::now() + deadline;
    let mut successor_since: Option<Instant> = None;
    let mut last = None;
    loop {
        if successor_since.is_none() && shared.pods.all().iter().any(|pod| pod.has_successor()) {
            successor_since = Some(Instant::now());
            // The peers' next tunnels reach the successor; those that are there serve on.
            tunnels.start();
        }
        let step = next(Situation {
            since_successor: successor_since.map(|since| since.elapsed()),
            connections: shared.carried(),
            left: deadline.saturating_duration_since(Instant::now()),
        });
        if last != Some(step) {
            tracing::info!(connections = shared.carried(), "{}", told(step));
            last = Some(step);
        }
        match step {
            Step::Serve | Step::ListenOn => {}
            Step::Finish => shared.pods.all().iter().for_each(|pod| pod.close_listeners()),
            Step::Exit => break,
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    if shared.carried() > 0 {
        tracing::warn!(
            connections = shared.carried(),
            "the deadline is over; the connections that are left are reset"
        );
        workers.broadcast(|| Command::EndAll);
        tokio::time::sleep(LAST_WORDS).await;
    }
}

fn told(step: Step) -> &'static str {
    match step {
        Step::Serve => "ending; no successor serves the pods, so all is served on until one does",
        Step::ListenOn => "ending; a successor serves the pods, completing what is on its way here",
        Step::Finish => "ending; listeners are closed, serving what is carried to its end",
        Step::Exit => "ending now",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(since_successor: Option<u64>, connections: usize, left: u64) -> Step {
        next(Situation {
            since_successor: since_successor.map(Duration::from_millis),
            connections,
            left: Duration::from_millis(left),
        })
    }

    #[test]
    fn without_connections_and_successor_it_ends_at_once() {
        assert_eq!(step(None, 0, 30_000), Step::Exit);
    }

    #[test]
    fn without_a_successor_it_serves_until_the_deadline() {
        assert_eq!(step(None, 3, 30_000), Step::Serve);
        assert_eq!(step(None, 3, 0), Step::Exit);
    }

    #[test]
    fn handshakes_in_flight_are_completed_even_when_nothing_is_carried_or_no_time_is_left() {
        assert_eq!(step(Some(0), 0, 30_000), Step::ListenOn);
        assert_eq!(step(Some(1499), 0, 0), Step::ListenOn);
        assert_eq!(step(Some(1500), 0, 30_000), Step::Exit);
    }

    #[test]
    fn what_is_carried_is_served_to_its_end_or_the_deadline() {
        assert_eq!(step(Some(1500), 2, 30_000), Step::Finish);
        assert_eq!(step(Some(60_000), 2, 0), Step::Exit);
        assert_eq!(step(Some(60_000), 0, 10), Step::Exit);
    }
}
