//! The steps, one after the other, on one running control.

use std::{
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use crate::{
    Arguments,
    process::{self, Control},
    report::Results,
    source::Source,
    subscribers::{Door, Fleet},
    world::{PODS_OF_A_GROUP, Shape, World},
};

/// Nothing takes longer, however busy the machine is.
const PATIENCE: Duration = Duration::from_secs(180);
/// Pods that are restarted at a time.
const RESTARTED: usize = 1000;

/// A running control, its world, and where the figures go.
struct Bench<'a> {
    results: &'a mut Results,
    source: &'a dyn Source,
    /// As the source has it now.
    world: World,
    tokens: Vec<PathBuf>,
    control: Control,
    door: Door,
}

/// Takes every figure.
pub(crate) fn all(
    arguments: &Arguments,
    shape: Shape,
    source: &mut dyn Source,
    results: &mut Results,
) -> Result<()> {
    let log = arguments.output.join("control.log");
    std::fs::create_dir_all(&arguments.output)
        .with_context(|| format!("make {}", arguments.output.display()))?;
    let empty = empty(arguments, &source.empty()?, &log)?;
    eprintln!("writing the world …");
    let (world, begun) = (World::new(shape), Instant::now());
    source.fill(&world)?;
    results.fact("writing the world took, s", begun.elapsed().as_secs());
    eprintln!("starting control …");
    let source = &*source;
    let mut control = Control::start(&arguments.control, &source.options(), &log)?;
    let ready = control.ready(PATIENCE)?;
    let door = Door { port: control.port, root: source.root()? };
    let tokens = source.tokens(shape.nodes)?;
    let mut bench = Bench { results, source, world, tokens, control, door };
    bench.add("start", "until ready", "s", ready.as_secs_f64());
    bench.control.idle()?;
    bench.add("start", "control's CPU", "s", bench.control.cpu()?);
    let idle = bench.control.resident()?;
    bench.add("start", "most resident", "MB", bench.control.peak()? as f64 / 1e6);
    bench.add("memory", "resident, nobody connected", "MB", idle as f64 / 1e6);
    bench.add("memory", "resident, an empty mesh", "MB", empty as f64 / 1e6);
    let workloads = shape.workloads + source.further();
    let of_each = (idle.saturating_sub(empty)) as f64 / workloads as f64 / 1e3;
    bench.add("memory", "of a workload", "KB", of_each);

    for _ in 0..arguments.runs.min(3) {
        bench.cold()?;
    }
    bench.control.idle()?;
    let before = bench.control.resident()?;
    let fleet = bench.subscribe(arguments)?;
    bench.control.idle()?;
    let held = bench.control.resident()?;
    bench.add("memory", "resident, all connected", "MB", held as f64 / 1e6);
    let of_each = (held.saturating_sub(before)) as f64 / shape.nodes as f64 / 1e3;
    bench.add("memory", "of a subscriber", "KB", of_each);
    for run in 0..arguments.runs {
        let group = run * 7 % bench.world.groups();
        let mut world = bench.world.clone();
        world.edition(group).version += 1;
        bench.change("one pod changes", &fleet, world, &[group], (1, 0), 1)?;
    }
    if shape.policies > 0 {
        for run in 0..arguments.runs {
            let groups = bench.world.groups();
            let group = (0..groups)
                .map(|at| (at + run * 11) % groups)
                .find(|at| !bench.world.policies(*at).is_empty());
            let group = group.context("there is no group with a policy")?;
            let policies = bench.world.policies(group).len() as u64;
            let mut world = bench.world.clone();
            world.edition(group).port += 1;
            bench.change("one policy changes", &fleet, world, &[group], (policies, 0), policies)?;
        }
    }
    for run in 0..arguments.runs.min(3) {
        let groups = bench.world.groups();
        let count = (RESTARTED / PODS_OF_A_GROUP).min(groups);
        // Spread over the world.
        let chosen: Vec<usize> = (0..count).map(|at| (at * groups / count + run) % groups).collect();
        let pods: u64 = chosen.iter().map(|group| bench.world.pod_numbers(*group).len() as u64).sum();
        let mut world = bench.world.clone();
        for group in &chosen {
            world.edition(*group).restarts += 1;
        }
        let most = pods * source.steps();
        bench.change("1,000 pods are restarted", &fleet, world, &chosen, (pods, pods), most)?;
    }
    bench.control.idle()?;
    bench.add("memory", "resident, at the end", "MB", bench.control.resident()? as f64 / 1e6);
    bench.add("memory", "most resident", "MB", bench.control.peak()? as f64 / 1e6);
    Ok(())
}

/// What control takes with next to nothing to do.
fn empty(arguments: &Arguments, options: &[String], log: &Path) -> Result<u64> {
    let mut control = Control::start(&arguments.control, options, log)?;
    control.ready(PATIENCE)?;
    control.idle()?;
    control.resident()
}

