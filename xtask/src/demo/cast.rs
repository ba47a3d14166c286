//! Who plays: two nodes, their pods, the real servers in them, and Culvert's programs.

use std::{fs, net::SocketAddr, time::Duration};

use anyhow::{Context, Result};
use bed::{Mesh, Pod, PodSpec, Process, World, eventually};

use super::{LOG_LINES, traffic};

/// What must never be readable between the nodes. Every page and every key of the play holds it.
pub(crate) const SECRET: &str = "the-safe-opens-at-7-31-88";
/// How a page begins.
pub(crate) const PAGE: &str = "Today's offer";
/// Where nginx serves.
pub(crate) const HTTP: u16 = 80;
/// Where Redis serves.
pub(crate) const REDIS: u16 = 6379;
/// Where iperf3 serves.
pub(crate) const IPERF: u16 = 5201;

/// How long anything in the play may take before it counts as failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(15);

/// The world and everyone in it. Processes go before the world they live in.
#[derive(Debug)]
pub(crate) struct Cast {
    pub(crate) mesh: Mesh,
    servers: Vec<Process>,
    /// Node a: the shop's front, calls everybody.
    pub(crate) storefront: Pod,
    /// Node a: in the mesh, but nobody trusts it.
    pub(crate) intern: Pod,
    /// Node a: nginx, a neighbour of the storefront.
    pub(crate) reviews: Pod,
    /// Node a: not in the mesh.
    pub(crate) visitor: Pod,
    /// Node b: nginx.
    pub(crate) catalog: Pod,
    /// Node b: Redis.
    pub(crate) cache: Pod,
    /// Node b: iperf3.
    pub(crate) depot: Pod,
    /// The catalogue's service address.
    pub(crate) catalog_service: SocketAddr,
    pub(crate) world: World,
}

impl Cast {
    /// Makes the world, starts the servers and Culvert; nothing is enrolled yet.
    pub(crate) fn gather(world: World) -> Result<Self> {
        world.manifests().namespace("shop", false)?;
        world.manifests().namespace("outside", false)?;
        let pod = |namespace: &str, name: &str, node: &str| {
            world.pod(PodSpec::new(namespace, name, node).service_account(name))
        };
        let storefront = pod("shop", "storefront", "a")?;
        let intern = pod("shop", "intern", "a")?;
        let reviews = pod("shop", "reviews", "a")?;
        let visitor = pod("outside", "visitor", "a")?;
        let catalog = pod("shop", "catalog", "b")?;
        let cache = pod("shop", "cache", "b")?;
        let depot = pod("shop", "depot", "b")?;
        let [service, _] = world.service(1, "shop", "catalog", &[("app", "catalog")], &[(80, HTTP)])?;
        let iperf = depot.job("iperf3").args(["--server", "--port", &IPERF.to_string(), "--forceflush"]);
        let mut iperf = iperf.spawn("iperf3")?;
        iperf.wait_for_line(PATIENCE, "its port to listen", |line| line.contains("Server listening"))?;
        let servers = vec![nginx(&world, &catalog)?, nginx(&world, &reviews)?, redis(&world, &cache)?, iperf];
        for (pod, port) in [(&catalog, HTTP), (&reviews, HTTP), (&cache, REDIS)] {
            let listens = || Ok(pod.netns().connect(pod.at(port), Duration::from_secs(1)).ok());
            eventually(PATIENCE, &format!("port {port} of {}", pod.full_name()), listens)?;
        }
        let mesh = Mesh::start(&world)
            .inspect_err(|_| eprintln!("\n{}", world.log_tails(LOG_LINES)))
            .context("start control, agents and ztunnels")?;
        let catalog_service = SocketAddr::new(service, 80);
        Ok(Self {
            mesh,
            servers,
            storefront,
            intern,
            reviews,
            visitor,
            catalog,
            cache,
            depot,
            catalog_service,
            world,
        })
    }

    /// The pods of the namespace that gets enrolled.
    pub(crate) fn shop(&self) -> [&Pod; 6] {
        [&self.storefront, &self.intern, &self.reviews, &self.catalog, &self.cache, &self.depot]
    }

