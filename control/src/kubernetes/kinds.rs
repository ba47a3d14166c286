//! Where the API server has each kind, and what of an object is kept.

use serde_json::{Value, json};

use super::held::Name;
use crate::{
    compile::{EXPORT_TO, MIRROR, WAYPOINT_EXCEPT},
    manifest::{ANNOTATIONS, Kind},
};
use apiserver::{Api, ApiError};

/// Where a kind is served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// `/apis/discovery.k8s.io/v1/endpointslices`
    pub path: String,
    api_version: String,
}

impl Place {
    /// The path of an object.
    pub fn object(&self, name: &Name) -> String {
        let (before, plural) = self.path.rsplit_once('/').unwrap_or(("", &self.path));
        if name.namespace.is_empty() {
            format!("{}/{}", self.path, name.name)
        } else {
            format!("{before}/namespaces/{}/{plural}/{}", name.namespace, name.name)
        }
    }
}

#[cfg(test)]
impl Place {
    /// For tests that only put objects in.
    pub fn of(api_version: &str) -> Self {
        Self::at("", api_version)
    }

    pub fn at(path: &str, api_version: &str) -> Self {
        Self { path: path.to_owned(), api_version: api_version.to_owned() }
    }
}

/// A kind as the API server names it.
struct Resource {
    group: &'static str,
    plural: &'static str,
    /// The best first. Kinds of the API server itself have one, and are always there.
    versions: &'static [&'static str],
}

/// The versions of Istio's kinds that say the same in the fields that are read.
const SECURITY: &[&str] = &["v1", "v1beta1"];
const NETWORKING: &[&str] = &["v1", "v1beta1", "v1alpha3"];
const GATEWAY: &[&str] = &["v1", "v1beta1"];
const BACKEND_TLS: &[&str] = &["v1", "v1alpha3"];
const TLS_ROUTES: &[&str] = &["v1", "v1alpha3", "v1alpha2"];
const TCP_ROUTES: &[&str] = &["v1", "v1alpha2"];

fn resource(kind: Kind) -> Resource {
    let core = |plural| Resource { group: "", plural, versions: &["v1"] };
    let security = |plural| Resource { group: "security.istio.io", plural, versions: SECURITY };
    let networking = |plural| Resource { group: "networking.istio.io", plural, versions: NETWORKING };
    let of_gateways = |plural, versions| Resource { group: "gateway.networking.k8s.io", plural, versions };
    let gateway = |plural| of_gateways(plural, GATEWAY);
    match kind {
        Kind::Namespace => core("namespaces"),
        Kind::Node => core("nodes"),
        Kind::Pod => core("pods"),
        Kind::Service => core("services"),
        Kind::EndpointSlice => {
            Resource { group: "discovery.k8s.io", plural: "endpointslices", versions: &["v1"] }
        }
        Kind::ServiceEntry => networking("serviceentries"),
        Kind::WorkloadEntry => networking("workloadentries"),
        Kind::AuthorizationPolicy => security("authorizationpolicies"),
        Kind::PeerAuthentication => security("peerauthentications"),
        Kind::RequestAuthentication => security("requestauthentications"),
        Kind::Gateway => gateway("gateways"),
        Kind::HTTPRoute => gateway("httproutes"),
        Kind::GRPCRoute => gateway("grpcroutes"),
        Kind::TLSRoute => of_gateways("tlsroutes", TLS_ROUTES),
        Kind::TCPRoute => of_gateways("tcproutes", TCP_ROUTES),
        Kind::ReferenceGrant => gateway("referencegrants"),
        Kind::BackendTLSPolicy => of_gateways("backendtlspolicies", BACKEND_TLS),
        Kind::ConfigMap => core("configmaps"),
    }
}

/// Which objects of a kind are asked for: a pod that ran to its end holds no address, and is as good as gone.
pub fn fields(kind: Kind) -> &'static str {
    if kind == Kind::Pod { "status.phase!=Succeeded,status.phase!=Failed" } else { "" }
}

