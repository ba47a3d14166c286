//! Peers that are lost without a word, as with their node: their packets are dropped on both ways, and nobody is told.
//! Who has met one goes to another, and no connection fails.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bed::{Pod, PodSpec, Process, report, waypoint::ServiceManifest};
use node::{PATIENCE, Scene, same, web};

/// Through the waypoints, and straight to the endpoints.
const BEHIND: &str = "http://10.96.0.1";
const STRAIGHT: &str = "http://10.96.0.2";

/// A request that took longer has waited for somebody who is lost.
const SLOW: f64 = 1.0;

/// A caller on node a; on node b two endpoints of a service, and two waypoints before it. The second service has the same
/// endpoints and no waypoint.
struct Stage {
    waypoints: [Pod; 2],
    endpoints: [Pod; 2],
    _processes: Vec<Process>,
    scene: Scene,
}

impl Stage {
    fn new() -> Result<Self> {
        let ports = [("http", 80, web::PORT)];
        let services = [("web", "web", true)];
        let (scene, first) =
            Scene::behind_waypoint(&[("mesh", "client", "a")], &ports, &services, |manifests| {
                manifests.service(&ServiceManifest {
                    namespace: "mesh",
                    name: "straight",
                    number: 2,
                    labels: &[],
                    selector: &[("app", "web")],
                    ports: &ports,
                })
            })?;
        let world = &scene.world;
        let endpoint =
            |name| world.pod(PodSpec::new("mesh", name, "b").service_account("web").label("app", "web"));
        let endpoints = [endpoint("web-1")?, endpoint("web-2")?];
        report::wait_enrolled(&scene.mesh.nodes, &[&endpoints[0], &endpoints[1]], true, PATIENCE)?;
        let waypoints = [first, world.waypoint_replica(["mesh", "wp"], "wp-2", "b")?];
        let mut processes = Vec::new();
        for (pods, number) in endpoints.iter().zip(&waypoints).zip(1..) {
            processes.push(web::serve(pods.0)?);
            processes.push(world.start_waypoint(pods.1, &format!("waypoint-{number}"))?);
        }
        let stage = Self { waypoints, endpoints, _processes: processes, scene };
        // Until both waypoints are known, both endpoints, and a tunnel leads to each of them.
        for (url, peers) in [(BEHIND, &stage.waypoints), (STRAIGHT, &stage.endpoints)] {
            bed::eventually(PATIENCE, "all to be called", || {
                let asked = stage.ask(url, 20)?;
                let by = |endpoint: &Pod| asked.iter().any(|one| one.server == endpoint.spec().name);
                let all = asked.iter().all(|one| one.status == 200) && stage.endpoints.iter().all(by);
                let tunnels = stage.scene.world.node("a").admin("/tunnels")?;
                let is_met = |peer: &Pod| tunnels.contains(&format!("\"{}\"", peer.at(15008)));
                Ok((all && peers.iter().all(is_met)).then_some(()))
            })?;
        }
        Ok(stage)
    }

    /// So many requests, one after the other, each by a connection of its own.
    fn ask(&self, url: &str, times: usize) -> Result<Vec<Asked>> {
        let written = "\\n%{http_code} %{time_total} %header{x-server}\\n";
        let line = ["-s", "-H", "connection: close", "--max-time", "20", "-o", "/dev/null", "-w", written];
        let job = self.scene.pod("client").job("curl").args(line).limit(Duration::from_secs(60));
        let said = job.arg(format!("{url}/[1-{times}]")).run()?.stdout;
        let asked: Vec<Asked> = said.lines().filter_map(Asked::parse).collect();
        same("requests", asked.len(), times)?;
        Ok(asked)
    }

    /// A pod is gone, and its node says nothing.
    fn lose(&self, pod: &Pod) -> Result<()> {
        self.rules("add", pod)
    }

    fn find(&self, pod: &Pod) -> Result<()> {
        self.rules("del", pod)
    }