    /// The process ids of the servers: nobody may have been restarted.
    pub(crate) fn server_pids(&self) -> Vec<u32> {
        self.servers.iter().map(Process::pid).collect()
    }

    /// Whether every server still runs.
    pub(crate) fn servers_run(&mut self) -> Result<bool> {
        for server in &mut self.servers {
            if !server.is_running()? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Leaves everything running.
    pub(crate) fn stay(mut self) -> Result<World> {
        self.world.keep()?;
        self.mesh.leave_running();
        self.servers.into_iter().for_each(Process::leave_running);
        Ok(self.world)
    }

    /// The nodes and who lives there.
    pub(crate) fn picture(&self) -> Vec<String> {
        let row = |pod: &Pod, runs: &str| format!("{:<15}  {}  {runs}", pod.full_name(), pod.v4());
        let left = [
            row(&self.storefront, "curl…"),
            row(&self.intern, "curl"),
            row(&self.reviews, "nginx"),
            row(&self.visitor, "curl"),
        ];
        let right = [
            row(&self.catalog, "nginx"),
            row(&self.cache, "redis"),
            row(&self.depot, "iperf3"),
            String::new(),
        ];
        let title = |name: &str| {
            let node = self.world.node(name);
            format!("node {name}, {}: agent, ztunnel", node.addresses()[0])
        };
        let mut lines = vec![format!("  {:<43}{}", title("a"), title("b"))];
        for (at, (left, right)) in left.iter().zip(&right).enumerate() {
            let wire = if at == 1 { "═ wire ═" } else { "" };
            lines.push(format!("  {left:<34}{wire:<9}{right}").trim_end().to_owned());
        }
        lines
    }
}

/// nginx with one page, in the foreground, everything of it in the world's folder.
pub(crate) fn nginx(world: &World, pod: &Pod) -> Result<Process> {
    let folder = world.folder().join(format!("nginx-{}", pod.spec().name));
    fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
    let folder_text = folder.display();
    let configuration = format!(
        "daemon off;\nmaster_process off;\nuser root;\npid {folder_text}/pid;\nerror_log stderr warn;\n\
         events {{ worker_connections 512; }}\n\
         http {{\n\
         \x20 access_log {folder_text}/access.log;\n\
         \x20 client_body_temp_path {folder_text}/body;\n  proxy_temp_path {folder_text}/proxy;\n\
         \x20 fastcgi_temp_path {folder_text}/fastcgi;\n  uwsgi_temp_path {folder_text}/uwsgi;\n\
         \x20 scgi_temp_path {folder_text}/scgi;\n\
         \x20 map $connection_requests $flaky {{ ~[02468]$ 503; default 200; }}\n\
         \x20 server {{\n    listen {HTTP};\n    listen [::]:{HTTP};\n\
         \x20   location = /flaky {{ if ($flaky = 503) {{ return 503 \"busy\\n\"; }} return 200 \"{PAGE}\\n\"; }}\n\
         \x20   location = /orders {{ return 200 \"orders of $http_x_customer, at {0}\\n\"; }}\n\
         \x20   location / {{ default_type text/plain; return 200 \"{PAGE} at {0}: {SECRET}\\n\"; }}\n  }}\n}}\n",
        pod.full_name()
    );
    let path = folder.join("nginx.conf");
    fs::write(&path, configuration).with_context(|| format!("write {}", path.display()))?;
    pod.job(traffic::nginx()?)
        .arg("-e")
        .arg("stderr")
        .arg("-c")
        .arg(&path)
        .spawn(&format!("nginx-{}", pod.spec().name))
}

fn redis(world: &World, pod: &Pod) -> Result<Process> {
    pod.job("redis-server")
        .args([
            "--bind",
            "0.0.0.0",
            "::",
            "--port",
            &REDIS.to_string(),
            "--protected-mode",
            "no",
            "--save",
            "",
        ])
        .arg("--dir")
        .arg(world.folder())
        .spawn("redis")
}
