//! Whether waypoints can be, and whether those that are asked for can be called.

use super::{Finding, facts::Facts};
use crate::{object, waypoint};

const CHECK: &str = "waypoints";

pub(super) fn check(facts: &Facts) -> Vec<Finding> {
    let Some(gateways) = &facts.gateways else {
        let seen = "none: the cluster does not have the Gateway API, and needs it for layer 7 alone";
        return vec![Finding::ok(CHECK, seen)];
    };
    let waypoints: Vec<_> = gateways.iter().filter(|one| waypoint::is_waypoint(one)).collect();
    let mut findings = Vec::new();
    for gateway in &waypoints {
        let (status, words) = waypoint::condition(gateway, "Programmed");
        if status != "True" && facts.installed() {
            findings.push(Finding::problem(
                CHECK,
                format!("Gateway {}/{}", object::namespace(gateway), object::name(gateway)),
                format!("calls through it are refused: {words}"),
                format!(
                    "kubectl --namespace {} describe gateway {}; its Deployment has its name",
                    object::namespace(gateway),
                    object::name(gateway)
                ),
            ));
        }
    }
    if findings.is_empty() {
        findings.push(Finding::ok(CHECK, format!("{} asked for, all can be called", waypoints.len())));
    }
    findings
}
