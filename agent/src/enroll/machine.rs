//! One pod's enrollment as a pure state machine: events in, actions out, no clock and no I/O.
//!
//! ```text
//!             attach          learn            held by a ztunnel           probe
//!   Absent ──────────▶ Learn ────────▶ Learn ────────────────▶ Enforce ──────────▶ Enforce, measured
//!      ▲                 │          (announced)                   │ withdrawn        (control says HBONE)
//!      │     detach      │ never enforced                         ▼
//!      └─────────────────┴───────────────── no connection ◀─── Drain ◀─ count ─┐
//!                                                                 └────────────┘
//! ```
//! It compares what is wanted with what is known and asks for the next step; after each answer it
//! compares again. So every order of wishes, answers, ztunnels coming and going, and pods vanishing
//! is one case: the next comparison. What holds whatever the order:
//!
//! - Capture is enforced only while a live ztunnel has acknowledged the pod, and from then on it
//!   stays enforced, ztunnel or not, until control has withdrawn the pod (fail closed).
//! - An enforced pod never goes back to learning, which lets everything pass.
//! - Capture is taken away only when no captured connection is left, or the pod's namespace is gone.
//! - ztunnel is told to let go of a pod only after its capture is gone.

use std::time::Duration;

/// First wait after a failure, doubled with each further one.
const RETRY_FIRST: Duration = Duration::from_millis(500);
const RETRY_LONGEST: Duration = Duration::from_secs(30);
/// While the pod's namespace is not there: its sandbox may appear any moment, and what it says until it is
/// captured goes in plaintext.
const RETRY_GONE_LONGEST: Duration = Duration::from_secs(2);
/// Between two looks at the captured connections of a pod that drains.
const COUNT_EVERY: Duration = Duration::from_secs(1);
/// After a probe that failed.
const PROBE_AGAIN: Duration = Duration::from_secs(1);
/// A measured pod counts as captured until this many probes in a row have failed: one may fall into
/// the moment in which one ztunnel follows another.
const PROBE_STRIKES: u32 = 3;

/// What is wanted of the pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Desire {
    Enrolled,
    /// Not to be enrolled any more, but peers may still be told to use HBONE.
    Withdrawing,
    /// Not enrolled, and no peer is told so any more.
    Released,
}

/// What the kernel programs of the pod do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Learn,
    Enforce,
    Drain,
}

/// A step for the executor; it answers each with the [`Event::Done`] of that step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Load, attach and pin, or adopt what is pinned. Answer: [`Answer::Attached`].
    Attach,
    /// Let everything pass and remember the connections there are. Answer: [`Answer::Learned`].
    Learn,
    /// Capture. Answer: [`Answer::Done`].
    Enforce,
    /// Measure the capture. Answer: [`Answer::Probed`].
    Probe,
    /// Let new connections pass. Answer: [`Answer::Done`].
    Drain,
    /// Count the captured connections. Answer: [`Answer::Counted`].
    Count,
    /// Take the capture away, all of it. Answer: [`Answer::Done`].
    Detach,
}

/// The answer to a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer {
    Attached {
        mode: Mode,
        /// There were pins: captured connections may live.
        adopted: bool,
    },
    /// So many connections are remembered.
    Learned(usize),
    /// Whether the probe was captured and guarded; else what was seen instead.
    Probed(Result<(), String>, usize),
    Counted(usize),
    Done,
    /// The step failed.
    Failed(String),
    /// The step failed because the pod's network namespace is gone (or is another one now).
    NamespaceGone(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    Desired(Desire),
    /// Whether at least one live ztunnel has acknowledged the pod.
    Held(bool),
    /// The answer to the step that was asked for last.
    Done(Answer),
    /// The wait with this number is over.
    Due(u64),
    /// The pod has a namespace that was not known, and not the one that is attached to.
    Sandbox,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// Begin this step. There is at most one under way.
    Run(Step),
    /// Tell the ztunnels of the pod, those to come included.
    Announce,
    /// Tell them to let go of it.
    Retract,
    /// Send [`Event::Due`] with this number after the wait.
    Wake(Duration, u64),
}

