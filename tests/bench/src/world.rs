//! The bench's world: three pairs of nodes side by side, so that the modes can take turns.
//!
//! `bare1` and `bare2` run nothing of a mesh and are the baseline; `a` and `b` run ours; `p1` and `p2` run a
//! foreign ztunnel, if one is given; `s` runs ours too, with splicing switched on. All pairs have the same wire, veth pairs and routing hops.

use std::time::Duration;

use anyhow::{Context, Result};
use bed::{Netns, Node, Pod, PodSpec, Process, World, mesh};

use crate::{
    load,
    peer::{self, Peer},
    plan::Mode,
};

/// Client and server of a mode are both in this Kubernetes namespace.
const MESHED: &str = "mesh";
const PLAIN: &str = "plain";
/// Pods that only the memory part enrolls.
const EXTRA: &str = "extra";

/// How many pods are enrolled at once to see what one costs.
pub(crate) const EXTRA_PODS: usize = 20;

/// What a mode of the mesh may take to come into effect.
const PATIENCE: Duration = Duration::from_secs(30);

/// Everything that runs while the bench does. The processes go before the world they live in.
pub(crate) struct Scene {
    _servers: Vec<Process>,
    pub(crate) ztunnels: Vec<Ztunnel>,
    programs: Vec<Process>,
    pods: Pods,
    pub(crate) congestion_control: &'static str,
    world: World,
}

/// One ztunnel under measurement, ours or foreign.
pub(crate) struct Ztunnel {
    pub(crate) node: Node,
    pub(crate) process: Process,
}

struct Pods {
    plain_client: Pod,
    plain_server: Pod,
    plain_server_local: Pod,
    client: Pod,
    server: Pod,
    server_local: Pod,
    spliced_client: Pod,
    spliced_server: Pod,
    peer_client: Option<Pod>,
    peer_server: Option<Pod>,
}

impl Scene {
    /// Makes the world and starts everything that `modes` need in it. `ztunnel_options` go to our own
    /// ztunnels.
    pub(crate) fn build(modes: &[Mode], peer: Option<&Peer>, ztunnel_options: &[String]) -> Result<Self> {
        let mut nodes = vec!["bare1", "bare2", "a", "b", "s"];
        if peer.is_some() {
            nodes.extend(["p1", "p2"]);
        }
        let world = World::new(&nodes)?;
        world.manifests().namespace(PLAIN, false)?;
        world.manifests().namespace(MESHED, true)?;
        world.manifests().namespace(EXTRA, false)?;
        let pod = |namespace: &str, name: &str, node: &str| {
            world.pod(PodSpec::new(namespace, name, node).service_account(name))
        };
        let pods = Pods {
            plain_client: pod(PLAIN, "client", "bare1")?,
            plain_server: pod(PLAIN, "server", "bare2")?,
            plain_server_local: pod(PLAIN, "server-local", "bare1")?,
            client: pod(MESHED, "client", "a")?,
            server: pod(MESHED, "server", "b")?,
            server_local: pod(MESHED, "server-local", "a")?,
            spliced_client: pod(MESHED, "spliced-client", "s")?,
            spliced_server: pod(MESHED, "spliced-server", "s")?,
            peer_client: peer.map(|_| pod(MESHED, "peer-client", "p1")).transpose()?,
            peer_server: peer.map(|_| pod(MESHED, "peer-server", "p2")).transpose()?,
        };
        for number in 0..EXTRA_PODS {
            world.pod(PodSpec::new(EXTRA, &format!("extra-{number}"), "a"))?;
        }
        let congestion_control = steady_tcp(&world, pods.all())?;
        let (mut programs, mut ztunnels) = (Vec::new(), Vec::new());
        if modes.iter().any(|mode| mode.baseline() != *mode) {
            programs.push(world.start_control().context("start control")?);
            start_ours(&world, ztunnel_options, &mut programs, &mut ztunnels)?;
        }
        if let Some(peer) = peer {
            for name in ["p1", "p2"] {
                let node = world.node(name).clone();
                programs.push(node.spawn_agent("agent", peer::AGENT_OPTIONS)?);
                let process = peer.start(&world, &node)?;
                ztunnels.push(Ztunnel { node, process });
            }
        }
        for Ztunnel { node, process } in &mut ztunnels {
            mesh::wait_ready(process, node.netns(), mesh::READINESS)
                .with_context(|| format!("ztunnel of node {} is not ready", node.name()))?;
        }
        let mut servers = Vec::new();
        for server in pods.servers() {
            servers.extend(load::serve(server, world.folder())?);
        }
        Ok(Self { _servers: servers, ztunnels, programs, pods, congestion_control, world })
    }

