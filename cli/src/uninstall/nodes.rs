//! What the nodes say of an uninstall: whether an agent still holds a pod, and whether it hears control, without which
//! it never knows that a namespace has left the mesh, and leaves the CNI plugin where it is.

use serde_json::Value;

use crate::{
    object::{self, items, text},
    programs::{self, Program},
};
use apiserver::{Api, ApiError};

/// How one undoes on a node what its agent has left there.
pub(super) const ON_THE_NODE: &str =
    "agent uninstall (docs/kubernetes.md, \"Leave\", has the whole kubectl debug command)";

/// What the agents say.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Nodes {
    /// What is still held, or not known to be let go: each with its node.
    pub(super) holds: Vec<String>,
    /// Agents that could not be asked, and why.
    pub(super) silent: Vec<String>,
    /// Nodes whose agent is not ready and did not answer: nobody is there to clear them.
    pub(super) unkempt: Vec<String>,
}

impl Nodes {
    pub(super) async fn ask(api: &Api, namespace: &str) -> Result<Self, ApiError> {
        Ok(Self::of(&programs::ask(api, namespace, None).await?))
    }

    pub(super) fn of(programs: &[Program]) -> Self {
        let mut nodes = Self::default();
        for agent in programs.iter().filter(|program| program.is("agent")) {
            let node = &agent.standing.node;
            match agent.said.get("/pods") {
                Some(Ok(said)) => {
                    // Before that it does not know what of its pins is wanted.
                    if said["told"] != true {
                        nodes
                            .holds
                            .push(format!("{node}: its agent was not told yet which pods are to be in"));
                    }
                    nodes.holds.extend(items(&said["pods"]).iter().filter_map(|pod| held(node, pod)));
                }
                said => {
                    let why = said.and_then(|said| said.as_ref().err()).map_or("not asked", String::as_str);
                    let list = if agent.standing.ready { &mut nodes.silent } else { &mut nodes.unkempt };
                    list.push(format!("{node}: {why}"));
                }
            }
            let checks = agent.answer("/checks").map_or(&[][..], |said| items(&said["checks"]));
            let deaf = checks.iter().any(|one| one["check"] == "control" && one["state"] != "ok");
            if deaf {
                nodes.holds.push(format!("{node}: its agent has no stream to control, and hears of nothing"));
            }
        }
        nodes
    }
}

/// How a node holds a pod, if it does.
fn held(node: &str, pod: &Value) -> Option<String> {
    let how = if !pod["mode"].is_null() || pod["held_by_ztunnel"] == true {
        "is held"
    } else if pod["state"] != "CAPTURE_NONE" {
        // Its pins may be there, with nothing attached by them yet.
        "is not known to be let go"
    } else {
        return None;
    };
    Some(format!("{node}: {}/{} {how}", text(&pod["namespace"]), text(&pod["name"])))
}

/// Whether a control serves: only it tells the agents.
pub(super) async fn control_serves(api: &Api, namespace: &str) -> Result<bool, ApiError> {
    let control = api.find(&format!("{}/control", object::collection("Deployment", namespace))).await?;
    Ok(control.is_some_and(|control| control["status"]["availableReplicas"].as_u64().unwrap_or(0) > 0))
}
