//! Clients of many connections: short ones at a rate, live ones in a crowd.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    io,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Result;
use clap::Args;
use serde::Serialize;
use tokio::{
    io::AsyncWriteExt,
    net::TcpStream,
    sync::Semaphore,
    task::LocalSet,
    time::{Instant as TokioInstant, sleep_until},
};

use crate::{
    To,
    outcome::{Failure, print_line, within},
    pattern::Pattern,
    single::{exchange, expect_end},
};

/// What many connections came to.
#[derive(Debug, Default, Serialize)]
struct Tally {
    ok: bool,
    succeeded: u64,
    failed: u64,
    /// Step and kind of each failure → how often.
    failures: BTreeMap<String, u64>,
    seconds: f64,
    per_second: f64,
    /// Milliseconds from connect to the echo, at these percentiles.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    milliseconds: BTreeMap<&'static str, f64>,
    #[serde(skip)]
    times: Vec<Duration>,
}

impl Tally {
    fn note(&mut self, step: &str, result: &io::Result<()>) {
        match result {
            Ok(()) => self.succeeded += 1,
            Err(error) => {
                self.failed += 1;
                let kind = serde_json::to_value(Failure::of(error)).unwrap_or_default();
                let kind = format!("{step}:{}", kind.as_str().unwrap_or_default());
                *self.failures.entry(kind).or_default() += 1;
            }
        }
    }

    fn close(mut self, took: Duration) -> bool {
        self.ok = self.failed == 0 && self.succeeded > 0;
        self.seconds = took.as_secs_f64();
        self.per_second = self.succeeded as f64 / self.seconds;
        self.times.sort();
        for (name, share) in [("p50", 0.5), ("p99", 0.99), ("max", 1.0)] {
            let at = ((self.times.len().saturating_sub(1)) as f64 * share) as usize;
            if let Some(time) = self.times.get(at) {
                self.milliseconds.insert(name, time.as_secs_f64() * 1000.0);
            }
        }
        print_line(&self);
        self.ok
    }
}

