//! A cluster of kind's, and how to ask it: its nodes by docker, its API server by kubectl.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::tools::Tools;
use crate::shell;

/// Its name, and that of its containers' beginning.
pub(crate) const NAME: &str = "culvert";

/// A running cluster.
#[derive(Debug)]
pub(crate) struct Cluster {
    pub(crate) tools: Tools,
    /// A file of its own: the user's is left alone.
    kubeconfig: PathBuf,
    /// Containers of docker's.
    pub(crate) nodes: Vec<String>,
}

impl Cluster {
    /// Makes a cluster in the place of an earlier one of the name.
    pub(crate) fn create(root: &Path, tools: Tools, image: Option<&str>) -> Result<Self> {
        let folder = root.join("target/kind");
        fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
        let kubeconfig = folder.join("kubeconfig");
        delete(&tools)?;
        let mut kind = Command::new(&tools.kind);
        kind.args(["create", "cluster", "--name", NAME, "--wait", "120s", "--kubeconfig"]).arg(&kubeconfig);
        kind.arg("--config").arg(root.join("deploy/kind/cluster.yaml"));
        if let Some(image) = image {
            kind.args(["--image", image]);
        }
        quietly(&mut kind, "create the cluster")?;
        let mut kind = Command::new(&tools.kind);
        let nodes = shell::output(kind.args(["get", "nodes", "--name", NAME]), "list the nodes")?;
        let nodes = nodes.split_whitespace().map(str::to_owned).collect();
        Ok(Self { tools, kubeconfig, nodes })
    }

    /// Brings images that docker has to every node.
    pub(crate) fn load(&self, images: &[String]) -> Result<()> {
        let mut kind = Command::new(&self.tools.kind);
        kind.args(["load", "docker-image", "--name", NAME]).args(images);
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

    /// What may tell why something went wrong.
    pub(crate) fn look(&self) -> String {
        let mut text = self.ask(&["get", "pods", "--all-namespaces", "--output", "wide"]).unwrap_or_default();
        let events = ["get", "events", "--all-namespaces", "--field-selector", "type=Warning"];
        text.push_str(&self.ask(&events).unwrap_or_default());
        for name in ["control", "agent", "ztunnel"] {
            let selector = format!("--selector=app.kubernetes.io/name={name}");
            let logs = ["--namespace", "culvert-system", "logs", &selector, "--tail=20", "--prefix"];
            text.push_str(&self.ask(&logs).unwrap_or_default());
        }
        text
    }
}

/// Removes the cluster; that there is none is fine.
pub(crate) fn delete(tools: &Tools) -> Result<()> {
    let mut kind = Command::new(&tools.kind);
    quietly(kind.args(["delete", "cluster", "--name", NAME]), "remove the cluster")
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
