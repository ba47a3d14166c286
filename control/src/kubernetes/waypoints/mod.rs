//! Waypoints on Kubernetes: a Gateway of ours is deployed, kept as it is to be, and told what became of it. By the
//! leader alone.
//!
//! ```text
//! Gateway ─▶ objects: ServiceAccount, Service, Deployment, ─▶ server-side apply ◀─ edited: somebody else's hand
//!    ▲                 where asked for HPA and PDB, else taken away    │
//!    ▲                 and the roots, once for each namespace        │
//!    └── status: Accepted, Programmed, addresses, listeners ◀── pods and Service, as they are held
//! ```

mod class;
mod edited;
mod objects;
mod scale;
mod status;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
    time::Duration,
};

use identity::authority::Authority;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};
use tracing::{debug, info, warn};

pub use self::{
    class::CONTROLLER,
    objects::{Mesh, Pods},
};
use self::{
    class::Classes,
    edited::{Edited, version},
    objects::{GATEWAY_NAME, MANAGED_BY, MANAGER, Wanted, class, names, roots, wanted},
    status::{Facts, Hindrance, differs, status},
};
use super::{held::Held, kept::Whole};
use crate::manifest::Kind;
use apiserver::{Api, ApiError};

/// Who has applied what control applies.
const FIELD_MANAGER: &str = "culvert-control";
/// Who has said how many pods there are, where control said it and does so no more.
const HANDOVER_MANAGER: &str = "culvert-control-replicas";
/// Several changes are looked at as one.
const SETTLED: Duration = Duration::from_millis(300);
/// What is as it should be is applied again after this time: nobody watches all of it.
const AGAIN: Duration = Duration::from_secs(300);
/// After a failure it is tried again.
const AFTER_FAILURE: Duration = Duration::from_secs(3);
/// At most one write in this time.
const PACE: Duration = Duration::from_millis(20);
/// What was written in a status is not written again before this time, unless something else is to be said.
const SAID: Duration = Duration::from_secs(30);

/// Keeps waypoints deployed.
pub struct Keeper {
    pub api: Api,
    pub held: Arc<Held>,
    /// Without them nothing is deployed, and Gateways are told of what others have deployed.
    pub pods: Option<Arc<Pods>>,
    pub mesh: Mesh,
    pub signs: watch::Receiver<Arc<Authority>>,
    pub leading: watch::Receiver<bool>,
}

/// What was applied together, by the Gateway it is for (or the namespace, of the roots).
struct Applied {
    /// Of what was wanted.
    digest: u64,
    /// Path and version of each.
    versions: Vec<(String, String)>,
    outcome: Result<(), Hindrance>,
    again: Instant,
}

/// What is done and known while we lead.
#[derive(Default)]
struct Term {
    classes: Classes,
    edited: Arc<Edited>,
    /// By namespace and Gateway; the roots of a namespace under no name.
    applied: HashMap<(String, String), Applied>,
    /// By path: the status that was written, and until when it is not written again.
    said: HashMap<String, (Value, Instant)>,
}

impl Keeper {
    /// Never ends while somebody is elected.
    pub async fn run(mut self) {
        while self.leading.wait_for(|leads| *leads).await.is_ok() {
            let mut term = Term::default();
            let follow = term.edited.clone().follow(self.api.clone());
            let mut leading = self.leading.clone();
            tokio::select! {
                () = self.lead(&mut term) => {}
                () = follow => {}
                _ = leading.wait_for(|leads| !leads) => {}
            }
        }
    }

    async fn lead(&self, term: &mut Term) {
        let (mut objects, mut gateways) = (self.held.follow(), self.held.kept.follow());
        let (mut signs, edited) = (self.signs.clone(), term.edited.clone());
        loop {
            objects.mark_unchanged();
            gateways.mark_unchanged();
            signs.mark_unchanged();
            self.turn(term).await;
            tokio::select! {
                _ = objects.changed() => {}
                _ = gateways.changed() => {}
                _ = signs.changed() => {}
                () = edited.changed() => {}
                () = sleep(AFTER_FAILURE) => {}
            }
            sleep(SETTLED).await;
        }
    }

