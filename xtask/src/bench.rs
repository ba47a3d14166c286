//! The benchmarks: built optimised, run by `tests/bench` and `tests/scale`.

use std::{
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};

use crate::{
    build,
    demo::interrupt,
    ebpf,
    kind::{
        cluster::{self, Cluster, Recipe, eventually},
        tools::Tools,
    },
    setup, shell,
    tool_table::Use,
};

/// The cluster whose API server is measured with.
const SCALE: &str = "culvert-scale";
/// Its one node.
const SCALE_NODE: &str = "culvert-scale-control-plane";

/// What is passed on to `tests/bench`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Options of the benchmark itself, for example --peer-ztunnel PATH. As the first word, `control` measures
    /// control with many workloads and many nodes instead, `dns` the DNS queries of pods, and `l7` the waypoint
    /// beside Envoy; what follows is for that (control --help, dns --help, l7 --help).
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "OPTION")]
    options: Vec<OsString>,
}

/// Builds everything optimised and runs the benchmark.
pub(crate) fn run(root: &Path, args: &Args) -> Result<()> {
    match args.options.first() {
        Some(first) if first == "control" => return control(root, args.options[1..].to_vec()),
        // It makes its load itself, and has a name for its own word.
        Some(first) if first == "dns" => dns_programs(root)?,
        _ => {
            shell::demand_root("the benchmark")?;
            setup::ensure(&[Use::Bench])?;
            build::run(root, &build::Args::release())?;
        }
    }
    let mut cargo = shell::cargo(root);
    cargo.args(["run", "--release", "--quiet", "--package", "bench", "--"]).args(&args.options);
    shell::run(&mut cargo, "the benchmark")
}

/// Builds what a node and its control plane need, optimised.
fn dns_programs(root: &Path) -> Result<()> {
    shell::demand_root("the benchmark of DNS")?;
    setup::ensure(&[Use::Demo])?;
    ebpf::build(root)?;
    let mut cargo = shell::cargo(root);
    cargo.args(["build", "--release", "--bins"]);
    cargo.args(["--package", "control", "--package", "agent", "--package", "ztunnel"]);
    shell::run(&mut cargo, "build control, agent and ztunnel")
}

/// Builds control optimised and measures it with a large mesh. That needs no rights, unless an API server is to be
/// made for it: docker's then.
fn control(root: &Path, mut options: Vec<OsString>) -> Result<()> {
    let image = take(&mut options, "--node-image").or_else(|| std::env::var_os("CULVERT_NODE_IMAGE"));
    let is = |option: &str, value: &str| take(&mut options.clone(), option).is_some_and(|held| held == value);
    let help = options.iter().any(|option| option == "--help" || option == "-h");
    let make = is("--source", "api-server") && take(&mut options.clone(), "--kubeconfig").is_none() && !help;
    let tools = if make { Some(Tools::find(root)?) } else { None };
    let mut cargo = shell::cargo(root);
    cargo.args([
        "build",
        "--release",
        "--package",
        "control",
        "--package",
        "scale",
        "--bin",
        "control",
        "--bin",
        "scale",
    ]);
    shell::run(&mut cargo, "build control")?;
    let measure = |options: &[OsString]| {
        let mut cargo = shell::cargo(root);
        cargo.args(["run", "--release", "--quiet", "--package", "scale", "--"]).args(options);
        shell::run(&mut cargo, "the benchmark of control")
    };
    let Some(tools) = tools else { return measure(&options) };
    let cleaner = tools.clone();
    interrupt::watch("removing the cluster", move || cluster::delete(&cleaner, SCALE))?;
    let measured = api_server(root, &tools, image.as_deref()).and_then(|kubeconfig| {
        options.extend(["--kubeconfig".into(), kubeconfig.into_os_string()]);
        measure(&options)
    });
    interrupt::give_way();
    let removed = cluster::delete(&tools, SCALE);
    measured.and(removed)
}

/// An API server with the definitions of our kinds, and with etcd; nothing and nobody else. Its kubeconfig.
fn api_server(root: &Path, tools: &Tools, image: Option<&OsStr>) -> Result<PathBuf> {
    println!("making an API server …");
    let folder = root.join("target/scale");
    let recipe = Recipe {
        name: SCALE,
        config: root.join("deploy/kind/scale.yaml"),
        image: image.and_then(OsStr::to_str),
        folder: folder.clone(),
    };
    let cluster = Cluster::create(tools, &recipe)?;
    // Controllers would take pods of silent nodes away. The kubelet ends what is not among the manifests, and then
    // is ended itself; containers go on without it.
    let manifests = "/etc/kubernetes/manifests/kube-";
    cluster.on(SCALE_NODE, &format!("rm {manifests}controller-manager.yaml {manifests}scheduler.yaml"))?;
    let pods = || cluster.items(&["pods", "--all-namespaces"]);
    let controllers = ["kube-controller-manager-", "kube-scheduler-"];
    eventually(Duration::from_secs(90), "the controllers end", || {
        let left = pods()?.into_iter().filter_map(|pod| pod["metadata"]["name"].as_str().map(str::to_owned));
        let left: Vec<String> =
            left.filter(|name| controllers.iter().any(|prefix| name.starts_with(prefix))).collect();
        Ok(if left.is_empty() { Ok(()) } else { Err(left.join(", ")) })
    })?;
    for namespace in ["kube-system", "local-path-storage"] {
        let select = "--selector=tier!=control-plane";
        cluster.ask(&["--namespace", namespace, "delete", "pods", select, "--timeout=90s"])?;
    }
    cluster.on(SCALE_NODE, "systemctl stop kubelet")?;
    cluster.ask(&["delete", "pods", "--all-namespaces", "--all", "--force", "--grace-period=0"])?;
    cluster.ask(&["delete", "nodes", "--all"])?;
    let definitions = root.join("deploy/helm/culvert/crds");
    let definitions = definitions.to_str().context("the repository's path is no text")?;
    cluster.ask(&["apply", "--filename", definitions])?;
    cluster.ask(&["wait", "--for=condition=Established", "customresourcedefinitions", "--all"])?;
    Ok(folder.join("kubeconfig"))
}

/// Takes an option out, with its value behind it or after `=`; the last one counts.
fn take(options: &mut Vec<OsString>, name: &str) -> Option<OsString> {
    let mut found = None;
    let mut at = 0;
    while at < options.len() {
        let text = options[at].to_str().unwrap_or_default();
        if text == name && at + 1 < options.len() {
            found = options.drain(at..at + 2).nth(1);
        } else if let Some(value) = text.strip_prefix(name).and_then(|rest| rest.strip_prefix('=')) {
            found = Some(value.into());
            options.remove(at);
        } else {
            at += 1;
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_option_is_found_in_both_forms() {
        let mut options: Vec<OsString> =
            ["--runs", "1", "--node-image=a", "--node-image", "b", "--node-images"].map(Into::into).into();
        assert_eq!(take(&mut options, "--node-image"), Some("b".into()));
        assert_eq!(options, ["--runs", "1", "--node-images"]);
        assert_eq!(take(&mut options, "--source"), None);
    }
}
