//! One pod as the enrolling task has it: its state machine, what is at hand of it, and how it shows.

use std::time::Duration;

use proto::{
    node::{CaptureState, PodReport},
    workload::zds::WorkloadInfo,
};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{
    Standing,
    kernel::Hand,
    machine::{Machine, Report},
};
use crate::state::Wanted;

pub(super) struct Pod {
    pub(super) wanted: Wanted,
    pub(super) machine: Machine,
    /// What the executor has of it; away while a step is under way.
    pub(super) hand: Option<Box<Hand>>,
    /// What the last look found, while the hand is away.
    pub(super) netns: Option<u64>,
    pub(super) guarded: bool,
    pub(super) earlier: usize,
    /// When a probe connection was last seen to be turned round.
    pub(super) measured: Option<Instant>,
    /// Since when it is wanted and not measured.
    pub(super) wanted_since: Option<Instant>,
    /// Control names it no more; the number tells this time from another.
    pub(super) deleted: Option<u64>,
}

impl Pod {
    /// A pod that control named; `pinned`: an agent before this one has captured it.
    pub(super) fn new(wanted: Wanted, pinned: bool, probe_every: Duration) -> Self {
        Self {
            wanted,
            machine: if pinned { Machine::pinned(probe_every) } else { Machine::new(probe_every) },
            hand: Some(Box::default()),
            netns: None,
            guarded: false,
            earlier: 0,
            measured: None,
            wanted_since: None,
            deleted: None,
        }
    }

    /// `namespace/name`.
    pub(super) fn name(&self) -> String {
        format!("{}/{}", self.wanted.namespace, self.wanted.name)
    }

    /// As ztunnel is told of it.
    pub(super) fn info(&self) -> WorkloadInfo {
        WorkloadInfo {
            name: self.wanted.name.clone(),
            namespace: self.wanted.namespace.clone(),
            service_account: self.wanted.service_account.clone(),
            culvert_answer_dns: self.wanted.answer_dns,
        }
    }

    /// As one who waits for its start is told of it. Not before its capture is measured: a pod that is ready
    /// before control knows that would be called in plaintext, which STRICT refuses.
    pub(super) fn standing(&self) -> Standing {
        let measured = self.machine.report() == Report::Measured;
        let ready = if measured && self.machine.is_held() { self.netns } else { None };
        let why = match self.machine.failure() {
            Some(failure) => failure.to_owned(),
            None if self.machine.mode().is_some() && !self.machine.is_held() => {
                "no ztunnel on this node has taken the pod: is the ztunnel DaemonSet running here?".to_owned()
            }
            None => self.machine.pending().to_owned(),
        };
        let enroll = self.wanted.enroll && self.deleted.is_none();
        Standing {
            namespace: self.wanted.namespace.clone(),
            name: self.wanted.name.clone(),
            enroll,
            ready,
            why,
        }
    }

    /// As control is told of it.
    pub(super) fn report(&self) -> PodReport {
        let (state, reason) = match self.machine.report() {
            // Not said, control keeps what it was told last.
            Report::Pending(reason) => (CaptureState::CaptureUnspecified, reason),
            Report::Measured => (CaptureState::CaptureMeasured, String::new()),
            Report::Withdrawing => (CaptureState::CaptureWithdrawing, String::new()),
            Report::None => (CaptureState::CaptureNone, String::new()),
            Report::Failed(reason) => (CaptureState::CaptureFailed, reason),
        };
        PodReport {
            uid: self.wanted.uid.clone(),
            namespace: self.wanted.namespace.clone(),
            name: self.wanted.name.clone(),
            state: state.into(),
            reason,
            captured_connections: self.machine.connections() as u64,
        }
    }

    /// Tells the log how it stands now.
    pub(super) fn log(&self, report: &Report) {
        let (uid, pod) = (&self.wanted.uid, self.name());
        match report {
            Report::Pending(what) => tracing::debug!(uid, pod, what, "pod waits"),
            Report::Measured => tracing::info!(uid, pod, "pod enrolled: its capture was measured"),
            Report::Withdrawing => {
                tracing::info!(uid, pod, "pod leaves: serving what is captured to its end")
            }
            Report::None => tracing::info!(uid, pod, "pod is not captured"),
            // The failed step has told the log why.
            Report::Failed(_) => tracing::debug!(uid, pod, "pod is not captured as it should be"),
        }
    }

    /// As the admin server shows it.
    pub(super) fn dump(&self) -> Value {
        let report = self.report();
        json!({
            "uid": self.wanted.uid,
            "namespace": self.wanted.namespace,
            "name": self.wanted.name,
            "service_account": self.wanted.service_account,
            "netns": self.wanted.netns,
            "netns_inode": self.netns,
            "enroll": self.wanted.enroll,
            "withdrawn": self.wanted.withdrawn,
            "measured_seconds_ago": self.measured.map(|at| at.elapsed().as_secs()),
            "deleted": self.deleted.is_some(),
            "state": report.state().as_str_name(),
            "reason": report.reason,
            "mode": self.machine.mode().map(|mode| format!("{mode:?}").to_lowercase()),
            "held_by_ztunnel": self.machine.is_held(),
            "guarded": self.guarded,
            "captured_connections": self.machine.connections(),
            "earlier_connections": self.earlier,
            "failure": self.machine.failure(),
            "counters": self.hand.as_ref().map(|hand| &hand.counters),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::enroll::machine::{Answer, Desire, Event, Mode};

    #[test]
    fn a_pod_may_start_once_its_capture_was_measured_and_a_ztunnel_holds_it() {
        let wanted = Wanted {
            uid: "u1".into(),
            namespace: "shop".into(),
            name: "web".into(),
            service_account: "web".into(),
            netns: "/run/netns/web".into(),
            addressed: false,
            enroll: true,
            withdrawn: false,
            answer_dns: None,
        };
        let mut pod = Pod::new(wanted, false, Duration::from_secs(30));
        pod.netns = Some(7);
        let steps = [
            Event::Desired(Desire::Enrolled),
            Event::Done(Answer::Attached { mode: Mode::Learn, adopted: false }),
            Event::Done(Answer::Learned(0)),
            Event::Held(true),
            Event::Done(Answer::Done),
        ];
        for step in steps {
            pod.machine.on(step.clone());
            assert_eq!(pod.standing().ready, None, "after {step:?}");
        }
        assert_eq!(pod.machine.mode(), Some(Mode::Enforce));
        assert_eq!(pod.standing().why, "its capture is being measured");
        pod.machine.on(Event::Done(Answer::Probed(Err("not captured".into()), 0)));
        assert_eq!((pod.standing().ready, pod.standing().why.as_str()), (None, "not captured"));
        pod.machine.on(Event::Due(1));
        pod.machine.on(Event::Done(Answer::Probed(Ok(()), 0)));
        assert_eq!(pod.standing().ready, Some(7));
        pod.machine.on(Event::Held(false));
        assert_eq!(pod.standing().ready, None, "and a ztunnel has to be there");
    }
}
