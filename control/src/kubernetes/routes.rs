//! How routes stand with their parents, and policies with their targets, said where people look: in their status.
//!
//! The leader writes the entries of our own controller's name, and leaves those of others alone.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};
use tracing::{debug, warn};

use super::{conditions::among, held::Held, kept::Whole, waypoints::CONTROLLER};
use crate::{
    compile::ParentStatus,
    manifest::{Kind, ObjectKey},
    shards::Outline,
};
use apiserver::{Api, ApiError};

/// After a change, until what was compiled is of that change: several changes are told as one.
const SETTLED: Duration = Duration::from_millis(500);
/// At most one write in this time.
const PACE: Duration = Duration::from_millis(20);
/// What could not be written is left alone for this time.
const AFTER_FAILURE: Duration = Duration::from_secs(10);
/// What was written is not written again before this time, unless something else is to be said.
const AGAIN: Duration = Duration::from_secs(600);

/// What is to be said of a version of a route.
type Said = (i64, Vec<ParentStatus>);

/// Keeps every route's status true, for as long as we lead.
pub async fn keep(
    api: Api,
    held: Arc<Held>,
    mut compiled: watch::Receiver<Arc<Outline>>,
    mut leading: watch::Receiver<bool>,
) {
    // By path: what was written or tried, and until when the same is not written again.
    let mut tried: HashMap<String, (Said, Instant)> = HashMap::new();
    let mut kept = held.kept.follow();
    while leading.wait_for(|leads| *leads).await.is_ok() {
        kept.mark_unchanged();
        // First what is there, then what was made of it: what is said must be of the version that it names.
        let before = held.kept.all(Kind::has_standings);
        sleep(SETTLED).await;
        let newest = compiled.borrow_and_update().clone();
        let mut now = held.kept.all(Kind::has_standings);
        now.retain(|key, whole| {
            before.get(key).is_some_and(|before| before.generation() == whole.generation())
        });
        tried.retain(|_, (_, until)| *until > Instant::now());
        for (fields, whole, wanted) in due(&now, &newest.routes_status) {
            if !*leading.borrow() {
                break;
            }
            let said = (whole.generation(), wanted.to_vec());
            if tried.get(&whole.path).is_some_and(|(tried, _)| *tried == said) {
                continue;
            }
            let pause = match write(&api, fields, &whole, wanted).await {
                Ok(true) => {
                    debug!(route = whole.path, "status written");
                    AGAIN
                }
                // It is gone, or another version of it is on its way to us.
                Ok(false) => Duration::ZERO,
                Err(error) if error.is_absent() || error.is_conflict() => Duration::ZERO,
                Err(error) => {
                    warn!(route = whole.path, "its status cannot be written: {error}; tried again");
                    AFTER_FAILURE
                }
            };
            tried.insert(whole.path.clone(), (said, Instant::now() + pause));
            sleep(PACE).await;
        }
        tokio::select! {
            changed = compiled.changed() => if changed.is_err() { return },
            _ = kept.changed() => {}
            () = sleep(AFTER_FAILURE) => {}
        }
    }
}

/// The routes that say something else than how they stand.
fn due<'s>(
    routes: &BTreeMap<ObjectKey, Arc<Whole>>,
    statuses: &'s BTreeMap<ObjectKey, Vec<ParentStatus>>,
) -> Vec<(Fields, Arc<Whole>, &'s [ParentStatus])> {
    let wanted = |key: &ObjectKey| statuses.get(key).map_or(&[][..], Vec::as_slice);
    let due = routes.iter().filter(|(key, whole)| {
        let fields = Fields::of(key.kind);
        let there = &whole.object["status"][fields.list];
        fields.entries(there, wanted(key), whole.generation(), Timestamp::now()).is_some()
    });
    due.map(|(key, whole)| (Fields::of(key.kind), whole.clone(), wanted(key))).collect()
}

/// Where it is said: a route has parents, a policy ancestors.
#[derive(Clone, Copy)]
struct Fields {
    list: &'static str,
    reference: &'static str,
}

impl Fields {
    const PARENTS: Self = Self { list: "parents", reference: "parentRef" };
    const ANCESTORS: Self = Self { list: "ancestors", reference: "ancestorRef" };

    fn of(kind: Kind) -> Self {
        if kind.is_route() { Self::PARENTS } else { Self::ANCESTORS }
    }