    async fn turn(&self, term: &mut Term) {
        term.classes.look(&self.api).await;
        let all = self.held.kept.all(|kind| kind == Kind::Gateway);
        let ours: Vec<Arc<Whole>> = all
            .into_values()
            .filter(|whole| term.classes.has(class(&whole.object)))
            .filter(|whole| whole.object["metadata"]["deletionTimestamp"].is_null())
            .collect();
        let now = Instant::now();
        term.said.retain(|_, (_, until)| now < *until);
        let there = |(namespace, name): &(String, String)| {
            ours.iter().any(|whole| {
                let (of_name, of_namespace) = names(&whole.object);
                of_namespace == namespace && (name.is_empty() || of_name == name)
            })
        };
        term.applied.retain(|key, _| there(key));
        let applied: HashSet<&str> =
            term.applied.values().flat_map(|applied| &applied.versions).map(|(path, _)| &**path).collect();
        term.edited.retain(|path| applied.contains(path));
        if let Some(pods) = &self.pods {
            self.deploy(term, pods, &ours).await;
        }
        for whole in &ours {
            self.tell(term, whole).await;
        }
    }

    /// Applies what is due, the roots of a namespace before its waypoints.
    async fn deploy(&self, term: &mut Term, pods: &Pods, ours: &[Arc<Whole>]) {
        let bundle = self.signs.borrow().trusted_pem().to_owned();
        let mut by_namespace: BTreeMap<&str, Vec<&Value>> = BTreeMap::new();
        for whole in ours {
            by_namespace.entry(names(&whole.object).1).or_default().push(&whole.object);
        }
        for (namespace, gateways) in by_namespace {
            // Its own are kept there as long as control runs.
            if namespace != self.mesh.system {
                let key = (namespace.to_owned(), String::new());
                self.apply(term, key, None, Ok(vec![roots(namespace, &gateways, &bundle)])).await;
            }
            let of_roots = term.applied.get(&(namespace.to_owned(), String::new()));
            let taken = match of_roots.map(|applied| &applied.outcome) {
                Some(Err(taken @ Hindrance::Taken(_))) => Some(taken.clone()),
                _ => None,
            };
            for gateway in gateways {
                let (name, namespace) = names(gateway);
                let key = (namespace.to_owned(), name.to_owned());
                let wanted = wanted(gateway, pods, &self.mesh).map_err(Hindrance::Unfit);
                // By somebody else's roots a waypoint would believe somebody else.
                let wanted = taken.clone().map_or(wanted, Err);
                self.apply(term, key, Some(gateway), wanted).await;
            }
        }
    }

    /// Applies what is wanted for `gateway`, if it is not there, or was changed by others, or it is time.
    async fn apply(
        &self,
        term: &mut Term,
        key: (String, String),
        gateway: Option<&Value>,
        wanted: Result<Vec<Wanted>, Hindrance>,
    ) {
        let digest = digest(&wanted);
        let is_edited = |(path, version): &(String, String)| term.edited.is(path, version);
        let due = term.applied.get(&key).is_none_or(|applied| {
            applied.digest != digest
                || Instant::now() >= applied.again
                || applied.versions.iter().any(is_edited)
        });
        if !due {
            return;
        }
        let mut applied =
            Applied { digest, versions: Vec::new(), outcome: Ok(()), again: Instant::now() + AGAIN };
        match wanted {
            Err(hindrance) => applied.outcome = Err(hindrance),
            Ok(wanted) => {
                for one in wanted {
                    match self.apply_one(&one, gateway).await {
                        Ok(version) => {
                            term.edited.applied(&one.path, &version);
                            applied.versions.push((one.path, version));
                        }
                        Err(hindrance) => {
                            applied.outcome = Err(hindrance);
                            applied.again = Instant::now() + AFTER_FAILURE;
                            break;
                        }
                    }
                    sleep(PACE).await;
                }
                if let (Ok(()), Some(gateway)) = (&applied.outcome, gateway)
                    && let Err(hindrance) = self.take_away(gateway, &applied.versions).await
                {
                    applied.outcome = Err(hindrance);
                    applied.again = Instant::now() + AFTER_FAILURE;
                }
            }
        }
        let (namespace, name) = &key;
        let before = term.applied.get(&key).map(|before| (before.digest, before.outcome.clone()));
        if before != Some((digest, applied.outcome.clone())) {
            match &applied.outcome {
                Ok(()) => info!(namespace, gateway = name, "what is wanted of the waypoint is applied"),
                Err(why) => warn!(namespace, gateway = name, ?why, "the waypoint is not as it is wanted"),
            }
        }
        term.applied.insert(key, applied);
    }

    /// The version that was applied. What is somebody else's is not taken over.
    async fn apply_one(&self, wanted: &Wanted, gateway: Option<&Value>) -> Result<String, Hindrance> {
        let Wanted { path, object } = wanted;
        let waits = |error: ApiError| Hindrance::Waits(format!("{path}: {error}"));
        if let Some(there) = self.api.find(path).await.map_err(waits)? {
            match gateway {
                Some(gateway) => whose(&there, gateway, path)?,
                None => whose_roots(&there, path)?,
            }
            if let Some(kept) = handover(&there, object) {
                let path = format!("{path}?fieldManager={HANDOVER_MANAGER}&force=true");
                self.api.apply(&path, &kept).await.map_err(waits)?;
            }
        }
        let path = format!("{path}?fieldManager={FIELD_MANAGER}&force=true");
        self.api.apply(&path, object).await.map(|applied| version(&applied)).map_err(waits)
    }