/// Where `kind` is served; `None` where it is not, and nobody intends to.
pub async fn locate(api: &Api, kind: Kind) -> Result<Option<Place>, ApiError> {
    let Resource { group, plural, versions } = resource(kind);
    let place = |version: &str| {
        let (path, api_version) = if group.is_empty() {
            (format!("/api/{version}/{plural}"), version.to_owned())
        } else {
            (format!("/apis/{group}/{version}/{plural}"), format!("{group}/{version}"))
        };
        Place { path, api_version }
    };
    if versions.len() == 1 {
        return Ok(Some(place(versions[0])));
    }
    for version in versions {
        let served = match api.get(&format!("/apis/{group}/{version}")).await {
            Ok(served) => served,
            Err(error) if error.is_absent() => continue,
            Err(error) => return Err(error),
        };
        let mut resources = served["resources"].as_array().into_iter().flatten();
        if resources.any(|resource| resource["name"] == plural) {
            return Ok(Some(place(version)));
        }
    }
    // An API server that has just started may not serve yet what it knows, and may not know yet what we may
    // ask: neither silence nor refusal is absence.
    let definition = format!("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{plural}.{group}");
    match api.get(&definition).await {
        Ok(definition) if will_be_served(&definition, versions) => {
            Err(ApiError::Nonsense(format!("{plural}.{group} is defined, and not served yet")))
        }
        Ok(_) => Ok(None),
        Err(error) if error.is_absent() => Ok(None),
        Err(error) => Err(error),
    }
}

fn will_be_served(definition: &Value, versions: &[&str]) -> bool {
    let mut defined = definition["spec"]["versions"].as_array().into_iter().flatten();
    let ends = !definition["metadata"]["deletionTimestamp"].is_null();
    !ends
        && defined.any(|version| {
            let name = version["name"].as_str();
            version["served"] == true && name.is_some_and(|name| versions.contains(&name))
        })
}

/// What the mesh does not read is taken out, and what a list leaves out is put in.
pub fn strip(kind: Kind, place: &Place, object: &mut Value) {
    object["apiVersion"] = place.api_version.as_str().into();
    object["kind"] = format!("{kind:?}").into();
    strip_metadata(kind, &mut object["metadata"]);
    match kind {
        Kind::Pod => strip_pod(object),
        Kind::Node => {
            remove(object, "spec");
            remove(object, "status");
        }
        // Another control plane may have given its hosts addresses.
        Kind::ServiceEntry => {
            if let Some(status) = object.get_mut("status").and_then(Value::as_object_mut) {
                status.retain(|field, _| field == "addresses");
            }
        }
        // Nodes lead there what is sent to its load balancer's addresses.
        Kind::Service => retain_keys(object, "status", |field| field == "loadBalancer"),
        Kind::Namespace
        | Kind::EndpointSlice
        | Kind::WorkloadEntry
        | Kind::AuthorizationPolicy
        | Kind::PeerAuthentication
        | Kind::RequestAuthentication
        | Kind::Gateway
        | Kind::HTTPRoute
        | Kind::GRPCRoute
        | Kind::TLSRoute
        | Kind::TCPRoute
        | Kind::ReferenceGrant
        | Kind::BackendTLSPolicy => remove(object, "status"),
        Kind::ConfigMap => {
            remove(object, "binaryData");
            retain_keys(object, "data", |key| key == "ca.crt");
        }
    }
}

fn strip_metadata(kind: Kind, metadata: &mut Value) {
    remove(metadata, "managedFields");
    // Of two policies, and of two routes, the older holds, of two hosts the older keeps its automatic address, of two
    // RequestAuthentications the older has its keys fetched, and of two images of a static pod the older is believed.
    let is_image = !metadata["annotations"][MIRROR].is_null();
    let by_age = kind.has_standings()
        || matches!(kind, Kind::PeerAuthentication | Kind::RequestAuthentication | Kind::ServiceEntry);
    if !by_age && !is_image {
        remove(metadata, "creationTimestamp");
    }
    let read: &[&str] = match kind {
        Kind::Pod => &ANNOTATIONS,
        Kind::Namespace => &[WAYPOINT_EXCEPT],
        Kind::Service => &[EXPORT_TO, WAYPOINT_EXCEPT],
        Kind::AuthorizationPolicy => &["istio.io/dry-run"],
        _ => &[],
    };
    retain_keys(metadata, "annotations", |key| read.contains(&key));
    match kind {
        Kind::Node => retain_keys(metadata, "labels", |key| key.starts_with("topology.")),
        Kind::EndpointSlice => retain_keys(metadata, "labels", |key| key == "kubernetes.io/service-name"),
        _ => {}
    }
    if let Some(owners) = metadata.get_mut("ownerReferences").and_then(Value::as_array_mut) {
        owners.retain(|owner| kind == Kind::Pod && owner["controller"] == true);
        if owners.is_empty() {
            remove(metadata, "ownerReferences");
        }
    }
}

