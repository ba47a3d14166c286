//! The source is an API server: a real one, with all that it checks and keeps, and nobody behind it. What kubelets
//! and controllers would write of the world, pods' status and the slices of services, is written here.
//!
//! The server must be the bench's own: it is filled, and not emptied. `cargo xtask bench control` makes one.

use std::{
    fs,
    path::{Path, PathBuf},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::{
    api::{Api, Ask},
    source::Source,
    world::{World, node_name},
};

/// Where control keeps what is its own, and where the nodes' ztunnels are.
const SYSTEM: &str = "culvert-system";
const BUNDLE: &str = "culvert-ca-root-cert";
/// control has published its root by then.
const PATIENCE: Duration = Duration::from_secs(60);
/// Groups whose objects are made at a time: what is on its way is in our memory.
const CHUNK: usize = 50;

pub(crate) struct Cluster {
    api: Api,
    kubeconfig: PathBuf,
    place: PathBuf,
    /// ztunnels: workloads of the mesh, too.
    nodes: usize,
}

impl Cluster {
    pub(crate) fn new(kubeconfig: &Path, place: &Path) -> Result<Self> {
        let api = Api::new(kubeconfig)?;
        let (kubeconfig, place) = (kubeconfig.to_owned(), place.to_owned());
        Ok(Self { api, kubeconfig, place, nodes: 0 })
    }

    /// Makes these objects, each with its status where it has one.
    fn create(&self, objects: &[Value]) -> Result<()> {
        self.api.tell_all(objects.iter().map(|object| Ask::post(collection(object), object.clone())))?;
        let status = |object: &Value| (!object["status"].is_null()).then(|| status(object));
        self.api.tell_all(objects.iter().filter_map(status)).map(drop)
    }

    /// A ztunnel on each node: its token proves the node.
    fn ztunnels(&self, nodes: usize) -> Result<()> {
        let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {
            "name": "ztunnel", "namespace": SYSTEM,
        }});
        self.create(&[account])?;
        let pods: Vec<Value> = (0..nodes).map(ztunnel).collect();
        let made = self.api.ask_all(pods.iter().map(|pod| Ask::post(collection(pod), pod.clone())))?;
        self.api.tell_all(pods.iter().map(status))?;
        let folder = self.place.join("tokens");
        fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
        for pod in made {
            let path = format!("/api/v1/namespaces/{SYSTEM}/serviceaccounts/ztunnel/token");
            let bound = json!({"apiVersion": "v1", "kind": "Pod", "name": pod["metadata"]["name"], "uid": pod["metadata"]["uid"]});
            let request = json!({
                "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
                "spec": {"audiences": ["istio-ca"], "expirationSeconds": 86400, "boundObjectRef": bound},
            });
            let answer = self.api.ask(&Ask::post(path, request))?;
            let (token, node) = (&answer["status"]["token"], &pod["spec"]["nodeName"]);
            let (token, node) = token.as_str().zip(node.as_str()).context("there is no token")?;
            let path = folder.join(node);
            fs::write(&path, token).with_context(|| format!("write {}", path.display()))?;
        }
        Ok(())
    }
}

