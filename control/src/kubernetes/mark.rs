//! Writes on pods what their agents say of them: for the other replicas of control, and for everybody who
//! reads Istio's annotation.
//!
//! The replica that an agent is connected to writes for the pods of its node, whether it is the leader or
//! not: it alone has the agent's word. An agent has one connection, so a pod has one writer.

use std::{collections::HashMap, sync::Arc, time::Duration};

use serde_json::{Value, json};
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until},
};
use tracing::{debug, warn};

use crate::{
    compile::{Annotated, LocalPod, MARK, Mark, REDIRECTION},
    metrics::Metrics,
    nodes::{Capture, Nodes},
    shards::Outline,
};
use apiserver::Api;

/// At most one write in this time.
const PACE: Duration = Duration::from_millis(20);
/// What was written is not written again before this time: our watch may be behind.
const AGAIN: Duration = Duration::from_secs(10);
/// After a failure the pod is left alone for this time.
const AFTER_FAILURE: Duration = Duration::from_secs(2);

/// What is to be written on a pod: the two annotations, where one is to change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Write {
    redirection: bool,
    mark: Mark,
}

/// What the word of a connected agent makes of a pod that is annotated so; `None` if nothing.
fn decide(word: Capture, now: Annotated) -> Option<Write> {
    let (mark, captured) = match word {
        Capture::Measured => (Mark::Measured, true),
        Capture::Withdrawing => (Mark::Withdrawing, false),
        Capture::None | Capture::Failed => (Mark::None, false),
    };
    match now.mark {
        // Nothing of ours is on it, and there is nothing to say. What a node side of another make says there
        // is its own affair.
        None if mark == Mark::None => None,
        // A redirection that appears without us is somebody else's: it is not fought over.
        Some(held) if held == mark && (now.redirection || !captured) => None,
        _ => Some(Write { redirection: captured, mark }),
    }
}

impl Write {
    fn patch(self, pod: &LocalPod) -> Value {
        let redirection = if self.redirection { "enabled".into() } else { Value::Null };
        // The uid: another pod of the same name is not ours to mark.
        json!({"metadata": {
            "uid": *pod.object_uid().text(),
            "annotations": {REDIRECTION: redirection, MARK: self.mark.value()},
        }})
    }
}

/// Keeps the marks of the pods of connected agents.
pub struct Marks {
    api: Api,
    nodes: Arc<Nodes>,
    metrics: Arc<Metrics>,
    /// What was written or tried last, by uid, and until when it is left alone.
    tried: HashMap<String, (Write, Instant)>,
}

impl Marks {
    pub fn new(api: Api, nodes: Arc<Nodes>, metrics: Arc<Metrics>) -> Self {
        Self { api, nodes, metrics, tried: HashMap::new() }
    }

    /// Until nobody compiles any more.
    pub async fn run(mut self, mut outlines: watch::Receiver<Arc<Outline>>) {
        loop {
            let newest = outlines.borrow_and_update().clone();
            let again = self.write(&newest).await;
            tokio::select! {
                changed = outlines.changed() => if changed.is_err() { return },
                () = sleep_until(again.unwrap_or_else(|| Instant::now() + AGAIN)) => {}
            }
        }
    }

    /// Writes what is to be written. When to look again, if something is left.
    async fn write(&mut self, outline: &Outline) -> Option<Instant> {
        let now = Instant::now();
        self.tried.retain(|_, (_, until)| now < *until);
        let due = due(&|node, uid| self.nodes.fresh_word(node, uid), outline);
        for (node, pod, write) in due {
            if self.tried.get(&*pod.uid.text()).is_some_and(|(tried, _)| *tried == write) {
                continue;
            }
            // What the agent says may have changed while others were written.
            let word = self.nodes.fresh_word(node, &pod.uid.text());
            if word.and_then(|word| decide(word, pod.annotated)) != Some(write) {
                continue;
            }
            let path = format!("/api/v1/namespaces/{}/pods/{}/status", pod.namespace, pod.name);
            let answer = self.api.patch(&path, &write.patch(pod)).await;
            self.metrics.marked(answer.is_ok());
            let pause = match answer {
                Ok(_) => {
                    debug!(namespace = %pod.namespace, pod = %pod.name, mark = write.mark.value(), "marked");
                    AGAIN
                }
                // It is gone, or another one.
                Err(error) if error.is_absent() || error.is_conflict() => AGAIN,
                Err(error) => {
                    warn!(namespace = %pod.namespace, pod = %pod.name, "cannot be marked: {error}; tried again");
                    AFTER_FAILURE
                }
            };
            self.tried.insert(pod.uid.to_string(), (write, Instant::now() + pause));
            sleep(PACE).await;
        }
        self.tried.values().map(|(_, until)| *until).min()
    }
}

