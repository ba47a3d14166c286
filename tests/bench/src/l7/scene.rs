//! The world of the bench of layer 7: one client, one web server, and in front of it by turns our waypoint and Envoy,
//! each with a core to itself while it is measured; everything else shares the others.

use std::{net::IpAddr, path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use bed::{Pod, PodSpec, Process, World, address, mesh, waypoint::ServiceManifest};
use identity::Identity;
use interop::{pki::Credentials, scene::TRUST_DOMAIN};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};

use super::{
    backend,
    envoy::{self, Behind},
    load::{self, Figures, PORTS, path},
    plan::{Load, Mode, Onward, ROUTES},
};
use crate::{proc, verify::total, world::steady_tcp};

const MESHED: &str = "mesh";
const PLAIN: &str = "plain";
/// Rules of one route: no more than 16 are allowed (Gateway API).
const RULES: usize = 10;
const PATIENCE: Duration = Duration::from_secs(60);

/// Everything that runs while the bench does. The processes go before the world they live in.
pub(super) struct Scene {
    waypoint: Process,
    envoy: Process,
    programs: Vec<Process>,
    _backends: Vec<Process>,
    proxies: [Pod; 2],
    client: Pod,
    services: Vec<Service>,
    /// Of TCP, everywhere in the world.
    pub(super) congestion_control: &'static str,
    world: World,
}

/// A service behind one of the proxies.
#[derive(Clone, Copy)]
struct Service {
    mode: Mode,
    onward: Onward,
    routes: usize,
    number: u8,
}

impl Service {
    fn all() -> Vec<Self> {
        let mut all = Vec::new();
        for mode in Mode::ALL {
            for onward in [Onward::Plain, Onward::Hbone] {
                for routes in ROUTES {
                    all.push(Self { mode, onward, routes, number: all.len() as u8 + 1 });
                }
            }
        }
        all
    }

    fn name(&self) -> String {
        format!("{}-{}", self.mode, self.routes)
    }

    fn namespace(&self) -> &'static str {
        match self.onward {
            Onward::Plain => PLAIN,
            Onward::Hbone => MESHED,
        }
    }

    fn address(&self) -> IpAddr {
        address::service(self.number)[0]
    }

    /// Writes the service and, for our waypoint, its routes; Envoy is told by its configuration.
    fn write(&self, world: &World) -> Result<()> {
        let (name, namespace, waypoint) = (self.name(), self.namespace(), self.mode.to_string());
        world.manifests().service(&ServiceManifest {
            namespace,
            name: &name,
            number: self.number,
            labels: &[("istio.io/use-waypoint", &waypoint), ("istio.io/use-waypoint-namespace", MESHED)],
            selector: &[("app", "server")],
            ports: &[("http", PORTS[0].1, PORTS[0].2), ("http2", PORTS[1].1, PORTS[1].2)],
        })?;
        if self.mode == Mode::Envoy {
            return Ok(());
        }
        for (_, port, _) in PORTS {
            let all: Vec<usize> = (0..self.routes).collect();
            for (number, rules) in all.chunks(RULES).enumerate() {
                let route = format!("{name}-{port}-{number}");
                world
                    .manifests()
                    .put(&format!("route-{namespace}-{route}"), &self.route(&route, port, rules))?;
            }
        }
        Ok(())
    }

    fn route(&self, route: &str, port: u16, rules: &[usize]) -> String {
        let (name, namespace) = (self.name(), self.namespace());
        let rules: String = rules
            .iter()
            .map(|rule| {
                let path = path(*rule);
                format!(
                    "  - matches: [{{path: {{type: PathPrefix, value: \"{path}\"}}}}]\n    \
                     backendRefs: [{{name: {name}, port: {port}}}]\n"
                )
            })
            .collect();
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata:\n  name: {route}\n  \
             namespace: {namespace}\nspec:\n  parentRefs:\n  \
             - {{group: \"\", kind: Service, name: {name}, port: {port}}}\n  rules:\n{rules}"
        )
    }
}

