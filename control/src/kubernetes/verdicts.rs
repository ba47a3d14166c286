//! What control makes of the manifests that people wrote, said where they look: in the objects' status.
//!
//! The leader writes one condition, `culvert.dev/Accepted`, and leaves those of others alone.

use std::{
    collections::{BTreeMap, HashMap},
    fmt::Write,
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

use super::{
    held::{Held, Name},
    kinds::Place,
    refused::Instead,
};
use crate::{
    manifest::{Kind, ObjectKey, Problem, Severity},
    shards::Outline,
};
use apiserver::{Api, ApiError};

/// The type of our condition.
pub const ACCEPTED: &str = "culvert.dev/Accepted";
/// The reason of a refusal of what was accepted in an earlier version.
const AFTER_ACCEPTED: &str = "RefusedAfterAccepted";
/// After a change, until what was compiled is of that change: several changes are told as one.
const SETTLED: Duration = Duration::from_secs(1);
/// At most one write in this time.
const PACE: Duration = Duration::from_millis(20);
/// What could not be written is left alone for this time.
const AFTER_FAILURE: Duration = Duration::from_secs(10);
/// What was written is not written again before this time, unless something else is to be said.
const AGAIN: Duration = Duration::from_secs(600);
/// Words of a condition that are more than a person reads; the API server's own bound is 32 KiB.
const MOST_WORDS: usize = 2048;

/// Whether people write objects of this kind for us to act on.
pub fn is_judged(kind: Kind) -> bool {
    match kind {
        Kind::AuthorizationPolicy
        | Kind::PeerAuthentication
        | Kind::RequestAuthentication
        | Kind::ServiceEntry
        | Kind::WorkloadEntry => true,
        Kind::Namespace
        | Kind::Node
        | Kind::Pod
        | Kind::Service
        | Kind::EndpointSlice
        | Kind::Gateway
        | Kind::HTTPRoute
        | Kind::GRPCRoute
        | Kind::TLSRoute
        | Kind::TCPRoute
        | Kind::ReferenceGrant
        | Kind::BackendTLSPolicy
        | Kind::ConfigMap => false,
    }
}

/// An object as its writer left it, and what is said of it there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    /// Path of the object at the API server.
    path: String,
    generation: i64,
    verdict: Option<Verdict>,
    /// The version of the object that the verdict is about.
    about: i64,
    /// What holds in its place, if it is refused.
    pub(super) instead: Option<Instead>,
}

/// What is made of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    accepted: bool,
    reason: String,
    words: String,
}

impl Said {
    /// Of an object as the API server has it, before anything is taken out.
    pub fn of(place: &Place, name: &Name, object: &Value) -> Self {
        let conditions = object["status"]["conditions"].as_array().into_iter().flatten();
        let ours = conditions.into_iter().find(|condition| condition["type"] == ACCEPTED);
        let text = |condition: &Value, key: &str| condition[key].as_str().unwrap_or_default().to_owned();
        Self {
            path: place.object(name),
            generation: object["metadata"]["generation"].as_i64().unwrap_or_default(),
            verdict: ours.map(|condition| Verdict {
                accepted: condition["status"] == "True",
                reason: text(condition, "reason"),
                words: text(condition, "message"),
            }),
            about: ours.and_then(|condition| condition["observedGeneration"].as_i64()).unwrap_or_default(),
            instead: None,
        }
    }

    /// Whether some version of the object was accepted.
    pub(super) fn was_accepted(&self) -> bool {
        self.verdict.as_ref().is_some_and(|verdict| verdict.accepted || verdict.reason == AFTER_ACCEPTED)
    }
}

impl Verdict {
    /// From all that is to be said of one object, and what holds in its place.
    fn of(problems: &[&Problem], instead: Option<Instead>) -> Self {
        let accepted = problems.iter().all(|problem| problem.severity != Severity::Refused);
        let reason = match (accepted, problems.is_empty()) {
            (true, true) => "Accepted",
            (true, false) => "AcceptedWithWarnings",
            // Whoever starts anew knows by it that something is to hold in its place.
            (false, _) if instead.is_some_and(Instead::is_after_accepted) => AFTER_ACCEPTED,
            (false, _) => "Refused",
        };
        let mut words = String::new();
        for problem in problems {
            let gap = if words.is_empty() { "" } else { "; " };
            let colon = if problem.field.is_empty() { "" } else { ": " };
            _ = write!(words, "{gap}{}{colon}{}", problem.field, problem.reason);
        }
        if words.len() > MOST_WORDS {
            let cut = words.floor_char_boundary(MOST_WORDS);
            words.truncate(cut);
            words.push('…');
        }
        Self { accepted, reason: reason.to_owned(), words }
    }

