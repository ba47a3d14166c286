//! `cargo xtask kind`: the mesh in a real cluster of three nodes, from an empty one to an empty one, every step
//! checked, under a load whose clients never try twice.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use crate::{
    build,
    demo::{interrupt, stage::Stage},
    image, shell,
};

mod chapters;
pub(crate) mod cluster;
pub(crate) mod leftovers;
pub(crate) mod shop;
pub(crate) mod tools;
pub(crate) mod wire;

pub(crate) use tools::demand_helm;

/// The cluster's name.
const NAME: &str = "culvert";

/// Which cluster, and how to end.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Leave the cluster running at the end, also after a failure.
    #[arg(long)]
    keep: bool,
    /// Remove what an earlier `--keep` left.
    #[arg(long, conflicts_with = "keep")]
    down: bool,
    /// Image of the nodes, where kind's own cannot be pulled.
    #[arg(long, value_name = "IMAGE", env = "CULVERT_NODE_IMAGE")]
    node_image: Option<String>,
    /// How to compile what runs in the cluster.
    #[arg(long, value_enum, default_value = "dev")]
    profile: image::Profile,
}

/// Checks the chart: its templates, its values against their schema.
pub(crate) fn lint_chart(root: &Path) -> Result<()> {
    let (helm, chart) = (demand_helm(root)?, root.join("deploy/helm/culvert"));
    shell::run(Command::new(&helm).args(["lint", "--strict", "--quiet"]).arg(&chart), "lint the chart")?;
    let mut template = Command::new(&helm);
    template
        .args(["template", "culvert", "--kube-version", "1.28.0", "--set", "control.replicas=2"])
        .arg(&chart);
    shell::output(&mut template, "fill in the chart").map(drop)
}

/// Builds the command `culvert`; where it is then.
pub(crate) fn build_culvert(root: &Path) -> Result<PathBuf> {
    build::with_tests(root)?;
    Ok(build::target_folder(root).join("debug/culvert"))
}

/// Builds, makes the cluster, plays, and removes the cluster.
pub(crate) fn run(root: &Path, args: &Args) -> Result<()> {
    shell::demand_root("the cluster")?;
    let tools = tools::Tools::find(root)?;
    if args.down {
        return cluster::delete(&tools, NAME);
    }
    let culvert = build_culvert(root)?;
    let images = image::build(root, &image::Args { profile: args.profile, with_app: true })?;
    let names: Vec<String> = images.iter().map(|(name, _)| name.clone()).collect();
    let cleaner = tools.clone();
    interrupt::watch("removing the cluster", move || cluster::delete(&cleaner, NAME))?;

    let mut stage = Stage::open();
    stage.title("CULVERT ON KUBERNETES", "from an empty cluster to an empty cluster, under load");
    let made = stage.check("a cluster of three nodes, and the images on them", || {
        let recipe = cluster::Recipe {
            name: NAME,
            config: root.join("deploy/kind/cluster.yaml"),
            image: args.node_image.as_deref(),
            folder: root.join("target/kind"),
        };
        let cluster = cluster::Cluster::create(&tools, &recipe)?;
        cluster.load(&names)?;
        let sizes: Vec<String> =
            images.iter().map(|(name, bytes)| format!("{name} {:.0} MB", *bytes as f64 / 1e6)).collect();
        Ok((cluster, sizes.join(", ")))
    });
    let played = made.and_then(|cluster| {
        let read = |name: &str| {
            let path = root.join("deploy/kind").join(name);
            fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
        };
        let (shop, customers) = (read("shop.yaml")?, read("customers.yaml")?);
        let chart = root.join("deploy/helm/culvert");
        let story = chapters::Story { cluster: &cluster, chart, culvert, shop, customers };
        story.tell(&mut stage, args.keep).inspect_err(|_| eprintln!("\n{}", cluster.look()))
    });
    if args.keep {
        played?;
        stage.curtain();
        let kubeconfig = root.join("target/kind/kubeconfig");
        stage.say(
            "The cluster is left running, the shop in the mesh. Remove it with `cargo xtask kind --down`.",
        );
        stage.show(&format!("export KUBECONFIG={}\nkubectl --namespace shop get pods", kubeconfig.display()));
        return Ok(());
    }
    let removed = cluster::delete(&tools, NAME);
    played?;
    stage.curtain();
    removed
}
