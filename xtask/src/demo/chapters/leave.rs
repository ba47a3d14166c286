//! Leaving the mesh and coming back, under a connection that stays open all the while.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
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
        "Redis sends a numbered message to the storefront every 10 ms, on one connection through the mesh. \
         Meanwhile the shop loses its label and gets it again. Un-enrollment withdraws the promise first, \
         then serves what is captured to its end.",
    );
    let mut subscriber = Subscriber::open(&cast.storefront, &cast.cache, "beat")?;
    let beat = Beat::start(Publisher::open(&cast.cache, "beat")?)?;
    subscriber.wait_number(1)?;
    let out = stage.check("without the label, new connections are plain again", || {
        let start = Instant::now();
        cast.world.manifests().namespace("shop", false)?;
        report::wait_enrolled(&cast.mesh.nodes, &cast.shop(), false, PATIENCE)?;
        let took = start.elapsed();
        // A pod lets new connections pass once no peer would call it by HBONE any more.
        let plain = || -> Result<Option<String>> {
            let sniffer = wire::sniff(cast)?;
            traffic::curl(&cast.storefront, cast.catalog.at(HTTP), 5)?.expect_served()?;
            Ok(wire::showed_secret(&sniffer.stop()?).ok())
        };
        let (evidence, _) = bed::eventually(PATIENCE, "a plain call on the wire", plain)?;
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
        let took = start.elapsed();
        let sniffer = wire::sniff(cast)?;
        traffic::curl(&cast.storefront, cast.catalog.at(HTTP), 5)?.expect_served()?;
        let seen = sniffer.stop()?;
        Ok((took, format!("after {}: {}", span(took), wire::showed_tunnels(&seen)?)))
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
    stage.fact("leaving, coming back", format!("{}, {}; {total} messages, none lost", span(out), span(back)));
    Ok(())
}

/// A thread that publishes a number every 10 ms.
struct Beat {
    stop: Arc<AtomicBool>,
    sent: Arc<std::sync::atomic::AtomicU64>,
    thread: thread::JoinHandle<Result<u64>>,
}

impl Beat {
    fn start(mut publisher: Publisher) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let sent = Arc::new(std::sync::atomic::AtomicU64::new(0));
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
