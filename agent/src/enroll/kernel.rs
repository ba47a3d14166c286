//! Carries out the steps of enrollment on the kernel, by the `capture` crate. Everything here blocks
//! and runs on threads made for that.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use capture::{Netns, Node, NodeOptions, Pod, Target};
use tokio::time::Instant;

use super::machine::{Answer, Mode, Step};
use crate::{
    netns::{Finder, Found, Given, NotFound},
    splice,
};

/// The node's capture.
pub(super) struct Kernel {
    node: Node,
    /// Where the hosts' ends of the pods' links are.
    node_netns: Netns,
    /// Finds the namespaces of pods that none is named for.
    finder: Finder,
    /// How long connections from before the enrollment may live on.
    earlier: Option<Duration>,
}

/// What is at hand of one pod between two steps.
#[derive(Default)]
pub(super) struct Hand {
    pub(super) netns: Option<Arc<Netns>>,
    /// How it was found, if it was not named.
    found: Option<Found>,
    /// What the container runtime gave, if it did.
    pub(super) given: Option<Arc<Given>>,
    pod: Option<Pod>,
    /// The kernel's counts at the last look.
    pub(super) counters: BTreeMap<&'static str, u64>,
    /// Whether the guard on the host's end was measured to work.
    pub(super) guarded: bool,
    /// Connections from before the enrollment that pass by.
    pub(super) earlier: usize,
    /// Since when connections from before the enrollment are on borrowed time.
    enforced: Option<Instant>,
}

impl Kernel {
    /// Makes or adopts what all pods of the node share.
    pub(super) fn open(
        options: NodeOptions,
        earlier: Option<Duration>,
        host_proc: PathBuf,
    ) -> Result<Self, capture::Error> {
        let node_netns = Netns::current()?;
        let finder = Finder::new(host_proc, &node_netns);
        Ok(Self { node: Node::open(options)?, node_netns, finder, earlier })
    }

    /// Switches splicing on or off for the node. Whether it is on.
    pub(super) fn splice(&self, wanted: Option<&splice::Options>) -> Result<bool, capture::Error> {
        splice::settle(&self.node, wanted)
    }

    /// Tells whose connections are health probes.
    pub(super) fn set_kubelet(&self, cgroup: Option<u64>) -> Result<(), capture::Error> {
        self.node.set_kubelet(cgroup)
    }

    /// The uids of the pods that have pins.
    pub(super) fn pinned(&self) -> Result<Vec<String>, capture::Error> {
        self.node.pinned()
    }

    /// Takes away what is pinned for a pod that nobody knows.
    pub(super) fn discard(&self, uid: &str) -> Result<(), capture::Error> {
        self.node.discard(uid)
    }

    /// Does one step for the pod whose namespace is at `path`; an empty one means that it is to be found. One that
    /// the container runtime has `given` and that is not attached to yet comes before either.
    pub(super) fn perform(
        &self,
        uid: &str,
        path: &Path,
        given: Option<Arc<Given>>,
        step: Step,
        hand: &mut Hand,
    ) -> Answer {
        let another =
            |given: &Given| hand.netns.as_ref().is_some_and(|netns| netns.inode() != given.netns.inode());
        let moved = given.as_ref().is_some_and(|given| another(given));
        if step == Step::Detach {
            return self.detach(uid, path, moved, hand);
        }
        if step == Step::Attach {
            return self.attach(uid, path, given, hand);
        }
        if moved {
            return Answer::NamespaceGone("the container runtime has made it another one".to_owned());
        }
        if let Some(gone) = self.vanished(uid, path, hand) {
            return Answer::NamespaceGone(gone);
        }
        let Some(pod) = &hand.pod else {
            return Answer::Failed(format!("{step:?} was asked for, and nothing is attached"));
        };
        let done = match step {
            Step::Learn => pod.set_mode(capture::Mode::Learn).and_then(|()| pod.inventory()).map(|earlier| {
                hand.earlier = earlier;
                Answer::Learned(earlier)
            }),
            Step::Enforce => pod.set_mode(capture::Mode::Enforce).map(|()| {
                hand.enforced = Some(Instant::now());
                Answer::Done
            }),
            Step::Drain => pod.set_mode(capture::Mode::Drain).map(|()| Answer::Done),
            Step::Count => pod.captured_connections().map(Answer::Counted),
            Step::Probe => self.probe(hand),
            Step::Attach | Step::Detach => Ok(Answer::Done),
        };
        done.unwrap_or_else(|error| Answer::Failed(told(&error)))
    }