    /// Takes away what was made once, and is asked for no more. What is somebody else's stays.
    async fn take_away(&self, gateway: &Value, applied: &[(String, String)]) -> Result<(), Hindrance> {
        for path in scale::paths(gateway) {
            if applied.iter().any(|(of, _)| *of == path) {
                continue;
            }
            let waits = |error: ApiError| Hindrance::Waits(format!("{path}: {error}"));
            let there = self.api.find(&path).await.map_err(waits)?;
            if there.is_some_and(|there| whose(&there, gateway, &path).is_ok()) {
                self.api.delete(&path).await.map_err(waits)?;
                info!(path, "it is asked for no more, and taken away");
            }
            sleep(PACE).await;
        }
        Ok(())
    }

    /// Writes a Gateway's status, if it says something else.
    async fn tell(&self, term: &mut Term, whole: &Whole) {
        let gateway = &whole.object;
        let (name, namespace) = names(gateway);
        let applied = match (&self.pods, term.applied.get(&(namespace.to_owned(), name.to_owned()))) {
            (None, _) => Err(Hindrance::Waits(
                "control deploys none here (it was given no --waypoint-image): its pods are somebody else's to make"
                    .to_owned(),
            )),
            (Some(_), Some(applied)) => applied.outcome.clone(),
            (Some(_), None) => return,
        };
        let (pods, ready) = self.held.pods_with(namespace, GATEWAY_NAME, name);
        let facts = Facts { applied, addresses: self.held.addresses(namespace, name), pods, ready };
        let wanted = status(gateway, &facts, Timestamp::now());
        if !differs(gateway, &wanted) {
            return;
        }
        let path = format!("{}/status", whole.path);
        let is_same = |(said, _): &(Value, Instant)| same_words(said, &wanted);
        if term.said.get(&path).is_some_and(is_same) {
            return;
        }
        let patch = json!({
            "metadata": {"resourceVersion": gateway["metadata"]["resourceVersion"]}, "status": &wanted,
        });
        let pause = match self.api.patch(&path, &patch).await {
            Ok(_) => {
                debug!(namespace, gateway = name, "status written");
                SAID
            }
            // It is gone, or another version of it is on its way to us.
            Err(error) if error.is_absent() || error.is_conflict() => Duration::ZERO,
            Err(error) => {
                warn!(namespace, gateway = name, "its status cannot be written: {error}; tried again");
                AFTER_FAILURE
            }
        };
        term.said.insert(path, (wanted, Instant::now() + pause));
        sleep(PACE).await;
    }
}

fn digest(wanted: &Result<Vec<Wanted>, Hindrance>) -> u64 {
    let mut hasher = DefaultHasher::new();
    match wanted {
        Ok(wanted) => wanted.iter().for_each(|one| one.object.to_string().hash(&mut hasher)),
        Err(hindrance) => format!("{hindrance:?}").hash(&mut hasher),
    }
    hasher.finish()
}

/// Fails unless what is there is this Gateway's.
fn whose(there: &Value, gateway: &Value, path: &str) -> Result<(), Hindrance> {
    let owners: Vec<&Value> = there["metadata"]["ownerReferences"].as_array().into_iter().flatten().collect();
    if owners.iter().any(|owner| owner["uid"] == gateway["metadata"]["uid"]) {
        return Ok(());
    }
    let (name, _) = names(gateway);
    if owners.iter().any(|owner| owner["kind"] == "Gateway" && owner["name"] == name) {
        return Err(Hindrance::Waits(format!(
            "{path} is an earlier Gateway's of this name, and on its way out"
        )));
    }
    let message = format!("{path} is there, and not this Gateway's: rename the one or the other");
    Err(Hindrance::Taken(message))
}

/// Fails unless the roots that are there are those that control keeps.
fn whose_roots(there: &Value, path: &str) -> Result<(), Hindrance> {
    if there["metadata"]["labels"][MANAGED_BY] == MANAGER {
        return Ok(());
    }
    let message = format!(
        "{path} is there, and not control's, which keeps its roots by that name for waypoints: rename it, or label it \
         {MANAGED_BY}={MANAGER} to have it replaced"
    );
    Err(Hindrance::Taken(message))
}