/// What is to be written, in the order of nodes. Only on pods that run on the node whose agent spoke.
fn due<'c>(
    fresh: &dyn Fn(&str, &str) -> Option<Capture>,
    outline: &'c Outline,
) -> Vec<(&'c str, &'c LocalPod, Write)> {
    let pods = outline.nodes.iter().flat_map(|(node, pods)| pods.iter().map(move |pod| (&**node, &**pod)));
    pods.filter_map(|(node, pod)| Some((node, pod, decide(fresh(node, &pod.uid.text())?, pod.annotated)?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compile::{Image, Special};

    fn annotated(redirection: bool, mark: Option<Mark>) -> Annotated {
        Annotated { redirection, mark }
    }

    #[test]
    fn a_mark_says_what_the_agent_says() {
        let write = |redirection, mark| Some(Write { redirection, mark });
        let measured = annotated(true, Some(Mark::Measured));
        for (word, now, wanted) in [
            (Capture::Measured, annotated(false, None), write(true, Mark::Measured)),
            (Capture::Measured, annotated(false, Some(Mark::None)), write(true, Mark::Measured)),
            (Capture::Measured, measured, None),
            // Somebody took ours away.
            (Capture::Measured, annotated(false, Some(Mark::Measured)), write(true, Mark::Measured)),
            (Capture::Withdrawing, measured, write(false, Mark::Withdrawing)),
            (Capture::None, annotated(false, Some(Mark::Withdrawing)), write(false, Mark::None)),
            (Capture::Failed, measured, write(false, Mark::None)),
            (Capture::None, annotated(false, Some(Mark::None)), None),
            (Capture::None, annotated(true, Some(Mark::None)), None),
            // Pods that were never captured are not written on, nor what others wrote.
            (Capture::None, annotated(false, None), None),
            (Capture::Failed, annotated(true, None), None),
        ] {
            assert_eq!(decide(word, now), wanted, "{word:?} {now:?}");
        }
    }

    #[test]
    fn only_the_pods_of_the_reporting_node_are_written_on() {
        let image =
            |uid: &str| Image { uid: format!("{uid}-of-the-server").as_str().into(), since: Box::default() };
        let pod = |uid: &str| {
            Arc::new(LocalPod {
                uid: uid.into(),
                namespace: "shop".into(),
                name: uid.into(),
                service_account: "web".into(),
                addresses: Default::default(),
                enroll: true,
                answer_dns: None,
                annotated: Annotated::default(),
                captured: false,
                waypoint: false,
                special: Some(Box::new(Special { image: Some(image(uid)), ..Special::default() })),
            })
        };
        let outline = Outline {
            nodes: [("a".into(), [pod("u-1")].into()), ("b".into(), [pod("u-2")].into())].into(),
            ..Outline::default()
        };
        let fresh = |node: &str, _: &str| (node == "a").then_some(Capture::Measured);
        let due: Vec<String> =
            due(&fresh, &outline).into_iter().map(|(_, pod, _)| pod.uid.to_string()).collect();
        assert_eq!(due, ["u-1"]);
        let patch = Write { redirection: false, mark: Mark::Withdrawing }.patch(&outline.nodes["a"][0]);
        assert_eq!(patch["metadata"]["uid"], "u-1-of-the-server");
        assert!(patch["metadata"]["annotations"][REDIRECTION].is_null());
    }
}
