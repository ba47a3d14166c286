//! A pod's queries over TCP (RFC 7766): each message has its length in front, several may be on their way at a
//! time, and answers come in any order.
//!
//! Queries about names of the mesh are answered; the others go to the pod's resolver on one connection of ours,
//! which is made for the first of them.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use futures_util::{
    SinkExt, StreamExt,
    stream::{SplitSink, SplitStream},
};
use tokio::{
    net::TcpStream,
    time::{Instant as Deadline, sleep_until, timeout},
};
use tokio_util::codec::{Framed, LengthDelimitedCodec};

use super::{
    Transport, answer,
    forward::PATIENCE,
    message::{self, Question},
    names::Asked,
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

/// Carries one connection of an app to a resolver, until either side ends it. `asked` is the app's address and the
/// resolver's as the app knows it; `dial` connects to the resolver.
pub(crate) async fn carry(
    worker: &Rc<Worker>,
    pod: &Arc<Pod>,
    app: TcpStream,
    asked: (IpAddr, SocketAddr),
    dial: impl AsyncFn() -> io::Result<TcpStream>,
) -> io::Result<()> {
    let metrics = &worker.shared.metrics.dns;
    let asked = Asked { from: asked.0, at: asked.1 };
    let serving = Serving {
        own: |query: &[u8]| own_answer(worker, pod, query),
        passes_on: || metrics.passed_on(),
        answered: |answer: &[u8]| {
            if message::is_of_a_resolver(answer) {
                pod.names.served(asked);
            }
        },
        failed: |reason, error: &io::Error| {
            metrics.upstream_failed(reason);
            tracing::debug!(pod = %pod.uid, %error, "a DNS query over TCP has no answer");
        },
    };
    serving.run(app, dial).await
}

fn own_answer(worker: &Worker, pod: &Pod, query: &[u8]) -> Option<Vec<u8>> {
    let begun = Instant::now();
    let question = Question::read(query);
    worker.shared.metrics.dns.asked(question.as_ref().map(|question| question.kind), Transport::Tcp);
    let bytes = answer(&worker.shared, pod, &question?, Some(LONGEST))?;
    worker.shared.metrics.dns.answered(begun.elapsed());
    Some(bytes)
}

/// What is done with messages, and who is told of it.
struct Serving<Own, PassesOn, Answered, Failed> {
    own: Own,
    passes_on: PassesOn,
    answered: Answered,
    failed: Failed,
}

/// The connection to the resolver.
struct There {
    queries: SplitSink<Messages, Bytes>,
    answers: SplitStream<Messages>,
    /// Until when the query that is being written must be taken: meanwhile no other is read, but answers are, as a
    /// resolver may take nothing more before those are taken from it.
    writing: Option<Deadline>,
    /// Queries without an answer.
    waiting: usize,
}

/// What came next.
enum Came {
    Query(Option<io::Result<BytesMut>>),
    Written(io::Result<()>),
    Answer(Option<io::Result<BytesMut>>),
}

impl There {
    fn new(stream: TcpStream) -> Self {
        let (queries, answers) = messages(stream).split();
        Self { queries, answers, writing: None, waiting: 0 }
    }

    async fn next(&mut self, app: &mut Messages, asks: bool) -> Came {
        let slow = async |by: Option<Deadline>| match by {
            Some(by) => sleep_until(by).await,
            None => std::future::pending().await,
        };
        tokio::select! {
            query = app.next(), if asks && self.writing.is_none() => Came::Query(query),
            written = self.queries.flush(), if self.writing.is_some() => Came::Written(written),
            () = slow(self.writing) => Came::Written(Err(not_taken())),
            answer = self.answers.next() => Came::Answer(answer),
        }
    }
}

impl<Own, PassesOn, Answered, Failed> Serving<Own, PassesOn, Answered, Failed>
where
    Own: Fn(&[u8]) -> Option<Vec<u8>>,
    PassesOn: Fn(),
    Answered: Fn(&[u8]),
    Failed: Fn(&'static str, &io::Error),
{
    async fn run(&self, app: TcpStream, dial: impl AsyncFn() -> io::Result<TcpStream>) -> io::Result<()> {
        let mut app = messages(app);
        let mut resolver: Option<There> = None;
        // An app may say that it asks nothing more, and still wait for answers.
        let mut asks = true;
        // The query that is being written.
        let mut last = Bytes::new();
        loop {
            let next = timeout(IDLE, async {
                match resolver.as_mut() {
                    Some(there) => there.next(&mut app, asks).await,
                    None => Came::Query(app.next().await),
                }
            });
            let Ok(came) = next.await else { return Ok(()) };
            match (came, resolver.as_mut()) {
                (Came::Query(None), None) => return Ok(()),
                (Came::Query(None), Some(there)) => {
                    there.queries.close().await?;
                    asks = false;
                }
                (Came::Query(Some(query)), there) => {
                    let query = query?;
                    if let Some(bytes) = (self.own)(&query) {
                        say(&mut app, bytes.into()).await?;
                        continue;
                    }
                    (self.passes_on)();
                    last = query.freeze();
                    let there = match there {
                        Some(there) => there,
                        None => match dial().await {
                            Ok(stream) => resolver.insert(There::new(stream)),
                            Err(error) => {
                                self.fail(&mut app, &last, error).await?;
                                continue;
                            }
                        },
                    };
                    there.waiting += 1;
                    there.writing = Some(Deadline::now() + PATIENCE);
                    // Nothing is before it: this only takes it in.
                    if let Err(error) = there.queries.feed(last.clone()).await {
                        self.give_up(&mut app, &mut resolver, &last, error).await?;
                    }
                }
                (Came::Written(Ok(())), Some(there)) => there.writing = None,
                (Came::Written(Err(error)), Some(_)) => {
                    self.give_up(&mut app, &mut resolver, &last, error).await?;
                }
                (Came::Answer(Some(Ok(bytes))), Some(there)) => {
                    (self.answered)(&bytes);
                    // A zone transfer is one query and many messages.
                    there.waiting = there.waiting.saturating_sub(1);
                    say(&mut app, bytes.freeze()).await?;
                }
                // A resolver may end an idle connection as it likes. What still waits has no answer, which the app
                // must learn.
                (Came::Answer(_), Some(there)) if there.waiting == 0 && asks => resolver = None,
                (Came::Answer(_), Some(there)) => {
                    if there.waiting > 0 {
                        (self.failed)("closed", &io::ErrorKind::UnexpectedEof.into());
                    }
                    return Ok(());
                }
                (Came::Written(_) | Came::Answer(_), None) => {}
            }
        }
    }

    /// The resolver does not take a query. Where that is all that waits, it is answered, and the next one has another
    /// connection; others before it can only be told by the end of theirs.
    async fn give_up(
        &self,
        app: &mut Messages,
        resolver: &mut Option<There>,
        query: &Bytes,
        error: io::Error,
    ) -> io::Result<()> {
        if resolver.take().is_some_and(|there| there.waiting > 1) {
            (self.failed)("closed", &error);
            return Err(error);
        }
        self.fail(app, query, error).await
    }

    async fn fail(&self, app: &mut Messages, query: &Bytes, error: io::Error) -> io::Result<()> {
        (self.failed)("unreachable", &error);
        let Some(bytes) = message::failure(query) else { return Err(error) };
        say(app, bytes.into()).await
    }
}

async fn say(to: &mut Messages, bytes: Bytes) -> io::Result<()> {
    timeout(PATIENCE, to.send(bytes)).await.map_err(|_| not_taken())?
}

fn not_taken() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "a DNS message was not taken in time")
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
        time::sleep,
    };

    use super::*;

    /// A query of `length` bytes with this id that nobody reads.
    fn query(id: u16, length: usize) -> Bytes {
        let mut bytes = vec![0; length];
        bytes[..2].copy_from_slice(&id.to_be_bytes());
        bytes.into()
    }

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (near, far) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        (near.unwrap(), far.unwrap().0)
    }

    /// Serves an app that does this before a resolver that does that; what has failed is counted.
    async fn serve(app: impl AsyncFnOnce(Messages), resolver: impl AsyncFnOnce(TcpStream)) -> usize {
        let ((ours, apps), (near, far)) = (pair().await, pair().await);
        let (near, failed) = (Cell::new(Some(near)), Cell::new(0));
        let serving = Serving {
            own: |_: &[u8]| None,
            passes_on: || {},
            answered: |_: &[u8]| {},
            failed: |_, _: &io::Error| failed.set(failed.get() + 1),
        };
        let dial = async || near.take().ok_or(io::ErrorKind::ConnectionRefused.into());
        let all = async {
            let carried = async { drop(serving.run(ours, dial).await) };
            tokio::join!(carried, app(messages(apps)), resolver(far));
        };
        timeout(Duration::from_secs(20), all).await.expect("an end");
        failed.get()
    }

    #[tokio::test]
    async fn a_resolver_that_first_wants_its_answers_taken_is_served() {
        const COUNT: u16 = 300;
        let app = async |stream: Messages| {
            let (mut queries, mut answers) = stream.split();
            let ask = async {
                for id in 0..COUNT {
                    queries.send(query(id, 60_000)).await.unwrap();
                }
            };
            let hear = async {
                for id in 0..COUNT {
                    assert_eq!(answers.next().await.unwrap().unwrap()[..2], id.to_be_bytes());
                }
            };
            tokio::join!(ask, hear);
        };
        // One after the other, and nothing is read before the answer is gone.
        let resolver = async |stream: TcpStream| {
            let mut stream = messages(stream);
            while let Some(Ok(query)) = stream.next().await {
                stream.send(query.freeze()).await.unwrap();
            }
        };
        assert_eq!(serve(app, resolver).await, 0);
    }

    #[tokio::test]
    async fn earlier_queries_learn_that_the_resolver_takes_no_more() {
        let app = async |mut stream: Messages| {
            stream.send(query(1, 20)).await.unwrap();
            sleep(Duration::from_millis(200)).await;
            // More than a connection holds that nobody reads, and then it is reset.
            for id in 2..2_000 {
                if stream.send(query(id, 60_000)).await.is_err() {
                    break;
                }
            }
            assert!(!matches!(stream.next().await, Some(Ok(_))), "nobody has answered");
        };
        let resolver = async |mut stream: TcpStream| {
            stream.read_exact(&mut [0; 22]).await.unwrap();
            sleep(Duration::from_millis(400)).await;
            // Unread bytes make it a reset.
            drop(stream);
        };
        assert_eq!(serve(app, resolver).await, 1);
    }

    #[tokio::test]
    async fn a_query_that_alone_waits_is_told_of_the_failure_and_the_next_is_served() {
        let app = async |mut stream: Messages| {
            let wanted = [0, 1, 0x80, 0x82];
            stream.send(query(1, 20)).await.unwrap();
            assert_eq!(stream.next().await.unwrap().unwrap()[..4], [0, 1, 0x80, 0]);
            sleep(Duration::from_millis(200)).await;
            stream.send(query(1, 20)).await.unwrap();
            assert_eq!(stream.next().await.unwrap().unwrap()[..4], wanted, "there is no further connection");
        };
        let resolver = async |stream: TcpStream| {
            let mut stream = messages(stream);
            let mut query = stream.next().await.unwrap().unwrap();
            query[2] = 0x80;
            stream.send(query.freeze()).await.unwrap();
            stream.get_mut().shutdown().await.unwrap();
        };
        assert_eq!(serve(app, resolver).await, 1);
    }
}
