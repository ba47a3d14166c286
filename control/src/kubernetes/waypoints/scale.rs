//! How many pods a waypoint has, as its Gateway's annotations say: so many, or what a HorizontalPodAutoscaler finds, and
//! how many of them may be taken away at a time (PodDisruptionBudget). Pure.

use serde_json::{Value, json};

use super::objects::{GATEWAY_NAME, Pods, Unfit, names, unfit};

/// How many pods. Where nobody says it, that is left to others (one at first, `kubectl scale`, an HPA).
pub const REPLICAS: &str = "culvert.dev/replicas";
/// With it an HPA finds how many, up to this number …
const MOST: &str = "culvert.dev/max-replicas";
/// … from this one (1) …
const LEAST: &str = "culvert.dev/min-replicas";
/// … by how much of the CPU that they ask for they use, in per cent (80).
const CPU: &str = "culvert.dev/target-cpu";
/// With it a budget says how many may be taken away at a time: a number, or a share (`25%`).
const UNAVAILABLE: &str = "culvert.dev/max-unavailable";

/// No more pods are asked for.
const MOST_REPLICAS: u32 = 1000;
/// Of the CPU that is asked for, where nobody says it.
const DEFAULT_CPU: u32 = 80;

/// What is made besides, where it is asked for, and else is taken away again: API, kind and plural.
pub const OBJECTS: [(&str, &str, &str); 2] = [
    ("autoscaling/v2", "HorizontalPodAutoscaler", "horizontalpodautoscalers"),
    ("policy/v1", "PodDisruptionBudget", "poddisruptionbudgets"),
];

/// What a Gateway says of it.
#[derive(Debug, Default, PartialEq)]
pub struct Scale {
    /// So many; nobody else is to say it then.
    pub replicas: Option<u32>,
    /// The `spec` of each of [`OBJECTS`].
    pub specs: [Option<Value>; 2],
}

/// Reads it.
///
/// # Errors
/// With the reason for the Gateway's condition `Accepted`.
pub fn scale(gateway: &Value, pods: &Pods) -> Result<Scale, Unfit> {
    let wrong =
        |name: &str, what: &str| unfit("InvalidParameters", format!("metadata.annotations[{name}]: {what}"));
    let said = |name: &str| gateway["metadata"]["annotations"][name].as_str();
    let number = |name: &str, least: u32, most: u32| -> Result<Option<u32>, Unfit> {
        let Some(text) = said(name) else { return Ok(None) };
        match text.parse::<u32>() {
            Ok(number) if (least..=most).contains(&number) => Ok(Some(number)),
            _ => Err(wrong(name, &format!("{text:?} is no number from {least} to {most}"))),
        }
    };
    let replicas = number(REPLICAS, 0, MOST_REPLICAS)?;
    let (least, cpu) = (number(LEAST, 1, MOST_REPLICAS)?, number(CPU, 1, 1000)?);
    let (gateway_name, _) = names(gateway);
    let autoscaler = match number(MOST, 1, MOST_REPLICAS)? {
        None => {
            if let Some((name, _)) = [(LEAST, least), (CPU, cpu)].iter().find(|(_, of)| of.is_some()) {
                return Err(wrong(name, &format!("it says something only beside {MOST}")));
            }
            None
        }
        Some(_) if replicas.is_some() => {
            return Err(wrong(REPLICAS, &format!("it and {MOST} exclude each other")));
        }
        Some(most) if least.is_some_and(|least| least > most) => {
            return Err(wrong(LEAST, &format!("it is more than {MOST}, {most}")));
        }
        Some(_) if pods.resources["requests"]["cpu"].is_null() => {
            let what = "it needs to be known how much CPU a pod asks for: set waypoint.resources.requests.cpu of the chart";
            return Err(wrong(MOST, what));
        }
        Some(most) => Some(json!({
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": gateway_name},
            "minReplicas": least.unwrap_or(1),
            "maxReplicas": most,
            "metrics": [{"type": "Resource", "resource": {
                "name": "cpu",
                "target": {"type": "Utilization", "averageUtilization": cpu.unwrap_or(DEFAULT_CPU)},
            }}],
        })),
    };
    let budget = match said(UNAVAILABLE) {
        None => None,
        Some(text) => {
            let share = text.strip_suffix('%').and_then(|share| share.parse::<u32>().ok());
            let of = match (text.parse::<u32>().ok(), share) {
                (Some(number), _) if number <= MOST_REPLICAS => json!(number),
                (None, Some(share)) if share <= 100 => json!(text),
                _ => {
                    return Err(wrong(
                        UNAVAILABLE,
                        &format!("{text:?} is no number and no share, such as 25%"),
                    ));
                }
            };
            Some(json!({"maxUnavailable": of, "selector": {"matchLabels": {GATEWAY_NAME: gateway_name}}}))
        }
    };
    Ok(Scale { replicas, specs: [autoscaler, budget] })
}

