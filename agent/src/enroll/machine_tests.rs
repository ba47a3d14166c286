//! The state machine in every order: told step by step for the ones that matter, and against a
//! simulated kernel with random events for all the others.

use std::{collections::VecDeque, time::Duration};

use proptest::prelude::*;

use super::machine::*;

const PROBE: Duration = Duration::from_secs(10);

/// A kernel, a broker and a clock that do what the machine asks, when told to.
struct World {
    machine: Machine,
    // What the executor would know and do.
    pending: VecDeque<Step>,
    wake: Option<u64>,
    announced: bool,
    // The kernel.
    pins: Option<Mode>,
    connections: usize,
    namespace: bool,
    /// The namespace was replaced: what is pinned is for one that is gone.
    stale: bool,
    // The world outside.
    ztunnel: bool,
    probe_works: bool,
    step_fails: bool,
    log: Vec<Action>,
}

impl World {
    fn new() -> Self {
        Self {
            machine: Machine::new(PROBE),
            pending: VecDeque::new(),
            wake: None,
            announced: false,
            pins: None,
            connections: 0,
            namespace: true,
            stale: false,
            ztunnel: true,
            probe_works: true,
            step_fails: false,
            log: Vec::new(),
        }
    }

    fn event(&mut self, event: Event) {
        for action in self.machine.on(event) {
            self.log.push(action);
            match action {
                Action::Run(step) => {
                    assert!(self.pending.is_empty(), "{step:?} began while {:?} is under way", self.pending);
                    let held = self.announced && self.ztunnel;
                    assert!(step != Step::Enforce || held, "enforced, and no ztunnel has the pod");
                    self.pending.push_back(step);
                }
                Action::Announce => {
                    assert!(!self.announced);
                    self.announced = true;
                }
                Action::Retract => {
                    assert!(self.announced);
                    assert!(self.pins.is_none() || self.stale, "ztunnel let go of a captured pod");
                    self.announced = false;
                }
                Action::Wake(_, number) => self.wake = Some(number),
            }
        }
        self.check();
    }

    fn desire(&mut self, desire: Desire) {
        self.event(Event::Desired(desire));
        self.held();
    }

    /// The broker tells who holds the pod.
    fn held(&mut self) {
        let held = self.announced && self.ztunnel;
        if held != self.machine.is_held() {
            self.event(Event::Held(held));
        }
    }

    /// Finishes the step under way.
    fn finish(&mut self) -> bool {
        let Some(step) = self.pending.pop_front() else { return false };
        let answer = self.kernel(step);
        self.event(Event::Done(answer));
        self.held();
        true
    }

    fn kernel(&mut self, step: Step) -> Answer {
        let gone = !self.namespace || self.stale;
        match step {
            Step::Detach if gone => {
                self.pins = None;
                self.stale = false;
                return Answer::Done;
            }
            Step::Attach if !gone => {}
            _ if gone => return Answer::NamespaceGone("no such namespace".into()),
            _ => {}
        }
        if self.step_fails {
            return Answer::Failed("the kernel says no".into());
        }
        match step {
            Step::Attach => {
                let adopted = self.pins.is_some();
                let mode = *self.pins.get_or_insert(Mode::Learn);
                Answer::Attached { mode, adopted }
            }
            Step::Learn => {
                assert_ne!(self.pins, Some(Mode::Enforce), "an enforced pod went back to learning");
                self.pins = Some(Mode::Learn);
                Answer::Learned(3)
            }
            Step::Enforce => {
                assert!(self.announced, "capture of a pod that ztunnel does not know");
                self.pins = Some(Mode::Enforce);
                Answer::Done
            }
            Step::Probe => {
                let seen = if self.probe_works { Ok(()) } else { Err("it went past".into()) };
                Answer::Probed(seen, self.connections)
            }
            Step::Drain => {
                self.pins = Some(Mode::Drain);
                Answer::Done
            }
            Step::Count => Answer::Counted(self.connections),
            Step::Detach => {
                assert_eq!(self.connections, 0, "captured connections were cut");
                self.pins = None;
                Answer::Done
            }
        }
    }

    /// Ends the wait under way.
    fn due(&mut self) -> bool {
        let Some(number) = self.wake.take() else { return false };
        self.event(Event::Due(number));
        self.held();
        true
    }

