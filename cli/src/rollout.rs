//! Whether every node has its programs, and why not: the containers' own words, and the pods' events.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::bail;
use serde_json::Value;

use crate::{
    manifests::{NAME, PART_OF},
    object::{self, items, text},
};
use apiserver::{Api, ApiError};

const EVERY: Duration = Duration::from_millis(500);
/// What is told of a reason beside a node's name, in characters.
const ROOM: usize = 70;
/// The programs, with the kind of what makes their pods.
pub(crate) const PROGRAMS: [(&str, &str); 3] =
    [("control", "Deployment"), ("agent", "DaemonSet"), ("ztunnel", "DaemonSet")];

/// How one pod of the mesh's own stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Standing {
    pub(crate) program: String,
    pub(crate) pod: String,
    pub(crate) node: String,
    pub(crate) ready: bool,
    /// What it waits for, where it is not ready.
    pub(crate) why: String,
}

/// The pods of the mesh's own.
pub(crate) async fn pods(api: &Api, namespace: &str) -> Result<Vec<Value>, ApiError> {
    api.list(&format!("/api/v1/namespaces/{namespace}/pods"), &format!("{PART_OF}=culvert")).await
}

/// Waits until all are there and ready, telling of each that comes.
pub(crate) async fn wait(api: &Api, namespace: &str, limit: Duration) -> anyhow::Result<()> {
    let start = Instant::now();
    let mut told: BTreeMap<String, String> = BTreeMap::new();
    loop {
        let pods = pods(api, namespace).await?;
        let workloads = workloads(api, namespace).await?;
        let standings: Vec<Standing> =
            pods.iter().filter(|pod| pod["metadata"]["deletionTimestamp"].is_null()).map(standing).collect();
        for one in &standings {
            let said = if one.ready { "ready".to_owned() } else { shortened(&one.why, ROOM) };
            let known = told.insert(one.pod.clone(), said.clone());
            if known.as_ref() != Some(&said) {
                let seconds = start.elapsed().as_secs();
                println!("  {seconds:>4} s  {:<8} {:<24} {said}", one.program, one.node);
            }
        }
        let missing: Vec<String> = workloads.iter().filter_map(unfinished).collect();
        if missing.is_empty() {
            return Ok(());
        }
        if start.elapsed() > limit {
            let mut text = missing.join("\n  ");
            for one in standings.iter().filter(|one| !one.ready) {
                let said = last_event(api, namespace, &one.pod).await;
                text.push_str(&format!("\n  {} on {}: {}{said}", one.pod, one.node, one.why));
            }
            let more = standings.iter().filter(|one| !one.ready).find_map(|one| image_advice(&one.why));
            bail!(
                "not every node has its programs after {} s:\n  {text}\n  {}",
                limit.as_secs(),
                more.unwrap_or("`culvert check` says more")
            );
        }
        tokio::time::sleep(EVERY).await;
    }
}

/// What has room on a line; in full it is told if it stays so.
pub(crate) fn shortened(why: &str, room: usize) -> String {
    let first = why.lines().next().unwrap_or_default();
    match first.char_indices().nth(room) {
        Some((end, _)) => format!("{}…", &first[..end]),
        None => first.to_owned(),
    }
}

/// What to do where a node has no image to run; its container never ran, and has no log.
pub(crate) fn image_advice(why: &str) -> Option<&'static str> {
    // As `why` of a pod begins: the container, then the reason.
    let reason = why.split(": ").nth(1)?;
    ["ErrImagePull", "ImagePullBackOff", "ErrImageNeverPull", "InvalidImageName"].contains(&reason).then_some(
        "push the image to where the nodes pull from, or load it into them (kind load docker-image), or say where it \
         is: culvert install --registry, --tag (helm: image.registry, image.tag); docs/kubernetes.md, \"Where the \
         images come from\"",
    )
}

