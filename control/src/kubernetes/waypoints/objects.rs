//! What a Gateway of ours is made into: a ServiceAccount, a Service and a Deployment of its name, and what scales them
//! where that is asked for. Pure.

use serde_json::{Map, Value, json};

use super::scale::{OBJECTS, REPLICAS, scale};
use crate::kubernetes::{BUNDLE, BUNDLE_KEY};

/// On a Gateway: per cent of the traces that begin at its waypoint, in the place of the chart's `waypoint.tracing.sampling`.
pub const SAMPLING: &str = "culvert.dev/trace-sampling";
/// The waypoint's flag for it.
const SAMPLING_FLAG: &str = "--trace-sampling=";
/// On what is made, and on its pods: the Gateway's name.
pub const GATEWAY_NAME: &str = "gateway.networking.k8s.io/gateway-name";
/// On a Gateway: what is called through it.
const WAYPOINT_FOR: &str = "istio.io/waypoint-for";
pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
pub const MANAGER: &str = "culvert-control";
/// Labels that mean something to a mesh, or say whose an object is, are not carried on.
const RESERVED: [&str; 4] = ["istio.io", "culvert.dev", "gateway.networking.k8s.io", "kubectl.kubernetes.io"];
/// A Service's name and a label's value have no more.
const LONGEST_NAME: usize = 63;
/// How long callers are still taken after SIGTERM: until every ztunnel has heard that the pod leaves.
const LINGER: u32 = 5;
/// How long what they have begun is served then.
const DRAIN: u32 = 30;
/// Any but root.
const USER: u32 = 65532;

/// What control is told of the waypoints that it deploys.
#[derive(Debug, Clone)]
pub struct Pods {
    pub image: String,
    /// The cluster's own rule, if there is none.
    pub pull_policy: Option<String>,
    /// Secrets of each Gateway's own namespace.
    pub pull_secrets: Vec<String>,
    /// `resources` of the container, as Kubernetes has them.
    pub resources: Value,
    /// Further flags.
    pub arguments: Vec<String>,
    /// Whether a Prometheus is to find the pods by their annotations.
    pub scrape: bool,
}

/// What every waypoint is to know of the mesh.
#[derive(Debug, Clone)]
pub struct Mesh {
    /// Control's own namespace.
    pub system: String,
    pub trust_domain: String,
    pub cluster: String,
    pub network: String,
}

/// An object that is to be, and where.
#[derive(Debug, Clone, PartialEq)]
pub struct Wanted {
    pub path: String,
    pub object: Value,
}

/// What of a Gateway cannot be carried out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unfit {
    /// As the Gateway API words it.
    pub reason: &'static str,
    pub message: String,
}

pub fn unfit(reason: &'static str, message: impl Into<String>) -> Unfit {
    Unfit { reason, message: message.into() }
}

/// What a Gateway wants, if that can be.
///
/// # Errors
/// With the reason for its condition `Accepted`.
pub fn wanted(gateway: &Value, pods: &Pods, mesh: &Mesh) -> Result<Vec<Wanted>, Unfit> {
    check(gateway)?;
    let scale = scale(gateway, pods)?;
    let (name, namespace) = names(gateway);
    let object = |group: &str, kind: &str, plural: &str, rest: Value| {
        let prefix = if group == "v1" { "/api/v1".to_owned() } else { format!("/apis/{group}") };
        let mut object = json!({
            "apiVersion": group, "kind": kind,
            "metadata": {
                "name": name, "namespace": namespace,
                "labels": labels(gateway), "annotations": infrastructure(gateway, "annotations"),
                "ownerReferences": [owner(gateway)],
            },
        });
        for (key, value) in rest.as_object().into_iter().flatten() {
            object[key] = value.clone();
        }
        Wanted { path: format!("{prefix}/namespaces/{namespace}/{plural}/{name}"), object }
    };
    let selector = json!({GATEWAY_NAME: name});
    let service = json!({"spec": {
        "type": "ClusterIP",
        "ipFamilyPolicy": "PreferDualStack",
        "selector": selector,
        "ports": [{"name": "hbone", "protocol": "TCP", "port": 15008, "targetPort": 15008}],
    }});
    let mut deployment = json!({"spec": {
        "selector": {"matchLabels": selector},
        // The next one is ready before the last one goes.
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
        "template": template(gateway, pods, mesh),
    }});
    if let Some(replicas) = scale.replicas {
        deployment["spec"]["replicas"] = replicas.into();
    }
    let mut account =
        object("v1", "ServiceAccount", "serviceaccounts", json!({"automountServiceAccountToken": false}));
    // By them clouds lend accounts roles.
    account.object["metadata"]["annotations"] = json!({});
    let mut all = vec![
        account,
        object("v1", "Service", "services", service),
        object("apps/v1", "Deployment", "deployments", deployment),
    ];
    for ((api, kind, plural), spec) in OBJECTS.into_iter().zip(scale.specs) {
        all.extend(spec.map(|spec| object(api, kind, plural, json!({"spec": spec}))));
    }
    Ok(all)
}

