//! A cluster of kind's, and how to ask it: its nodes by docker, its API server by kubectl.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::tools::Tools;
use crate::shell;

/// Where the mesh is installed.
pub(crate) const SYSTEM: &str = "culvert-system";
/// Where Istio is, in the runs that try us among its parts.
pub(crate) const ISTIO: &str = "istio-system";
/// The pods of waypoints that control has deployed.
const WAYPOINTS: &str = "app.kubernetes.io/managed-by=culvert-control";
/// How a cluster of kind's is made.
#[derive(Debug, Clone)]
pub(crate) struct Recipe<'a> {
    /// Its name, and that of its containers' beginning.
    pub(crate) name: &'a str,
    /// kind's configuration.
    pub(crate) config: PathBuf,
    /// Image of the nodes, where it is not kind's own.
    pub(crate) image: Option<&'a str>,
    /// Folder of what belongs to it on this machine.
    pub(crate) folder: PathBuf,
}

/// A running cluster.
#[derive(Debug)]
pub(crate) struct Cluster {
    pub(crate) tools: Tools,
    /// kind's name for it; `None` if it is somebody else's.
    name: Option<String>,
    /// A file of its own: the user's is left alone.
    kubeconfig: PathBuf,
    /// Of kind's they are containers of docker's.
    pub(crate) nodes: Vec<String>,
}

impl Cluster {
    /// Makes a cluster in the place of an earlier one of the name.
    pub(crate) fn create(tools: &Tools, recipe: &Recipe<'_>) -> Result<Self> {
        let Recipe { name, config, image, folder } = recipe;
        fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
        let kubeconfig = folder.join("kubeconfig");
        delete(tools, name)?;
        let mut kind = Command::new(&tools.kind);
        kind.args(["create", "cluster", "--name", name, "--wait", "120s", "--kubeconfig"]).arg(&kubeconfig);
        kind.arg("--config").arg(config);
        if let Some(image) = image {
            kind.args(["--image", image]);
        }
        quietly(&mut kind, "create the cluster")?;
        let mut kind = Command::new(&tools.kind);
        let nodes = shell::output(kind.args(["get", "nodes", "--name", name]), "list the nodes")?;
        let nodes = nodes.split_whitespace().map(str::to_owned).collect();
        Ok(Self { tools: tools.clone(), name: Some((*name).to_owned()), kubeconfig, nodes })
    }

    /// A cluster that is there, with whatever images it has.
    pub(crate) fn existing(tools: &Tools, kubeconfig: &Path) -> Result<Self> {
        let kubeconfig = kubeconfig.to_owned();
        let mut cluster = Self { tools: tools.clone(), name: None, kubeconfig, nodes: Vec::new() };
        let nodes = cluster.items(&["nodes"])?;
        let name = |node: &Value| node["metadata"]["name"].as_str().map(str::to_owned);
        cluster.nodes = nodes.iter().filter_map(name).collect();
        Ok(cluster)
    }

    /// kind's name for it; `None` if it is somebody else's.
    pub(crate) fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// The nodes that take pods of anybody.
    pub(crate) fn workers(&self) -> impl Iterator<Item = &str> {
        self.nodes.iter().map(String::as_str).filter(|node| !node.ends_with("control-plane"))
    }

    /// Brings images that docker has to every node.
    pub(crate) fn load(&self, images: &[String]) -> Result<()> {
        let name = self.name.as_deref().context("images can be brought only to a cluster of our own")?;
        let mut kind = Command::new(&self.tools.kind);
        kind.args(["load", "docker-image", "--name", name]).args(images);
        quietly(&mut kind, "bring the images to the nodes")
    }

    /// A kubectl on this cluster.
    pub(crate) fn kubectl(&self, args: &[&str]) -> Command {
        let mut kubectl = Command::new(&self.tools.kubectl);
        kubectl.arg("--kubeconfig").arg(&self.kubeconfig).args(args);
        kubectl
    }

    /// A helm on this cluster.
    pub(crate) fn helm(&self, args: &[&str]) -> Command {
        let mut helm = Command::new(&self.tools.helm);
        helm.arg("--kubeconfig").arg(&self.kubeconfig).args(args);
        helm
    }

    /// Our own command on this cluster.
    pub(crate) fn culvert(&self, program: &Path, args: &[&str]) -> Command {
        let mut culvert = Command::new(program);
        culvert.arg("--kubeconfig").arg(&self.kubeconfig).args(args);
        culvert
    }

    /// What kubectl prints.
    pub(crate) fn ask(&self, args: &[&str]) -> Result<String> {
        shell::output(&mut self.kubectl(args), &format!("kubectl {}", args.join(" ")))
    }

