//! Waypoints: which Gateways are some, which pods serve them, and who must pass them.

use std::{collections::HashMap, sync::Arc};

use mesh::{GatewayAddress, PortMapping, Service, ServiceKey, WaypointRequired, Workload};

use super::Compiler;
use crate::{
    manifest::{self, Gateway, Kind, Labels, Metadata, Object, ObjectKey, Pod, WaypointFor},
    objects::View,
};

/// Names the waypoint; `none` where a namespace's is not for this object.
const USE_WAYPOINT: &str = "istio.io/use-waypoint";
/// The waypoint's namespace, where that is another.
const USE_WAYPOINT_NAMESPACE: &str = "istio.io/use-waypoint-namespace";
/// On a pod: the Gateway that it serves.
const GATEWAY_NAME: &str = "gateway.networking.k8s.io/gateway-name";
/// `required`, on a pod, a service or a namespace: who does not come through a waypoint is refused.
const WAYPOINT: &str = "culvert.dev/waypoint";
/// Beside it: ports of pods that may be called directly all the same, separated by commas.
pub(crate) const WAYPOINT_EXCEPT: &str = "culvert.dev/waypoint-except-ports";
/// Where every waypoint takes tunnels.
const HBONE_PORT: u16 = 15008;

/// What each waypoint is for and its class, by namespace and name.
pub(super) struct Waypoints(HashMap<(Box<str>, Box<str>), Known>);

type Known = (WaypointFor, Arc<str>);

impl Waypoints {
    pub(super) fn of(view: &View<'_>) -> Self {
        let own = view.objects.iter().filter_map(|(key, object)| match object {
            Object::Gateway(gateway) => Some((key, &**gateway)),
            _ => None,
        });
        let foreign = view.foreign_gateways.iter().map(|(key, gateway)| (key, *gateway));
        let waypoints = own.chain(foreign).filter(|(_, gateway)| gateway.is_waypoint());
        // What cannot be read was refused before.
        let of = |gateway: &Gateway| {
            (
                gateway.waypoint_for().unwrap_or(WaypointFor::None),
                gateway.spec.gateway_class_name.as_str().into(),
            )
        };
        Self(waypoints.map(|(key, gateway)| (name_of(&key.namespace, &key.name), of(gateway))).collect())
    }

    pub(super) fn get(&self, namespace: &str, name: &str) -> Option<WaypointFor> {
        self.0.get(&name_of(namespace, name)).map(|(of, _)| *of)
    }
}

fn name_of(namespace: &str, name: &str) -> (Box<str>, Box<str>) {
    (namespace.into(), name.into())
}

impl Compiler<'_, '_> {
    /// Whether a pod is one of a waypoint's: by its label, and by its account, which is called as the Gateway is. A
    /// label alone is too little: whoever may label a pod would have the waypoint's rights under any account.
    pub(super) fn is_waypoint(&self, key: &ObjectKey, pod: &Pod) -> bool {
        let account = pod.template.service_account.as_deref();
        let name = pod.label(GATEWAY_NAME).filter(|name| account == Some(*name));
        name.is_some_and(|name| self.waypoints.get(&key.namespace, name).is_some())
    }

    /// Whether a reference is to a Gateway that is a waypoint of this mesh.
    pub(super) fn is_waypoint_gateway(
        &self,
        group: Option<&str>,
        kind: Option<&str>,
        namespace: &str,
        name: &str,
    ) -> bool {
        group.is_none_or(|group| group == "gateway.networking.k8s.io")
            && kind.is_none_or(|kind| kind == "Gateway")
            && self.waypoints.get(namespace, name).is_some()
    }

    /// Whether a service is a waypoint's own: it bears the waypoint's name, and selects its pods. Another one of that name
    /// is a service like others, and keeps its own waypoint.
    pub(super) fn is_waypoint_service(&self, key: &ObjectKey, service: &manifest::Service) -> bool {
        self.waypoints.get(&key.namespace, &key.name).is_some()
            && service.selector.get(GATEWAY_NAME) == Some(&*key.name)
    }

