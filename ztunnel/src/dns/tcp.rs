//! A pod's queries over TCP (RFC 7766): each message has its length in front, several may be on their way at a
//! time, and answers come in any order.
//!
//! Queries about names of the mesh are answered; the others go to the pod's resolver on one connection of ours,
//! which is made for the first of them.

use std::{
    io,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use futures_util::{SinkExt, StreamExt};
use tokio::{io::AsyncWriteExt, net::TcpStream, time::timeout};
use tokio_util::codec::{Framed, LengthDelimitedCodec};

use super::{
    Transport, answer,
    forward::PATIENCE,
    message::{self, Question},
};
use crate::{pods::Pod, worker::Worker};

/// How long a connection may be silent: as long as resolvers commonly let it, and longer than clients do.
const IDLE: Duration = Duration::from_secs(120);

/// The longest message that two bytes of length can announce.
const LONGEST: usize = 65_535;

type Messages = Framed<TcpStream, LengthDelimitedCodec>;

fn messages(stream: TcpStream) -> Messages {
    LengthDelimitedCodec::builder().length_field_length(2).max_frame_length(LONGEST).new_framed(stream)
}

/// Carries one connection of an app to a resolver, until either side ends it. `dial` connects to the resolver.
pub(crate) async fn carry(
    worker: &Rc<Worker>,
    pod: &Arc<Pod>,
    app: TcpStream,
    dial: impl AsyncFn() -> io::Result<TcpStream>,
) -> io::Result<()> {
    let mut app = messages(app);
    let mut resolver: Option<Messages> = None;
    let mut waiting = 0_usize;
    // An app may say that it asks nothing more, and still wait for answers.
    let mut asks = true;
    loop {
        let next = timeout(IDLE, async {
            match resolver.as_mut() {
                Some(there) => tokio::select! {
                    query = app.next(), if asks => Came::Query(query),
                    answer = there.next() => Came::Answer(answer),
                },
                None => Came::Query(app.next().await),
            }
        });
        match next.await {
            Err(_) => return Ok(()),
            Ok(Came::Query(None)) => {
                let Some(there) = resolver.as_mut() else { return Ok(()) };
                there.get_mut().shutdown().await?;
                asks = false;
            }
            Ok(Came::Query(Some(query))) => {
                let query = query?;
                if let Some(bytes) = own_answer(worker, pod, &query) {
                    say(&mut app, bytes.into()).await?;
                    continue;
                }
                worker.shared.metrics.dns.passed_on();
                match pass_on(&mut resolver, &dial, query.freeze()).await {
                    Ok(()) => waiting += 1,
                    Err((query, error)) => {
                        worker.shared.metrics.dns.upstream_failed("unreachable");
                        tracing::debug!(pod = %pod.uid, %error, "a DNS query over TCP cannot be passed on");
                        (resolver, waiting) = (None, 0);
                        let Some(bytes) = message::failure(&query) else { return Err(error) };
                        say(&mut app, bytes.into()).await?;
                    }
                }
            }
            Ok(Came::Answer(Some(Ok(bytes)))) => {
                // A zone transfer is one query and many messages.
                waiting = waiting.saturating_sub(1);
                say(&mut app, bytes.freeze()).await?;
            }
            // A resolver may end an idle connection as it likes. What still waits has no answer, which the app must
            // learn.
            Ok(Came::Answer(_)) if waiting == 0 && asks => resolver = None,
            Ok(Came::Answer(_)) => {
                if waiting > 0 {
                    worker.shared.metrics.dns.upstream_failed("closed");
                }
                return Ok(());
            }
        }
    }
}

/// What came next.
enum Came {
    Query(Option<io::Result<BytesMut>>),
    Answer(Option<io::Result<BytesMut>>),
}

fn own_answer(worker: &Worker, pod: &Pod, query: &[u8]) -> Option<Vec<u8>> {
    let begun = Instant::now();
    let question = Question::read(query);
    worker.shared.metrics.dns.asked(question.as_ref().map(|question| question.kind), Transport::Tcp);
    let bytes = answer(&worker.shared, pod, &question?, Some(LONGEST))?;
    worker.shared.metrics.dns.answered(begun.elapsed());
    Some(bytes)
}

async fn pass_on(
    resolver: &mut Option<Messages>,
    dial: impl AsyncFn() -> io::Result<TcpStream>,
    query: Bytes,
) -> Result<(), (Bytes, io::Error)> {
    if resolver.is_none() {
        match dial().await {
            Ok(stream) => *resolver = Some(messages(stream)),
            Err(error) => return Err((query, error)),
        }
    }
    let Some(there) = resolver.as_mut() else { return Ok(()) };
    say(there, query.clone()).await.map_err(|error| (query, error))
}

async fn say(to: &mut Messages, bytes: Bytes) -> io::Result<()> {
    let slow = |_| io::Error::new(io::ErrorKind::TimedOut, "a DNS message was not taken in time");
    timeout(PATIENCE, to.send(bytes)).await.map_err(slow)?
}