/// The Deployment and the DaemonSets, as they are; one that is missing is only named.
pub(crate) async fn workloads(api: &Api, namespace: &str) -> Result<Vec<Value>, ApiError> {
    let mut found = Vec::new();
    for (program, kind) in PROGRAMS {
        let path = format!("{}/{program}", object::collection(kind, namespace));
        let mut object = api.find(&path).await?.unwrap_or_default();
        object["kind"] = kind.into();
        object["metadata"]["name"] = program.into();
        found.push(object);
    }
    Ok(found)
}

/// What is missing of a Deployment or a DaemonSet; `None` where all its pods are of its newest form and ready.
pub(crate) fn unfinished(object: &Value) -> Option<String> {
    let (kind, name, status) = (text(&object["kind"]), object::name(object), &object["status"]);
    if status.is_null() {
        return Some(format!("there is no {kind} {name}"));
    }
    let count = |field: &str| status[field].as_u64().unwrap_or(0);
    if status["observedGeneration"].as_u64() < object["metadata"]["generation"].as_u64() {
        return Some(format!("{kind} {name}: its newest form was not taken up yet"));
    }
    let (wanted, updated, ready, all) = if kind == "DaemonSet" {
        let wanted = count("desiredNumberScheduled");
        (wanted, count("updatedNumberScheduled"), count("numberAvailable"), wanted)
    } else {
        let wanted = object["spec"]["replicas"].as_u64().unwrap_or(1);
        (wanted, count("updatedReplicas"), count("availableReplicas"), count("replicas"))
    };
    let done = updated >= wanted && ready >= wanted && all <= wanted;
    (!done).then(|| format!("{kind} {name}: {ready} of {wanted} ready, {updated} of the newest form"))
}

/// How a pod stands.
pub(crate) fn standing(pod: &Value) -> Standing {
    let status = &pod["status"];
    let condition = |name: &str| items(&status["conditions"]).iter().find(move |one| one["type"] == name);
    let ready = condition("Ready").is_some_and(|one| one["status"] == "True");
    let node = match text(&pod["spec"]["nodeName"]) {
        "" => "(no node)",
        node => node,
    };
    Standing {
        program: object::label(pod, NAME).unwrap_or_default().to_owned(),
        pod: object::name(pod).to_owned(),
        node: node.to_owned(),
        ready,
        why: if ready { String::new() } else { why(pod) },
    }
}

/// In words, why a pod is not ready: what its containers wait for, else what the scheduler says.
fn why(pod: &Value) -> String {
    let status = &pod["status"];
    let lists = [&status["initContainerStatuses"], &status["containerStatuses"]];
    for container in lists.into_iter().flat_map(items) {
        let (state, name) = (&container["state"], text(&container["name"]));
        let last = &container["lastState"]["terminated"];
        let waiting = &state["waiting"];
        match text(&waiting["reason"]) {
            "" | "PodInitializing" => {}
            "ContainerCreating" => return "ContainerCreating".to_owned(),
            reason => {
                let message = text(&waiting["message"]);
                let ended = if last.is_null() {
                    String::new()
                } else {
                    format!("; it ended with exit code {}", last["exitCode"])
                };
                return format!("{name}: {reason}: {message}{ended}");
            }
        }
        let ended = &state["terminated"];
        if !ended.is_null() && ended["exitCode"] != 0 {
            return format!("{name}: ended with exit code {}: {}", ended["exitCode"], text(&ended["reason"]));
        }
    }
    let scheduled = items(&status["conditions"]).iter().find(|one| one["type"] == "PodScheduled");
    match scheduled {
        Some(one) if one["status"] == "False" => format!("no node takes it: {}", text(&one["message"])),
        _ => match text(&status["phase"]) {
            "Running" => "it runs, and is not ready yet".to_owned(),
            "" => "it is being made".to_owned(),
            phase => phase.to_owned(),
        },
    }
}

/// What the newest warning about a pod says, on a line of its own.
pub(crate) async fn last_event(api: &Api, namespace: &str, pod: &str) -> String {
    let mut query = form_urlencoded::Serializer::new(String::new());
    query.append_pair("fieldSelector", &format!("involvedObject.name={pod},type=Warning"));
    let events = api.get(&format!("/api/v1/namespaces/{namespace}/events?{}", query.finish())).await;
    let Ok(events) = events else { return String::new() };
    newest(items(&events["items"])).map_or_else(String::new, |said| format!("\n    {said}"))
}

