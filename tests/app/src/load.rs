//! A steady load on services, by a client without retries: whatever fails, is late or differs is counted.
//!
//! A line of JSON each second, and one with the totals at the end: on SIGTERM, or when the time is over.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    net::SocketAddr,
    rc::Rc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use clap::Args;
use serde::Serialize;
use tokio::{
    net::lookup_host,
    signal::unix::{SignalKind, signal},
    task::LocalSet,
    time::{MissedTickBehavior, interval, sleep},
};

use crate::{
    outcome::{Failure, print_line, within},
    protocol::{Answer, Open, Protocol},
};

/// How long names may be unknown at the start.
const RESOLVE: Duration = Duration::from_secs(60);
/// Failures that are told in words, so that a broken run does not flood its log.
const MOST_TOLD: u64 = 20;

/// Load services steadily and without retries; a JSON line each second and the totals at the end.
#[derive(Debug, Args)]
pub(crate) struct Load {
    /// HOST:PORT of a service; may be repeated.
    #[arg(long, required = true)]
    to: Vec<String>,
    /// What is spoken.
    #[arg(long, value_enum, default_value = "http1")]
    protocol: Protocol,
    /// Clients for each service: the even ones keep one connection for ever, the odd ones make many.
    #[arg(long, default_value_t = 4)]
    clients: u32,
    /// Requests that each client makes in a second.
    #[arg(long, default_value_t = 10)]
    rate: u32,
    /// Requests on each connection of the clients that make many.
    #[arg(long, default_value_t = 5)]
    per_connection: u32,
    /// Bytes of each page or message.
    #[arg(long, default_value_t = 1000)]
    size: u64,
    /// Seconds in all; 0 for ever.
    #[arg(long, default_value_t = 0)]
    seconds: u64,
    /// Seconds that connecting or a request may take.
    #[arg(long, default_value_t = 5.0)]
    patience: f64,
    /// Milliseconds after which a connect counts as slow.
    #[arg(long, default_value_t = 100)]
    slow_connect: u64,
    /// Count the pages by their first lines: who answered.
    #[arg(long)]
    by_page: bool,
}

/// What was counted.
#[derive(Debug, Default, Clone, Serialize)]
struct Counts {
    requests: u64,
    /// Requests that were answered as they should be.
    served: u64,
    /// Connects and requests that were not.
    failed: u64,
    connects: u64,
    slow_connects: u64,
    slowest_connect_ms: u64,
    slowest_request_ms: u64,
    /// Where the failures are, in words that can be compared.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    failures: BTreeMap<String, u64>,
    /// Who answered, where that is asked for.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pages: BTreeMap<String, u64>,
}

impl Counts {
    fn add(&mut self, other: &Self) {
        self.requests += other.requests;
        self.served += other.served;
        self.failed += other.failed;
        self.connects += other.connects;
        self.slow_connects += other.slow_connects;
        self.slowest_connect_ms = self.slowest_connect_ms.max(other.slowest_connect_ms);
        self.slowest_request_ms = self.slowest_request_ms.max(other.slowest_request_ms);
        for (kind, count) in &other.failures {
            *self.failures.entry(kind.clone()).or_default() += count;
        }
        for (page, count) in &other.pages {
            *self.pages.entry(page.clone()).or_default() += count;
        }
    }
}

#[derive(Serialize)]
struct Line<'a> {
    /// Since the start.
    second: u64,
    /// Milliseconds since 1970.
    at: u128,
    #[serde(flatten)]
    counts: &'a Counts,
}

#[derive(Serialize)]
struct Total<'a> {
    total: bool,
    ok: bool,
    seconds: f64,
    #[serde(flatten)]
    counts: &'a Counts,
}

