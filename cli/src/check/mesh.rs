//! What people wrote for the mesh: labels that take pods in, and policies. What control refuses, it says itself; here is
//! what it cannot see, or cannot say before it is installed.

use serde_json::Value;

use super::{Finding, facts::Facts};
use crate::{
    manifests,
    object::{self, items, selects, text},
};

pub(crate) const DATAPLANE_MODE: &str = "istio.io/dataplane-mode";
pub(crate) const AMBIENT: &str = "ambient";
/// Its pods never wait for the mesh.
pub(crate) const EXEMPT: &str = "kube-system";
/// Istio's, unless control was told another.
const ROOT_NAMESPACE: &str = "istio-system";
/// More than these of one sort are counted.
const NAMED: usize = 5;

/// The word that counts for a pod: its own label's, else its namespace's.
pub(crate) fn mode<'o>(pod: Option<&'o Value>, namespace: Option<&'o Value>) -> Option<&'o str> {
    let label = |object: Option<&'o Value>| object.and_then(|object| object::label(object, DATAPLANE_MODE));
    label(pod).or_else(|| label(namespace))
}

/// A flag's value in the arguments of control's container.
fn argument<'w>(workloads: &'w [Value], flag: &str) -> Option<&'w str> {
    let control = workloads.iter().find(|workload| object::name(workload) == "control")?;
    let args = items(&control["spec"]["template"]["spec"]["containers"][0]["args"]);
    args.iter().find_map(|arg| arg.as_str()?.strip_prefix(flag)?.strip_prefix('='))
}

/// The trust domain that control was told.
pub(crate) fn trust_domain(workloads: &[Value]) -> &str {
    argument(workloads, "--trust-domain").unwrap_or(manifests::TRUST_DOMAIN)
}

fn root_namespace(workloads: &[Value]) -> &str {
    argument(workloads, "--root-namespace").unwrap_or(ROOT_NAMESPACE)
}

/// The mode of mutual TLS that holds for a pod: of a policy that selects it, else its namespace's, else the mesh's. With
/// a star where some of its ports have the other one.
pub(crate) fn tls_mode(pod: &Value, policies: &[Value], workloads: &[Value]) -> &'static str {
    let root = root_namespace(workloads);
    let in_namespace = |policy: &&Value, namespace: &str| object::namespace(policy) == namespace;
    let selective = |policy: &&Value| {
        policy["spec"]["selector"]["matchLabels"].as_object().is_some_and(|labels| !labels.is_empty())
    };
    let oldest = |wanted: &dyn Fn(&&Value) -> bool| {
        let found = policies.iter().filter(|policy| wanted(policy));
        found.min_by_key(|policy| (text(&policy["metadata"]["creationTimestamp"]), object::name(policy)))
    };
    let said = |mode: &Value| Some(text(mode) == "STRICT").filter(|_| !matches!(text(mode), "" | "UNSET"));
    let mode = |policy: Option<&Value>| policy.and_then(|policy| said(&policy["spec"]["mtls"]["mode"]));
    let own = object::namespace(pod);
    let labels = &pod["metadata"]["labels"];
    let of_pod = oldest(&|policy| {
        in_namespace(policy, own) && selective(policy) && selects(&policy["spec"]["selector"], labels)
    });
    let strict = mode(of_pod)
        .or_else(|| mode(oldest(&|policy| in_namespace(policy, own) && !selective(policy))))
        .or_else(|| mode(oldest(&|policy| in_namespace(policy, root) && !selective(policy))))
        .unwrap_or(false);
    let ports = of_pod.and_then(|policy| policy["spec"]["portLevelMtls"].as_object());
    let differs = ports.into_iter().flatten().any(|(_, port)| said(&port["mode"]) == Some(!strict));
    match (strict, differs) {
        (true, false) => "STRICT",
        (true, true) => "STRICT*",
        (false, false) => "PERMISSIVE",
        (false, true) => "PERMISSIVE*",
    }
}

/// Words that mean nothing, and pods that a word cannot take in.
pub(super) fn labels(facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut ambient = 0;
    for (kind, object) in
        facts.namespaces.iter().map(|one| ("Namespace", one)).chain(facts.pods.iter().map(|one| ("Pod", one)))
    {
        let about = match object::namespace(object) {
            "" => format!("{kind} {}", object::name(object)),
            namespace => format!("{kind} {namespace}/{}", object::name(object)),
        };
        let flags = match object::namespace(object) {
            "" => format!("namespace {}", object::name(object)),
            namespace => format!("--namespace {namespace} pod {}", object::name(object)),
        };
        match object::label(object, DATAPLANE_MODE) {
            Some(AMBIENT) if kind == "Namespace" && object::name(object) == facts.namespace => {
                findings.push(Finding::warning(
                    "labels",
                    about,
                    "the mesh's own namespace is labelled; its pods stay out",
                    format!("kubectl label {flags} {DATAPLANE_MODE}-"),
                ))
            }
            Some(AMBIENT) => ambient += 1,
            None | Some("none") => {}
            Some(word) => findings.push(Finding::warning(
                "labels",
                about,
                format!("{DATAPLANE_MODE}={word} means nothing: {AMBIENT} takes in, none keeps out"),
                format!("kubectl label --overwrite {flags} {DATAPLANE_MODE}={AMBIENT}"),
            )),
        }
    }
    if findings.is_empty() {
        let seen = match ambient {
            0 => "no namespace and no pod is labelled yet".to_owned(),
            some => format!("{some} of {DATAPLANE_MODE}={AMBIENT}, none misspelt"),
        };
        findings.push(Finding::ok("labels", seen));
    }
    findings
}