    /// The list as it is to be, unless it is so.
    fn entries(
        self,
        there: &Value,
        wanted: &[ParentStatus],
        generation: i64,
        now: Timestamp,
    ) -> Option<Value> {
        let is_ours = |entry: &&Value| entry["controllerName"] == CONTROLLER;
        let there = there.as_array().map_or(&[][..], Vec::as_slice);
        let mut all: Vec<Value> = there.iter().filter(|entry| !is_ours(entry)).cloned().collect();
        for ParentStatus { parent, conditions } in wanted {
            let reference = json!(parent);
            let before = there.iter().filter(is_ours).find(|entry| entry[self.reference] == reference);
            // What is not said any more is taken back.
            let before = before.and_then(|entry| entry["conditions"].as_array()).map(|before| {
                let said = |one: &&Value| conditions.iter().any(|condition| one["type"] == condition.kind);
                before.iter().filter(said).cloned().collect::<Value>()
            });
            all.push(json!({
                self.reference: reference,
                "controllerName": CONTROLLER,
                "conditions": among(&before.unwrap_or_default(), conditions, generation, now),
            }));
        }
        let same = all.len() == there.len() && all.iter().all(|entry| there.contains(entry));
        (!same).then(|| all.into())
    }
}

/// Whether it was written: not if another version is there.
async fn write(api: &Api, fields: Fields, whole: &Whole, wanted: &[ParentStatus]) -> Result<bool, ApiError> {
    let object = api.get(&whole.path).await?;
    if object["metadata"]["generation"].as_i64().unwrap_or_default() != whole.generation() {
        return Ok(false);
    }
    let there = &object["status"][fields.list];
    let Some(entries) = fields.entries(there, wanted, whole.generation(), Timestamp::now()) else {
        return Ok(false);
    };
    // The version: two writers must not undo each other's entries.
    let patch = json!({
        "metadata": {"resourceVersion": object["metadata"]["resourceVersion"]}, "status": {fields.list: entries},
    });
    api.patch(&format!("{}/status", whole.path), &patch).await.map(|_| true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{kubernetes::conditions::condition, manifest::Reference};

    fn parents(there: &Value, wanted: &[ParentStatus], generation: i64, now: Timestamp) -> Option<Value> {
        Fields::PARENTS.entries(there, wanted, generation, now)
    }

    fn parent(name: &str, conditions: &[(&'static str, bool)]) -> ParentStatus {
        let reference = json!({"group": "", "kind": "Service", "name": name, "port": 80});
        let parent: Reference = serde_json::from_value(reference).unwrap();
        let conditions = conditions.iter().map(|(kind, status)| condition(kind, *status, "Reason", ""));
        ParentStatus { parent, conditions: conditions.collect() }
    }

    #[test]
    fn our_entries_are_kept_true_and_others_are_left_alone() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let other =
            json!({"parentRef": {"name": "gw"}, "controllerName": "other.example/x", "conditions": []});
        let there = json!([other]);
        let wanted = [
            parent("web", &[("Accepted", true), ("PartiallyInvalid", true)]),
            parent("api", &[("Accepted", false)]),
        ];
        let first = parents(&there, &wanted, 1, at(1_000_000)).unwrap();
        assert_eq!((first.as_array().unwrap().len(), &first[0]), (3, &other));
        let reference = json!({"group": "", "kind": "Service", "name": "web", "port": 80});
        assert_eq!(first[1]["parentRef"], reference, "as it was written");
        assert_eq!(parents(&first, &wanted, 1, at(2_000_000)), None, "said once");
        // In another order it is the same.
        let turned = json!([first[2], first[1], first[0]]);
        assert_eq!(parents(&turned, &wanted, 1, at(2_000_000)), None);
        // A condition that holds no more goes, and a parent that is named no more.
        let second = parents(&first, &[parent("web", &[("Accepted", true)])], 2, at(2_000_000)).unwrap();
        let conditions = second[1]["conditions"].as_array().unwrap();
        assert_eq!((second.as_array().unwrap().len(), conditions.len()), (2, 1));
        assert_eq!(conditions[0]["lastTransitionTime"], "1970-01-12T13:46:40Z");
        assert_eq!(conditions[0]["observedGeneration"], 2);
        assert_eq!(parents(&second, &[], 3, at(3_000_000)), Some(json!([other])));
        assert_eq!(parents(&Value::Null, &[], 3, at(3_000_000)), None, "a route of nobody's");
    }

    #[test]
    fn a_policy_says_it_of_its_ancestors() {
        let wanted = [parent("web", &[("Accepted", true)])];
        let said =
            Fields::of(Kind::BackendTLSPolicy).entries(&Value::Null, &wanted, 1, Timestamp::now()).unwrap();
        assert_eq!(said[0]["ancestorRef"]["name"], "web");
        assert_eq!(said[0]["controllerName"], CONTROLLER);
    }
}