impl Source for Cluster {
    fn name(&self) -> &'static str {
        "API server"
    }

    fn empty(&mut self) -> Result<Vec<String>> {
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SYSTEM}});
        self.create(&[namespace])?;
        Ok(self.options())
    }

    fn fill(&mut self, world: &World) -> Result<()> {
        let start = Instant::now();
        self.create(&world.namespaces())?;
        self.create(&world.nodes())?;
        self.create(&world.accounts())?;
        self.ztunnels(world.shape.nodes)?;
        self.nodes = world.shape.nodes;
        let groups: Vec<usize> = (0..world.groups()).collect();
        for (at, groups) in groups.chunks(CHUNK).enumerate() {
            let of = |objects: &dyn Fn(usize) -> Vec<Value>| -> Vec<Value> {
                groups.iter().flat_map(|group| objects(*group)).collect()
            };
            self.create(&of(&|group| world.services(group)))?;
            self.create(&of(&|group| world.policies(group)))?;
            self.create(&of(&|group| world.pods(group)))?;
            self.create(&of(&|group| world.slices(group)))?;
            let done = (at * CHUNK + groups.len()) as f64 / world.groups() as f64 * 100.0;
            eprint!("\r  {done:.0} % after {:.0} s ", start.elapsed().as_secs_f64());
        }
        eprintln!();
        Ok(())
    }

    fn options(&self) -> Vec<String> {
        let kubeconfig = self.kubeconfig.display().to_string();
        ["--kubernetes", "--kubeconfig", &kubeconfig, "--namespace", SYSTEM].map(str::to_owned).into()
    }

    fn root(&self) -> Result<PathBuf> {
        let (path, start) = (self.place.join("root.pem"), Instant::now());
        loop {
            let asked = self.api.ask(&Ask::get(format!("/api/v1/namespaces/{SYSTEM}/configmaps/{BUNDLE}")));
            match asked {
                Ok(bundle) => {
                    let root = bundle["data"]["root-cert.pem"].as_str().context("the bundle is empty")?;
                    fs::write(&path, root).with_context(|| format!("write {}", path.display()))?;
                    return Ok(path);
                }
                Err(error) if start.elapsed() > PATIENCE => return Err(error),
                Err(_) => sleep(Duration::from_millis(200)),
            }
        }
    }

    fn tokens(&self, nodes: usize) -> Result<Vec<PathBuf>> {
        Ok((0..nodes).map(|node| self.place.join("tokens").join(node_name(node))).collect())
    }

    /// ztunnels, and the API server itself: the endpoint of the service `kubernetes`.
    fn further(&self) -> usize {
        self.nodes + 1
    }

    /// One is bound to a node; it has an address and is ready; its service has it, and no more the other; that begins
    /// to end (the API server writes this down even where it ends at once), and goes.
    fn steps(&self) -> u64 {
        6
    }

    /// As a Deployment does it: new pods, then the services have those, then the old ones go. What stays is patched.
    fn change(&self, before: &World, after: &World, groups: &[usize]) -> Result<Instant> {
        let (mut new, mut other, mut old) = (Vec::new(), Vec::new(), Vec::new());
        for group in groups {
            let objects =
                |world: &World| [world.policies(*group), world.pods(*group), world.slices(*group)].concat();
            let (before, after) = (objects(before), objects(after));
            let held = |among: &[Value], object: &Value| {
                among.iter().find(|held| path(held) == path(object)).cloned()
            };
            for object in &after {
                match held(&before, object) {
                    None => new.push(object.clone()),
                    Some(held) if held != *object => other.push(patch(object)),
                    Some(_) => {}
                }
            }
            old.extend(before.iter().filter(|object| held(&after, object).is_none()).map(path));
        }
        self.create(&new)?;
        let mut last = Instant::now();
        self.api.tell_all(other.into_iter().inspect(|_| last = Instant::now()))?;
        self.api.tell_all(old.into_iter().map(Ask::delete).inspect(|_| last = Instant::now()))?;
        Ok(last)
    }
}

/// `/api/v1/namespaces/shop/pods`
fn collection(object: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (version, kind) = (text(&object["apiVersion"]), text(&object["kind"]).to_lowercase());
    let root = if version.contains('/') { "apis" } else { "api" };
    let plural = kind.strip_suffix('y').map_or_else(|| format!("{kind}s"), |stem| format!("{stem}ies"));
    match object["metadata"]["namespace"].as_str() {
        Some(namespace) => format!("/{root}/{version}/namespaces/{namespace}/{plural}"),
        None => format!("/{root}/{version}/{plural}"),
    }
}

fn path(object: &Value) -> String {
    format!("{}/{}", collection(object), object["metadata"]["name"].as_str().unwrap_or_default())
}

/// What a kubelet would say.
fn status(object: &Value) -> Ask {
    Ask::patch(format!("{}/status", path(object)), json!({"status": object["status"]}))
}

/// Of a pod only its labels change.
fn patch(object: &Value) -> Ask {
    let body = match object["kind"].as_str() {
        Some("Pod") => json!({"metadata": {"labels": object["metadata"]["labels"]}}),
        _ => object.clone(),
    };
    Ask::patch(path(object), body)
}

fn ztunnel(node: usize) -> Value {
    let ip = format!("10.224.{}.{}", node / 256 % 256, node % 256);
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": format!("ztunnel-{node:04}"), "namespace": SYSTEM, "labels": {"app": "ztunnel"}},
        "spec": {
            "nodeName": node_name(node),
            "serviceAccountName": "ztunnel",
            "containers": [{"name": "ztunnel", "image": "registry.example/ztunnel:1.2.3"}],
        },
        "status": {
            "phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}],
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::Shape;

    #[test]
    fn objects_are_where_the_api_server_has_them() {
        let world = World::new(Shape { workloads: 10, services: 1, policies: 1, nodes: 1 });
        assert_eq!(path(&world.nodes()[0]), "/api/v1/nodes/node-0000");
        assert_eq!(collection(&world.accounts()[0]), "/api/v1/namespaces/team-000/serviceaccounts");
        let policies = "/apis/security.istio.io/v1/namespaces/team-000/authorizationpolicies/policy-00000";
        assert_eq!(path(&world.policies(0)[0]), policies);
        let slices = collection(&world.slices(0)[0]);
        assert_eq!(slices, "/apis/discovery.k8s.io/v1/namespaces/team-000/endpointslices");
        assert_eq!(world.slices(0)[0]["endpoints"].as_array().map(Vec::len), Some(10));
    }
}