/// What control refuses and warns of; besides, policies that select nothing, and layer 7 before control can say so.
pub(super) fn policies(facts: &Facts) -> Vec<Finding> {
    let mut findings: Vec<Finding> = Vec::new();
    findings.extend(facts.unserved.iter().map(|plural| {
        Finding::warning(
            "policies",
            plural.clone(),
            "they are defined, and served neither in v1 nor in v1beta1: neither control nor this command reads them",
            format!("see kubectl get customresourcedefinition {plural}.security.istio.io, and serve v1 there"),
        )
    }));
    let mut control_spoke = false;
    for control in facts.programs.iter().filter_map(|program| program.answer("/status")) {
        control_spoke = true;
        findings.extend(items(&control["refused"]).iter().map(|problem| {
            let (about, seen) = told(problem);
            Finding::problem(
                "policies",
                about,
                format!("refused: {seen}"),
                "mend that field; what holds meanwhile is said behind the reason",
            )
        }));
        // Labels are judged above, where control is not needed for it.
        let warnings =
            items(&control["warnings"]).iter().filter(|problem| problem["field"] != "metadata.labels");
        findings.extend(warnings.map(|problem| {
            let (about, seen) = told(problem);
            Finding::warning("policies", about, seen, "")
        }));
    }
    // Replicas say the same.
    findings.sort_by(|a, b| (&a.about, &a.seen).cmp(&(&b.about, &b.seen)));
    findings.dedup();
    let written = facts
        .authorization
        .iter()
        .map(|one| ("AuthorizationPolicy", one))
        .chain(facts.peer_authentication.iter().map(|one| ("PeerAuthentication", one)));
    let mut count = 0;
    for (kind, policy) in written {
        count += 1;
        let about = format!("{kind} {}/{}", object::namespace(policy), object::name(policy));
        if selects_nothing(policy, facts) {
            findings.push(Finding::warning(
                "policies",
                about.clone(),
                "spec.selector: no pod has these labels",
                "compare with kubectl get pods --show-labels",
            ));
        }
        if let Some(field) = layer_7(policy).filter(|_| kind == "AuthorizationPolicy" && !control_spoke) {
            findings.push(Finding::warning(
                "policies",
                about,
                format!("{field} is of layer 7, and there is no waypoint: an ALLOW rule with it never matches, a DENY rule denies more"),
                "select by port and principal",
            ));
        }
    }
    if findings.is_empty() {
        let seen = match (count, control_spoke) {
            (0, _) => "none is written".to_owned(),
            (count, true) => format!("{count}, none refused"),
            (count, false) => format!("{count}; whether one is refused, control says once it runs"),
        };
        findings.push(Finding::ok("policies", seen));
    } else if findings.len() > 4 * NAMED {
        let more = findings.len() - 4 * NAMED;
        findings.truncate(4 * NAMED);
        findings.push(Finding::warning(
            "policies",
            "",
            format!("and {more} more"),
            "culvert check --output json has all of those that control names",
        ));
    }
    findings
}

/// The object, and the field with the reason.
fn told(problem: &Value) -> (String, String) {
    let field = text(&problem["field"]);
    let reason = text(&problem["reason"]);
    let seen = if field.is_empty() { reason.to_owned() } else { format!("{field}: {reason}") };
    (text(&problem["object"]).to_owned(), seen)
}

fn selects_nothing(policy: &Value, facts: &Facts) -> bool {
    let selector = &policy["spec"]["selector"];
    let has_labels = selector["matchLabels"].as_object().is_some_and(|labels| !labels.is_empty());
    // In the root namespace one without a namespace of its own selects everywhere.
    let everywhere = object::namespace(policy) == root_namespace(&facts.workloads);
    let candidates =
        facts.pods.iter().filter(|pod| everywhere || object::namespace(pod) == object::namespace(policy));
    has_labels && !candidates.into_iter().any(|pod| selects(selector, &pod["metadata"]["labels"]))
}

/// The first field of a policy that only a layer-7 proxy can judge.
fn layer_7(policy: &Value) -> Option<String> {
    const OPERATION: [&str; 6] = ["hosts", "notHosts", "methods", "notMethods", "paths", "notPaths"];
    const SOURCE: [&str; 2] = ["requestPrincipals", "notRequestPrincipals"];
    for (number, rule) in items(&policy["spec"]["rules"]).iter().enumerate() {
        for (list, inner, fields) in [("to", "operation", &OPERATION[..]), ("from", "source", &SOURCE[..])] {
            for (at, entry) in items(&rule[list]).iter().enumerate() {
                if let Some(field) = fields.iter().find(|field| !items(&entry[inner][**field]).is_empty()) {
                    return Some(format!("spec.rules[{number}].{list}[{at}].{inner}.{field}"));
                }
            }
        }
        if let Some(at) =
            items(&rule["when"]).iter().position(|when| text(&when["key"]).starts_with("request."))
        {
            return Some(format!("spec.rules[{number}].when[{at}].key"));
        }
    }
    None
}
