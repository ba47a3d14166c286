//! `cargo xtask e2e`: the mesh on a real Kubernetes, case by case, under a load whose clients never try twice.
//!
//! One cluster, one shop under steady load, and one case after the other; a case that fails does not stop those after
//! it, but what it leaves to be read is kept under `target/e2e`.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use crate::{
    demo::{
        interrupt,
        stage::{Stage, span},
    },
    image,
    kind::{
        self,
        cluster::{self, Cluster, Recipe},
        tools::Tools,
    },
    shell,
};

mod cases;
mod istio;
mod world;

use istio::Parts;
pub(crate) use world::is_captured;
use world::{Earlier, World};

/// Said at the end of every run in which they were not tried.
const FOREIGN_PARTS: &str = "  NOT RUN  foreign parts (our ztunnel under istiod and istio-cni, Istio's under our control and agent): \
    they want Istio's binaries, `cargo xtask e2e --istio FOLDER` (docs/istio.md)";

/// Which cluster, which cases.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The long cases, too: an API server that is away, nodes that reboot, a cluster of two families, an upgrade.
    #[arg(long)]
    full: bool,
    /// Only cases with this in their name; may be repeated. What they build upon is done all the same.
    #[arg(long, value_name = "TEXT")]
    only: Vec<String>,
    /// Name the cases, and end.
    #[arg(long)]
    list: bool,
    /// Name of the cluster that is made, and removed at the end [default: culvert-e2e, culvert-istio with --istio]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Image of the nodes, where kind's own cannot be pulled.
    #[arg(long, value_name = "IMAGE", env = "CULVERT_NODE_IMAGE")]
    node_image: Option<String>,
    /// Leave the cluster running if a case fails.
    #[arg(long)]
    keep_on_failure: bool,
    /// A cluster that is there instead, which must have the images and not the mesh. What needs a shell on its nodes
    /// is told as not run, unless they are containers of this machine's docker.
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Root of a checkout of an earlier version: it is built and installed first, and upgraded to this one under load;
    /// all later cases then look at what was upgraded.
    #[arg(long, value_name = "FOLDER")]
    upgrade_from: Option<PathBuf>,
    /// Foreign parts in place of everything else: our ztunnel under istiod and istio-cni, and, where bin/ztunnel is
    /// there, Istio's under our control and agent. A copy of the Go module istio.io/istio with what is built of it in
    /// bin: pilot-discovery, install-cni, istio-cni (docs/istio.md).
    #[arg(long, value_name = "FOLDER", conflicts_with_all = ["upgrade_from", "kubeconfig"])]
    istio: Option<PathBuf>,
    /// How to compile what runs in the cluster.
    #[arg(long, value_enum, default_value = "dev")]
    profile: image::Profile,
}

/// What is tried, and how.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Case {
    pub(crate) name: &'static str,
    /// What has to hold, as a sentence of the report.
    pub(crate) holds: &'static str,
    /// Only with `--full`.
    pub(crate) long: bool,
    /// Later cases build upon it: it is always run, and nothing is tried after it failed.
    pub(crate) ground: bool,
    /// It reads or changes the nodes themselves.
    pub(crate) on_nodes: bool,
    pub(crate) run: fn(&World<'_>) -> Result<String>,
}

#[derive(Debug)]
enum Outcome {
    Held,
    Failed(String),
    NotRun(&'static str),
}

/// Builds, makes the cluster, tries every case, and removes the cluster.
pub(crate) fn run(root: &Path, args: &Args) -> Result<()> {
    let all = if args.istio.is_some() { istio::cases() } else { cases::all() };
    let cases: Vec<Case> = all.into_iter().filter(|case| args.wants(case)).collect();
    if args.list {
        for case in cases {
            println!("{:<22} {}", case.name, case.holds);
        }
        return Ok(());
    }
    if !args.only.is_empty() && cases.iter().all(|case| case.ground) {
        bail!("no case is named so: `cargo xtask e2e --list --full` names them all");
    }
    shell::demand_root("the cluster")?;
    let parts = args.istio.as_deref().map(Parts::find).transpose()?;
    let name = args.cluster();
    let tools = Tools::find(root)?;
    let began = Instant::now();
    let folder = root.join("target/e2e");
    fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
    // What earlier runs left would be taken for this one's.
    for log in fs::read_dir(&folder).context("look at earlier logs")?.flatten() {
        if log.path().extension().is_some_and(|extension| extension == "log") {
            fs::remove_file(log.path()).with_context(|| format!("remove {}", log.path().display()))?;
        }
    }
    // Before this version's images, which have the same names.
    let earlier =
        args.upgrade_from.as_deref().map(|folder| Earlier::build(folder, args.profile)).transpose()?;
    let culvert = kind::build_culvert(root)?;
    let images = image::build(root, &image::Args { profile: args.profile, with_app: true })?;
    let names: Vec<String> = images.into_iter().map(|(name, _)| name).collect();
    println!("images built in {}", span(began.elapsed()));

    let begin = Instant::now();
    let cluster = match &args.kubeconfig {
        Some(kubeconfig) => Cluster::existing(&tools, kubeconfig)?,
        None => {
            let (cleaner, gone) = (tools.clone(), name.to_owned());
            interrupt::watch("removing the cluster", move || cluster::delete(&cleaner, &gone))?;
            let recipe = Recipe {
                name,
                config: root.join("deploy/kind/cluster.yaml"),
                image: args.node_image.as_deref(),
                folder: folder.clone(),
            };
            let cluster = Cluster::create(&tools, &recipe)?;
            cluster.load(&names)?;
            if let Some(earlier) = &earlier {
                cluster.load(&earlier.images)?;
            }
            if let Some(parts) = &parts {
                cluster.load(&parts.images(root, &cluster)?)?;
            }
            cluster
        }
    };
    println!("{} nodes, ready in {}\n", cluster.nodes.len(), span(begin.elapsed()));
    let world = World {
        root,
        cluster: &cluster,
        culvert,
        node_image: args.node_image.as_deref(),
        images: names,
        earlier,
        system: if parts.is_some() { cluster::ISTIO } else { cluster::SYSTEM },
        istio: parts,
        joined: std::sync::OnceLock::new(),
    };
    let tried = try_all(&world, &cases, &folder);
    let failed = report(&tried, began.elapsed());
    if world.istio.is_none() {
        println!("{FOREIGN_PARTS}");
    }
    if args.kubeconfig.is_none() {
        if failed > 0 && args.keep_on_failure {
            println!("the cluster is left running: kind delete cluster --name {name}");
        } else {
            cluster::delete(&tools, name)?;
        }
    }
    if failed > 0 {
        bail!("{failed} of {} cases failed; what all parties said is in {}", tried.len(), folder.display());
    }
    Ok(())
}

impl Args {
    fn cluster(&self) -> &str {
        let default = if self.istio.is_some() { "culvert-istio" } else { "culvert-e2e" };
        self.name.as_deref().unwrap_or(default)
    }