    /// Lets everything run until only waiting is left.
    fn settle(&mut self) {
        for _ in 0..100 {
            if !self.finish() {
                return;
            }
        }
        panic!("it runs in circles: {:?}", &self.log[self.log.len() - 20..]);
    }

    /// A wait or two further.
    fn later(&mut self) {
        for _ in 0..8 {
            self.settle();
            self.due();
        }
        self.settle();
    }

    fn check(&self) {
        if self.machine.report() == Report::Measured {
            assert_eq!(self.pins, Some(Mode::Enforce), "reported as measured, and not enforced");
        }
    }

    /// As an agent that was killed and started again.
    fn restart(&mut self) {
        let desire = self.machine.desire();
        self.machine = if self.pins.is_some() { Machine::pinned(PROBE) } else { Machine::new(PROBE) };
        self.pending.clear();
        self.wake = None;
        self.announced = false;
        self.desire(desire);
    }

    fn took(&self) -> Vec<Action> {
        self.log.iter().copied().filter(|action| !matches!(action, Action::Wake(..))).collect()
    }
}

fn run(step: Step) -> Action {
    Action::Run(step)
}

fn measured() -> World {
    let mut world = World::new();
    world.desire(Desire::Enrolled);
    world.settle();
    assert_eq!(world.machine.report(), Report::Measured);
    world.log.clear();
    world
}

#[test]
fn enrollment_takes_its_steps_in_order() {
    let mut world = World::new();
    world.desire(Desire::Enrolled);
    assert_eq!(world.machine.report(), Report::Pending("its capture is being attached".into()));
    world.settle();
    let steps = [run(Step::Attach), run(Step::Learn), Action::Announce, run(Step::Enforce), run(Step::Probe)];
    assert_eq!(world.took(), steps);
    assert_eq!(world.machine.report(), Report::Measured);
}

#[test]
fn a_pod_waits_for_a_ztunnel_and_stays_captured_without_one() {
    let mut world = World::new();
    world.ztunnel = false;
    world.desire(Desire::Enrolled);
    world.settle();
    assert_eq!(world.machine.report(), Report::Pending("no ztunnel has acknowledged the pod yet".into()));
    assert_eq!(world.pins, Some(Mode::Learn));
    world.ztunnel = true;
    world.held();
    world.settle();
    assert_eq!(world.machine.report(), Report::Measured);
    // It dies, and the next probe is due: nothing is asked of the kernel, nothing changes.
    world.ztunnel = false;
    world.held();
    world.log.clear();
    world.later();
    assert_eq!(world.took(), []);
    assert_eq!((world.pins, world.machine.report()), (Some(Mode::Enforce), Report::Measured));
    // The next one is measured at once.
    world.ztunnel = true;
    world.held();
    assert_eq!(world.took(), [run(Step::Probe)]);
}

#[test]
fn un_enrollment_withdraws_serves_to_the_end_and_lets_go() {
    let mut world = measured();
    world.connections = 2;
    world.desire(Desire::Withdrawing);
    world.later();
    assert_eq!((world.took(), world.machine.report()), (vec![], Report::Withdrawing));
    assert_eq!(world.pins, Some(Mode::Enforce));
    world.desire(Desire::Released);
    world.later();
    assert_eq!((world.pins, world.machine.report()), (Some(Mode::Drain), Report::Withdrawing));
    assert_eq!(world.machine.connections(), 2);
    assert!(!world.machine.is_finished());
    world.log.clear();
    world.connections = 0;
    world.later();
    assert_eq!(world.took(), [run(Step::Count), run(Step::Detach), Action::Retract]);
    assert_eq!(world.machine.report(), Report::None);
    assert!(world.machine.is_finished());
}

