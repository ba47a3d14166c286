//! Leaving the mesh and coming back, under a connection that stays open all the while.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow};
use bed::report;

use super::wire;
use crate::demo::{
    cast::{Cast, HTTP, PATIENCE},
    stage::{Stage, span},
    traffic::{self, Publisher, Subscriber},
};

/// Between two messages of the long stream.
const BEAT: Duration = Duration::from_millis(10);

/// Chapter: label off, label on, one stream throughout.
pub(crate) fn leave_and_return(stage: &mut Stage, cast: &mut Cast) -> Result<()> {
    stage.chapter(
        "Leaving, and coming back",
        "Redis sends a numbered message to the storefront every 10 ms, on one connection through the mesh, \
         and curl calls nginx again and again. Meanwhile the shop loses its label and gets it back. \
         Un-enrollment withdraws the promise first, then serves what is captured to its end.",
    );
    lift_policies(cast)?;
    let mut subscriber = Subscriber::open(&cast.storefront, &cast.cache, "beat")?;
    let beat = Beat::start(Publisher::open(&cast.cache, "beat")?)?;
    let calls = Calls::start(cast)?;
    subscriber.wait_number(1)?;
    let out = stage.check("without the label, new connections are plain again", || {
        let start = Instant::now();
        cast.world.manifests().namespace("shop", false)?;
        report::wait_enrolled(&cast.mesh.nodes, &cast.shop(), false, PATIENCE)?;
        // A pod lets new connections pass once no peer would call it by HBONE any more.
        let plain = || -> Result<Option<String>> {
            let sniffer = wire::sniff(cast)?;
            traffic::curl(&cast.storefront, cast.catalog.at(HTTP), 5)?.expect_served()?;
            Ok(wire::showed_secret(&sniffer.stop()?).ok())
        };
        let (evidence, _) = bed::eventually(PATIENCE, "a plain call on the wire", plain)?;
        let took = start.elapsed();
        Ok((took, format!("after {}; the wire shows {evidence}", span(took))))
    })?;
    stage.check("the open stream goes on", || {
        let mark = beat.sent();
        let took = subscriber.wait_number(mark + 20)?;
        Ok(((), format!("message {} arrived, {} later", mark + 20, span(took))))
    })?;
    let back = stage.check("with the label, new connections are encrypted again", || {
        let start = Instant::now();
        cast.world.manifests().namespace("shop", true)?;
        report::wait_enrolled(&cast.mesh.nodes, &cast.shop(), true, PATIENCE)?;
        Ok((start.elapsed(), format!("after {}", span(start.elapsed()))))
    })?;
    let total = stage.check("the stream was not broken, and lost nothing", || {
        let last = beat.stop()?;
        subscriber.wait_number(last)?;
        let numbers = subscriber.numbers();
        Stage::demand(numbers.iter().copied().eq(1..=last), || format!("numbers are missing: {numbers:?}"))?;
        let times = subscriber.subscriptions();
        Stage::demand(times == 1, || format!("it subscribed {times} times"))?;
        Ok((last, format!("{last} messages in order, on one connection")))
    })?;
    stage.check("no call failed on either way", || {
        let calls = calls.stop()?;
        Ok(((), format!("{calls} calls by curl, each served")))
    })?;
    drop(subscriber);
    stage.check("and the wire shows nothing but tunnels again", || {
        // What began in plain text (a call just before the label) may end in plain text.
        let silent = || -> Result<Option<String>> {
            let sniffer = wire::sniff(cast)?;
            traffic::curl(&cast.storefront, cast.catalog.at(HTTP), 5)?.expect_served()?;
            Ok(wire::showed_tunnels(&sniffer.stop()?).ok())
        };
        Ok(((), bed::eventually(PATIENCE, "nothing but tunnels on the wire", silent)?.0))
    })?;
    stage.fact("leaving, coming back", format!("{}, {}; {total} messages, none lost", span(out), span(back)));
    Ok(())
}

/// Takes the policies away: what is not in the mesh has no identity that a policy could know.
fn lift_policies(cast: &Cast) -> Result<()> {
    let manifests = cast.world.manifests();
    for policy in ["catalog-readers", "cache-clients", "no-interns"] {
        manifests.remove_authorization_policy("shop", policy)?;
    }
    let served =
        || Ok(Some(traffic::curl(&cast.visitor, cast.catalog.at(HTTP), 5)?).filter(traffic::Call::served));
    bed::eventually(PATIENCE, "everyone to be served without policies", served)?;
    Ok(())
}

/// A thread in which curl calls nginx, again and again.
struct Calls {
    stop: Arc<AtomicBool>,
    thread: thread::JoinHandle<Result<u64>>,
}

impl Calls {
    fn start(cast: &Cast) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, from, to) = (stop.clone(), cast.storefront.clone(), cast.catalog.at(HTTP));
        let thread = thread::Builder::new().name("calls".into()).spawn(move || {
            let mut served = 0;
            while !stopped.load(Ordering::Relaxed) {
                traffic::curl(&from, to, 5)?
                    .expect_served()
                    .with_context(|| format!("call {}", served + 1))?;
                served += 1;
            }
            Ok(served)
        })?;
        Ok(Self { stop, thread })
    }

    /// Stops it; how many calls there were, or the first that failed.
    fn stop(self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow!("the caller's thread panicked"))?
    }
}

/// A thread that publishes a number every 10 ms.
struct Beat {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    thread: thread::JoinHandle<Result<u64>>,
}

impl Beat {
    fn start(mut publisher: Publisher) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let sent = Arc::new(AtomicU64::new(0));
        let (stopped, counted) = (stop.clone(), sent.clone());
        let thread = thread::Builder::new().name("beat".into()).spawn(move || {
            let mut last = 0;
            while !stopped.load(Ordering::Relaxed) {
                last = publisher.publish()?;
                counted.store(last, Ordering::Relaxed);
                thread::sleep(BEAT);
            }
            Ok(last)
        })?;
        Ok(Self { stop, sent, thread })
    }

    fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Stops it; the last number.
    fn stop(self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread
            .join()
            .map_err(|_| anyhow!("the publisher's thread panicked"))?
            .context("publish a message")
    }
}
