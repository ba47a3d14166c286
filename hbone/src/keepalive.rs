//! PING: a tunnel whose peer is gone without a word is found out, also while nothing is sent.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use h2::{Ping, PingPong};
use tokio::time::{Instant, Sleep, sleep_until};

use crate::Settings;

pub(crate) struct Keepalive {
    pings: Option<PingPong>,
    timer: Pin<Box<Sleep>>,
    every: Duration,
    timeout: Duration,
    /// A PING is out since the timer was last set.
    waiting: bool,
    /// Bytes received when the timer was last set.
    received: u64,
}

impl Keepalive {
    pub(crate) fn new(pings: Option<PingPong>, settings: &Settings) -> Self {
        Self {
            pings,
            timer: Box::pin(sleep_until(Instant::now() + settings.ping_every)),
            every: settings.ping_every,
            timeout: settings.ping_timeout,
            waiting: false,
            received: 0,
        }
    }

    /// Ready when the peer is dead. `received` counts bytes: a peer that sends is alive and is not
    /// asked. HTTP/2 must be polled after this has sent a PING, hence the wake-up.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>, received: u64) -> Poll<Duration> {
        let Some(pings) = &mut self.pings else { return Poll::Pending };
        loop {
            if self.waiting && pings.poll_pong(cx).is_ready() {
                // An error means that the connection is over; its own poll says so.
                self.waiting = false;
                self.received = received;
                self.timer.as_mut().reset(Instant::now() + self.every);
            }
            if self.timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            if received > self.received {
                self.waiting = self.waiting && pings.poll_pong(cx).is_pending();
                self.received = received;
                self.timer.as_mut().reset(Instant::now() + self.every);
            } else if self.waiting {
                return Poll::Ready(self.timeout);
            } else if pings.send_ping(Ping::opaque()).is_ok() {
                self.waiting = true;
                self.timer.as_mut().reset(Instant::now() + self.timeout);
                cx.waker().wake_by_ref();
            } else {
                return Poll::Pending;
            }
        }
    }
}
