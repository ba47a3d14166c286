//! Kubernetes objects as JSON: what is asked of any of them.

use serde_json::Value;

/// Who the label `app.kubernetes.io/managed-by` names on what this command installs.
pub(crate) const MANAGER_LABEL: &str = "culvert";

/// The kinds that are installed: their group and version, plural name, and whether they are in a namespace.
const KINDS: &[(&str, &str, &str, bool)] = &[
    ("Namespace", "api/v1", "namespaces", false),
    ("CustomResourceDefinition", "apis/apiextensions.k8s.io/v1", "customresourcedefinitions", false),
    ("ServiceAccount", "api/v1", "serviceaccounts", true),
    ("ConfigMap", "api/v1", "configmaps", true),
    ("ClusterRole", "apis/rbac.authorization.k8s.io/v1", "clusterroles", false),
    ("ClusterRoleBinding", "apis/rbac.authorization.k8s.io/v1", "clusterrolebindings", false),
    ("Role", "apis/rbac.authorization.k8s.io/v1", "roles", true),
    ("RoleBinding", "apis/rbac.authorization.k8s.io/v1", "rolebindings", true),
    ("Service", "api/v1", "services", true),
    ("PodDisruptionBudget", "apis/policy/v1", "poddisruptionbudgets", true),
    ("Deployment", "apis/apps/v1", "deployments", true),
    ("DaemonSet", "apis/apps/v1", "daemonsets", true),
];

/// The kinds, in the order in which their objects are made.
pub(crate) fn kinds() -> impl DoubleEndedIterator<Item = &'static str> {
    KINDS.iter().map(|(kind, ..)| *kind)
}

/// The collection of a kind, in a namespace if the kind is in one.
///
/// # Panics
/// On a kind that is never installed: a test goes through all of the manifests.
pub(crate) fn collection(kind: &str, namespace: &str) -> String {
    let known = KINDS.iter().find(|(known, ..)| *known == kind);
    let Some((_, version, plural, namespaced)) = known else { panic!("{kind} is never installed") };
    match namespaced {
        true => format!("/{version}/namespaces/{namespace}/{plural}"),
        false => format!("/{version}/{plural}"),
    }
}

/// Where an object of a kind that is installed is.
pub(crate) fn path(object: &Value) -> String {
    format!("{}/{}", collection(text(&object["kind"]), namespace(object)), name(object))
}

/// A text, or an empty one.
pub(crate) fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

pub(crate) fn name(object: &Value) -> &str {
    text(&object["metadata"]["name"])
}

pub(crate) fn namespace(object: &Value) -> &str {
    text(&object["metadata"]["namespace"])
}

pub(crate) fn label<'o>(object: &'o Value, label: &str) -> Option<&'o str> {
    object["metadata"]["labels"].get(label)?.as_str()
}

pub(crate) fn annotation<'o>(object: &'o Value, annotation: &str) -> Option<&'o str> {
    object["metadata"]["annotations"].get(annotation)?.as_str()
}

/// `Kind namespace/name`, as a person names it.
pub(crate) fn named(object: &Value) -> String {
    let (kind, namespace, name) = (text(&object["kind"]), namespace(object), name(object));
    if namespace.is_empty() { format!("{kind} {name}") } else { format!("{kind} {namespace}/{name}") }
}

/// The elements of a list, or none.
pub(crate) fn items(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// Whether a label selector of Kubernetes' (matchLabels and matchExpressions) takes these labels in. An empty one
/// takes all.
pub(crate) fn selects(selector: &Value, labels: &Value) -> bool {
    let value_of = |key: &str| labels.get(key).and_then(Value::as_str);
    let labels_match = selector["matchLabels"]
        .as_object()
        .is_none_or(|wanted| wanted.iter().all(|(key, value)| value_of(key) == value.as_str()));
    labels_match
        && items(&selector["matchExpressions"]).iter().all(|expression| {
            let held = value_of(text(&expression["key"]));
            let among = items(&expression["values"]).iter().any(|value| held == value.as_str());
            match text(&expression["operator"]) {
                "In" => held.is_some() && among,
                "NotIn" => held.is_none() || !among,
                "Exists" => held.is_some(),
                "DoesNotExist" => held.is_none(),
                // The API server lets no other through.
                _ => false,
            }
        })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn selectors_take_in_what_kubernetes_would() {
        let labels = json!({"app": "web", "tier": "front"});
        for (selector, taken) in [
            (json!({}), true),
            (Value::Null, true),
            (json!({"matchLabels": {"app": "web"}}), true),
            (json!({"matchLabels": {"app": "web", "tier": "back"}}), false),
            (json!({"matchExpressions": [{"key": "app", "operator": "In", "values": ["db", "web"]}]}), true),
            (json!({"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["web"]}]}), false),
            (json!({"matchExpressions": [{"key": "zone", "operator": "NotIn", "values": ["web"]}]}), true),
            (json!({"matchExpressions": [{"key": "zone", "operator": "Exists"}]}), false),
            (json!({"matchExpressions": [{"key": "zone", "operator": "DoesNotExist"}]}), true),
        ] {
            assert_eq!(selects(&selector, &labels), taken, "{selector}");
        }
    }

    #[test]
    fn objects_have_places() {
        let role = json!({"kind": "Role", "metadata": {"name": "r", "namespace": "n"}});
        assert_eq!(path(&role), "/apis/rbac.authorization.k8s.io/v1/namespaces/n/roles/r");
        let namespace = json!({"kind": "Namespace", "metadata": {"name": "n"}});
        assert_eq!(path(&namespace), "/api/v1/namespaces/n");
        assert_eq!(named(&role), "Role n/r");
    }
}