/// The roots by which waypoints of a namespace know control. It goes when the last of these Gateways does.
pub fn roots(namespace: &str, gateways: &[&Value], bundle: &str) -> Wanted {
    let owners: Vec<Value> = gateways.iter().map(|gateway| owner(gateway)).collect();
    let object = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {
            "name": BUNDLE, "namespace": namespace, "ownerReferences": owners,
            "labels": {MANAGED_BY: MANAGER},
        },
        "data": {BUNDLE_KEY: bundle},
    });
    Wanted { path: format!("/api/v1/namespaces/{namespace}/configmaps/{BUNDLE}"), object }
}

/// Its name and its namespace.
pub fn names(object: &Value) -> (&str, &str) {
    let text = |key: &str| object["metadata"][key].as_str().unwrap_or_default();
    (text("name"), text("namespace"))
}

/// Whether a Gateway can be carried out.
fn check(gateway: &Value) -> Result<(), Unfit> {
    let (name, _) = names(gateway);
    let begins = name.starts_with(|first: char| first.is_ascii_lowercase());
    if name.len() > LONGEST_NAME || !begins || name.contains('.') {
        let message = format!(
            "metadata.name: a Service cannot be called so, and the waypoint's is: {LONGEST_NAME} letters, digits and \
             dashes at most, a letter first"
        );
        return Err(unfit("Invalid", message));
    }
    if !gateway["spec"]["infrastructure"]["parametersRef"].is_null() {
        let message = format!(
            "spec.infrastructure.parametersRef: no kind of parameters is known; the annotation {REPLICAS} and the \
             chart's waypoint.* say what can be said"
        );
        return Err(unfit("InvalidParameters", message));
    }
    if let Some(of) = gateway["metadata"]["labels"][WAYPOINT_FOR].as_str()
        && !["service", "workload", "all", "none"].contains(&of)
    {
        let message = format!(
            "metadata.labels[{WAYPOINT_FOR}]: {of:?} means nothing: use service, workload, all or none"
        );
        return Err(unfit("Invalid", message));
    }
    let annotations = &gateway["metadata"]["annotations"];
    if let Some(text) = annotations[SAMPLING].as_str()
        && let Err(reason) = text.parse::<mesh::trace::Sampling>()
    {
        let message = format!("metadata.annotations[{SAMPLING}]: {text:?}: {reason}");
        return Err(unfit("InvalidParameters", message));
    }
    Ok(())
}

/// What is made goes with its Gateway.
fn owner(gateway: &Value) -> Value {
    json!({
        "apiVersion": gateway["apiVersion"], "kind": "Gateway",
        "name": gateway["metadata"]["name"], "uid": gateway["metadata"]["uid"],
    })
}

/// The Gateway's own labels, those that it asks for, and ours.
fn labels(gateway: &Value) -> Value {
    let mut labels = carried(&gateway["metadata"]["labels"]);
    labels.extend(carried(&gateway["spec"]["infrastructure"]["labels"]));
    let (name, _) = names(gateway);
    for (key, value) in [
        (GATEWAY_NAME, name),
        ("gateway.networking.k8s.io/gateway-class-name", class(gateway)),
        ("app.kubernetes.io/component", "waypoint"),
        (MANAGED_BY, MANAGER),
    ] {
        labels.insert(key.to_owned(), value.into());
    }
    Value::Object(labels)
}

/// The class that it names.
pub fn class(gateway: &Value) -> &str {
    gateway["spec"]["gatewayClassName"].as_str().unwrap_or_default()
}

fn infrastructure(gateway: &Value, what: &str) -> Value {
    Value::Object(carried(&gateway["spec"]["infrastructure"][what]))
}

fn carried(pairs: &Value) -> Map<String, Value> {
    let pairs = pairs.as_object().into_iter().flatten();
    // With all that is below: `ambient.istio.io`, `sidecar.istio.io`.
    let reserved = |key: &str| {
        let domain = key.split_once('/').map_or("", |(domain, _)| domain);
        let within =
            |of: &str| domain.strip_suffix(of).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
        key == MANAGED_BY || RESERVED.iter().any(|of| within(of))
    };
    pairs.filter(|(key, _)| !reserved(key)).map(|(key, value)| (key.clone(), value.clone())).collect()
}

