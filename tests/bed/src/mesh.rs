//! Culvert's own programs in the bed: control on the wire, an agent and a ztunnel on each node.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail};

use crate::{Job, Netns, Node, Process, World, address, http, sniff::CONTROL};

/// The admin's port, on loopback of the program's namespace.
pub const ADMIN: u16 = 15000;
/// The metrics' port.
pub const METRICS: u16 = 15020;
/// The readiness port.
pub const READINESS: u16 = 15021;
/// The agent's admin port: it shares its namespace with ztunnel, so it has ports of its own.
pub const AGENT_ADMIN: u16 = 15100;
/// The agent's metrics port.
pub const AGENT_METRICS: u16 = 15120;
/// The agent's readiness port.
pub const AGENT_READINESS: u16 = 15121;
/// How long a program may take to become ready.
const READY: Duration = Duration::from_secs(15);

/// All the programs of a world.
#[derive(Debug)]
pub struct Mesh {
    pub control: Process,
    pub nodes: Vec<NodePrograms>,
}

/// The programs of one node.
#[derive(Debug)]
pub struct NodePrograms {
    pub node: Node,
    pub agent: Process,
    pub ztunnel: Process,
}

impl Mesh {
    /// Starts control, then an agent and a ztunnel on each node, and waits until all are ready.
    pub fn start(world: &World) -> Result<Self> {
        Self::start_with(world, &[])
    }

    /// The same, with options for each agent.
    pub fn start_with(world: &World, agent_options: &[&str]) -> Result<Self> {
        Self::start_each(world, |node| {
            Ok((node.spawn_agent("agent", agent_options)?, node.spawn_ztunnel("ztunnel", &[])?))
        })
    }

    /// The same with ztunnels in the role of foreign ones, see [`Node::spawn_foreign_ztunnel`].
    pub fn start_foreign(world: &World) -> Result<Self> {
        Self::start_each(world, |node| {
            let agent = node.spawn_agent("agent", &["--foreign-ztunnel"])?;
            Ok((agent, node.spawn_foreign_ztunnel("ztunnel", &[])?))
        })
    }

    fn start_each(world: &World, spawn: impl Fn(&Node) -> Result<(Process, Process)>) -> Result<Self> {
        let control = world.start_control()?;
        let mut nodes = Vec::new();
        for node in world.nodes() {
            // Side by side: the agent is ready once ztunnel has taken its place beside it.
            let (agent, ztunnel) = spawn(node)?;
            nodes.push(NodePrograms { node: node.clone(), agent, ztunnel });
        }
        for programs in &mut nodes {
            programs.wait_ready()?;
        }
        Ok(Self { control, nodes })
    }

    /// The programs of a node.
    ///
    /// # Panics
    /// When there is no such node: the test itself is wrong then.
    pub fn on(&mut self, node: &str) -> &mut NodePrograms {
        self.nodes
            .iter_mut()
            .find(|programs| programs.node.name() == node)
            .unwrap_or_else(|| panic!("no node {node}"))
    }

    /// Leaves every program running (the world is kept).
    pub fn leave_running(self) {
        self.control.leave_running();
        for programs in self.nodes {
            programs.agent.leave_running();
            programs.ztunnel.leave_running();
        }
    }
}

impl NodePrograms {
    /// Waits until agent and ztunnel are ready.
    pub fn wait_ready(&mut self) -> Result<()> {
        wait_ready(&mut self.agent, self.node.netns(), AGENT_READINESS)?;
        wait_ready(&mut self.ztunnel, self.node.netns(), READINESS)?;
        Ok(())
    }
}

impl World {
    /// Starts `control` in its place on the wire and waits until it is ready.
    pub fn start_control(&self) -> Result<Process> {
        let state = self.control_state();
        let mut control = self
            .control_job(program("control")?)
            .arg("--manifests")
            .arg(self.manifests().folder())
            .arg("--state")
            .arg(&state)
            .args(["--listen", &format!("[::]:{CONTROL}")])
            // Keys of tokens that have changed are not waited for.
            .args(["--jwks-refresh", "1s"])
            // An issuer may be beside it, at its own address.
            .args(address::control().map(|own| {
                let bits = if own.is_ipv4() { 32 } else { 128 };
                format!("--jwks-allow={own}/{bits}")
            }))
            .spawn("control")?;
        wait_ready(&mut control, self.control_place(), READINESS)?;
        for node in self.nodes() {
            let token = self.token(node);
            control.wait_until(READY, "the node's token", || token.exists().then_some(()))?;
        }
        Ok(control)
    }

    fn control_state(&self) -> PathBuf {
        self.folder().join("control")
    }

    /// The root certificate that control made.
    pub fn root_certificate(&self) -> PathBuf {
        self.control_state().join("ca/root.pem")
    }