fn strip_pod(pod: &mut Value) {
    // Ports are read to be found by name.
    if let Some(containers) = pod.pointer_mut("/spec/containers").and_then(Value::as_array_mut) {
        for container in containers.iter_mut() {
            let ports = container.get_mut("ports").and_then(Value::as_array_mut).map(std::mem::take);
            let ports = ports.unwrap_or_default();
            let named: Vec<Value> = ports.into_iter().filter(|port| !port["name"].is_null()).collect();
            *container = json!({ "ports": named });
        }
        containers.retain(|container| container["ports"].as_array().is_some_and(|ports| !ports.is_empty()));
        if containers.is_empty() {
            pod.get_mut("spec").into_iter().for_each(|spec| remove(spec, "containers"));
        }
    }
    if let Some(conditions) = pod.pointer_mut("/status/conditions").and_then(Value::as_array_mut) {
        conditions.retain(|condition| condition["type"] == "Ready");
    }
    // The one address is told twice.
    let single = pod["status"]["podIPs"].as_array().is_some_and(|ips| ips.len() <= 1);
    if single && pod["status"]["podIP"].is_string() {
        pod.get_mut("status").into_iter().for_each(|status| remove(status, "podIPs"));
    }
}

fn remove(object: &mut Value, key: &str) {
    if let Some(object) = object.as_object_mut() {
        object.remove(key);
    }
}