#[test]
fn a_second_sandbox_of_a_pod_is_captured_anew_before_it_counts() {
    let mut world = measured();
    world.stale = true;
    world.event(Event::Sandbox);
    let pending = "what is left of its old namespace is being removed";
    assert_eq!(world.machine.report(), Report::Pending(pending.into()));
    world.settle();
    let anew = [run(Step::Attach), run(Step::Learn), Action::Announce, run(Step::Enforce), run(Step::Probe)];
    let steps = [&[run(Step::Detach), Action::Retract][..], &anew].concat();
    assert_eq!((world.took(), world.machine.report()), (steps, Report::Measured));

    // It hurries an attempt that waits to be repeated, …
    let mut world = World::new();
    world.namespace = false;
    world.desire(Desire::Enrolled);
    world.settle();
    assert!(matches!(world.machine.report(), Report::Failed(_)));
    world.namespace = true;
    world.log.clear();
    world.event(Event::Sandbox);
    world.settle();
    assert_eq!((world.took(), world.machine.report()), (anew.to_vec(), Report::Measured));
    // … and leaves a step alone that is under way.
    let mut world = World::new();
    world.desire(Desire::Enrolled);
    world.event(Event::Sandbox);
    assert_eq!(world.pending, [Step::Attach]);
}

#[test]
fn a_drain_can_be_called_off() {
    let mut world = measured();
    world.connections = 1;
    world.desire(Desire::Released);
    world.later();
    assert_eq!(world.pins, Some(Mode::Drain));
    world.log.clear();
    world.desire(Desire::Enrolled);
    world.settle();
    assert_eq!(world.took(), [run(Step::Learn), run(Step::Enforce), run(Step::Probe)]);
    assert_eq!(world.machine.report(), Report::Measured);

    // … and called off again before it is enforced: what is captured is served on.
    world.desire(Desire::Released);
    world.later();
    world.desire(Desire::Enrolled);
    assert_eq!(world.pending, [Step::Learn]);
    world.desire(Desire::Released);
    world.later();
    assert_eq!(world.pins, Some(Mode::Drain));
    world.connections = 0;
    world.later();
    assert!(world.machine.is_finished());
}

#[test]
fn called_off_before_it_is_enforced_it_is_just_taken_away() {
    let mut world = World::new();
    world.ztunnel = false;
    world.desire(Desire::Enrolled);
    world.settle();
    world.log.clear();
    world.desire(Desire::Withdrawing);
    world.settle();
    assert_eq!(world.took(), [run(Step::Detach), Action::Retract]);
    assert!(world.machine.is_finished());
}

#[test]
fn a_failure_is_told_with_its_reason_and_tried_again_ever_more_rarely() {
    let mut world = World::new();
    world.step_fails = true;
    world.desire(Desire::Enrolled);
    let mut waits = Vec::new();
    for _ in 0..9 {
        world.settle();
        let Some(Action::Wake(wait, _)) = world.log.last() else { panic!("no wait: {:?}", world.log) };
        waits.push(wait.as_millis());
        world.due();
    }
    assert_eq!(waits, [500, 1000, 2000, 4000, 8000, 16000, 30000, 30000, 30000]);
    world.settle();
    assert_eq!(world.machine.report(), Report::Failed("the kernel says no".into()));
    // A wish that is repeated does not hurry it; one that changes does.
    world.log.clear();
    world.desire(Desire::Enrolled);
    assert_eq!(world.took(), []);
    world.step_fails = false;
    world.desire(Desire::Released);
    assert!(world.machine.is_finished());
    world.desire(Desire::Enrolled);
    world.settle();
    assert_eq!(world.machine.report(), Report::Measured);
}

#[test]
fn one_lost_probe_is_forgiven_and_three_are_not() {
    let mut world = measured();
    world.probe_works = false;
    for strikes in 1..=3 {
        world.due();
        world.settle();
        let lost = world.machine.report() != Report::Measured;
        assert_eq!(lost, strikes == 3, "after {strikes} probes");
    }
    assert_eq!(world.machine.report(), Report::Failed("it went past".into()));
    assert_eq!(world.pins, Some(Mode::Enforce));
    world.probe_works = true;
    world.due();
    world.settle();
    assert_eq!(world.machine.report(), Report::Measured);
}

#[test]
fn a_pod_that_was_never_measured_is_not_reported_so() {
    let mut world = World::new();
    world.probe_works = false;
    world.desire(Desire::Enrolled);
    world.settle();
    assert_eq!(world.machine.report(), Report::Failed("it went past".into()));
}