    /// The node's token, as control wrote it.
    pub fn token(&self, node: &Node) -> PathBuf {
        self.tokens().join(node.name())
    }

    /// Where control writes tokens.
    pub(crate) fn tokens(&self) -> PathBuf {
        self.control_state().join("tokens")
    }

    /// Where control listens, as its clients name it.
    pub fn control_uri(&self) -> String {
        format!("https://{}", SocketAddr::new(address::control()[0], CONTROL))
    }
}

impl Node {
    /// Where the agent pins what it loads.
    pub fn pins(&self) -> PathBuf {
        self.bpffs().join("culvert")
    }

    /// The socket on which the agent feeds ztunnels with pods.
    pub fn zds_socket(&self) -> PathBuf {
        self.folder().join("zds.sock")
    }

    /// The socket on which a ztunnel leaves its certificates for the next one.
    pub fn handover_socket(&self) -> PathBuf {
        self.folder().join("handover.sock")
    }

    fn program(&self, name: &str, pins: &Path) -> Result<Job> {
        let folder = self.folder().join("..");
        let state = folder.join("control");
        Ok(self
            .job(program(name)?)
            .args(["--node", self.name()])
            .args(["--control", &format!("https://{}", SocketAddr::new(address::control()[0], CONTROL))])
            .arg("--control-ca")
            .arg(state.join("ca/root.pem"))
            .arg("--token-file")
            .arg(state.join("tokens").join(self.name()))
            .arg("--pins")
            .arg(pins)
            .arg("--zds-socket")
            .arg(self.zds_socket())
            .arg("--handover-socket")
            .arg(self.handover_socket()))
    }

    /// Starts an agent; `log` names its log. Does not wait.
    pub fn spawn_agent(&self, log: &str, more: &[&str]) -> Result<Process> {
        self.program("agent", &self.pins())?
            .arg("--state")
            .arg(self.folder().join("agent"))
            .arg("--cgroup")
            .arg(self.cgroup())
            .args(more)
            .spawn(&format!("{}-{log}", self.name()))
    }

    /// Starts a ztunnel; `log` names its log. Its access log is JSON (see [`crate::report`]) unless
    /// `more` says otherwise. Does not wait.
    pub fn spawn_ztunnel(&self, log: &str, more: &[&str]) -> Result<Process> {
        let mut job = self.program("ztunnel", &self.pins())?;
        if !more.contains(&"--access-log") {
            job = job.args(["--access-log", "json"]);
        }
        job.args(more).spawn(&format!("{}-{log}", self.name()))
    }

    /// Starts a ztunnel that sees no pins, and so is to the agent what a foreign one is: it listens on the
    /// fixed ports and its sockets bear the packet mark 0x539. Does not wait.
    pub fn spawn_foreign_ztunnel(&self, log: &str, more: &[&str]) -> Result<Process> {
        let nothing = self.folder().join("no-pins");
        let job = self.program("ztunnel", &nothing)?.args(["--access-log", "json"]);
        job.args(more).spawn(&format!("{}-{log}", self.name()))
    }

    /// Waits until the node's ztunnel is ready.
    pub fn wait_ztunnel(&self, ztunnel: &mut Process) -> Result<Duration> {
        wait_ready(ztunnel, self.netns(), READINESS)
    }

    /// Asks the node's ztunnel for a page of its admin.
    pub fn admin(&self, path: &str) -> Result<String> {
        page(self.netns(), ADMIN, path)
    }

    /// What the node's ztunnel counts, as Prometheus reads it.
    pub fn metrics(&self) -> Result<String> {
        page(self.netns(), METRICS, "/metrics")
    }
}

/// A page of a program's HTTP on loopback.
pub fn page(ns: &Netns, port: u16, path: &str) -> Result<String> {
    let answer = http::get(ns, local(port), path)?;
    if answer.status != 200 {
        bail!("{path} of {} answered {}: {}", ns.name(), answer.status, answer.body.trim());
    }
    Ok(answer.body)
}

fn local(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)
}

/// Waits for `200` from `/healthz/ready`; says how long it took.
pub fn wait_ready(process: &mut Process, ns: &Netns, port: u16) -> Result<Duration> {
    let ready = || http::get(ns, local(port), "/healthz/ready").is_ok_and(|answer| answer.status == 200);
    let (_, took) = process.wait_until(READY, "readiness", || ready().then_some(()))?;
    Ok(took)
}

/// A program of this workspace: beside the running executable, where cargo puts both.
///
/// # Errors
/// When it has not been built.
pub fn program(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe().context("own path")?;
    let beside = own.ancestors().skip(1).take(2).map(|folder| folder.join(name)).find(|path| path.is_file());
    beside.with_context(|| {
        format!(
            "no program `{name}` near {}; try: cargo xtask build",
            own.parent().unwrap_or(Path::new("/")).display()
        )
    })
}