fn template(gateway: &Value, pods: &Pods, mesh: &Mesh) -> Value {
    let (name, _) = names(gateway);
    let mut labels = labels(gateway);
    // Nobody takes a waypoint in: its own proof of who it is, it has from control.
    labels["istio.io/dataplane-mode"] = "none".into();
    let mut annotations = infrastructure(gateway, "annotations");
    if pods.scrape {
        for (key, value) in [("scrape", "true"), ("port", "15020"), ("path", "/metrics")] {
            annotations[format!("prometheus.io/{key}")] = value.into();
        }
    }
    let secrets: Vec<Value> = pods.pull_secrets.iter().map(|name| json!({"name": name})).collect();
    json!({
        "metadata": {"labels": labels, "annotations": annotations},
        "spec": {
            "serviceAccountName": name,
            "automountServiceAccountToken": false,
            "terminationGracePeriodSeconds": LINGER + DRAIN + 10,
            "nodeSelector": {"kubernetes.io/os": "linux"},
            "imagePullSecrets": secrets,
            // On different nodes, where there are enough.
            "affinity": {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{
                "weight": 100,
                "podAffinityTerm": {
                    "topologyKey": "kubernetes.io/hostname",
                    "labelSelector": {"matchLabels": {GATEWAY_NAME: name}},
                },
            }]}},
            "securityContext": {
                "runAsNonRoot": true, "runAsUser": USER, "runAsGroup": USER, "fsGroup": USER,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [container(gateway, pods, mesh)],
            "volumes": [
                {"name": "control-ca", "configMap": {"name": BUNDLE}},
                {"name": "token", "projected": {"sources": [{"serviceAccountToken": {
                    "audience": "istio-ca", "expirationSeconds": 3600, "path": "token",
                }}]}},
            ],
        },
    })
}