    fn attach(&self, uid: &str, path: &Path, given: Option<Arc<Given>>, hand: &mut Hand) -> Answer {
        // A new namespace may have come to be at the path.
        *hand = Hand::default();
        let given = given.filter(|given| given.is_there());
        let mut found = None;
        if given.is_some() {
            // It needs no looking for.
        } else if path.as_os_str().is_empty() {
            match self.finder.find(uid) {
                Ok(one) => found = Some(one),
                Err(reason @ NotFound::NoProcess { .. }) => return Answer::NamespaceGone(reason.to_string()),
                Err(reason) => return Answer::Failed(reason.to_string()),
            }
        } else if let Err(error) = fs::metadata(path) {
            return Answer::NamespaceGone(format!("its network namespace {}: {error}", path.display()));
        }
        let attached = (|| {
            let netns = match (&given, &found) {
                (Some(given), _) => given.netns.try_clone()?,
                (None, Some(found)) => found.netns.try_clone()?,
                (None, None) => Netns::open(path)?,
            };
            if netns.inode() == self.node_netns.inode() {
                let path = given.as_ref().map_or(path, |given| given.path()).display();
                return Ok(Err(format!("{path} is the node's own network namespace")));
            }
            let adopted = self.node.pinned()?.iter().any(|pinned| pinned == uid);
            let pod = self.node.attach(&Target { uid, netns: &netns, node_netns: &self.node_netns })?;
            Ok(Ok((netns, pod, adopted)))
        })();
        match attached {
            Ok(Ok((netns, pod, adopted))) => {
                let mode = match pod.mode() {
                    capture::Mode::Learn => Mode::Learn,
                    capture::Mode::Enforce => Mode::Enforce,
                    capture::Mode::Drain => Mode::Drain,
                };
                tell_of_more_devices(&pod);
                hand.netns = Some(Arc::new(netns));
                hand.found = found;
                hand.given = given;
                hand.enforced = (mode == Mode::Enforce).then(Instant::now);
                hand.pod = Some(pod);
                Answer::Attached { mode, adopted }
            }
            Ok(Err(reason)) => Answer::Failed(reason),
            Err(error) => {
                let error: capture::Error = error;
                Answer::Failed(told(&error))
            }
        }
    }

    /// What became of the pod's namespace, if the pod does not have it any more.
    fn vanished(&self, uid: &str, path: &Path, hand: &mut Hand) -> Option<String> {
        match (&hand.given, &mut hand.found, &hand.netns) {
            (Some(given), ..) if given.is_there() => None,
            (Some(given), ..) => {
                Some(format!("its network namespace {} was removed", given.path().display()))
            }
            (None, Some(found), _) => self.finder.still(uid, found).err(),
            (None, None, Some(netns)) => vanished(path, netns),
            (None, None, None) => None,
        }
    }

    /// Measures the capture, and looks at what it counts while there.
    fn probe(&self, hand: &mut Hand) -> Result<Answer, capture::Error> {
        let Some(pod) = &hand.pod else { return Ok(Answer::Failed("nothing is attached".into())) };
        // A pod with NET_ADMIN may have taken the routing away, of one family only, too; one that switches
        // its loopback's IPv6 off and on loses it. Setting up what is there already costs five messages.
        pod.repair()?;
        let measured = pod.probe()?;
        hand.guarded = measured.guard;
        hand.counters = pod.counters()?.iter().collect();
        hand.earlier = pod.passing_flows()?;
        let overdue = |limit: Duration| hand.enforced.is_some_and(|since| since.elapsed() > limit);
        if hand.earlier > 0 && self.earlier.is_some_and(overdue) {
            let ended = pod.forget_flows()?;
            hand.earlier = 0;
            tracing::info!(
                uid = pod.uid(),
                connections = ended,
                "connections from before the enrollment end"
            );
        }
        let seen = match (measured.captured, measured.turned) {
            (true, _) => Ok(()),
            (false, true) => Err("a probe connection was captured, and no ztunnel took it".to_owned()),
            (false, false) => Err("a probe connection of the pod's own stack was not captured".to_owned()),
        };
        Ok(Answer::Probed(seen, pod.captured_connections()?))
    }