    /// Client and server of a mode.
    pub(crate) fn pair(&self, mode: Mode) -> Result<(&Pod, &Pod)> {
        let pods = &self.pods;
        Ok(match mode {
            Mode::NoMesh => (&pods.plain_client, &pods.plain_server),
            Mode::NoMeshSameNode => (&pods.plain_client, &pods.plain_server_local),
            Mode::Passthrough => (&pods.client, &pods.plain_server),
            Mode::SameNode => (&pods.client, &pods.server_local),
            Mode::Spliced => (&pods.spliced_client, &pods.spliced_server),
            Mode::TwoNodes => (&pods.client, &pods.server),
            Mode::PeerTwoNodes => (
                pods.peer_client.as_ref().context("no foreign ztunnel was given")?,
                pods.peer_server.as_ref().context("no foreign ztunnel was given")?,
            ),
        })
    }

    /// The ztunnels that carry a mode's traffic: the client's side first.
    pub(crate) fn carriers(&self, mode: Mode) -> Vec<&Ztunnel> {
        let names: &[&str] = match mode {
            Mode::NoMesh | Mode::NoMeshSameNode => &[],
            Mode::Passthrough | Mode::SameNode => &["a"],
            Mode::Spliced => &["s"],
            Mode::TwoNodes => &["a", "b"],
            Mode::PeerTwoNodes => &["p1", "p2"],
        };
        self.ztunnels.iter().filter(|ztunnel| names.contains(&ztunnel.node.name())).collect()
    }

    /// The node that a pod is on.
    pub(crate) fn node_of(&self, pod: &Pod) -> &Node {
        self.world.node(&pod.spec().node)
    }

    /// Enrolls the extra pods of node `a`, or lets them go.
    pub(crate) fn enroll_extra(&self, enrolled: bool) -> Result<()> {
        self.world.manifests().namespace(EXTRA, enrolled)
    }

    /// The ends of our programs' logs, for a failed run.
    pub(crate) fn logs(&self) -> String {
        let processes = self.programs.iter().chain(self.ztunnels.iter().map(|ztunnel| &ztunnel.process));
        processes
            .map(|process| format!("--- end of {}\n{}\n", process.name(), process.log_tail(10)))
            .collect()
    }

    /// How long to wait for a mode to come into effect.
    pub(crate) fn patience(&self) -> Duration {
        PATIENCE
    }
}

impl Pods {
    fn servers(&self) -> impl Iterator<Item = &Pod> {
        let ours = [&self.plain_server, &self.plain_server_local, &self.server, &self.server_local];
        ours.into_iter().chain([&self.spliced_server]).chain(&self.peer_server)
    }

    fn all(&self) -> impl Iterator<Item = &Pod> {
        self.servers()
            .chain([&self.plain_client, &self.client, &self.spliced_client])
            .chain(&self.peer_client)
    }
}

fn start_ours(
    world: &World,
    options: &[String],
    programs: &mut Vec<Process>,
    ztunnels: &mut Vec<Ztunnel>,
) -> Result<()> {
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    for (name, agent_options) in [("a", &[][..]), ("b", &[]), ("s", &["--splice"])] {
        let node = world.node(name).clone();
        programs.push(node.spawn_agent("agent", agent_options)?);
        let process = node.spawn_ztunnel("ztunnel", &options)?;
        ztunnels.push(Ztunnel { node, process });
    }
    Ok(())
}

/// Takes the same congestion control everywhere, one that does not pace: a machine whose default is BBR
/// would measure BBR's model of a veth pair. Cubic is Linux's default; where a namespace may not choose
/// it, Reno does the same on a wire without loss.
pub(crate) fn steady_tcp<'a>(world: &'a World, pods: impl Iterator<Item = &'a Pod>) -> Result<&'static str> {
    const KEY: &str = "net/ipv4/tcp_congestion_control";
    let places: Vec<&Netns> = world.nodes().iter().map(Node::netns).chain(pods.map(Pod::netns)).collect();
    let take = |name: &str| places.iter().try_for_each(|place| place.sysctl(KEY, name));
    if take("cubic").is_ok() {
        return Ok("cubic");
    }
    take("reno").context("choose a congestion control")?;
    Ok("reno")
}