fn container(gateway: &Value, pods: &Pods, mesh: &Mesh) -> Value {
    let (name, namespace) = names(gateway);
    let Mesh { system, trust_domain, cluster, network } = mesh;
    let mut arguments = vec![
        format!("--namespace={namespace}"),
        "--name=$(POD_NAME)".to_owned(),
        format!("--service-account={name}"),
        "--node=$(NODE_NAME)".to_owned(),
        format!("--control=https://control.{system}.svc:15010"),
        "--control-ca=/var/run/culvert/ca/root-cert.pem".to_owned(),
        "--token-file=/var/run/culvert/token/token".to_owned(),
        format!("--trust-domain={trust_domain}"),
        format!("--cluster={cluster}"),
        format!("--network={network}"),
        format!("--linger={LINGER}s"),
        format!("--drain-deadline={DRAIN}s"),
    ];
    let sampling = gateway["metadata"]["annotations"][SAMPLING].as_str();
    // A flag is said once.
    let more = pods.arguments.iter().filter(|flag| sampling.is_none() || !flag.starts_with(SAMPLING_FLAG));
    arguments.extend(more.cloned());
    arguments.extend(sampling.map(|sampling| format!("{SAMPLING_FLAG}{sampling}")));
    let from =
        |name: &str, field: &str| json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": field}}});
    let mut container = json!({
        "name": "waypoint",
        "image": pods.image,
        "args": arguments,
        "env": [from("POD_NAME", "metadata.name"), from("NODE_NAME", "spec.nodeName")],
        "ports": [
            {"name": "hbone", "containerPort": 15008, "protocol": "TCP"},
            {"name": "metrics", "containerPort": 15020, "protocol": "TCP"},
            {"name": "ready", "containerPort": 15021, "protocol": "TCP"},
        ],
        "readinessProbe": {"httpGet": {"path": "/healthz/ready", "port": "ready"}, "periodSeconds": 2},
        "securityContext": {
            "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": "control-ca", "mountPath": "/var/run/culvert/ca", "readOnly": true},
            {"name": "token", "mountPath": "/var/run/culvert/token", "readOnly": true},
        ],
        "resources": pods.resources,
    });
    if let Some(policy) = &pods.pull_policy {
        container["imagePullPolicy"] = policy.as_str().into();
    }
    container
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gateway() -> Value {
        json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
            "metadata": {
                "name": "wp", "namespace": "shop", "uid": "u-wp",
                "labels": {"team": "a", "istio.io/waypoint-for": "all", "istio.io/use-waypoint": "wp"},
            },
            "spec": {
                "gatewayClassName": "culvert-waypoint",
                "infrastructure": {
                    "labels": {"team": "b", GATEWAY_NAME: "other", "topology.istio.io/network": "n"},
                    "annotations": {"note": "n", "ambient.istio.io/redirection": "enabled"},
                },
            },
        })
    }

    fn made(gateway: &Value) -> Result<Vec<Wanted>, Unfit> {
        let pods = Pods {
            image: "culvert/waypoint:1".to_owned(),
            pull_policy: Some("Never".to_owned()),
            pull_secrets: vec!["s".to_owned()],
            resources: json!({"requests": {"cpu": "100m"}}),
            arguments: vec!["--trace-sampling=1".to_owned(), "--log-level=debug".to_owned()],
            scrape: true,
        };
        let mesh = Mesh {
            system: "culvert-system".to_owned(),
            trust_domain: "cluster.local".to_owned(),
            cluster: "Kubernetes".to_owned(),
            network: String::new(),
        };
        wanted(gateway, &pods, &mesh)
    }

    #[test]
    fn a_gateway_becomes_three_objects_that_go_with_it() {
        let made = made(&gateway()).unwrap();
        let paths: Vec<&str> = made.iter().map(|wanted| wanted.path.as_str()).collect();
        let expected = [
            "/api/v1/namespaces/shop/serviceaccounts/wp",
            "/api/v1/namespaces/shop/services/wp",
            "/apis/apps/v1/namespaces/shop/deployments/wp",
        ];
        assert_eq!(paths, expected);
        for Wanted { object, .. } in &made {
            assert_eq!(object["metadata"]["ownerReferences"][0]["uid"], "u-wp");
            let labels = &object["metadata"]["labels"];
            assert_eq!((&labels["team"], &labels[GATEWAY_NAME]), (&json!("b"), &json!("wp")));
            assert!(labels["istio.io/use-waypoint"].is_null(), "a waypoint is not behind itself");
            assert!(labels["topology.istio.io/network"].is_null(), "it means something to a mesh");
            let is_account = object["kind"] == "ServiceAccount";
            let annotations = if is_account { json!({}) } else { json!({"note": "n"}) };
            assert_eq!(object["metadata"]["annotations"], annotations);
        }
        let template = &made[2].object["spec"]["template"];
        assert_eq!(template["metadata"]["labels"]["istio.io/dataplane-mode"], "none");
        assert_eq!(made[2].object["spec"]["selector"]["matchLabels"], made[1].object["spec"]["selector"]);
        let container = &template["spec"]["containers"][0];
        assert_eq!(container["args"].as_array().unwrap().last().unwrap(), "--log-level=debug");
        assert!(made[2].object["spec"]["replicas"].is_null(), "whoever scales it is not undone");
    }

    #[test]
    fn a_gateway_may_say_how_many_traces_are_recorded() {
        let flags = |gateway: &Value| {
            let made = made(gateway).unwrap();
            let flags = made[2].object["spec"]["template"]["spec"]["containers"][0]["args"].clone();
            let flags: Vec<String> = serde_json::from_value(flags).unwrap();
            flags.into_iter().filter(|flag| flag.starts_with(SAMPLING_FLAG)).collect::<Vec<_>>()
        };
        let mut gateway = gateway();
        assert_eq!(flags(&gateway), ["--trace-sampling=1"]);
        gateway["metadata"]["annotations"] = json!({SAMPLING: "0.5"});
        assert_eq!(flags(&gateway), ["--trace-sampling=0.5"]);
        gateway["metadata"]["annotations"] = json!({SAMPLING: "all"});
        assert_eq!(made(&gateway).unwrap_err().reason, "InvalidParameters");
    }

    #[test]
    fn what_cannot_be_carried_out_is_said() {
        let with = |pointer: &str, key: &str, value: Value| {
            let mut gateway = gateway();
            gateway.pointer_mut(pointer).unwrap()[key] = value;
            made(&gateway)
        };
        let replicas = |text: &str| with("/metadata", "annotations", json!({REPLICAS: text}));
        assert_eq!(replicas("3").unwrap()[2].object["spec"]["replicas"], 3);
        assert_eq!(replicas("three").unwrap_err().reason, "InvalidParameters");
        let scaled = json!({"culvert.dev/max-replicas": "5", "culvert.dev/max-unavailable": "1"});
        let scaled = with("/metadata", "annotations", scaled).unwrap();
        let paths: Vec<&str> = scaled[3..].iter().map(|wanted| wanted.path.as_str()).collect();
        let expected = [
            "/apis/autoscaling/v2/namespaces/shop/horizontalpodautoscalers/wp",
            "/apis/policy/v1/namespaces/shop/poddisruptionbudgets/wp",
        ];
        assert_eq!(paths, expected);
        assert!(
            scaled[3..].iter().all(|wanted| wanted.object["metadata"]["ownerReferences"][0]["uid"] == "u-wp")
        );
        let parameters =
            with("/spec/infrastructure", "parametersRef", json!({"kind": "ConfigMap", "name": "x"}));
        assert_eq!(parameters.unwrap_err().reason, "InvalidParameters");
        assert_eq!(with("/metadata", "labels", json!({WAYPOINT_FOR: "pods"})).unwrap_err().reason, "Invalid");
        for name in ["a.b", "1a", &"a".repeat(64)] {
            assert_eq!(with("/metadata", "name", name.into()).unwrap_err().reason, "Invalid", "{name}");
        }
    }
}
