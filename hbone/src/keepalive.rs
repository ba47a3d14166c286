//! PING: a tunnel whose peer is gone without a word is found out, soon where somebody waits for it, and at last also while
//! nothing is sent.
//!
//! ```text
//!          something moved: 0.5 s            no byte since: PING         no byte for 1.5 s      …for 20 s
//! Resting ────────────────────────▶ Stirred ──────────────────▶ Asked ──────────────────▶ Silent ─────────▶ dead
//!    └───────────────── nothing moved for 10 s: PING ─────────────▲ └─ nobody waits ──────────────────────────▲
//! ```
//! Whatever is received leads back to the beginning. Silence is a doubt, which costs a tunnel nothing but new streams: a
//! network that is away for less than the PING's time breaks no connection.

use std::{cell::Cell, future::Future, pin::Pin, task::Context, time::Duration};

use h2::{Ping, PingPong};
use tokio::time::{Instant, Sleep, sleep_until};

use crate::Settings;

/// So long after something has moved the peer is asked, if it has said nothing…
const ASK: Duration = Duration::from_millis(500);
/// …and is in doubt after so much time more.
pub(crate) const DOUBT: Duration = Duration::from_millis(1500);
/// The last of it: who was not run himself for the rest has the answer lying there.
const GRACE: Duration = Duration::from_millis(100);

pub(crate) struct Keepalive {
    pings: Option<PingPong>,
    timer: Pin<Box<Sleep>>,
    every: Duration,
    timeout: Duration,
    state: State,
    /// A PING is out.
    is_out: bool,
    /// Bytes received when the state was entered.
    received: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Resting,
    Stirred,
    Asked { is_awaited: bool },
    Late,
    Silent,
}

/// What is known of the peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Heard {
    Unchanged,
    /// It does not answer, while somebody waits for it.
    Silent(Duration),
    /// It was silent, and is not any more.
    Again,
    Dead(Duration),
}

impl Keepalive {
    pub(crate) fn new(pings: Option<PingPong>, settings: &Settings) -> Self {
        Self {
            pings,
            timer: Box::pin(sleep_until(Instant::now() + settings.ping_every)),
            every: settings.ping_every,
            timeout: settings.ping_timeout,
            state: State::Resting,
            is_out: false,
            received: 0,
        }
    }

    /// `received` counts bytes: a peer that sends is alive and is not asked. `stirred` says that something has moved, so
    /// that an answer may be waited for; it is taken back when that is heeded. HTTP/2 must be polled after this has sent
    /// a PING, hence the wake-up.
    pub(crate) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        received: u64,
        stirred: Option<&Cell<bool>>,
    ) -> Heard {
        if self.pings.is_none() {
            return Heard::Unchanged;
        }
        let was_silent = self.state == State::Silent;
        loop {
            let is_heard = received > self.received || self.pong(cx);
            match self.state {
                State::Asked { .. } | State::Late | State::Silent if is_heard => {
                    self.enter(State::Resting, self.every, received)
                }
                State::Resting if stirred.is_some_and(|stirred| stirred.take()) => {
                    self.enter(State::Stirred, ASK, received);
                }
                State::Asked { is_awaited: false } if stirred.is_some_and(|stirred| stirred.take()) => {
                    self.enter(State::Asked { is_awaited: true }, DOUBT - GRACE, received);
                }
                State::Resting | State::Stirred | State::Asked { .. } | State::Late | State::Silent => {
                    if self.timer.as_mut().poll(cx).is_pending() {
                        break;
                    }
                    match self.state {
                        State::Resting | State::Stirred if received > self.received => {
                            self.enter(State::Resting, self.every, received);
                        }
                        State::Resting => self.ask(cx, false, received),
                        State::Stirred => self.ask(cx, true, received),
                        State::Asked { is_awaited: true } => self.enter(State::Late, GRACE, received),
                        State::Late => {
                            self.enter(State::Silent, self.timeout.saturating_sub(DOUBT), received);
                            // The timer is new, and is to be looked at.
                            cx.waker().wake_by_ref();
                            return Heard::Silent(DOUBT);
                        }
                        State::Asked { is_awaited: false } | State::Silent => {
                            return Heard::Dead(self.timeout);
                        }
                    }
                }
            }
        }
        if was_silent && self.state != State::Silent { Heard::Again } else { Heard::Unchanged }
    }

    fn enter(&mut self, state: State, time: Duration, received: u64) {
        (self.state, self.received) = (state, received);
        self.timer.as_mut().reset(Instant::now() + time);
    }

    /// One PING is out at a time: where one is, its answer will do.
    fn ask(&mut self, cx: &Context<'_>, is_awaited: bool, received: u64) {
        if !self.is_out {
            let sent = self.pings.as_mut().map(|pings| pings.send_ping(Ping::opaque()));
            if !matches!(sent, Some(Ok(()))) {
                // The connection is over, as its own poll says.
                return self.enter(State::Resting, self.every, received);
            }
            self.is_out = true;
            cx.waker().wake_by_ref();
        }
        let time = if is_awaited { DOUBT - GRACE } else { self.timeout };
        self.enter(State::Asked { is_awaited }, time, received);
    }

    fn pong(&mut self, cx: &mut Context<'_>) -> bool {
        let answered = |pings: &mut PingPong| pings.poll_pong(cx).is_ready();
        let is_here = self.is_out && self.pings.as_mut().is_some_and(answered);
        self.is_out &= !is_here;
        is_here
    }
}