impl Scene {
    /// Makes the world and starts everything. `envoy` is its program.
    pub(super) fn build(envoy: &Path, ztunnel_options: &[String]) -> Result<Self> {
        share_cores()?;
        let world = World::new(&["a", "b", "w"])?;
        world.manifests().namespace(PLAIN, false)?;
        world.manifests().namespace(MESHED, true)?;
        let client = world.pod(PodSpec::new(MESHED, "client", "a"))?;
        let servers = [PLAIN, MESHED].map(|namespace| world.pod(PodSpec::new(namespace, "server", "b")));
        let [plain, meshed] = servers;
        let (plain, meshed) = (plain?, meshed?);
        let mut proxies = Vec::new();
        for mode in Mode::ALL {
            let name = mode.to_string();
            world.manifests().waypoint(MESHED, &name, "service")?;
            proxies.push(world.waypoint_pod(MESHED, &name, "w")?);
        }
        let proxies: [Pod; 2] = proxies.try_into().ok().context("two proxies")?;
        let pods = [&client, &plain, &meshed].into_iter().chain(&proxies);
        let congestion_control = steady_tcp(&world, pods)?;
        let services = Service::all();
        for service in &services {
            service.write(&world)?;
        }
        let backends =
            vec![backend::start(&plain, world.folder())?, backend::start(&meshed, world.folder())?];
        let mut programs = vec![world.start_control().context("start control")?];
        let options: Vec<&str> = ztunnel_options.iter().map(String::as_str).collect();
        for name in ["a", "b"] {
            let node = world.node(name);
            programs.push(node.spawn_agent("agent", &[])?);
            let mut ztunnel =
                node.spawn_ztunnel("ztunnel", &[&["--access-log", "none"], &options[..]].concat())?;
            node.wait_ztunnel(&mut ztunnel).with_context(|| format!("the ztunnel of node {name}"))?;
            programs.push(ztunnel);
        }
        let [envoy_pod, waypoint_pod] = &proxies;
        let waypoint =
            world.start_waypoint_as(waypoint_pod, "waypoint", &["--access-log", "none", "--workers", "1"])?;
        let identity = Identity::new(TRUST_DOMAIN, MESHED, envoy_pod.spec().service_account.as_str());
        let credentials = Credentials::of_control(&world, identity)?;
        let behind: Vec<Behind> = services
            .iter()
            .filter(|service| service.mode == Mode::Envoy)
            .map(|service| Behind {
                address: service.address(),
                routes: service.routes,
                onward: service.onward,
                backend: if service.onward == Onward::Plain { plain.v4() } else { meshed.v4() },
            })
            .collect();
        let configuration = envoy::configuration(envoy_pod.v4(), &behind, &credentials);
        let envoy =
            interop::envoy::start(&world, envoy_pod, envoy, "envoy", &configuration, envoy_pod.at(15008))?;
        for proxy in [&waypoint, &envoy] {
            take_core(proxy.pid())?;
        }
        Ok(Self {
            waypoint,
            envoy,
            programs,
            _backends: backends,
            proxies,
            client,
            services,
            congestion_control,
            world,
        })
    }

    /// Waits until every service is answered for.
    pub(super) fn settle(&self, loads: &[Load]) -> Result<()> {
        for mode in Mode::ALL {
            for load in loads {
                let once = Load { connections: 1, ..*load };
                bed::eventually(PATIENCE, &format!("{load} through {mode}"), || {
                    Ok(self.run(once, mode, 1).ok())
                })?;
            }
        }
        Ok(())
    }

    pub(super) fn run(&self, load: Load, mode: Mode, seconds: u64) -> Result<Figures> {
        let is = |service: &&Service| {
            (service.mode, service.onward, service.routes) == (mode, load.onward, load.routes)
        };
        let service = self.services.iter().find(is).context("there is no such service")?;
        let before = self.counted(mode)?;
        let figures = load::run(&self.client, service.address(), load, seconds, self.world.folder())?;
        let seen = self.counted(mode)? - before;
        ensure!(seen >= figures.requests, "only {seen} of {} requests went through {mode}", figures.requests);
        Ok(figures)
    }

    /// Requests that a proxy has counted so far.
    fn counted(&self, mode: Mode) -> Result<f64> {
        let [envoy, waypoint] = &self.proxies;
        Ok(match mode {
            Mode::Envoy => {
                let page = mesh::page(
                    envoy.netns(),
                    envoy::ADMIN,
                    "/stats?filter=http.requests.downstream_rq_total",
                )?;
                page.lines().filter_map(|line| line.rsplit_once(": ")?.1.trim().parse::<f64>().ok()).sum()
            }
            Mode::Waypoint => {
                total(&mesh::page(waypoint.netns(), mesh::METRICS, "/metrics")?, "istio_requests_total")
                    as f64
            }
        })
    }

    /// The process whose CPU and memory are told.
    pub(super) fn proxy(&self, mode: Mode) -> u32 {
        match mode {
            Mode::Envoy => self.envoy.pid(),
            Mode::Waypoint => self.waypoint.pid(),
        }
    }

    /// The resident memory of a proxy, in MiB.
    pub(super) fn resident(&self, mode: Mode) -> Result<f64> {
        Ok(proc::resident(self.proxy(mode))? as f64 / f64::from(1 << 20))
    }

    /// The ends of the programs' logs, for a failed run.
    pub(super) fn logs(&self) -> String {
        let processes = self.programs.iter().chain([&self.waypoint, &self.envoy]);
        processes
            .map(|process| format!("--- end of {}\n{}\n", process.name(), process.log_tail(10)))
            .collect()
    }
}

/// The core of the proxies: the last one.
fn last_core() -> Result<usize> {
    const ONLINE: &str = "/sys/devices/system/cpu/online";
    let online = std::fs::read_to_string(ONLINE).with_context(|| format!("read {ONLINE}"))?;
    let last = online.trim().rsplit(['-', ',']).next().and_then(|core| core.parse().ok());
    last.filter(|last| *last > 0).with_context(|| {
        format!("a proxy takes a core of its own, and all others the rest: there is only {}", online.trim())
    })
}

/// This process, and all that it starts, leaves the proxies' core to them.
fn share_cores() -> Result<()> {
    let mut others = CpuSet::new();
    (0..last_core()?).try_for_each(|core| others.set(core)).context("choose cores")?;
    sched_setaffinity(Pid::from_raw(0), &others).context("leave a core to the proxies")
}

/// All threads of a process move to the proxies' core.
fn take_core(pid: u32) -> Result<()> {
    let mut own = CpuSet::new();
    own.set(last_core()?).context("choose a core")?;
    let folder = format!("/proc/{pid}/task");
    for thread in std::fs::read_dir(&folder).with_context(|| format!("read {folder}"))? {
        let name = thread?.file_name();
        let Some(thread) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
        sched_setaffinity(Pid::from_raw(thread), &own).context("give a proxy its core")?;
    }
    Ok(())
}