    fn rules(&self, what: &str, pod: &Pod) -> Result<()> {
        let lines = ["from", "to"].map(|way| format!("rule {what} pref 10 {way} {} blackhole\n", pod.v4()));
        self.scene.world.node("b").netns().ip(&lines.concat())
    }

    /// What a ztunnel or a waypoint counts.
    fn counted(&self, pod: Option<&Pod>, name: &str) -> Result<u64> {
        let ask = ["-s", "http://127.0.0.1:15020/metrics"];
        let job = match pod {
            Some(waypoint) => waypoint.job("curl"),
            None => self.scene.world.node("a").job("curl"),
        };
        let page = job.args(ask).check()?.stdout;
        let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        Ok(line.with_context(|| format!("no {name} in\n{page}"))?.trim().parse()?)
    }

    /// Loses a peer and calls: one request at most waits for it, and none fails.
    fn go_on_without(&self, url: &str, lost: &Pod, callers: u32) -> Result<()> {
        // Nothing is on its way, and what was kept of connections is gone.
        std::thread::sleep(Duration::from_millis(2500));
        self.lose(lost)?;
        let begin = Instant::now();
        let asked = self.ask(url, 60)?;
        let failed: Vec<_> = asked.iter().filter(|one| one.status != 200).collect();
        ensure!(failed.is_empty(), "{failed:?} without {}", lost.full_name());
        let slow: Vec<f64> = asked.iter().map(|one| one.seconds).filter(|seconds| *seconds > SLOW).collect();
        eprintln!("without {}: {slow:?} s of 60 requests in {:?}", lost.full_name(), begin.elapsed());
        ensure!((1..=callers as usize).contains(&slow.len()), "{slow:?} without {}", lost.full_name());
        ensure!(slow.iter().all(|seconds| *seconds < 4.0), "{slow:?} without {}", lost.full_name());
        Ok(())
    }

    /// It is back, and is called again.
    fn back(&self, url: &str, pod: &Pod, by: Option<&Pod>, prefix: &str) -> Result<()> {
        let absent = format!("culvert_{prefix}_peers_absent");
        ensure!(self.counted(by, &absent)? > 0, "nobody is missed");
        ensure!(
            self.counted(by, &format!("culvert_{prefix}_chosen_again_total"))? > 0,
            "nobody went elsewhere"
        );
        self.find(pod)?;
        let again = || {
            let asked = self.ask(url, 5)?;
            ensure!(asked.iter().all(|one| one.status == 200), "{asked:?}");
            Ok((self.counted(by, &absent)? == 0).then_some(()))
        };
        bed::eventually(PATIENCE, "it to be called again", again).map(drop)
    }
}

#[derive(Debug)]
struct Asked {
    status: u16,
    seconds: f64,
    server: String,
}

impl Asked {
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split(' ');
        let (status, seconds) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        Some(Self { status, seconds, server: words.next().unwrap_or_default().to_owned() })
    }
}

#[test]
fn who_is_lost_with_its_node_costs_one_wait_and_no_request() -> Result<()> {
    let mut stage = Stage::new()?;
    let since = stage.scene.log_length("a");
    let [waypoint, other] = stage.waypoints.clone();
    stage.go_on_without(BEHIND, &waypoint, 1)?;
    stage.back(BEHIND, &waypoint, None, "ztunnel")?;
    for what in ["a peer does not answer; others are chosen", "a peer answers again"] {
        let heard = stage.scene.mesh.on("a").ztunnel.log_since(since);
        ensure!(heard.contains(what), "no line {what:?} in\n{heard}");
    }

    let endpoint = stage.endpoints[0].clone();
    stage.go_on_without(STRAIGHT, &endpoint, 1)?;
    stage.back(STRAIGHT, &endpoint, None, "ztunnel")?;

    // Each waypoint learns it for itself.
    stage.go_on_without(BEHIND, &endpoint, 2)?;
    stage.back(BEHIND, &endpoint, Some(&other), "waypoint")
}