impl Load {
    pub(crate) async fn run(self) -> Result<bool> {
        let mut targets = Vec::new();
        for name in &self.to {
            targets.push((name.clone(), resolve(name).await?));
        }
        let (load, now) = (Rc::new(self), Rc::new(RefCell::new(Counts::default())));
        let (started, mut total) = (Instant::now(), Counts::default());
        LocalSet::new()
            .run_until(async {
                let mut term = signal(SignalKind::terminate()).context("wait for SIGTERM")?;
                for (name, address) in targets {
                    for number in 0..load.clients {
                        let client = Client { name: name.clone(), address, number, load: load.clone() };
                        tokio::task::spawn_local(client.run(now.clone()));
                    }
                }
                let mut ticks = interval(Duration::from_secs(1));
                ticks.tick().await;
                for second in 1.. {
                    let over = tokio::select! {
                        _ = ticks.tick() => load.seconds != 0 && second >= load.seconds,
                        _ = term.recv() => true,
                    };
                    let counts = now.replace(Counts::default());
                    total.add(&counts);
                    let at = std::time::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_millis());
                    print_line(&Line { second, at, counts: &counts });
                    if over {
                        break;
                    }
                }
                anyhow::Ok(())
            })
            .await?;
        let ok = total.failed == 0;
        print_line(&Total { total: true, ok, seconds: started.elapsed().as_secs_f64(), counts: &total });
        Ok(ok)
    }
}

/// The first IPv4 address of a name, or else its first address; asked once, since names are not what is tried.
async fn resolve(name: &str) -> Result<SocketAddr> {
    let start = Instant::now();
    loop {
        let error = match lookup_host(name).await {
            Ok(found) => {
                let found: Vec<SocketAddr> = found.collect();
                match found.iter().find(|address| address.is_ipv4()).or(found.first()) {
                    Some(address) => return Ok(*address),
                    None => "no address".to_owned(),
                }
            }
            Err(error) => error.to_string(),
        };
        if start.elapsed() > RESOLVE {
            bail!("{name} is not found: {error}");
        }
        sleep(Duration::from_millis(500)).await;
    }
}

struct Client {
    name: String,
    address: SocketAddr,
    number: u32,
    load: Rc<Load>,
}

impl Client {
    async fn run(self, counts: Rc<RefCell<Counts>>) {
        let patience = Duration::from_secs_f64(self.load.patience);
        let limit = if self.number.is_multiple_of(2) { u32::MAX } else { self.load.per_connection.max(1) };
        let gap = Duration::from_secs(1) / self.load.rate.max(1);
        // Not all at once.
        sleep(gap * self.number / self.load.clients.max(1)).await;
        let mut ticks = interval(gap);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let protocol = self.load.protocol;
        let mut open: Option<(Open, u32)> = None;
        loop {
            ticks.tick().await;
            if let Some((kept, _)) = &open
                && kept.is_over().await
            {
                open = None;
            }
            let (mut connection, used) = match open.take() {
                Some(open) => open,
                None => {
                    let start = Instant::now();
                    let connected = within(patience, protocol.open(self.address)).await;
                    let took = start.elapsed().as_millis() as u64;
                    let mut counts = counts.borrow_mut();
                    counts.connects += 1;
                    counts.slow_connects += u64::from(took > self.load.slow_connect);
                    counts.slowest_connect_ms = counts.slowest_connect_ms.max(took);
                    match connected {
                        Ok(connection) => (connection, 0),
                        Err(error) => {
                            self.failed(&mut counts, "connect", &error);
                            continue;
                        }
                    }
                }
            };
            let start = Instant::now();
            let exchange = protocol.exchange(&mut connection, &self.name, self.load.size, used == 0);
            let got = within(patience, exchange).await;
            let mut counts = counts.borrow_mut();
            counts.requests += 1;
            counts.slowest_request_ms = counts.slowest_request_ms.max(start.elapsed().as_millis() as u64);
            counts.served += u64::from(got.is_ok());
            if let Ok(Answer { page: Some(page), .. }) = &got
                && self.load.by_page
            {
                *counts.pages.entry(page.clone()).or_default() += 1;
            }
            match got {
                Ok(answer) if answer.again && used + 1 < limit => open = Some((connection, used + 1)),
                Ok(_) => {}
                // The first request on a connection that stood already is the mesh's to carry; a later one of a
                // connection that is kept for ever may be cut off with it.
                Err(error) => {
                    let step = if used == 0 { "first request" } else { "request" };
                    self.failed(&mut counts, step, &error);
                }
            }
        }
    }

    fn failed(&self, counts: &mut Counts, step: &str, error: &std::io::Error) {
        let kept = if self.number.is_multiple_of(2) { "kept" } else { "new" };
        let kind = format!("{kept}: {step}: {:?}", Failure::of(error)).to_lowercase();
        if counts.failed < MOST_TOLD {
            eprintln!("{} {step} on a {kept} connection: {error}", self.name);
        }
        counts.failed += 1;
        *counts.failures.entry(kind).or_default() += 1;
    }
}
