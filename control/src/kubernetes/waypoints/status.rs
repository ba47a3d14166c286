//! What a Gateway of ours is told of itself, in the words of the Gateway API. Pure.

use std::net::IpAddr;

use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

use super::objects::Unfit;
use crate::kubernetes::conditions::{Condition, among, condition};

/// What stands behind a Gateway now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Whether what it wants was applied.
    pub applied: Result<(), Hindrance>,
    /// Of the Service of its name.
    pub addresses: Vec<IpAddr>,
    /// Pods of it, and how many of these are ready.
    pub pods: usize,
    pub ready: usize,
}

/// Why what a Gateway wants is not there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hindrance {
    /// It cannot be.
    Unfit(Unfit),
    /// It will be, once something has happened.
    Waits(String),
    /// Something of its name is somebody else's.
    Taken(String),
}

/// The status as it is to be, from what it is.
pub fn status(gateway: &Value, facts: &Facts, now: Timestamp) -> Value {
    let before = &gateway["status"];
    let generation = gateway["metadata"]["generation"].as_i64().unwrap_or_default();
    let listeners: Vec<Value> = gateway["spec"]["listeners"].as_array().cloned().unwrap_or_default();
    let unsuited = listeners.iter().filter(|listener| unsuited(listener).is_some()).count();
    let conditions = [accepted(facts, unsuited, listeners.len()), programmed(facts)];
    let is_programmed = conditions[1].status;
    let addresses = facts.addresses.iter();
    let addresses: Vec<Value> =
        addresses.map(|address| json!({"type": "IPAddress", "value": address.to_string()})).collect();
    let of_before = |name: &Value| {
        let told = before["listeners"].as_array().into_iter().flatten();
        told.into_iter().find(|told| told["name"] == *name).map_or(&Value::Null, |told| &told["conditions"])
    };
    let listeners: Vec<Value> = listeners
        .iter()
        .map(|listener| {
            let conditions = of_listener(listener, is_programmed);
            json!({
                "name": listener["name"],
                // Routes name the services behind a waypoint, never the waypoint.
                "supportedKinds": [],
                "attachedRoutes": 0,
                "conditions": among(of_before(&listener["name"]), &conditions, generation, now),
            })
        })
        .collect();
    let mut status = json!({
        "conditions": among(&before["conditions"], &conditions, generation, now),
        "listeners": listeners,
    });
    // An empty list is left out by the API server, and would differ for ever.
    if !addresses.is_empty() || !before["addresses"].is_null() {
        status["addresses"] = addresses.into();
    }
    status
}

/// Whether `wanted` says something that is not there.
pub fn differs(gateway: &Value, wanted: &Value) -> bool {
    let mut parts = wanted.as_object().into_iter().flatten();
    parts.any(|(part, value)| {
        let there = &gateway["status"][part];
        there != value && !(there.is_null() && value.as_array().is_some_and(Vec::is_empty))
    })
}

fn accepted(facts: &Facts, unsuited: usize, listeners: usize) -> Condition {
    match &facts.applied {
        Err(Hindrance::Unfit(Unfit { reason, message })) => {
            condition("Accepted", false, reason, message.clone())
        }
        _ if unsuited > 0 => {
            let message = format!("{unsuited} of {listeners} listeners are nothing for a waypoint");
            condition("Accepted", unsuited < listeners, "ListenersNotValid", message)
        }
        _ => condition("Accepted", true, "Accepted", "it is a waypoint of this mesh"),
    }
}

fn programmed(facts: &Facts) -> Condition {
    let not = |reason, message: String| condition("Programmed", false, reason, message);
    let Facts { applied, addresses, pods, ready } = facts;
    match applied {
        Err(Hindrance::Unfit(Unfit { message, .. }) | Hindrance::Taken(message)) => {
            not("Invalid", message.clone())
        }
        _ if *ready > 0 && !addresses.is_empty() => {
            // How many they are changes with every roll, and is not worth a write.
            condition("Programmed", true, "Programmed", "pods are ready")
        }
        Err(Hindrance::Waits(message)) => not("Pending", message.clone()),
        Ok(()) if addresses.is_empty() => {
            not("AddressNotAssigned", "the Service of its name has no address yet".to_owned())
        }
        Ok(()) => not("Pending", format!("none of its {pods} pods is ready: calls through it are refused")),
    }
}