/// Where a connection failed, and why.
type Step = Result<(), (&'static str, io::Error)>;

/// Many short connections.
#[derive(Debug, Args)]
pub(crate) struct Short {
    #[command(flatten)]
    to: To,
    /// Connections in all.
    #[arg(long, default_value_t = 10_000)]
    count: u64,
    /// At a time, at most.
    #[arg(long, default_value_t = 64)]
    concurrency: usize,
    /// Connections begun per second; 0: as fast as they go.
    #[arg(long, default_value_t = 0)]
    rate: u64,
    /// Bytes of the one exchange.
    #[arg(long, default_value_t = 64)]
    size: usize,
    /// Wait for the server to close first.
    #[arg(long)]
    server_closes: bool,
    /// Begin no more once a line is read from standard input, or its end.
    #[arg(long)]
    until_line: bool,
}

impl Short {
    pub(crate) async fn run(self) -> Result<bool> {
        let tally = Rc::new(RefCell::new(Tally::default()));
        let start = Instant::now();
        LocalSet::new().run_until(self.connect_all(&tally)).await?;
        let took = start.elapsed();
        Ok(tally.take().close(took))
    }

    async fn connect_all(&self, tally: &Rc<RefCell<Tally>>) -> Result<()> {
        let places = Arc::new(Semaphore::new(self.concurrency));
        let begin = TokioInstant::now();
        let message: Rc<[u8]> = {
            let mut bytes = vec![0; self.size];
            Pattern::new(9).fill(0, &mut bytes);
            bytes.into()
        };
        let told = Rc::new(Cell::new(false));
        if self.until_line {
            let told = told.clone();
            tokio::task::spawn_local(async move {
                wait_for_line().await;
                told.set(true);
            });
        }
        for number in 0..self.count {
            if told.get() {
                break;
            }
            if self.rate > 0 {
                sleep_until(begin + Duration::from_secs_f64(number as f64 / self.rate as f64)).await;
            }
            let place = places.clone().acquire_owned().await?;
            let (to, tally, message) = (self.to.clone(), tally.clone(), message.clone());
            let server_closes = self.server_closes;
            tokio::task::spawn_local(async move {
                let start = Instant::now();
                let outcome = one(&to, &message, server_closes).await;
                let mut tally = tally.borrow_mut();
                match outcome {
                    Ok(()) => {
                        tally.times.push(start.elapsed());
                        tally.note("", &Ok(()));
                    }
                    Err((step, error)) => tally.note(step, &Err(error)),
                }
                drop(place);
            });
        }
        // All places back: all connections done.
        let all = u32::try_from(self.concurrency)?;
        places.acquire_many(all).await?.forget();
        Ok(())
    }
}

async fn one(to: &To, message: &[u8], server_closes: bool) -> Step {
    let limit = to.patience();
    let mut stream = within(limit, TcpStream::connect(to.to)).await.map_err(|error| ("connect", error))?;
    exchange(&mut stream, limit, message).await.map_err(|error| ("exchange", error))?;
    if server_closes {
        expect_end(&mut stream, limit).await.map_err(|error| ("end", error))?;
    }
    stream.shutdown().await.map_err(|error| ("close", error))
}

/// Many live connections.
#[derive(Debug, Args)]
pub(crate) struct Live {
    #[command(flatten)]
    to: To,
    /// Connections.
    #[arg(long, default_value_t = 1000)]
    count: usize,
    /// Opened at a time.
    #[arg(long, default_value_t = 64)]
    concurrency: usize,
    /// Seconds to be idle before the second try; without it, the second try begins when a line is read
    /// from standard input.
    #[arg(long)]
    idle: Option<f64>,
}

impl Live {
    pub(crate) async fn run(self) -> Result<bool> {
        let start = Instant::now();
        let mut tally = Tally::default();
        LocalSet::new().run_until(self.hold(&mut tally)).await;
        Ok(tally.close(start.elapsed()))
    }

    async fn hold(&self, tally: &mut Tally) {
        let opened = self.open_all().await;
        let mut streams = Vec::new();
        for outcome in opened {
            match outcome {
                Ok(stream) => streams.push(stream),
                Err((step, error)) => tally.note(step, &Err(error)),
            }
        }
        // The test waits for this line, not for a time.
        println!("{}", serde_json::json!({ "live": streams.len(), "failed": tally.failed }));
        match self.idle {
            Some(seconds) => tokio::time::sleep(Duration::from_secs_f64(seconds)).await,
            None => wait_for_line().await,
        }
        let limit = self.to.patience();
        let tries: Vec<_> = streams
            .into_iter()
            .map(|mut stream| {
                tokio::task::spawn_local(async move {
                    let start = Instant::now();
                    (exchange(&mut stream, limit, b"still here?").await, start.elapsed())
                })
            })
            .collect();
        for task in tries {
            match task.await {
                Ok((result, took)) => {
                    tally.times.push(took);
                    tally.note("second", &result);
                }
                Err(error) => tally.note("second", &Err(io::Error::other(error))),
            }
        }
    }

    async fn open_all(&self) -> Vec<Result<TcpStream, (&'static str, io::Error)>> {
        let places = Rc::new(Semaphore::new(self.concurrency));
        let tasks: Vec<_> = (0..self.count)
            .map(|_| {
                let (to, places) = (self.to.clone(), places.clone());
                tokio::task::spawn_local(async move {
                    let _place =
                        places.acquire().await.map_err(|error| ("connect", io::Error::other(error)))?;
                    let limit = to.patience();
                    let mut stream =
                        within(limit, TcpStream::connect(to.to)).await.map_err(|error| ("connect", error))?;
                    exchange(&mut stream, limit, b"hello").await.map_err(|error| ("first", error))?;
                    Ok(stream)
                })
            })
            .collect();
        let mut opened = Vec::new();
        for task in tasks {
            opened.push(task.await.unwrap_or_else(|error| Err(("connect", io::Error::other(error)))));
        }
        opened
    }
}

async fn wait_for_line() {
    // The end of the input is as good as a line.
    let read = || drop(io::stdin().read_line(&mut String::new()));
    let _ = tokio::task::spawn_blocking(read).await;
}
