//! Waypoints in the bed: the program in a pod of its own, and the manifests by which the mesh knows of it.

use std::{fmt::Write as _, time::Duration};

use anyhow::Result;

use crate::{
    Manifests, Pod, PodSpec, Process, World, address, eventually,
    mesh::{READINESS, program, wait_ready},
};

/// How long control may take to know of a new waypoint.
const PATIENCE: Duration = Duration::from_secs(15);

/// By this label a pod says which Gateway it serves.
const GATEWAY_NAME: &str = "gateway.networking.k8s.io/gateway-name";

/// A Service as the waypoint's chapters need it: with labels, and with names of ports that say what they speak.
#[derive(Debug, Clone)]
pub struct ServiceManifest<'a> {
    pub namespace: &'a str,
    pub name: &'a str,
    /// Which of the addresses for services it has.
    pub number: u8,
    pub labels: &'a [(&'a str, &'a str)],
    pub selector: &'a [(&'a str, &'a str)],
    /// Name, port, target port.
    pub ports: &'a [(&'a str, u16, u16)],
}

impl Manifests {
    /// Writes a Service.
    pub fn service(&self, service: &ServiceManifest<'_>) -> Result<()> {
        let ServiceManifest { namespace, name, number, labels, selector, ports } = service;
        let [v4, v6] = address::service(*number);
        let mut yaml =
            format!("apiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\n  namespace: {namespace}\n");
        for (key, pairs) in [("  labels:", labels), ("spec:\n  selector:", selector)] {
            if !pairs.is_empty() || key.starts_with("spec") {
                let _ = writeln!(yaml, "{key}");
            }
            for (key, value) in *pairs {
                let _ = writeln!(yaml, "    {key}: \"{value}\"");
            }
        }
        let _ = writeln!(yaml, "  clusterIP: \"{v4}\"\n  clusterIPs: [\"{v4}\", \"{v6}\"]\n  ports:");
        for (name, port, target) in *ports {
            let _ = writeln!(yaml, "  - {{name: {name}, port: {port}, targetPort: {target}}}");
        }
        self.put(&format!("service-{namespace}-{name}"), &yaml)
    }

    /// Writes a Gateway that is a waypoint; `of` is what it is for (`service`, `workload`, `all`, `none`).
    pub fn waypoint(&self, namespace: &str, name: &str, of: &str) -> Result<()> {
        let yaml = format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata:\n  name: {name}\n  \
             namespace: {namespace}\n  labels:\n    istio.io/waypoint-for: {of}\nspec:\n  \
             gatewayClassName: culvert-waypoint\n  listeners:\n  - {{name: mesh, port: 15008, protocol: HBONE}}\n"
        );
        self.put(&format!("gateway-{namespace}-{name}"), &yaml)
    }

    /// Writes an HTTPRoute of a Service; `rules` is YAML, indented as in a file of its own.
    pub fn http_route(&self, namespace: &str, name: &str, service: &str, rules: &str) -> Result<()> {
        self.route("HTTPRoute", [namespace, name], [namespace, service], rules)
    }

    /// Writes a route of a kind, by its namespace and name, for a Service by the same.
    pub fn route(
        &self,
        kind: &str,
        [namespace, name]: [&str; 2],
        [of, service]: [&str; 2],
        rules: &str,
    ) -> Result<()> {
        let mut yaml = format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\nmetadata:\n  name: {name}\n  \
             namespace: {namespace}\nspec:\n  parentRefs:\n  \
             - {{group: \"\", kind: Service, name: {service}, namespace: {of}}}\n  rules:\n"
        );
        for line in rules.trim_matches('\n').lines() {
            let _ = writeln!(yaml, "  {line}");
        }
        self.put(&format!("route-{namespace}-{name}"), &yaml)
    }
}

impl World {
    /// Makes a pod for a waypoint of that name, with a service account of the same name.
    pub fn waypoint_pod(&self, namespace: &str, name: &str, node: &str) -> Result<Pod> {
        self.waypoint_replica([namespace, name], name, node)
    }

    /// Makes one more pod for a waypoint, by its namespace and name.
    pub fn waypoint_replica(&self, [namespace, waypoint]: [&str; 2], name: &str, node: &str) -> Result<Pod> {
        let spec = PodSpec::new(namespace, name, node).service_account(waypoint);
        self.pod(spec.label(GATEWAY_NAME, waypoint))
    }

    /// Starts the waypoint in its pod, and waits until it is ready.
    pub fn start_waypoint(&self, pod: &Pod, log: &str) -> Result<Process> {
        self.start_waypoint_with(pod, log, &[])
    }

    /// As [`Self::start_waypoint`], with further flags.
    pub fn start_waypoint_with(&self, pod: &Pod, log: &str, flags: &[&str]) -> Result<Process> {
        // A record is written when its connection ends: tests do not wait for long.
        let options = [&["--access-log", "json", "--backend-idle", "2s"], flags].concat();
        self.start_waypoint_as(pod, log, &options)
    }

    /// As [`Self::start_waypoint`], with these flags alone.
    pub fn start_waypoint_as(&self, pod: &Pod, log: &str, options: &[&str]) -> Result<Process> {
        let spec = pod.spec();
        // The way back: of pods only waypoints speak with control.
        let [via, _] = self.node(&spec.node).addresses();
        let route = ["route", "replace", &format!("{}/32", pod.v4()), "via", &via.to_string()];
        self.control_job("ip").args(route).check()?;
        let token = self.tokens();
        let token = token.join(format!("{}@{}", spec.namespace, spec.name));
        eventually(PATIENCE, "the waypoint's token", || Ok(token.exists().then_some(())))?;
        let mut waypoint = pod
            .job(program("waypoint")?)
            .args(["--namespace", &spec.namespace, "--name", &spec.name, "--node", &spec.node])
            .args(["--service-account", &spec.service_account])
            .args(["--control", &self.control_uri()])
            .arg("--control-ca")
            .arg(self.root_certificate())
            .arg("--token-file")
            .arg(&token)
            .args(options)
            .spawn(log)?;
        wait_ready(&mut waypoint, pod.netns(), READINESS)?;
        Ok(waypoint)
    }
}