    /// The waypoint of a service: that which its own label or its namespace's names.
    pub(super) fn waypoint_of_service(
        &mut self,
        key: &ObjectKey,
        from: &[&Labels],
    ) -> Option<GatewayAddress> {
        let labels = from.iter().find(|labels| labels.get(USE_WAYPOINT).is_some())?;
        let (namespace, name) = named(key, labels)?;
        match self.waypoints.get(namespace, name) {
            Some(of) if of.services() => {}
            Some(of) => {
                let what = if of == WaypointFor::None { "nothing" } else { "workloads only" };
                let reason = format!("the waypoint {namespace}/{name} is for {what}: calls do not pass it");
                self.warn(key, "metadata.labels", reason);
                return None;
            }
            None => self.warn_missing(key, namespace, name),
        }
        Some(self.waypoint_address(namespace, name))
    }

    /// The waypoint of a pod that is called by its own address.
    pub(super) fn waypoint_of_pod(&mut self, key: &ObjectKey, pod: &Pod) -> Option<GatewayAddress> {
        let own = pod.label(USE_WAYPOINT).is_some();
        let labels =
            if own { &pod.template.labels } else { &self.namespace_metadata(&key.namespace)?.labels };
        let (namespace, name) = named(key, labels)?;
        match self.waypoints.get(namespace, name) {
            Some(of) if of.workloads() => {}
            Some(_) if own => {
                let reason = format!(
                    "the waypoint {namespace}/{name} is not for workloads (istio.io/waypoint-for): calls by address \
                     do not pass it"
                );
                self.warn(key, "metadata.labels", reason);
                return None;
            }
            None if own => self.warn_missing(key, namespace, name),
            // A namespace's waypoint is for services, unless it says something else.
            Some(_) | None => return None,
        }
        Some(self.waypoint_address(namespace, name))
    }

    fn warn_missing(&mut self, key: &ObjectKey, namespace: &str, name: &str) {
        let reason = format!(
            "waypoint {namespace}/{name} does not exist: calls to this are refused, not led around it"
        );
        self.warn(key, "metadata.labels", reason);
    }

    pub(super) fn waypoint_address(&self, namespace: &str, name: &str) -> GatewayAddress {
        GatewayAddress::Host { service: self.service_key(namespace, name), hbone_port: HBONE_PORT }
    }

    /// The waypoints of a class.
    pub(super) fn waypoints_of_class(&self, wanted: &str) -> Vec<GatewayAddress> {
        let of_class = self.waypoints.0.iter().filter(|(_, (_, class))| **class == *wanted);
        of_class.map(|((namespace, name), _)| self.waypoint_address(namespace, name)).collect()
    }

    /// The services by which waypoints are found, where nobody has written one, with their pods behind them.
    pub(super) fn waypoint_services(&mut self) {
        let gateways = self.of_kind(Kind::Gateway, |object| match object {
            Object::Gateway(gateway) => Some(&**gateway),
            _ => None,
        });
        for (key, gateway) in gateways {
            let written = ObjectKey { kind: Kind::Service, ..key.clone() };
            if !gateway.is_waypoint() || self.view.get(&written).is_some() {
                continue;
            }
            let name = self.service_key(&key.namespace, &key.name);
            for uid in self.by_namespace.get(&key.namespace).cloned().unwrap_or_default() {
                if self.labels_of(&uid).get(GATEWAY_NAME) == Some(&*key.name)
                    && let Some(workload) = self.out.workloads.get_mut(&uid)
                    && workload.native_tunnel
                {
                    workload.services.insert(name.clone(), Vec::new());
                }
            }
            let ports = vec![PortMapping { service_port: HBONE_PORT, target_port: HBONE_PORT }];
            let service = Service { ports, ..Service::named(name.clone(), key.name.clone()) };
            self.out.services.insert(name, service);
        }
    }

