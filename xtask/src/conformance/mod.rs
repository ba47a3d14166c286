//! `cargo xtask conformance`: the Gateway API's own suite, unchanged, against the mesh on a cluster of kind's.
//!
//! What the suite finds is told as it is. Four of its tests pass on bare Services, so a run in which nothing was
//! captured fails, whatever the suite says; `--without-mesh` shows what it says then.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context, Result};

use crate::{
    demo::{interrupt, stage::span},
    e2e::demand,
    image,
    kind::{
        cluster::{self, Cluster, Recipe},
        tools::Tools,
    },
    shell,
};

mod echo;
mod mesh;
mod report;
mod suite;

use echo::Echo;
use report::Report;
use suite::{Ran, Suite};

/// The cluster's name.
const NAME: &str = "culvert-conformance";

/// Which cluster, and what of the suite.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// One test of the suite alone, by its short name.
    #[arg(long, value_name = "NAME")]
    run_test: Option<String>,
    /// No mesh: what of the core passes on bare Services anyway. The suite's failures are this command's, here too.
    #[arg(long)]
    without_mesh: bool,
    /// Keep the report in docs/conformance, not only in target/conformance.
    #[arg(long, conflicts_with_all = ["run_test", "without_mesh"])]
    write_report: bool,
    /// An image that docker has, in the place of the suite's echo image. Without it: the suite's own where it can be
    /// pulled, else the stand-in of tests/app.
    #[arg(long, value_name = "IMAGE")]
    echo_image: Option<String>,
    /// Image of the nodes, where kind's own cannot be pulled.
    #[arg(long, value_name = "IMAGE", env = "CULVERT_NODE_IMAGE")]
    node_image: Option<String>,
    /// Leave the cluster running at the end, also after a failure.
    #[arg(long)]
    keep: bool,
    /// Remove what an earlier `--keep` left.
    #[arg(long, conflicts_with = "keep")]
    down: bool,
    /// How to compile what runs in the cluster.
    #[arg(long, value_enum, default_value = "dev")]
    profile: image::Profile,
}

/// Builds, makes the cluster and the mesh in it, runs the suite, looks whether it was captured, and removes the cluster.
pub(crate) fn run(root: &Path, args: &Args) -> Result<()> {
    shell::demand_root("the cluster")?;
    let tools = Tools::find(root)?;
    if args.down {
        return cluster::delete(&tools, NAME);
    }
    let folder = root.join("target/conformance");
    fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
    let begin = Instant::now();
    let suite = Suite::build(root, &folder)?;
    let mut programs = if args.without_mesh { Vec::new() } else { image::SHIPPED.to_vec() };
    programs.push(image::TRAFFIC);
    let images = image::build_programs(root, &programs, args.profile)?;
    let echo = Echo::choose(root, &suite, args.echo_image.as_deref())?;
    println!("the suite of Gateway API {} and the images built in {}", suite.version, span(begin.elapsed()));
    println!("echo image: {echo}");

    let cleaner = tools.clone();
    interrupt::watch("removing the cluster", move || cluster::delete(&cleaner, NAME))?;
    let recipe = Recipe {
        name: NAME,
        config: root.join("deploy/kind/cluster.yaml"),
        image: args.node_image.as_deref(),
        folder: folder.clone(),
    };
    let mut names: Vec<String> = images.into_iter().map(|(name, _)| name).collect();
    names.retain(|name| *name != image::name(image::TRAFFIC));
    let outcome = Cluster::create(&tools, &recipe).and_then(|cluster| {
        let run = Run { root, args, suite: &suite, echo: &echo, folder: &folder, cluster: &cluster };
        let outcome = run.whole(&names);
        if !matches!(outcome, Ok((_, Ok(())))) {
            interrupt::give_way();
            let log = folder.join("cluster.log");
            match fs::write(&log, cluster.everything() + &mesh::words(&cluster)) {
                Ok(()) => println!("what all parties said: {}", log.display()),
                Err(error) => eprintln!("{}: {error}", log.display()),
            }
        }
        outcome
    });
    if args.keep {
        println!("the cluster is left running: `cargo xtask conformance --down` removes it");
        println!("export KUBECONFIG={}", folder.join("kubeconfig").display());
    } else {
        cluster::delete(&tools, NAME)?;
    }
    // The last line, whatever was said on the way; why it failed is not told there.
    let (report, verdict) = outcome?;
    println!("{}", report.last_line());
    verdict
}

/// All that one run needs.
struct Run<'a> {
    root: &'a Path,
    args: &'a Args,
    suite: &'a Suite,
    echo: &'a Echo,
    folder: &'a Path,
    cluster: &'a Cluster,
}

impl Run<'_> {
    /// What the suite reports, and whether that and what was captured will do.
    fn whole(&self, images: &[String]) -> Result<(Report, Result<()>)> {
        let begin = Instant::now();
        if !images.is_empty() {
            self.cluster.load(images)?;
        }
        self.echo.load(self.cluster)?;
        self.cluster.ask(&["apply", "--server-side", "--kustomize", &self.suite.crds()])?;
        if !self.args.without_mesh {
            mesh::install(self.cluster, &self.root.join("deploy/helm/culvert"))?;
            mesh::prepare(self.cluster)?;
        }
        let with = if self.args.without_mesh { "no mesh" } else { "the mesh and its waypoints" };
        println!("{} nodes with {with}, ready in {}\n", self.cluster.nodes.len(), span(begin.elapsed()));

        let output = self.folder.join("report.yaml");
        let ran = self.run_suite(&output)?;
        let captured = if self.args.without_mesh { Ok(()) } else { self.look() };
        let report = Report::read(&output).context("the suite ended without its report")?;
        report.print();
        let all = ran.passed.len() + ran.failed.len();
        println!("all tests, also those that no profile counts: {}/{all}", ran.passed.len());
        if self.args.write_report {
            let kept = self.root.join(format!("docs/conformance/gateway-api-{}.yaml", self.suite.version));
            report.keep(&kept, &self.echo.to_string())?;
            println!("report: {}", kept.display());
        }
        let verdict = captured
            .and_then(|()| demand(ran.failed.is_empty(), || format!("failed: {}", ran.failed.join(", "))))
            .and_then(|()| report.verdict(self.args.run_test.is_some()))
            .and_then(|()| {
                demand(ran.whole, || format!("the suite failed outside its tests: {}", self.log().display()))
            });
        Ok((report, verdict))
    }

    fn run_suite(&self, output: &Path) -> Result<Ran> {
        // Without the mesh the labels are without meaning.
        let labels = mesh::labels();
        let kubeconfig = self.folder.join("kubeconfig");
        let test = self.args.run_test.as_deref();
        // Each failure takes half a minute, and nobody asks what bare Services can beyond the core.
        let extended = !self.args.without_mesh;
        self.suite.run(&suite::Flags { kubeconfig, labels, output, log: &self.log(), test, extended })
    }

    fn look(&self) -> Result<()> {
        println!("\n{}", mesh::captured(self.cluster)?);
        Ok(())
    }

    fn log(&self) -> PathBuf {
        self.folder.join("suite.log")
    }
}