fn newest(events: &[Value]) -> Option<String> {
    let time = |event: &Value| {
        let times = [&event["lastTimestamp"], &event["eventTime"], &event["metadata"]["creationTimestamp"]];
        times.into_iter().map(text).find(|time| !time.is_empty()).unwrap_or_default().to_owned()
    };
    let event = events.iter().max_by_key(|event| time(event))?;
    Some(format!("{}: {}", text(&event["reason"]), text(&event["message"])))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn why_a_pod_is_not_ready_is_told_in_its_own_words() {
        let waiting = |reason: &str, message: &str| {
            json!({"containerStatuses": [
            {"name": "agent", "state": {"waiting": {"reason": reason, "message": message}},
             "lastState": {"terminated": {"exitCode": 1}}}]})
        };
        for (status, says) in [
            (
                waiting("ImagePullBackOff", "no such image"),
                "ImagePullBackOff: no such image; it ended with exit code 1",
            ),
            (waiting("ContainerCreating", ""), "ContainerCreating"),
            (
                json!({"conditions": [{"type": "PodScheduled", "status": "False", "message": "0/2 nodes"}]}),
                "0/2 nodes",
            ),
            (json!({"phase": "Running"}), "not ready yet"),
            (
                json!({"initContainerStatuses": [{"name": "mount-bpffs", "state":
                {"terminated": {"exitCode": 2, "reason": "Error"}}}]}),
                "mount-bpffs: ended with exit code 2: Error",
            ),
        ] {
            let pod = json!({"metadata": {"name": "p"}, "status": status});
            let standing = standing(&pod);
            assert!(!standing.ready && standing.why.contains(says), "{standing:?}");
        }
        let pod = json!({"metadata": {"name": "p"}, "status": {"conditions": [{"type": "Ready", "status": "True"}]}});
        assert!(standing(&pod).ready);
    }

    #[test]
    fn an_image_that_is_nowhere_is_told_from_a_program_that_fails() {
        assert!(
            image_advice("agent: ImagePullBackOff: Back-off").is_some_and(|said| said.contains("kind load"))
        );
        assert!(image_advice("mount-bpffs: ErrImageNeverPull: x").is_some());
        assert_eq!(image_advice("agent: CrashLoopBackOff: ErrImagePull: back-off"), None);
        assert_eq!(image_advice("ContainerCreating"), None);
        assert_eq!((shortened("abc\nd", 3).as_str(), shortened("äbcd", 3).as_str()), ("abc", "äbc…"));
    }

    #[test]
    fn a_rollout_is_over_when_all_are_new_and_ready() {
        let set = |generation: u64, updated: u64, ready: u64| {
            json!({
            "kind": "DaemonSet", "metadata": {"name": "agent", "generation": generation},
            "status": {"observedGeneration": 2, "desiredNumberScheduled": 3, "updatedNumberScheduled": updated,
                       "numberAvailable": ready}})
        };
        assert_eq!(unfinished(&set(2, 3, 3)), None);
        assert!(unfinished(&set(3, 3, 3)).is_some() && unfinished(&set(2, 2, 3)).is_some());
        assert!(unfinished(&set(2, 3, 2)).is_some_and(|said| said.contains("2 of 3 ready")));
        let old = json!({"kind": "Deployment", "metadata": {"name": "control"}, "spec": {"replicas": 1},
            "status": {"replicas": 2, "updatedReplicas": 1, "availableReplicas": 1}});
        assert!(unfinished(&old).is_some());
        assert!(unfinished(&json!({"kind": "Deployment", "metadata": {"name": "control"}})).is_some());
    }

    #[test]
    fn the_newest_event_speaks() {
        let event = |time: &str, said: &str| json!({"lastTimestamp": time, "reason": "R", "message": said});
        let events = [event("2026-01-01T00:00:02Z", "new"), event("2026-01-01T00:00:01Z", "old")];
        assert_eq!(newest(&events).as_deref(), Some("R: new"));
    }
}
