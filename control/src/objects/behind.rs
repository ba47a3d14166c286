//! Who is behind an address of a Service, as nodes lead there what is sent to it. Pure.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use super::{Objects, Space, objects_of};
use crate::manifest::{Endpoint, Kind, Object, Service};

impl Objects {
    /// The addresses of all endpoints of the Services that have this one, in the cluster, as an external one or as their
    /// load balancer's, ready or not: those of their EndpointSlices, and of the pods that they select.
    pub fn behind(&self, address: IpAddr) -> BTreeSet<IpAddr> {
        let mut found = BTreeSet::new();
        let is_it = |own: &IpAddr| own.to_canonical() == address.to_canonical();
        for space in self.spaces.values() {
            for (name, object) in objects_of(space, Kind::Service) {
                if let Object::Service(service) = object
                    && service.addresses.iter().chain(&service.outside).any(is_it)
                {
                    add_endpoints(space, name, service, &mut found);
                }
            }
        }
        found
    }
}

fn add_endpoints(space: &Space, name: &str, service: &Service, found: &mut BTreeSet<IpAddr>) {
    let mut pods: BTreeSet<&Arc<str>> = BTreeSet::new();
    for (_, object) in objects_of(space, Kind::EndpointSlice) {
        let Object::EndpointSlice(slice) = object else { continue };
        if slice.service.as_deref() != Some(name) {
            continue;
        }
        for endpoint in &slice.endpoints {
            match &endpoint.at {
                Endpoint::Pod(pod) => drop(pods.insert(pod)),
                Endpoint::Addresses(at) => found.extend(at.addresses.iter().map(IpAddr::to_canonical)),
            }
        }
    }
    for (name, object) in objects_of(space, Kind::Pod) {
        let Object::Pod(pod) = object else { continue };
        let is_selected = !service.selector.is_empty() && pod.template.labels.have(&service.selector);
        if is_selected || pods.contains(name) {
            found.extend(pod.addresses.iter().map(IpAddr::to_canonical));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::manifest::parse;

    #[test]
    fn who_is_behind_a_service_is_known_by_slices_and_by_labels() {
        let slice = |name: &str, of: &str, endpoint: &str| {
            format!(
                "{{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {{name: {name}, namespace: shop, labels: \
                 {{kubernetes.io/service-name: {of}}}}}, addressType: IPv4, endpoints: [{endpoint}]}}"
            )
        };
        let service = |namespace: &str, name: &str, address: &str, more: &str| {
            format!(
                "{{apiVersion: v1, kind: Service, metadata: {{name: {name}, namespace: {namespace}}}, spec: {{clusterIP: \
                 '{address}'{more}}}}}"
            )
        };
        let pod = |namespace: &str, name: &str, address: &str| {
            format!(
                "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, namespace: {namespace}, labels: {{app: {name}}}}}, \
                 status: {{podIP: {address}}}}}"
            )
        };
        let balanced = ", selector: {app: web}}, status: {loadBalancer: {ingress: [{hostname: a.example}, {ip: 198.51.100.2}]}";
        let text = [
            service("shop", "web", "10.96.0.1", ", selector: {app: web}"),
            service("shop", "sliced", "10.96.0.2", ""),
            service("shop", "six", "fd00:96::3", ", selector: {app: web}"),
            service("shop", "bare", "10.96.0.4", ""),
            service("bank", "web", "10.96.0.5", ", selector: {app: web}"),
            service(
                "shop",
                "outer",
                "10.96.0.6",
                ", selector: {app: web}, externalIPs: [198.51.100.1, '2001:db8::1']",
            ),
            service("shop", "balanced", "10.96.0.7", balanced),
            slice("a", "sliced", "{addresses: [10.0.0.7], conditions: {ready: false}}"),
            slice("b", "sliced", "{addresses: [10.0.0.8], targetRef: {kind: Pod, name: till}}"),
            pod("shop", "web", "10.0.0.1"),
            pod("shop", "till", "10.0.0.8"),
            pod("bank", "web", "10.0.0.9"),
        ];
        let parsed = parse(Path::new("a"), &text.join("\n---\n"));
        assert!(parsed.problems.is_empty(), "{:?}", parsed.problems);
        let mut objects = Objects::default();
        objects.apply(Path::new("a"), parsed);
        for (address, wanted) in [
            ("10.96.0.1", &["10.0.0.1"][..]),
            ("::ffff:10.96.0.1", &["10.0.0.1"]),
            ("10.96.0.2", &["10.0.0.7", "10.0.0.8"]),
            ("fd00:96::3", &["10.0.0.1"]),
            ("10.96.0.4", &[]),
            ("10.96.0.5", &["10.0.0.9"]),
            ("198.51.100.1", &["10.0.0.1"]),
            ("2001:db8::1", &["10.0.0.1"]),
            ("198.51.100.2", &["10.0.0.1"]),
            ("198.51.100.3", &[]),
            ("10.0.0.1", &[]),
        ] {
            let found = objects.behind(address.parse().unwrap());
            let found: Vec<String> = found.iter().map(ToString::to_string).collect();
            assert_eq!(found, wanted, "{address}");
        }
    }
}