/// What control is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Report {
    /// On the way to being captured; what it waits for.
    Pending(String),
    Measured,
    Withdrawing,
    None,
    Failed(String),
}

/// The enrollment of one pod.
#[derive(Debug)]
pub(crate) struct Machine {
    desire: Desire,
    capture: Capture,
    /// The ztunnels are told of the pod.
    announced: bool,
    held: bool,
    /// The step under way.
    running: Option<Step>,
    /// The wait under way; an older number is an older wait.
    wait: Option<u64>,
    waits: u64,
    failure: Option<Failure>,
    probe_every: Duration,
    connections: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Capture {
    Absent,
    /// An agent before this one left pins; what they do is known once they are attached to.
    Pinned,
    Attached {
        mode: Mode,
        /// In [`Mode::Learn`]: the connections there are have been remembered.
        learned: bool,
        /// It was enforced since it was attached: captured connections may live.
        carries: bool,
        measured: Measured,
    },
    /// The namespace is gone; what is left of the capture is to be removed.
    Orphaned,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Measured {
    /// Not yet, since capture is enforced.
    No,
    /// At the last probe, or by the agent before this one; so many probes have failed since.
    Yes { strikes: u32 },
}

#[derive(Debug)]
struct Failure {
    reason: String,
    /// In a row.
    times: u32,
}

impl Machine {
    /// A pod of which nothing is known. `probe_every`: between two probes of a measured pod.
    pub(crate) fn new(probe_every: Duration) -> Self {
        Self {
            desire: Desire::Released,
            capture: Capture::Absent,
            announced: false,
            held: false,
            running: None,
            wait: None,
            waits: 0,
            failure: None,
            probe_every,
            connections: 0,
        }
    }

    /// A pod for which an agent before this one left pins.
    pub(crate) fn pinned(probe_every: Duration) -> Self {
        Self { capture: Capture::Pinned, ..Self::new(probe_every) }
    }

    /// Takes an event and says what is to be done.
    pub(crate) fn on(&mut self, event: Event) -> Vec<Action> {
        match event {
            Event::Desired(desire) => {
                if desire != self.desire {
                    self.desire = desire;
                    // Whatever it waited for was on the way to something else.
                    self.wait = None;
                    self.failure = None;
                }
            }
            Event::Held(held) => {
                if held && !self.held && self.is_enforced() {
                    self.wait = None;
                }
                self.held = held;
            }
            Event::Due(number) => {
                if self.wait != Some(number) {
                    return Vec::new();
                }
                self.wait = None;
            }
            Event::Sandbox => {
                // A step under way meets it by itself, or is followed by this event again.
                if self.running.is_none() && matches!(self.capture, Capture::Attached { .. }) {
                    self.capture = Capture::Orphaned;
                }
                // Whatever it waited for was the namespace, or something of the old one.
                self.wait = None;
                self.failure = None;
            }
            Event::Done(answer) => {
                if let Some(step) = self.running.take() {
                    return self.answered(step, answer);
                }
            }
        }
        self.compare()
    }

    /// What control is to be told now.
    pub(crate) fn report(&self) -> Report {
        match (self.desire, self.capture) {
            (
                Desire::Enrolled,
                Capture::Attached { mode: Mode::Enforce, measured: Measured::Yes { strikes }, .. },
            ) if strikes < PROBE_STRIKES => Report::Measured,
            (Desire::Enrolled, _) => match &self.failure {
                Some(failure) => Report::Failed(failure.reason.clone()),
                None => Report::Pending(self.pending().to_owned()),
            },
            (_, Capture::Pinned | Capture::Attached { carries: true, .. }) => Report::Withdrawing,
            (_, Capture::Attached { .. } | Capture::Absent | Capture::Orphaned) => Report::None,
        }
    }

    /// Nothing is captured, nothing is under way and nothing is wanted: it can be forgotten.
    pub(crate) fn is_finished(&self) -> bool {
        self.desire != Desire::Enrolled
            && self.capture == Capture::Absent
            && self.running.is_none()
            && !self.announced
    }

    /// At least one attempt to attach is over: a ztunnel can be told whether the pod is ours.
    pub(crate) fn is_settled(&self) -> bool {
        let waits = self.desire == Desire::Enrolled || self.capture == Capture::Pinned;
        !waits || self.announced || self.failure.is_some()
    }

    /// There are pins that could not be attached to yet.
    pub(crate) fn is_pinned(&self) -> bool {
        self.capture == Capture::Pinned
    }

    /// Captured connections at the last look.
    pub(crate) fn connections(&self) -> usize {
        self.connections
    }

    /// The last failure, if what it hindered is still not done.
    pub(crate) fn failure(&self) -> Option<&str> {
        self.failure.as_ref().map(|failure| failure.reason.as_str())
    }

    /// What the kernel programs do; `None` when there are none.
    pub(crate) fn mode(&self) -> Option<Mode> {
        match self.capture {
            Capture::Attached { mode, .. } => Some(mode),
            Capture::Absent | Capture::Pinned | Capture::Orphaned => None,
        }
    }

    /// A live ztunnel has acknowledged the pod.
    pub(crate) fn is_held(&self) -> bool {
        self.held
    }

    /// What is wanted.
    pub(crate) fn desire(&self) -> Desire {
        self.desire
    }

    fn is_enforced(&self) -> bool {
        self.mode() == Some(Mode::Enforce)
    }

    /// What it waits for, on its way to being captured.
    pub(crate) fn pending(&self) -> &'static str {
        match self.capture {
            Capture::Absent | Capture::Pinned => "its capture is being attached",
            Capture::Orphaned => "what is left of its old namespace is being removed",
            Capture::Attached { mode: Mode::Enforce, .. } => "its capture is being measured",
            Capture::Attached { learned: true, .. } if !self.held => {
                "no ztunnel has acknowledged the pod yet"
            }
            Capture::Attached { .. } => "its open connections are being recorded",
        }
    }

    /// Takes the answer to `step` into account.
    fn answered(&mut self, step: Step, answer: Answer) -> Vec<Action> {
        match answer {
            Answer::NamespaceGone(reason) => {
                self.capture = match self.capture {
                    Capture::Absent => Capture::Absent,
                    _ if step == Step::Detach => Capture::Absent,
                    Capture::Pinned | Capture::Attached { .. } | Capture::Orphaned => Capture::Orphaned,
                };
                // A namespace that went is no failure until an attempt to attach anew meets it.
                return match self.capture {
                    Capture::Absent => self.failed_for(reason, RETRY_GONE_LONGEST),
                    Capture::Pinned | Capture::Attached { .. } | Capture::Orphaned => self.compare(),
                };
            }
            Answer::Failed(reason) => return self.failed(reason),
            Answer::Probed(Err(reason), connections) => {
                self.connections = connections;
                return self.probe_failed(reason);
            }
            Answer::Attached { mode, adopted } => {
                // Enforced by the agent before this one, and pinned since: as good as it was.
                let carries = adopted || mode != Mode::Learn;
                let measured =
                    if mode == Mode::Enforce { Measured::Yes { strikes: 0 } } else { Measured::No };
                self.capture = Capture::Attached { mode, learned: false, carries, measured };
            }
            Answer::Learned(_) => self.turn(Mode::Learn),
            Answer::Probed(Ok(()), connections) => {
                self.connections = connections;
                if let Capture::Attached { measured, .. } = &mut self.capture {
                    *measured = Measured::Yes { strikes: 0 };
                }
                self.failure = None;
                return self.pause(self.desire == Desire::Enrolled, self.probe_every);
            }
            Answer::Counted(connections) => {
                self.connections = connections;
                self.failure = None;
                let drains = self.mode() == Some(Mode::Drain) && self.desire == Desire::Released;
                if drains && connections == 0 {
                    return vec![self.run(Step::Detach)];
                }
                return self.pause(drains, COUNT_EVERY);
            }
            Answer::Done => match step {
                Step::Enforce => self.turn(Mode::Enforce),
                Step::Drain => self.turn(Mode::Drain),
                Step::Detach => self.capture = Capture::Absent,
                Step::Attach | Step::Learn | Step::Probe | Step::Count => {}
            },
        }
        self.failure = None;
        self.compare()
    }

    /// The kernel programs do something else now.
    fn turn(&mut self, to: Mode) {
        if let Capture::Attached { mode, learned, carries, measured } = &mut self.capture {
            *mode = to;
            *learned = to == Mode::Learn;
            *carries |= to == Mode::Enforce;
            *measured = Measured::No;
        }
    }

    fn failed(&mut self, reason: String) -> Vec<Action> {
        self.failed_for(reason, RETRY_LONGEST)
    }

    fn failed_for(&mut self, reason: String, longest: Duration) -> Vec<Action> {
        let times = self.failure.as_ref().map_or(0, |failure| failure.times);
        self.failure = Some(Failure { reason, times: times.saturating_add(1) });
        let wait = RETRY_FIRST.saturating_mul(1 << times.min(10)).min(longest);
        vec![self.wake(wait)]
    }

    fn probe_failed(&mut self, reason: String) -> Vec<Action> {
        if let Capture::Attached { measured: Measured::Yes { strikes }, .. } = &mut self.capture {
            *strikes = strikes.saturating_add(1);
            if *strikes < PROBE_STRIKES {
                return vec![self.wake(PROBE_AGAIN)];
            }
        }
        self.failed(reason)
    }

    /// Waits before the same step is due again, if it is still called for; else sees what is.
    fn pause(&mut self, again: bool, wait: Duration) -> Vec<Action> {
        if again { vec![self.wake(wait)] } else { self.compare() }
    }

    /// Compares what is wanted with what is known; asks for the next step.
    fn compare(&mut self) -> Vec<Action> {
        let mut actions = Vec::new();
        if self.running.is_some() || self.wait.is_some() {
            return actions;
        }
        let enrolled = self.desire == Desire::Enrolled;
        match self.capture {
            Capture::Orphaned => actions.push(self.run(Step::Detach)),
            Capture::Pinned => actions.push(self.run(Step::Attach)),
            Capture::Absent => {
                if std::mem::take(&mut self.announced) {
                    self.held = false;
                    actions.push(Action::Retract);
                }
                if enrolled {
                    actions.push(self.run(Step::Attach));
                }
            }
            Capture::Attached { mode, learned, carries, .. } => match (mode, self.desire) {
                (Mode::Learn, Desire::Enrolled) if learned => {
                    self.announce(&mut actions);
                    if self.held {
                        actions.push(self.run(Step::Enforce));
                    }
                }
                (Mode::Learn | Mode::Drain, Desire::Enrolled) => {
                    // One that drains is held already and must stay so.
                    if carries {
                        self.announce(&mut actions);
                    }
                    actions.push(self.run(Step::Learn));
                }
                (Mode::Enforce, Desire::Enrolled) => {
                    self.announce(&mut actions);
                    // Without a ztunnel a probe would only say what is known.
                    if self.held {
                        actions.push(self.run(Step::Probe));
                    }
                }
                (Mode::Learn, Desire::Withdrawing | Desire::Released) => {
                    actions.push(self.run(if carries { Step::Drain } else { Step::Detach }));
                }
                (Mode::Enforce, Desire::Withdrawing) => self.announce(&mut actions),
                (Mode::Enforce, Desire::Released) => {
                    self.announce(&mut actions);
                    actions.push(self.run(Step::Drain));
                }
                (Mode::Drain, Desire::Withdrawing | Desire::Released) => {
                    self.announce(&mut actions);
                    if self.desire == Desire::Released {
                        actions.push(self.run(Step::Count));
                    }
                }
            },
        }
        actions
    }

    fn announce(&mut self, actions: &mut Vec<Action>) {
        if !self.announced {
            self.announced = true;
            actions.push(Action::Announce);
        }
    }

    fn run(&mut self, step: Step) -> Action {
        self.running = Some(step);
        Action::Run(step)
    }

    fn wake(&mut self, after: Duration) -> Action {
        self.waits += 1;
        self.wait = Some(self.waits);
        Action::Wake(after, self.waits)
    }
}