/// Where what a Gateway does not ask for would be.
pub fn paths(gateway: &Value) -> [String; 2] {
    let (name, namespace) = names(gateway);
    OBJECTS.map(|(api, _, plural)| format!("/apis/{api}/namespaces/{namespace}/{plural}/{name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(annotations: Value, resources: Value) -> Result<Scale, String> {
        let pods = Pods {
            image: String::new(),
            pull_policy: None,
            pull_secrets: Vec::new(),
            resources,
            arguments: Vec::new(),
            scrape: false,
        };
        let gateway = json!({"metadata": {"name": "wp", "namespace": "shop", "annotations": annotations}});
        scale(&gateway, &pods).map_err(|unfit| {
            assert_eq!(unfit.reason, "InvalidParameters");
            unfit.message
        })
    }

    fn with_cpu(annotations: Value) -> Result<Scale, String> {
        said(annotations, json!({"requests": {"cpu": "100m"}}))
    }

    #[test]
    fn what_is_asked_for_is_made_and_nothing_else() {
        assert_eq!(with_cpu(json!({"other": "1"})), Ok(Scale::default()));
        assert_eq!(with_cpu(json!({REPLICAS: "3"})), Ok(Scale { replicas: Some(3), ..Scale::default() }));
        let Scale { replicas, specs: [autoscaler, budget] } =
            with_cpu(json!({LEAST: "2", MOST: "8", CPU: "70", UNAVAILABLE: "25%"})).unwrap();
        let (autoscaler, budget) = (autoscaler.unwrap(), budget.unwrap());
        assert_eq!(replicas, None, "whoever scales it is not undone");
        assert_eq!((&autoscaler["minReplicas"], &autoscaler["maxReplicas"]), (&json!(2), &json!(8)));
        assert_eq!(autoscaler["metrics"][0]["resource"]["target"]["averageUtilization"], 70);
        assert_eq!(autoscaler["scaleTargetRef"]["name"], "wp");
        assert_eq!(
            budget,
            json!({"maxUnavailable": "25%", "selector": {"matchLabels": {GATEWAY_NAME: "wp"}}})
        );
        let default = with_cpu(json!({MOST: "8", UNAVAILABLE: "0"})).unwrap();
        let [Some(autoscaler), Some(budget)] = default.specs else { panic!("both were asked for") };
        assert_eq!((&autoscaler["minReplicas"], &budget["maxUnavailable"]), (&json!(1), &json!(0)));
        assert_eq!(autoscaler["metrics"][0]["resource"]["target"]["averageUtilization"], 80);
    }

    #[test]
    fn what_cannot_be_is_told_with_its_annotation() {
        for (annotations, name) in [
            (json!({REPLICAS: "many"}), REPLICAS),
            (json!({REPLICAS: "1001"}), REPLICAS),
            (json!({REPLICAS: "3", MOST: "8"}), REPLICAS),
            (json!({MOST: "0"}), MOST),
            (json!({LEAST: "9", MOST: "8"}), LEAST),
            (json!({LEAST: "2"}), LEAST),
            (json!({CPU: "50"}), CPU),
            (json!({CPU: "0", MOST: "8"}), CPU),
            (json!({UNAVAILABLE: "some"}), UNAVAILABLE),
            (json!({UNAVAILABLE: "101%"}), UNAVAILABLE),
            (json!({UNAVAILABLE: "-1"}), UNAVAILABLE),
        ] {
            let message = with_cpu(annotations.clone()).unwrap_err();
            assert!(
                message.starts_with(&format!("metadata.annotations[{name}]: ")),
                "{annotations}: {message}"
            );
        }
        let message = said(json!({MOST: "8"}), json!({})).unwrap_err();
        assert!(message.contains("waypoint.resources.requests.cpu"), "{message}");
    }
}