fn of_listener(listener: &Value, programmed: bool) -> [Condition; 4] {
    let wrong = unsuited(listener);
    let suits = wrong.is_none();
    let (reason, message) = wrong.unwrap_or(("Accepted", String::new()));
    let works = suits && programmed;
    let state = match (suits, programmed) {
        (true, true) => "Programmed",
        (true, false) => "Pending",
        (false, _) => "Invalid",
    };
    [
        condition("Accepted", suits, reason, message.clone()),
        condition("Programmed", works, state, message),
        condition("Conflicted", false, "NoConflicts", ""),
        condition("ResolvedRefs", true, "ResolvedRefs", ""),
    ]
}

/// Why a listener is nothing for a waypoint, which takes HBONE on one port.
fn unsuited(listener: &Value) -> Option<(&'static str, String)> {
    if listener["protocol"] != "HBONE" {
        let message = format!("a waypoint's listener speaks HBONE, not {}", listener["protocol"]);
        return Some(("UnsupportedProtocol", message));
    }
    (listener["port"] != 15008)
        .then(|| ("PortUnavailable", format!("waypoints are called on port 15008, not {}", listener["port"])))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> Facts {
        Facts { applied: Ok(()), addresses: vec!["10.96.0.9".parse().unwrap()], pods: 1, ready: 1 }
    }

    fn gateway(protocol: &str, port: u16) -> Value {
        json!({
            "metadata": {"generation": 3},
            "spec": {"listeners": [{"name": "mesh", "port": port, "protocol": protocol}]},
        })
    }

    fn told(status: &Value, kind: &str) -> (String, String) {
        let all = status["conditions"].as_array().unwrap();
        let one = all.iter().find(|condition| condition["type"] == kind).unwrap();
        let text = |key: &str| one[key].as_str().unwrap().to_owned();
        (text("status"), text("reason"))
    }

    fn pair(status: &str, reason: &str) -> (String, String) {
        (status.to_owned(), reason.to_owned())
    }

    #[test]
    fn a_waypoint_is_programmed_when_it_can_be_called() {
        let gateway = gateway("HBONE", 15008);
        let unfit = Unfit { reason: "InvalidParameters", message: String::new() };
        let cases = [
            (facts(), ("True", "Accepted"), ("True", "Programmed")),
            (Facts { ready: 0, ..facts() }, ("True", "Accepted"), ("False", "Pending")),
            (
                Facts { addresses: Vec::new(), ..facts() },
                ("True", "Accepted"),
                ("False", "AddressNotAssigned"),
            ),
            (
                Facts { applied: Err(Hindrance::Taken(String::new())), ..facts() },
                ("True", "Accepted"),
                ("False", "Invalid"),
            ),
            (
                Facts { applied: Err(Hindrance::Unfit(unfit)), ..facts() },
                ("False", "InvalidParameters"),
                ("False", "Invalid"),
            ),
            // What runs, runs, even if the API server refuses what is to be changed.
            (
                Facts { applied: Err(Hindrance::Waits("503".to_owned())), ..facts() },
                ("True", "Accepted"),
                ("True", "Programmed"),
            ),
        ];
        for (facts, accepted, programmed) in cases {
            let status = status(&gateway, &facts, Timestamp::now());
            assert_eq!(told(&status, "Accepted"), pair(accepted.0, accepted.1), "{facts:?}");
            assert_eq!(told(&status, "Programmed"), pair(programmed.0, programmed.1), "{facts:?}");
        }
    }

    #[test]
    fn what_is_said_is_not_said_again() {
        let mut gateway = gateway("HBONE", 15008);
        let first = status(&gateway, &facts(), Timestamp::from_second(1).unwrap());
        assert!(differs(&gateway, &first));
        gateway["status"] = first.clone();
        let second = status(&gateway, &facts(), Timestamp::from_second(9).unwrap());
        assert!(!differs(&gateway, &second));
        let gone = status(&gateway, &Facts { addresses: Vec::new(), ..facts() }, Timestamp::now());
        assert!(differs(&gateway, &gone) && gone["addresses"] == json!([]));
    }

    #[test]
    fn a_listener_that_is_none_of_a_waypoint_is_named() {
        for (protocol, port, reason) in
            [("HTTP", 15008, "UnsupportedProtocol"), ("HBONE", 80, "PortUnavailable")]
        {
            let status = status(&gateway(protocol, port), &facts(), Timestamp::now());
            assert_eq!(told(&status, "Accepted"), pair("False", "ListenersNotValid"));
            assert_eq!(told(&status["listeners"][0], "Accepted"), pair("False", reason));
        }
    }
}