/// Of a Deployment whose pods control has counted, and is to count no more: as many as there are, to be said by somebody
/// else. What nobody says any more would be one pod at once, until an HPA or a person says it.
fn handover(there: &Value, wanted: &Value) -> Option<Value> {
    let is_ours = |entry: &Value| {
        entry["manager"] == FIELD_MANAGER
            && entry["operation"] == "Apply"
            && !entry["fieldsV1"]["f:spec"]["f:replicas"].is_null()
    };
    let said = there["metadata"]["managedFields"].as_array().is_some_and(|all| all.iter().any(is_ours));
    let replicas = &there["spec"]["replicas"];
    if wanted["kind"] != "Deployment" || !wanted["spec"]["replicas"].is_null() || !said || replicas.is_null()
    {
        return None;
    }
    let (name, namespace) = names(wanted);
    Some(json!({
        "apiVersion": wanted["apiVersion"], "kind": wanted["kind"],
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"replicas": replicas},
    }))
}

/// Whether two statuses say the same, whenever they began to.
fn same_words(one: &Value, other: &Value) -> bool {
    fn timeless(value: &Value) -> Value {
        match value {
            Value::Object(map) => {
                let kept = map.iter().filter(|(key, _)| *key != "lastTransitionTime");
                kept.map(|(key, value)| (key.clone(), timeless(value))).collect()
            }
            Value::Array(all) => all.iter().map(timeless).collect(),
            other => other.clone(),
        }
    }
    timeless(one) == timeless(other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_somebody_elses_is_left_to_them() {
        let gateway = json!({"metadata": {"name": "wp", "uid": "u"}});
        let owned = |uid: &str, name: &str| json!({"metadata": {"ownerReferences": [{"kind": "Gateway", "name": name, "uid": uid}]}});
        assert_eq!(whose(&owned("u", "wp"), &gateway, "p"), Ok(()));
        let earlier = whose(&owned("v", "wp"), &gateway, "p");
        assert!(matches!(earlier, Err(Hindrance::Waits(_))), "{earlier:?}");
        for there in [owned("v", "other"), json!({"metadata": {}})] {
            let taken = whose(&there, &gateway, "p");
            assert!(matches!(taken, Err(Hindrance::Taken(_))), "{taken:?}");
        }
    }

    #[test]
    fn roots_that_somebody_else_keeps_are_left_to_him() {
        let labelled = |labels: Value| json!({"metadata": {"labels": labels}});
        assert_eq!(whose_roots(&labelled(json!({MANAGED_BY: MANAGER})), "p"), Ok(()));
        for labels in [json!({}), Value::Null, json!({MANAGED_BY: "Helm"})] {
            let taken = whose_roots(&labelled(labels), "p");
            assert!(matches!(taken, Err(Hindrance::Taken(_))), "{taken:?}");
        }
    }

    #[test]
    fn pods_that_control_counts_no_more_are_as_many_as_before() {
        let there = |manager: &str, fields: Value| {
            json!({
                "metadata": {"managedFields": [
                    {"manager": "kubectl", "operation": "Update", "fieldsV1": {"f:spec": {"f:replicas": {}}}},
                    {"manager": manager, "operation": "Apply", "fieldsV1": fields},
                ]},
                "spec": {"replicas": 3},
            })
        };
        let wanted = |kind: &str, spec: Value| json!({"apiVersion": "apps/v1", "kind": kind, "metadata": {"name": "wp", "namespace": "shop"}, "spec": spec});
        let (replicas, none) = (json!({"f:spec": {"f:replicas": {}}}), json!({"f:spec": {"f:template": {}}}));
        let kept = handover(&there(FIELD_MANAGER, replicas.clone()), &wanted("Deployment", json!({})));
        assert_eq!(kept, Some(wanted("Deployment", json!({"replicas": 3}))));
        for (there, wanted) in [
            (there(FIELD_MANAGER, none), wanted("Deployment", json!({}))),
            (there("other", replicas.clone()), wanted("Deployment", json!({}))),
            (there(FIELD_MANAGER, replicas.clone()), wanted("Deployment", json!({"replicas": 5}))),
            (there(FIELD_MANAGER, replicas), wanted("Service", json!({}))),
            (json!({}), wanted("Deployment", json!({}))),
        ] {
            assert_eq!(handover(&there, &wanted), None, "{there} {wanted}");
        }
    }

    #[test]
    fn a_status_is_compared_without_its_times() {
        let said = |time: &str, reason: &str| json!({"conditions": [{"reason": reason, "lastTransitionTime": time}]});
        assert!(same_words(&said("a", "x"), &said("b", "x")));
        assert!(!same_words(&said("a", "x"), &said("a", "y")));
    }
}