    /// The objects that `get` finds.
    pub(crate) fn items(&self, args: &[&str]) -> Result<Vec<Value>> {
        let text = self.ask(&[&["get"], args, &["--output", "json"]].concat())?;
        let list: Value = serde_json::from_str(&text).context("kubectl's answer")?;
        list["items"].as_array().cloned().context("kubectl answered no list")
    }

    /// Applies manifests.
    pub(crate) fn apply(&self, manifests: &str) -> Result<()> {
        self.feed(&["apply", "--filename", "-"], manifests).map(drop)
    }

    /// What kubectl prints that reads `input`.
    pub(crate) fn feed(&self, args: &[&str], input: &str) -> Result<String> {
        let what = format!("kubectl {}", args.join(" "));
        let mut kubectl = self.kubectl(args);
        kubectl.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = kubectl.spawn().with_context(|| format!("{what}: cannot start it"))?;
        let mut pipe = child.stdin.take().context("kubectl reads")?;
        // Who ends early says why; that it did not read all is no news.
        let written = pipe.write_all(input.as_bytes());
        drop(pipe);
        let output = child.wait_with_output().context(what.clone())?;
        if !output.status.success() {
            bail!("{what}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
        }
        written.context(what)?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// A command on a node.
    pub(crate) fn on(&self, node: &str, script: &str) -> Result<String> {
        let mut docker = Command::new("docker");
        shell::output(docker.args(["exec", node, "sh", "-c", script]), &format!("on {node}: {script}"))
    }

    /// Waits until all pods of these are there and ready.
    pub(crate) fn rolled_out(&self, namespace: &str, what: &[&str]) -> Result<()> {
        for what in what {
            self.ask(&["--namespace", namespace, "rollout", "status", what, "--timeout", "120s"])?;
        }
        Ok(())
    }

    /// What may tell why something went wrong: the last lines of all parties.
    pub(crate) fn look(&self) -> String {
        self.words("--tail=20")
    }

    /// All that any party has said.
    pub(crate) fn everything(&self) -> String {
        let mut text = self.words("--tail=-1");
        let describe = ["describe", "pods", "--all-namespaces"];
        text.push_str(&self.ask(&describe).unwrap_or_default());
        text
    }

    fn words(&self, tail: &str) -> String {
        let mut text = self.ask(&["get", "pods", "--all-namespaces", "--output", "wide"]).unwrap_or_default();
        let events = ["get", "events", "--all-namespaces", "--field-selector", "type=Warning"];
        text.push_str(&self.ask(&events).unwrap_or_default());
        let ours = ["control", "agent", "ztunnel"].map(|name| (SYSTEM, name));
        let istios = ["istiod", "istio-cni", "ztunnel"].map(|name| (ISTIO, name));
        for (namespace, name) in ours.into_iter().chain(istios) {
            let selector = format!("--selector=app.kubernetes.io/name={name}");
            let logs = ["--namespace", namespace, "logs", &selector, tail, "--prefix"];
            text.push_str(&self.ask(&logs).unwrap_or_default());
            if let Ok(before) = self.ask(&[&logs[..], &["--previous"]].concat()) {
                text.push_str(&before);
            }
        }
        // What control has deployed, wherever that is.
        let waypoints =
            self.items(&["pods", "--all-namespaces", "--selector", WAYPOINTS]).unwrap_or_default();
        for pod in waypoints {
            let part = |key: &str| pod["metadata"][key].as_str().unwrap_or_default().to_owned();
            let logs = ["--namespace", &part("namespace"), "logs", &part("name"), tail, "--prefix"];
            text.push_str(&self.ask(&logs).unwrap_or_default());
        }
        text
    }
}

/// Removes the cluster; that there is none is fine.
pub(crate) fn delete(tools: &Tools, name: &str) -> Result<()> {
    let mut kind = Command::new(&tools.kind);
    quietly(kind.args(["delete", "cluster", "--name", name]), "remove the cluster")
}

/// Asks again and again until the answer is there; how long that took.
pub(crate) fn eventually<T>(
    limit: Duration,
    what: &str,
    mut ask: impl FnMut() -> Result<Result<T, String>>,
) -> Result<(T, Duration)> {
    let start = Instant::now();
    loop {
        match ask()? {
            Ok(there) => {
                let took = start.elapsed();
                if took > limit {
                    bail!("{what}: after {took:.1?}, and not within {limit:?}");
                }
                return Ok((there, took));
            }
            Err(instead) if start.elapsed() > limit => bail!("{what}: not within {limit:?}: {instead}"),
            Err(_) => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}

/// Runs to success; what it says is told only if it fails.
fn quietly(command: &mut Command, what: &str) -> Result<()> {
    shell::output(command, what).map(drop)
}