fn retain_keys(object: &mut Value, map: &str, keep: impl Fn(&str) -> bool) {
    let Some(pairs) = object.get_mut(map).and_then(Value::as_object_mut) else { return };
    pairs.retain(|key, _| keep(key));
    if pairs.is_empty() {
        remove(object, map);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::{Object, parse_json};

    fn place(kind: Kind) -> Place {
        let Resource { group, plural, versions } = resource(kind);
        let api_version = if group.is_empty() { "v1".into() } else { format!("{group}/{}", versions[0]) };
        Place { path: plural.into(), api_version }
    }

    #[test]
    fn of_a_pod_what_is_read_stays_and_is_read() {
        let mut pod = json!({
            "metadata": {
                "name": "web-1", "namespace": "shop", "uid": "u", "resourceVersion": "7",
                "managedFields": [{"manager": "kubelet"}],
                "labels": {"app": "web"},
                "annotations": {"culvert.dev/redirection": "measured", "kubectl.kubernetes.io/restartedAt": "x"},
                "ownerReferences": [{"kind": "ReplicaSet", "name": "web", "controller": true}, {"kind": "X", "name": "y"}],
            },
            "spec": {
                "nodeName": "a", "serviceAccountName": "web", "volumes": [{"name": "v"}],
                "containers": [
                    {"name": "app", "image": "i", "env": [], "ports": [{"name": "http", "containerPort": 8080}, {"containerPort": 9}]},
                    {"name": "side", "image": "j"},
                ],
            },
            "status": {
                "phase": "Running", "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}],
                "conditions": [{"type": "Initialized", "status": "True"}, {"type": "Ready", "status": "False"}],
                "containerStatuses": [{"name": "app"}],
            },
        });
        strip(Kind::Pod, &place(Kind::Pod), &mut pod);
        assert_eq!(pod["metadata"]["annotations"], json!({"culvert.dev/redirection": "measured"}));
        assert_eq!(pod["metadata"]["ownerReferences"].as_array().unwrap().len(), 1);
        assert!(pod["metadata"]["managedFields"].is_null());
        assert_eq!(pod["spec"]["containers"].as_array().unwrap().len(), 1);
        assert_eq!(pod["status"]["conditions"].as_array().unwrap().len(), 1);
        let parsed = parse_json(&pod);
        assert_eq!(parsed.problems, []);
        let [(key, Object::Pod(pod))] = &parsed.objects[..] else { panic!("{parsed:?}") };
        assert_eq!(key.to_string(), "Pod shop/web-1");
        assert!(!pod.ready());
        assert_eq!((pod.named_port("http"), pod.addresses.len()), (Some(8080), 1));
    }

    #[test]
    fn what_a_service_says_of_who_is_to_see_it_and_of_its_load_balancer_is_read_and_nothing_else_is() {
        let mut service = json!({
            "metadata": {
                "name": "web", "namespace": "shop",
                "annotations": {"networking.istio.io/exportTo": ".", "meta.helm.sh/release-name": "shop"},
            },
            "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": 80}]},
            "status": {"loadBalancer": {"ingress": [{"ip": "198.51.100.1"}, {"hostname": "a.example"}]}, "conditions": []},
        });
        strip(Kind::Service, &place(Kind::Service), &mut service);
        assert_eq!(service["metadata"]["annotations"], json!({"networking.istio.io/exportTo": "."}));
        assert!(service["status"]["conditions"].is_null());
        let parsed = parse_json(&service);
        let [(_, Object::Service(service))] = &parsed.objects[..] else { panic!("{parsed:?}") };
        assert_eq!(*service.outside, ["198.51.100.1".parse::<std::net::IpAddr>().unwrap()]);
    }

    #[test]
    fn a_wrong_object_is_refused_by_name_without_a_file() {
        let mut policy = json!({
            "metadata": {"name": "p", "namespace": "shop"},
            "spec": {"action": "DENY", "rules": [{"to": [{"operation": {"ports": ["http"]}}]}]},
        });
        strip(Kind::AuthorizationPolicy, &place(Kind::AuthorizationPolicy), &mut policy);
        let parsed = parse_json(&policy);
        assert_eq!(parsed.refused.len(), 1);
        let text = parsed.problems[0].to_string();
        assert!(
            text.starts_with("AuthorizationPolicy shop/p: spec.rules[0].to[0].operation.ports[0]: "),
            "{text}"
        );
    }

    #[test]
    fn an_age_is_kept_where_the_older_comes_first() {
        for (kind, kept) in [
            (Kind::RequestAuthentication, true),
            (Kind::PeerAuthentication, true),
            (Kind::HTTPRoute, true),
            (Kind::Service, false),
        ] {
            let made = "2026-01-01T00:00:00Z";
            let mut object = json!({"metadata": {"name": "a", "creationTimestamp": made}});
            strip(kind, &place(kind), &mut object);
            assert_eq!(object["metadata"]["creationTimestamp"] == made, kept, "{kind:?}");
        }
    }

    #[test]
    fn ports_as_keys_are_read_from_json() {
        let mut policy = json!({
            "metadata": {"name": "p", "namespace": "shop"},
            "spec": {"selector": {"matchLabels": {"app": "web"}}, "portLevelMtls": {"8080": {"mode": "PERMISSIVE"}}},
            "status": {},
        });
        strip(Kind::PeerAuthentication, &place(Kind::PeerAuthentication), &mut policy);
        let parsed = parse_json(&policy);
        assert_eq!((parsed.problems.len(), parsed.objects.len()), (0, 1), "{parsed:?}");
    }

    #[test]
    fn a_definition_counts_if_it_serves_a_version_that_is_read() {
        let definition =
            |name: &str, served: bool| json!({"spec": {"versions": [{"name": name, "served": served}]}});
        assert!(will_be_served(&definition("v1", true), SECURITY));
        assert!(!will_be_served(&definition("v1", false), SECURITY));
        assert!(!will_be_served(&definition("v7", true), SECURITY));
        let mut ends = definition("v1", true);
        ends["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        assert!(!will_be_served(&ends, SECURITY));
    }
}