    /// The object's conditions with ours among them.
    fn among(&self, conditions: &Value, generation: i64, now: Timestamp) -> Value {
        let status = if self.accepted { "True" } else { "False" };
        let all = conditions.as_array().map_or(&[][..], Vec::as_slice);
        let before = all.iter().find(|condition| condition["type"] == ACCEPTED);
        // It says since when the status is what it is, not the words.
        let since = before.filter(|before| before["status"] == status);
        let since = since.and_then(|before| before["lastTransitionTime"].as_str().map(str::to_owned));
        let ours = json!({
            "type": ACCEPTED, "status": status, "reason": self.reason, "message": self.words,
            "observedGeneration": generation,
            "lastTransitionTime": since.unwrap_or_else(|| now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()),
        });
        let mut now = all.to_vec();
        match now.iter_mut().find(|condition| condition["type"] == ACCEPTED) {
            Some(place) => *place = ours,
            None => now.push(ours),
        }
        Value::Array(now)
    }
}

/// Keeps every object's condition true, for as long as we lead.
pub async fn keep(
    api: Api,
    held: Arc<Held>,
    mut compiled: watch::Receiver<Arc<Outline>>,
    mut leading: watch::Receiver<bool>,
) {
    // What was written or tried, and until when the same is not written again: whoever takes it away again and again,
    // or an API server that does not keep it, is not fought.
    let mut tried: HashMap<String, (i64, Verdict, Instant)> = HashMap::new();
    while leading.wait_for(|leads| *leads).await.is_ok() {
        // First what is there, then what was made of it: a verdict must be of the version that it names.
        let before = held.said();
        sleep(SETTLED).await;
        let newest = compiled.borrow_and_update().clone();
        let now = held.said();
        let same: BTreeMap<ObjectKey, Said> = before
            .into_iter()
            .filter(|(key, said)| now.get(key).is_some_and(|now| now.generation == said.generation))
            .filter_map(|(key, _)| now.get(&key).map(|now| (key, now.clone())))
            .collect();
        tried.retain(|_, (_, _, until)| *until > Instant::now());
        for (said, wanted) in due(&same, newest.problems.iter()) {
            if !*leading.borrow() {
                break;
            }
            let again = |(generation, verdict, _): &(i64, Verdict, Instant)| {
                *generation == said.generation && *verdict == wanted
            };
            if tried.get(&said.path).is_some_and(again) {
                continue;
            }
            let pause = match write(&api, &said, &wanted).await {
                Ok(true) => {
                    debug!(object = said.path, accepted = wanted.accepted, "condition written");
                    AGAIN
                }
                // It is gone, or another version of it is on its way to us.
                Ok(false) => Duration::ZERO,
                Err(error) if error.is_absent() || error.is_conflict() => Duration::ZERO,
                Err(error) => {
                    warn!(object = said.path, "its condition cannot be written: {error}; tried again");
                    AFTER_FAILURE
                }
            };
            tried.insert(said.path, (said.generation, wanted, Instant::now() + pause));
            sleep(PACE).await;
        }
        // Our own writes come back by the watch, and make nothing to compile.
        tokio::select! {
            changed = compiled.changed() => if changed.is_err() { return },
            () = sleep(AFTER_FAILURE) => {}
        }
    }
}

/// The objects that say something else than what holds, and what they are to say.
fn due<'p>(said: &BTreeMap<ObjectKey, Said>, all: impl Iterator<Item = &'p Problem>) -> Vec<(Said, Verdict)> {
    let mut problems: HashMap<&ObjectKey, Vec<&Problem>> = HashMap::new();
    for problem in all {
        if let Some(object) = &problem.object {
            problems.entry(object).or_default().push(problem);
        }
    }
    let due = said.iter().filter_map(|(key, said)| {
        let wanted = Verdict::of(problems.get(key).map_or(&[], Vec::as_slice), said.instead);
        let same = said.verdict.as_ref() == Some(&wanted) && said.about == said.generation;
        (!same).then(|| (said.clone(), wanted))
    });
    due.collect()
}