    /// Takes the capture away; where the namespace is gone, what is left of it.
    fn detach(&self, uid: &str, path: &Path, moved: bool, hand: &mut Hand) -> Answer {
        let alive = !moved && hand.netns.is_some() && self.vanished(uid, path, hand).is_none();
        let detached = match hand.pod.take() {
            // Through its descriptor the namespace can be left in order even where its path is gone.
            Some(pod) => {
                pod.detach().or_else(|error| if alive { Err(error) } else { self.node.discard(uid) })
            }
            None => self.node.discard(uid),
        };
        match detached {
            Ok(()) => {
                *hand = Hand::default();
                Answer::Done
            }
            Err(error) => Answer::Failed(told(&error)),
        }
    }
}

/// Says which devices of a pod are not captured: a pod may have more than the one of its default route.
fn tell_of_more_devices(pod: &Pod) {
    match pod.other_devices() {
        Ok(devices) if devices.is_empty() => {}
        Ok(devices) => tracing::warn!(
            uid = pod.uid(),
            devices = devices.join(" "),
            "the pod has more devices than the one of its default route: what goes through them is NOT captured"
        ),
        Err(error) => tracing::warn!(uid = pod.uid(), %error, "the pod's other devices cannot be listed"),
    }
}

/// An error for a line of the log. What the kernel's verifier has to say is several KB, of which the end
/// tells most; all of it is told at debug.
pub(crate) fn told(error: &capture::Error) -> String {
    let text = error.to_string();
    let brief = brief(&text);
    if brief.len() < text.len() {
        tracing::debug!(error = text, "in full");
    }
    brief
}

/// The first line of a text and its last ones, each cut to a readable length, as one line.
fn brief(text: &str) -> String {
    const LAST: usize = 3;
    const LENGTH: usize = 200;
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let last = lines.len().saturating_sub(LAST).max(1);
    let kept = lines.iter().enumerate().filter(|(number, _)| *number == 0 || *number >= last);
    let mut brief = String::new();
    for (number, line) in kept {
        match number {
            0 => {}
            number if number == last && last > 1 => brief.push_str(" … "),
            _ => brief.push_str(" | "),
        }
        brief.extend(line.chars().take(LENGTH));
        if line.chars().nth(LENGTH).is_some() {
            brief.push('…');
        }
    }
    brief
}

/// What became of the namespace, if it is not at its path any more.
fn vanished(path: &Path, netns: &Netns) -> Option<String> {
    match fs::metadata(path) {
        Ok(metadata) if metadata.ino() == netns.inode() => None,
        Ok(_) => Some(format!("{} is another network namespace now", path.display())),
        Err(error) => Some(format!("its network namespace {}: {error}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_verifiers_log_the_first_line_and_the_last_are_told() {
        let log: String = (0..500).map(|n| format!("{n}: (bf) r{} = r1 ; R1=ctx()\n", n % 10)).collect();
        let reason = format!(
            "the BPF_PROG_LOAD syscall returned Permission denied. Verifier output: {log}\
             R1 type=ctx expected=fp\nprocessed 500 insns (limit 1000000)\n\nverification time 12 usec\n"
        );
        let error = capture::Error::Kernel { what: "pod u1: load pod_egress".into(), reason };
        assert!(error.to_string().len() > 10_000);
        assert_eq!(
            told(&error),
            "pod u1: load pod_egress: the BPF_PROG_LOAD syscall returned Permission denied. Verifier output: 0: (bf) \
             r0 = r1 ; R1=ctx() … R1 type=ctx expected=fp | processed 500 insns (limit 1000000) | verification time 12 usec"
        );
    }

    #[test]
    fn what_is_short_is_told_as_it_is() {
        assert_eq!(brief("no such device"), "no such device");
        assert_eq!(brief("a\nb\nc\nd\n"), "a | b | c | d");
        assert_eq!(brief("a\nb\nc\nd\ne"), "a … c | d | e");
        assert_eq!(brief(""), "");
        assert_eq!(brief(&"x".repeat(10_000)).chars().count(), 201);
    }
}
