//! A pod's queries over UDP: read from the socket in its slot, answered, or passed on.

use std::{
    cell::RefCell,
    io,
    net::UdpSocket,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::io::Interest;

use super::{
    Dns, Transport, answer, forward,
    message::{self, Kind, Question},
    names::Asked,
    sockets::{self, Received},
};
use crate::{fd, pods::Pod, shared::Shared, worker::Worker};

/// Queries taken in a row before the worker's other tasks get a turn.
const BURST: usize = 32;

/// Such bursts that are taken when no more queries are led here: what had come before fits into fewer (the socket's
/// buffer is the system's default), and whoever has found our port must not keep us.
const LAST_BURSTS: usize = 32;

/// The wait after a query that could not be read.
const READ_PAUSE: Duration = Duration::from_millis(5);

/// How long a query waits for the state of the mesh, where that is not there yet or does not have the pod: a resolver
/// would say of a name that only the mesh knows that there is none, and be believed for long. The resolvers of C
/// libraries ask again after five seconds.
const STATE_PATIENCE: Duration = Duration::from_secs(2);

thread_local! {
    /// For a query of any size; each worker has one.
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; sockets::LONGEST]);
}

/// Serves a pod until its listeners close, and then what still waits in the queue.
pub(crate) async fn serve(worker: Rc<Worker>, pod: Arc<Pod>) {
    let Some(dns) = pod.dns.as_ref() else { return };
    let Some(socket) = dns.socket() else { return };
    let ready = match fd::watch(socket, Interest::READABLE) {
        Ok(ready) => ready,
        Err(error) => {
            tracing::error!(pod = %pod.uid, %error, "the socket for DNS queries cannot be watched; its resolver answers");
            pod.with_slots(|slots| dns.step_aside(&pod, slots, &error));
            return;
        }
    };
    let server = Server { worker: &worker, pod: &pod, dns };
    loop {
        let mut guard = tokio::select! {
            biased;
            () = pod.accepting.cancelled() => break,
            guard = ready.readable() => match guard {
                Ok(guard) => guard,
                Err(_) => break,
            },
        };
        match server.take_some(&ready.get_ref().0) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => guard.clear_ready(),
            // Of an answer that an app did not wait for, say.
            Err(error) => {
                tracing::debug!(pod = %pod.uid, %error, "a DNS query cannot be read");
                dns.failed(&pod, &error);
                tokio::time::sleep(READ_PAUSE).await;
            }
        }
        tokio::task::yield_now().await;
    }
    for _ in 0..LAST_BURSTS {
        if server.take_some(&ready.get_ref().0).is_err() {
            break;
        }
        tokio::task::yield_now().await;
    }
}

struct Server<'a> {
    worker: &'a Rc<Worker>,
    pod: &'a Arc<Pod>,
    dns: &'a Dns,
}

impl Server<'_> {
    fn take_some(&self, socket: &UdpSocket) -> io::Result<()> {
        for _ in 0..BURST {
            BUFFER.with_borrow_mut(|buffer| {
                let begun = Instant::now();
                let Some(received) = sockets::receive(socket, buffer)? else { return Ok(()) };
                self.query(&buffer[..received.length], received, begun);
                Ok::<_, io::Error>(())
            })?;
        }
        Ok(())
    }

    fn query(&self, query: &[u8], received: Received, begun: Instant) {
        let (shared, pod) = (&self.worker.shared, self.pod);
        let question = Question::read(query);
        let asked = Asked { from: received.client.ip(), at: received.resolver };
        shared.metrics.dns.asked(question.as_ref().map(|question| question.kind), Transport::Udp);
        if question
            .as_ref()
            .is_some_and(|question| answered(shared, pod, self.dns, question, received, begun))
        {
            return;
        }
        let place = match pod.names.waiting.enter() {
            Ok(place) => place,
            Err(failed) => return fail(self.worker, pod, self.dns, received, query, &failed),
        };
        // Only what asks for recursion tells a resolver from who knows one zone.
        let recurses = question.as_ref().is_some_and(|question| question.recursion_desired);
        let early = question.filter(|question| question.kind != Kind::Other && !shared.knows(pod));
        let (worker, pod, query) = (self.worker.clone(), self.pod.clone(), query.to_vec());
        tokio::task::spawn_local(async move {
            let Some(dns) = pod.dns.as_ref() else { return };
            if let Some(question) = early {
                let shared = &worker.shared;
                shared.until_known(&pod, STATE_PATIENCE.min(shared.settings.patience)).await;
                if answered(shared, &pod, dns, &question, received, begun) {
                    return;
                }
            }
            worker.shared.metrics.dns.passed_on();
            let begun = Instant::now();
            match forward::ask(&pod, received.client, received.resolver, &query).await {
                Ok(bytes) => {
                    worker.shared.metrics.dns.upstream_answered(begun.elapsed());
                    if recurses && message::is_of_a_resolver(&bytes) {
                        pod.names.served(asked);
                    }
                    say(&pod, dns, received, &bytes);
                }
                Err(failed) => fail(&worker, &pod, dns, received, &query, &failed),
            }
            drop(place);
        });
    }
}

/// Answers a question about a name of the mesh; says whether it is one.
fn answered(
    shared: &Shared,
    pod: &Pod,
    dns: &Dns,
    question: &Question,
    received: Received,
    begun: Instant,
) -> bool {
    let Some(bytes) = answer(shared, pod, question, None) else { return false };
    if question.recursion_desired {
        pod.names.asks(Asked { from: received.client.ip(), at: received.resolver });
    }
    say(pod, dns, received, &bytes);
    let took = begun.elapsed();
    shared.metrics.dns.answered(took);
    tracing::debug!(
        pod = %pod.uid, name = %question.name, kind = ?question.kind, took = ?took, "answered a DNS query"
    );
    true
}

fn fail(worker: &Worker, pod: &Pod, dns: &Dns, received: Received, query: &[u8], failed: &forward::Failed) {
    worker.shared.metrics.dns.upstream_failed(failed.name());
    tracing::debug!(pod = %pod.uid, error = %failed, "a DNS query has no answer");
    if let Some(bytes) = message::failure(query) {
        say(pod, dns, received, &bytes);
    }
}

fn say(pod: &Pod, dns: &Dns, received: Received, bytes: &[u8]) {
    let Received { client, resolver, .. } = received;
    match sockets::answer(&pod.netns, &pod.own, resolver, client, bytes) {
        Ok(()) => dns.worked(),
        Err(error) => {
            tracing::debug!(pod = %pod.uid, %client, %resolver, %error, "a DNS answer cannot be sent");
            dns.failed(pod, &error);
        }
    }
}