#[test]
fn a_namespace_that_goes_is_cleaned_up_in_every_state() {
    for desire in [Desire::Enrolled, Desire::Withdrawing, Desire::Released] {
        let mut world = measured();
        world.connections = 1;
        world.desire(desire);
        world.later();
        world.namespace = false;
        world.connections = 0;
        world.desire(if desire == Desire::Enrolled { Desire::Enrolled } else { Desire::Released });
        world.later();
        assert_eq!((world.pins, world.announced), (None, false), "{desire:?}");
        match desire {
            Desire::Enrolled => {
                assert_eq!(world.machine.report(), Report::Failed("no such namespace".into()))
            }
            Desire::Withdrawing | Desire::Released => assert!(world.machine.is_finished()),
        }
    }
}

#[test]
fn an_agent_that_starts_again_finds_the_pod_as_it_was() {
    let mut world = measured();
    world.connections = 5;
    world.restart();
    assert!(!world.machine.is_settled());
    world.finish();
    assert!(world.machine.is_settled());
    assert_eq!(world.machine.report(), Report::Measured);
    world.settle();
    assert_eq!(world.took(), [run(Step::Attach), Action::Announce, run(Step::Probe)]);

    // Killed while it drains: it drains on.
    world.desire(Desire::Released);
    world.later();
    world.restart();
    assert_eq!(world.machine.report(), Report::Withdrawing);
    world.later();
    assert_eq!(world.pins, Some(Mode::Drain));
    world.connections = 0;
    world.later();
    assert!(world.machine.is_finished());
}

#[derive(Debug, Clone, Copy)]
enum Happening {
    Desire(u8),
    Finish,
    Due,
    Ztunnel(bool),
    Connections(usize),
    Probe(bool),
    Steps(bool),
    Namespace(bool),
    Restart,
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        3 => (0u8..3).prop_map(Happening::Desire),
        8 => Just(Happening::Finish),
        4 => Just(Happening::Due),
        2 => any::<bool>().prop_map(Happening::Ztunnel),
        2 => (0usize..3).prop_map(Happening::Connections),
        1 => any::<bool>().prop_map(Happening::Probe),
        1 => any::<bool>().prop_map(Happening::Steps),
        1 => any::<bool>().prop_map(Happening::Namespace),
        1 => Just(Happening::Restart),
    ]
}

impl World {
    fn happens(&mut self, happening: Happening) {
        match happening {
            Happening::Desire(0) => self.desire(Desire::Enrolled),
            Happening::Desire(1) => self.desire(Desire::Withdrawing),
            Happening::Desire(_) => self.desire(Desire::Released),
            Happening::Finish => drop(self.finish()),
            Happening::Due => drop(self.due()),
            Happening::Ztunnel(there) => {
                self.ztunnel = there;
                self.held();
            }
            // Only what is captured can be a captured connection.
            Happening::Connections(count) => match self.pins.filter(|_| self.namespace && !self.stale) {
                Some(Mode::Enforce) => self.connections = count,
                Some(Mode::Learn | Mode::Drain) => self.connections = self.connections.min(count),
                None => {}
            },
            Happening::Probe(works) => self.probe_works = works,
            Happening::Steps(fail) => self.step_fails = fail,
            Happening::Namespace(there) => {
                if !there {
                    self.connections = 0;
                    // The one that may come later is another.
                    self.stale = self.pins.is_some();
                }
                self.namespace = there;
            }
            Happening::Restart => self.restart(),
        }
    }

    /// Everything works from now on.
    fn heals(&mut self) {
        self.ztunnel = true;
        self.probe_works = true;
        self.step_fails = false;
        self.namespace = true;
        self.held();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_it_ends_where_it_is_wanted(happenings in prop::collection::vec(happening(), 0..60)) {
        let mut world = World::new();
        for happening in happenings {
            world.happens(happening);
        }
        world.heals();
        world.desire(Desire::Enrolled);
        world.later();
        prop_assert_eq!(world.machine.report(), Report::Measured);
        prop_assert_eq!(world.pins, Some(Mode::Enforce));
        prop_assert!(world.announced);
        world.desire(Desire::Withdrawing);
        world.later();
        prop_assert_eq!(world.machine.report(), Report::Withdrawing);
        prop_assert_eq!(world.pins, Some(Mode::Enforce));
        world.desire(Desire::Released);
        world.connections = 0;
        world.later();
        prop_assert_eq!(world.pins, None);
        prop_assert!(world.machine.is_finished());
    }
}