    /// Which workloads are called through waypoints only.
    pub(super) fn required_waypoints(&mut self) {
        let view = self.view;
        for (key, object) in &view.objects {
            let (label, except) = match object {
                Object::Pod(pod) => (pod.label(WAYPOINT), pod.annotation(WAYPOINT_EXCEPT)),
                Object::Namespace(namespace) => said_by(&namespace.metadata),
                Object::Service(service) => said_by(&service.metadata),
                _ => continue,
            };
            let Some(ports) = self.requires(key, label, except) else { continue };
            let service = self.service_key(&key.namespace, &key.name);
            let concerned = |workload: &Workload| match key.kind {
                Kind::Namespace => workload.namespace == key.name,
                Kind::Service => workload.services.contains_key(&service),
                _ => workload.namespace == key.namespace && workload.name == key.name,
            };
            for workload in self.out.workloads.values_mut() {
                if !workload.native_tunnel && concerned(workload) {
                    require(workload, &ports, (key.kind == Kind::Service).then_some(&service));
                }
            }
        }
    }

    /// Whether an object asks for it, and the ports it excepts.
    fn requires(&mut self, key: &ObjectKey, label: Option<&str>, except: Option<&str>) -> Option<Vec<u16>> {
        match label? {
            "required" => {}
            word => {
                let reason = format!("{word:?} means nothing: write required");
                self.warn(key, &format!("metadata.labels[{WAYPOINT}]"), reason);
                return None;
            }
        }
        let mut ports = Vec::new();
        for text in except.unwrap_or_default().split(',').map(str::trim) {
            match text.parse() {
                Ok(port) => ports.push(port),
                Err(_) if text.is_empty() => {}
                Err(_) => {
                    let reason = format!("{text:?} is not a port, and excepts nothing");
                    self.warn(key, &format!("metadata.annotations[{WAYPOINT_EXCEPT}]"), reason);
                }
            }
        }
        Some(ports)
    }
}

/// Whether one is required, and the ports that are excepted, as they are written.
fn said_by(metadata: &Metadata) -> (Option<&str>, Option<&str>) {
    (metadata.label(WAYPOINT), metadata.annotation(WAYPOINT_EXCEPT))
}

/// The waypoint that these labels name.
fn named<'m>(key: &'m ObjectKey, labels: &'m Labels) -> Option<(&'m str, &'m str)> {
    let name = labels.get(USE_WAYPOINT).filter(|name| *name != "none")?;
    Some((labels.get(USE_WAYPOINT_NAMESPACE).unwrap_or(&key.namespace), name))
}

/// Of several who ask for it each must except a port. A service asks for its own waypoint.
fn require(workload: &mut Workload, ports: &[u16], service: Option<&ServiceKey>) {
    let of = service.cloned();
    match &mut workload.waypoint_required {
        Some(held) => {
            held.except_ports.retain(|port| ports.contains(port));
            held.of.extend(of);
        }
        none => {
            *none = Some(WaypointRequired { except_ports: ports.to_vec(), of: of.into_iter().collect() });
        }
    }
}

/// Whether a reference is to a Service; `default` is the kind that is meant where none is written.
pub(super) fn is_service(group: Option<&str>, kind: Option<&str>, default: &str) -> bool {
    let of_default = if default == "Service" { "" } else { "gateway.networking.k8s.io" };
    group.unwrap_or(of_default).is_empty() && kind.unwrap_or(default) == "Service"
}

/// Where ServiceEntries are, and the names of hosts.
pub(super) const ISTIO_NETWORKING: &str = "networking.istio.io";

/// Whether a reference is to a ServiceEntry.
pub(super) fn is_service_entry(group: Option<&str>, kind: Option<&str>) -> bool {
    group == Some(ISTIO_NETWORKING) && kind == Some("ServiceEntry")
}

/// Services from whose routes a workload is reached, each once, in order.
pub(super) fn add_routed_from(workload: &mut Workload, service: &ServiceKey) {
    if workload.services.contains_key(service) {
        return;
    }
    if let Err(at) = workload.routed_from.binary_search(service) {
        workload.routed_from.insert(at, service.clone());
    }
}
