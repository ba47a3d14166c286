//! The world of the interop tests: an enrolled client and server on two nodes of ours, and a third node
//! where foreign programs run that know nothing of us.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use bed::{NodePrograms, Pod, PodSpec, Process, World, eventually, manifest::PodManifest, mesh};
use identity::{Identity, authority::Authority};

use crate::{
    apps::{ECHO, serve_all},
    pki::Credentials,
};

/// HBONE's port.
pub const HBONE: u16 = 15008;
/// The trust domain of the world.
pub const TRUST_DOMAIN: &str = "cluster.local";

/// How long anything of the mesh may take to come into effect.
const PATIENCE: Duration = Duration::from_secs(20);

/// Everything that runs. Processes go before the world.
pub struct Scene {
    pub mesh: Vec<NodePrograms>,
    _control: Process,
    /// Enrolled, on node `a`: service account `client`.
    pub client: Pod,
    /// Enrolled, on node `b`: service account `server`.
    pub server: Pod,
    /// Enrolled, on node `b` as well.
    pub other: Pod,
    /// Not enrolled, on node `x`, where nothing of ours runs.
    pub outside: Pod,
    pub world: World,
}

impl Scene {
    /// Builds the world and waits until client and server talk through HBONE.
    pub fn start() -> Result<Self> {
        Ok(Self::with(|_| Ok(()))?.0)
    }

    /// The same, with what `more` makes before anything starts.
    pub fn with<T>(more: impl FnOnce(&World) -> Result<T>) -> Result<(Self, T)> {
        let world = World::new(&["a", "b", "x"])?;
        world.manifests().namespace("shop", true)?;
        world.manifests().namespace("outside", false)?;
        let pod = |namespace: &str, name: &str, node: &str| {
            world.pod(PodSpec::new(namespace, name, node).service_account(name))
        };
        let client = pod("shop", "client", "a")?;
        let server = pod("shop", "server", "b")?;
        let other = pod("shop", "other", "b")?;
        let outside = pod("outside", "stranger", "x")?;
        let made = more(&world)?;
        serve_all(&server)?;
        serve_all(&other)?;
        let control = world.start_control()?;
        let mut programs = Vec::new();
        for name in ["a", "b"] {
            let node = world.node(name).clone();
            let agent = node.spawn_agent("agent", &[])?;
            let ztunnel = node.spawn_ztunnel("ztunnel", &[])?;
            programs.push(NodePrograms { node, agent, ztunnel });
        }
        for NodePrograms { node, agent, ztunnel } in &mut programs {
            mesh::wait_ready(agent, node.netns(), mesh::AGENT_ADMIN)?;
            mesh::wait_ready(ztunnel, node.netns(), mesh::READINESS)?;
        }
        let scene = Self { mesh: programs, _control: control, client, server, other, outside, world };
        scene.wait_meshed()?;
        Ok((scene, made))
    }

    /// Waits until a connection from client to server is carried by HBONE.
    fn wait_meshed(&self) -> Result<()> {
        eventually(PATIENCE, "client and server to talk through HBONE", || {
            let Ok(stream) = self.client.netns().connect(self.server.at(ECHO), Duration::from_secs(2)) else {
                return Ok(None);
            };
            drop(stream);
            Ok((self.opened("b", "destination", "mutual_tls")? >= 1.0).then_some(()))
        })?;
        Ok(())
    }

    /// How many connections a node's ztunnel has opened, by who reports and how they are secured.
    pub fn opened(&self, node: &str, reporter: &str, security: &str) -> Result<f64> {
        let metrics = self.world.node(node).metrics()?;
        let wanted =
            [format!("reporter=\"{reporter}\""), format!("connection_security_policy=\"{security}\"")];
        let lines = metrics.lines().filter(|line| {
            line.starts_with("istio_tcp_connections_opened_total{")
                && wanted.iter().all(|label| line.contains(label))
        });
        Ok(lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum())
    }

    /// The port where the server's pod takes HBONE.
    pub fn door(&self) -> SocketAddr {
        self.server.at(HBONE)
    }

    /// A certificate of control's own authority for a service account that a foreign peer plays.
    pub fn credentials(&self, namespace: &str, service_account: &str) -> Result<Credentials> {
        self.credentials_of(Identity::new(TRUST_DOMAIN, namespace, service_account))
    }

    /// A certificate of control's own authority for any identity, whatever its trust domain.
    pub fn credentials_of(&self, identity: Identity) -> Result<Credentials> {
        Credentials::of_control(&self.world, identity)
    }

    /// A certificate of an authority that nobody here trusts, for an honest-looking identity.
    pub fn rogue(&self, namespace: &str, service_account: &str) -> Result<Credentials> {
        let authority = Authority::ephemeral(TRUST_DOMAIN).context("make a rogue authority")?;
        let identity = Identity::new(TRUST_DOMAIN, namespace, service_account);
        Credentials::of(&self.world, &authority, identity, "rogue")
    }

    /// Starts Envoy in a pod and waits until it listens.
    pub fn envoy(
        &self,
        pod: &Pod,
        binary: &Path,
        name: &str,
        configuration: &str,
        at: SocketAddr,
    ) -> Result<Process> {
        crate::envoy::start(&self.world, pod, binary, name, configuration, at)
    }

    /// Every program of ours still runs: what a stranger sent has killed none.
    pub fn all_alive(&mut self) -> Result<()> {
        for programs in &mut self.mesh {
            for process in [&mut programs.agent, &mut programs.ztunnel] {
                ensure!(process.is_running()?, "{} has died:\n{}", process.name(), process.log_tail(30));
            }
        }
        Ok(())
    }
}

/// Makes a pod on node `x` that speaks HBONE by means of its own: peers are told so by the annotation that a
/// foreign CNI plugin sets.
pub fn foreign_pod(world: &World, name: &str) -> Result<Pod> {
    let spec = PodSpec::new("outside", name, "x").service_account(name);
    let pod = world.pod_without_manifest(spec)?;
    let yaml = bed::manifest::pod(&PodManifest {
        namespace: "outside",
        name,
        node: "x",
        service_account: name,
        labels: &pod.spec().labels,
        addresses: &[pod.v4(), pod.v6()],
        netns: &pod.netns().path(),
    });
    let annotated =
        yaml.replacen("  annotations:\n", "  annotations:\n    ambient.istio.io/redirection: enabled\n", 1);
    ensure!(annotated != yaml, "the manifest of a pod has no annotations any more:\n{yaml}");
    world.manifests().put(&format!("pod-outside-{name}"), &annotated)?;
    Ok(pod)
}

/// The repository's root.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}
