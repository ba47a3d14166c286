//! The GatewayClasses of waypoints: ours is made where there is none, and says that it is accepted.

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use tokio::time::Instant;
use tracing::warn;

use super::{
    FIELD_MANAGER,
    objects::{MANAGED_BY, MANAGER},
};
use crate::kubernetes::conditions::{among, condition};
use apiserver::{Api, ApiError};

/// By this name classes, and what is written in statuses, are ours.
pub const CONTROLLER: &str = "culvert.dev/gateway-controller";
/// The class that is made.
pub const OWN: &str = "culvert-waypoint";
/// The class of Istio's waypoints: ours, where an object says so.
pub const ISTIO: &str = "istio-waypoint";
const PATH: &str = "/apis/gateway.networking.k8s.io/v1/gatewayclasses";
/// They are looked after this often.
const LOOK_AGAIN: Duration = Duration::from_secs(30);

/// Which classes are ours.
#[derive(Debug, Default)]
pub struct Classes {
    looked: Option<Instant>,
    ours: Vec<&'static str>,
    /// Said once until it works again.
    failing: bool,
}

impl Classes {
    /// Whether a Gateway of this class is ours to carry out.
    pub fn has(&self, class: &str) -> bool {
        self.ours.contains(&class)
    }

    /// Looks after them, if it is time.
    pub async fn look(&mut self, api: &Api) {
        if self.looked.is_some_and(|looked| looked.elapsed() < LOOK_AGAIN) {
            return;
        }
        self.looked = Some(Instant::now());
        let mut failed = false;
        for class in [OWN, ISTIO] {
            match one(api, class).await {
                Ok(true) if !self.has(class) => self.ours.push(class),
                Ok(true) => {}
                Ok(false) => self.ours.retain(|ours| *ours != class),
                // What was known holds.
                Err(error) => {
                    failed = true;
                    if !self.failing {
                        warn!("GatewayClass {class} (said once until it works again): {error}");
                    }
                }
            }
        }
        self.failing = failed;
    }
}

/// Whether a class is ours, after it was looked after.
async fn one(api: &Api, name: &str) -> Result<bool, ApiError> {
    let path = format!("{PATH}/{name}");
    let class = match api.find(&path).await? {
        Some(class) => class,
        None if name == OWN => {
            let class = json!({
                "apiVersion": "gateway.networking.k8s.io/v1", "kind": "GatewayClass",
                "metadata": {"name": name, "labels": {MANAGED_BY: MANAGER}},
                "spec": {"controllerName": CONTROLLER, "description": "Waypoints of Culvert, which control deploys"},
            });
            match api.apply(&format!("{path}?fieldManager={FIELD_MANAGER}"), &class).await {
                Ok(made) => made,
                // There is no such kind, and no Gateway either.
                Err(error) if error.is_absent() => return Ok(true),
                Err(error) => return Err(error),
            }
        }
        // Whose it will be nobody knows.
        None => return Ok(false),
    };
    if class["spec"]["controllerName"] != CONTROLLER {
        return Ok(false);
    }
    if let Some(conditions) = due(&class) {
        let patch = json!({
            "metadata": {"resourceVersion": class["metadata"]["resourceVersion"]},
            "status": {"conditions": conditions},
        });
        match api.patch(&format!("{path}/status"), &patch).await {
            Err(error) if !error.is_conflict() && !error.is_absent() => return Err(error),
            _ => {}
        }
    }
    Ok(true)
}

/// The conditions as they are to be, unless they are.
fn due(class: &Value) -> Option<Value> {
    let generation = class["metadata"]["generation"].as_i64().unwrap_or_default();
    let there = &class["status"]["conditions"];
    let accepted = condition("Accepted", true, "Accepted", "its Gateways are waypoints");
    let wanted = among(there, &[accepted], generation, Timestamp::now());
    (*there != wanted).then_some(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_is_accepted_once() {
        let mut class = json!({
            "metadata": {"generation": 1},
            "status": {"conditions": [{"type": "Accepted", "status": "Unknown", "reason": "Pending"}]},
        });
        let conditions = due(&class).unwrap();
        assert_eq!((&conditions[0]["status"], conditions.as_array().unwrap().len()), (&json!("True"), 1));
        class["status"]["conditions"] = conditions;
        assert_eq!(due(&class), None);
    }
}