impl Bench<'_> {
    fn add(&mut self, step: &str, figure: &str, unit: &str, value: f64) {
        self.results.add(self.source.name(), step, figure, unit, value);
    }

    /// One node joins: our ztunnel's client, to a whole snapshot. And the same as a lean subscriber sees it, which
    /// is what of it is control's.
    fn cold(&mut self) -> Result<()> {
        let step = "cold sync of one node";
        self.control.idle()?;
        let before = self.control.cpu()?;
        let (time, workloads) = join(&self.door, self.tokens[0].clone())?;
        let expected = self.world.shape.workloads + self.source.further();
        if workloads != expected {
            bail!("the node knows {workloads} workloads, {expected} were expected");
        }
        self.add(step, "time of the node", "s", time.as_secs_f64());
        self.control.idle()?;
        self.add(step, "control's CPU", "s", self.control.cpu()? - before);
        let fleet = Fleet::connect(&self.door, &self.tokens[..1], 1, PATIENCE)?;
        let one = fleet.received()[0];
        if let (Some(asked), Some(first), Some(complete)) = (one.asked, one.first_byte, one.complete) {
            self.add(step, "until the first byte, lean", "s", first.duration_since(asked).as_secs_f64());
            self.add(step, "until complete, lean", "s", complete.duration_since(asked).as_secs_f64());
        }
        self.add(step, "bytes", "MB", one.bytes as f64 / 1e6);
        let all = (expected + self.world.shape.services + self.world.shape.policies) as u64;
        if one.resources < all {
            bail!("a cold sync brought {} resources, {all} were expected", one.resources);
        }
        Ok(())
    }

    fn subscribe(&mut self, arguments: &Arguments) -> Result<Fleet> {
        let step = "all subscribe";
        let (before, start) = (self.control.cpu()?, Instant::now());
        let fleet = Fleet::connect(&self.door, &self.tokens, arguments.at_once, PATIENCE * 3)?;
        self.add(step, "until all have everything", "s", start.elapsed().as_secs_f64());
        self.add(step, "control's CPU", "s", self.control.cpu()? - before);
        self.add(step, "control's most resident", "MB", self.control.peak()? as f64 / 1e6);
        Ok(fleet)
    }

    /// Changes groups, and waits until everybody has so many resources and removals more at least, and then nothing
    /// for a while. Nobody is told of more than `most`.
    fn change(
        &mut self,
        step: &str,
        fleet: &Fleet,
        world: World,
        groups: &[usize],
        expected: (u64, u64),
        most: u64,
    ) -> Result<()> {
        self.control.idle()?;
        let before = fleet.received();
        fleet.expect(expected.0, expected.1);
        let (cpu, own, begun) = (self.control.cpu()?, process::cpu("self")?, Instant::now());
        let (waited, own_waited) = (self.control.waited()?, process::waited("self")?);
        // From the last write on: a restart is over when its last pod is there.
        let start = self.source.change(&self.world, &world, groups)?;
        self.world = world;
        let times = fleet.settled(step, PATIENCE)?;
        let own = process::cpu("self")? - own;
        let (waited, own_waited) = (self.control.waited()? - waited, process::waited("self")? - own_waited);
        if groups.len() > 1 {
            self.add(step, "writing it", "s", start.duration_since(begun).as_secs_f64());
        }
        let time = |at: usize| times[at].saturating_duration_since(start).as_secs_f64() * 1e3;
        self.add(step, "first subscriber has it", "ms", time(0));
        self.add(step, "median subscriber has it", "ms", time(times.len() / 2));
        self.add(step, "last subscriber has it", "ms", time(times.len() - 1));
        self.control.idle()?;
        self.add(step, "control's CPU", "ms", (self.control.cpu()? - cpu) * 1e3);
        self.add(step, "control was ready and had no core", "ms", waited * 1e3);
        self.add(step, "the bench's own CPU", "ms", own * 1e3);
        self.add(step, "the bench was ready and had no core", "ms", own_waited * 1e3);
        let after = fleet.received();
        let told = before.iter().zip(&after).map(|(before, after)| {
            (after.resources - before.resources + after.removed - before.removed, after.bytes - before.bytes)
        });
        let (told, bytes) = told.max().unwrap_or_default();
        self.add(step, "told to a subscriber", "resources", told as f64);
        self.add(step, "bytes to a subscriber", "KB", bytes as f64 / 1e3);
        if told > most {
            bail!("{step}: a subscriber was told {told} resources, {most} changed at most");
        }
        Ok(())
    }
}

/// The time our ztunnel's client takes from nothing to a whole snapshot, and how many workloads it knows then.
fn join(door: &Door, token: PathBuf) -> Result<(Duration, usize)> {
    let control = xds::Control {
        uri: format!("https://localhost:{}", door.port),
        ca: door.root.clone(),
        token,
        server_name: None,
    };
    let proxy = xds::Proxy {
        node: "node-0000".to_owned(),
        name: "ztunnel".to_owned(),
        namespace: "culvert-system".to_owned(),
        address: IpAddr::V4(Ipv4Addr::LOCALHOST),
    };
    let options = xds::Options {
        control,
        proxy,
        cluster: "Kubernetes".to_owned(),
        trust_domain: "cluster.local".to_owned(),
        routes: false,
    };
    let node = thread::spawn(move || -> Result<(Duration, usize)> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let (mesh, start) = (xds::Mesh::new(), Instant::now());
            let whole = mesh.clone();
            let joined = async move { tokio::time::timeout(PATIENCE, whole.complete()).await };
            let client = xds::run(options, Arc::clone(&mesh));
            tokio::select! {
                joined = joined => joined.context("the node has no whole snapshot")?,
                never = client => match never {},
            }
            Ok((start.elapsed(), mesh.current().workloads().count()))
        })
    });
    node.join().map_err(|_| anyhow::anyhow!("the node's thread has panicked"))?
}
