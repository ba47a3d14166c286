//! The node ring: all of Culvert's programs on nodes made of network namespaces, with the traffic program
//! and real servers in the pods. This is the stage; the tests are ordinary `#[test]` functions in `tests/`.
#![forbid(unsafe_code)]

pub mod behind;
pub mod dns;
pub mod leak;
pub mod web;

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use bed::{Job, Mesh, Pod, PodSpec, Process, World, mesh::program, report};
use serde_json::Value;

/// How long anything may take before the test fails.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// The ports of the traffic program's server (`app serve`).
pub mod port {
    pub const ECHO: u16 = 9000;
    pub const SINK: u16 = 9001;
    pub const SOURCE: u16 = 9002;
    pub const BANNER: u16 = 9003;
    pub const COUNT: u16 = 9004;
    pub const RESET: u16 = 9005;
    pub const PEER: u16 = 9006;
    pub const ONCE: u16 = 9007;
}

/// Two nodes with pods, and the mesh over them. The namespace `mesh` is enrolled, `plain` is not.
#[derive(Debug)]
pub struct Scene {
    // Programs go before the world they live in.
    pub mesh: Mesh,
    _servers: Vec<Process>,
    pods: Vec<Pod>,
    pub world: World,
}

impl Scene {
    /// Makes the pods (each with the traffic program serving), starts the mesh, and waits until the pods
    /// of the namespace `mesh` are enrolled. `pods` are (namespace, name, node); the service account is
    /// named like the pod.
    pub fn start(pods: &[(&str, &str, &str)]) -> Result<Self> {
        Self::start_with(pods, |_| Ok(()))
    }

    /// As [`Scene::start`], with manifests or whatever else is to be there before the mesh.
    pub fn start_with(pods: &[(&str, &str, &str)], more: impl FnOnce(&World) -> Result<()>) -> Result<Self> {
        Ok(Self::start_by(pods, more, Mesh::start)?.0)
    }

    /// As [`Scene::start`], with options for each agent.
    pub fn start_agents(pods: &[(&str, &str, &str)], agent_options: &[&str]) -> Result<Self> {
        Ok(Self::start_by(pods, |_| Ok(()), |world| Mesh::start_with(world, agent_options))?.0)
    }

    /// As [`Scene::start`], with ztunnels that know nothing of our capture.
    pub fn start_foreign(pods: &[(&str, &str, &str)]) -> Result<Self> {
        Ok(Self::start_by(pods, |_| Ok(()), Mesh::start_foreign)?.0)
    }

    fn start_by<T>(
        pods: &[(&str, &str, &str)],
        more: impl FnOnce(&World) -> Result<T>,
        mesh: impl FnOnce(&World) -> Result<Mesh>,
    ) -> Result<(Self, T)> {
        let world = World::new(&["a", "b"])?;
        world.manifests().namespace("mesh", true)?;
        world.manifests().namespace("plain", false)?;
        let make = |(namespace, name, node): &(&str, &str, &str)| {
            world.pod(PodSpec::new(namespace, name, node).service_account(name))
        };
        let pods: Vec<Pod> = pods.iter().map(make).collect::<Result<_>>()?;
        let made = more(&world)?;
        let servers = pods.iter().map(serve).collect::<Result<_>>()?;
        let mesh = mesh(&world)?;
        let scene = Self { mesh, _servers: servers, pods, world };
        scene.wait_enrolled(true)?;
        Ok((scene, made))
    }

    /// A pod by its name.
    ///
    /// # Panics
    /// When there is none: the test itself is wrong then.
    pub fn pod(&self, name: &str) -> &Pod {
        self.pods.iter().find(|pod| pod.spec().name == name).unwrap_or_else(|| panic!("no pod {name}"))
    }

    /// The pods of the namespace `mesh`.
    pub fn meshed(&self) -> Vec<&Pod> {
        self.pods.iter().filter(|pod| pod.spec().namespace == "mesh").collect()
    }

    /// Waits until all ztunnels know the pods of `mesh` as enrolled, or as not enrolled.
    pub fn wait_enrolled(&self, enrolled: bool) -> Result<Duration> {
        report::wait_enrolled(&self.mesh.nodes, &self.meshed(), enrolled, PATIENCE)
    }

    /// Labels the namespace `mesh`, or takes the label away, and waits until that holds.
    pub fn enroll(&self, enrolled: bool) -> Result<Duration> {
        let start = Instant::now();
        self.world.manifests().namespace("mesh", enrolled)?;
        self.wait_enrolled(enrolled)?;
        Ok(start.elapsed())
    }

    /// Waits for a line of the access log of a node's ztunnel that `pick` accepts.
    pub fn wait_access(
        &mut self,
        node: &str,
        since: usize,
        what: &str,
        pick: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        report::wait_access(&mut self.mesh.on(node).ztunnel, since, PATIENCE, what, pick)
    }

    /// How long a node's ztunnel's log is now.
    pub fn log_length(&mut self, node: &str) -> usize {
        self.mesh.on(node).ztunnel.log_length()
    }
}

/// Starts the traffic program's server in a pod and waits until it listens.
pub fn serve(pod: &Pod) -> Result<Process> {
    let name = format!("app-{}", pod.spec().name);
    let mut server = pod.job(program("app")?).arg("serve").spawn(&name)?;
    server.wait_for_line(PATIENCE, "its ports to listen", |line| line == "ready")?;
    Ok(server)
}

/// The traffic program as a client in a pod: `app(pod, "echo", at)`.
pub fn app(pod: &Pod, command: &str, to: SocketAddr) -> Result<Job> {
    Ok(pod.job(program("app")?).arg(command).args(["--to", &to.to_string()]).limit(Duration::from_secs(120)))
}

/// Runs the traffic program and gives what it printed last, as JSON, whether all went well or not.
pub fn outcome(job: Job) -> Result<Value> {
    let finished = job.run()?;
    let line = finished.stdout.lines().last().with_context(|| {
        format!("`{}` printed nothing ({}): {}", finished.line, finished.status, finished.stderr.trim())
    })?;
    serde_json::from_str(line).with_context(|| format!("`{}` printed {line:?}", finished.line))
}

/// Runs the traffic program and demands that all went well.
pub fn well(job: Job) -> Result<Value> {
    let value = outcome(job)?;
    if value["ok"] != true {
        bail!("not well: {value}");
    }
    Ok(value)
}

/// Runs the traffic program and demands that it failed in one of these ways.
pub fn fails(job: Job, ways: &[&str]) -> Result<Value> {
    let value = outcome(job)?;
    let failure = value["failure"].as_str().unwrap_or("none");
    if value["ok"] != false || !ways.contains(&failure) {
        bail!("not a failure by {ways:?}: {value}");
    }
    Ok(value)
}

/// Demands that two things are the same, and says what they are.
pub fn same<T: PartialEq + std::fmt::Debug>(what: &str, have: T, wanted: T) -> Result<()> {
    if have != wanted {
        bail!("{what}: have {have:?}, wanted {wanted:?}");
    }
    Ok(())
}