/// Whether it was written: not if another version is there.
async fn write(api: &Api, said: &Said, wanted: &Verdict) -> Result<bool, ApiError> {
    let object = api.get(&said.path).await?;
    // What was judged is not what is there any more: the watch tells in a moment.
    if object["metadata"]["generation"].as_i64().unwrap_or_default() != said.generation {
        return Ok(false);
    }
    let conditions = wanted.among(&object["status"]["conditions"], said.generation, Timestamp::now());
    // The version: two writers must not undo each other's conditions.
    let patch = json!({
        "metadata": {"resourceVersion": object["metadata"]["resourceVersion"]},
        "status": {"conditions": conditions},
    });
    api.patch(&format!("{}/status", said.path), &patch).await.map(|_| true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> ObjectKey {
        ObjectKey { kind: Kind::AuthorizationPolicy, namespace: "shop".into(), name: name.into() }
    }

    fn object(name: &str, generation: i64, conditions: Value) -> Said {
        let object = json!({
            "metadata": {"name": name, "namespace": "shop", "generation": generation},
            "status": {"conditions": conditions},
        });
        let place = Place::at("/apis/security.istio.io/v1/authorizationpolicies", "security.istio.io/v1");
        Said::of(&place, &Name::of(&object).unwrap(), &object)
    }

    fn ours(status: &str, reason: &str, message: &str, generation: i64) -> Value {
        json!({"type": ACCEPTED, "status": status, "reason": reason, "message": message,
            "observedGeneration": generation})
    }

    #[test]
    fn only_what_is_not_said_yet_is_written() {
        let refused = Problem::about(&key("bad"), Severity::Refused, "spec.action", "no such action");
        let warned = Problem::about(&key("odd"), Severity::Warning, "", "selects nothing");
        let problems = [refused, warned];
        let said = BTreeMap::from([
            (key("new"), object("new", 1, Value::Null)),
            (key("fine"), object("fine", 3, json!([ours("True", "Accepted", "", 3)]))),
            (key("edited"), object("edited", 4, json!([ours("True", "Accepted", "", 3)]))),
            (key("bad"), object("bad", 1, json!([ours("True", "Accepted", "", 1)]))),
            (
                key("odd"),
                object("odd", 1, json!([ours("True", "AcceptedWithWarnings", "selects nothing", 1)])),
            ),
        ]);
        let due: Vec<(String, bool, String)> = due(&said, problems.iter())
            .into_iter()
            .map(|(said, wanted)| (said.path, wanted.accepted, wanted.words))
            .collect();
        let path =
            |name: &str| format!("/apis/security.istio.io/v1/namespaces/shop/authorizationpolicies/{name}");
        let why = "spec.action: no such action";
        assert_eq!(
            due,
            [
                (path("bad"), false, why.to_owned()),
                (path("edited"), true, String::new()),
                (path("new"), true, String::new()),
            ]
        );
    }

    #[test]
    fn the_reason_tells_whether_a_version_was_accepted() {
        let refused = Problem::about(&key("bad"), Severity::Refused, "", "no such field");
        for (instead, reason) in [
            (Some(Instead::Last), "RefusedAfterAccepted"),
            (Some(Instead::Strictest), "RefusedAfterAccepted"),
            (Some(Instead::Nothing), "Refused"),
            (None, "Refused"),
        ] {
            let verdict = Verdict::of(&[&refused], instead);
            assert_eq!((verdict.reason.as_str(), verdict.accepted), (reason, false), "{instead:?}");
            let conditions = json!([ours("False", &verdict.reason, "", 1)]);
            assert_eq!(
                object("bad", 2, conditions).was_accepted(),
                reason != "Refused",
                "a restart knows by it"
            );
        }
    }

    #[test]
    fn conditions_of_others_stay_and_the_time_is_that_of_the_last_turn() {
        let verdict = |accepted, words: &str| Verdict {
            accepted,
            reason: "Accepted".to_owned(),
            words: words.to_owned(),
        };
        let first = Timestamp::from_second(1_000_000).unwrap();
        let later = Timestamp::from_second(2_000_000).unwrap();
        let others = json!([{"type": "ZtunnelAccepted", "status": "True"}]);
        let one = verdict(true, "").among(&others, 1, first);
        assert_eq!((one.as_array().unwrap().len(), &one[0]), (2, &others[0]));
        assert_eq!(one[1]["lastTransitionTime"], "1970-01-12T13:46:40Z");
        let two = verdict(true, "but").among(&one, 2, later);
        assert_eq!(
            (&two[1]["lastTransitionTime"], &two[1]["message"]),
            (&one[1]["lastTransitionTime"], &json!("but"))
        );
        let three = verdict(false, "no").among(&two, 3, later);
        assert_eq!(three[1]["lastTransitionTime"], "1970-01-24T03:33:20Z");
        assert_eq!((&three[1]["status"], &three[1]["observedGeneration"]), (&json!("False"), &json!(3)));
    }

    #[test]
    fn words_have_a_bound() {
        let problem = Problem::about(&key("x"), Severity::Warning, "", "ä".repeat(3000));
        let words = Verdict::of(&[&problem], None).words;
        assert!(words.len() <= MOST_WORDS + '…'.len_utf8() && words.ends_with('…'));
    }
}