    fn wants(&self, case: &Case) -> bool {
        let named = self.only.is_empty() || self.only.iter().any(|only| case.name.contains(only));
        if case.name == cases::UPGRADE_FROM {
            return self.upgrade_from.is_some();
        }
        case.ground || named && (self.full || !case.long || !self.only.is_empty())
    }
}

fn try_all(world: &World<'_>, cases: &[Case], folder: &Path) -> Vec<(Case, Outcome, Duration)> {
    let mut tried: Vec<(Case, Outcome, Duration)> = Vec::new();
    let has_shell = world.has_shell();
    for case in cases {
        let baseless =
            tried.iter().any(|(case, outcome, _)| case.ground && matches!(outcome, Outcome::Failed(_)));
        let begin = Instant::now();
        let outcome = if baseless {
            Outcome::NotRun("what it builds upon failed")
        } else if case.name == istio::ZTUNNEL && !world.istio.as_ref().is_some_and(Parts::has_ztunnel) {
            Outcome::NotRun(istio::NO_ZTUNNEL)
        } else if case.on_nodes && !has_shell {
            Outcome::NotRun("this machine has no shell on the cluster's nodes")
        } else {
            match (case.run)(world) {
                Ok(evidence) => {
                    println!("✓ {:<22} {:>7}  {}", case.name, span(begin.elapsed()), case.holds);
                    for line in evidence.lines() {
                        println!("{:34}{line}", "");
                    }
                    Outcome::Held
                }
                Err(error) => {
                    interrupt::give_way();
                    let words = format!("{error:#}");
                    println!("✗ {:<22} {:>7}  {}", case.name, span(begin.elapsed()), case.holds);
                    println!("{:34}{words}", "");
                    let log = folder.join(format!("{}.log", case.name));
                    let text = format!("{words}\n\n{}", world.cluster.everything());
                    if let Err(error) = fs::write(&log, text) {
                        println!("{}: {error}", log.display());
                    }
                    Outcome::Failed(words)
                }
            }
        };
        if let Outcome::NotRun(why) = outcome {
            println!("- {:<22} NOT RUN  {why}", case.name);
        }
        tried.push((*case, outcome, begin.elapsed()));
    }
    tried
}

/// The closing lines; how many failed.
fn report(tried: &[(Case, Outcome, Duration)], took: Duration) -> usize {
    let count = |is: fn(&Outcome) -> bool| tried.iter().filter(|(_, outcome, _)| is(outcome)).count();
    let held = count(|outcome| matches!(outcome, Outcome::Held));
    let failed = count(|outcome| matches!(outcome, Outcome::Failed(_)));
    let not_run = count(|outcome| matches!(outcome, Outcome::NotRun(_)));
    let mut text = format!("\ne2e: {held} held, {failed} failed, {not_run} not run, in {}\n", span(took));
    for (case, outcome, _) in tried {
        match outcome {
            Outcome::Held => {}
            Outcome::Failed(why) => _ = writeln!(text, "  FAILED   {}: {why}", case.name),
            Outcome::NotRun(why) => _ = writeln!(text, "  NOT RUN  {}: {why}", case.name),
        }
    }
    print!("{text}");
    failed
}

/// Fails with a reason unless `fine`.
pub(crate) fn demand(fine: bool, reason: impl FnOnce() -> String) -> Result<()> {
    Stage::demand(fine, reason)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[derive(Debug, clap::Parser)]
    struct Only {
        #[command(flatten)]
        args: Args,
    }

    fn chosen(flags: &[&str]) -> Vec<&'static str> {
        let args = <Only as clap::Parser>::parse_from([&["e2e"], flags].concat()).args;
        cases::all().into_iter().filter(|case| args.wants(case)).map(|case| case.name).collect()
    }

    #[test]
    fn cases_are_chosen_by_name_and_length() {
        let all = cases::all();
        let names: BTreeSet<&str> = all.iter().map(|case| case.name).collect();
        assert_eq!(names.len(), all.len(), "a name twice");
        assert!(chosen(&[]).len() < chosen(&["--full"]).len());
        // All but the one that wants an earlier version.
        assert_eq!(chosen(&["--full"]).len(), all.len() - 1);
        assert_eq!(chosen(&["--full", "--upgrade-from=/earlier"]).len(), all.len());
        let grounds = all.iter().filter(|case| case.ground).count();
        assert_eq!(chosen(&["--only=conflist"]).len(), grounds + 1);
        assert!(chosen(&["--only=no such"]).len() == grounds);
    }
}
