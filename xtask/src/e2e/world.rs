//! What every case has: the cluster, its shop under load, and the means to ask and to change things.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result};
use serde_json::Value;

use super::{demand, istio::Parts};
use crate::{
    image,
    kind::{
        cluster::{self, Cluster, Recipe, SYSTEM, eventually},
        shop::{self, Counted, NAMESPACE, SECRET},
        wire,
    },
    shell,
};

/// After what a case does, before its customers are counted: a request that hangs is told after five seconds.
const AFTER: Duration = Duration::from_secs(4);
/// What control writes on a pod whose capture its node has measured.
const CAPTURED: &str = "/metadata/annotations/ambient.istio.io~1redirection";

/// An earlier version, built.
#[derive(Debug)]
pub(crate) struct Earlier {
    pub(crate) chart: PathBuf,
    /// Under a tag of their own.
    pub(crate) images: Vec<String>,
    /// What it says of itself: its commit.
    pub(crate) commit: String,
}

impl Earlier {
    /// The tag of its images.
    pub(crate) const TAG: &str = "earlier";

    /// Builds its images by its own `cargo xtask image`.
    pub(crate) fn build(folder: &Path, profile: image::Profile) -> Result<Self> {
        let folder = fs::canonicalize(folder).with_context(|| format!("look for {}", folder.display()))?;
        let what = format!("the images of {}", folder.display());
        shell::run(shell::cargo(&folder).args(["xtask", "image", "--profile", profile.word()]), &what)?;
        let mut images = Vec::new();
        // What it did not have yet has no image of it.
        let has = |program: &&str| folder.join(format!("deploy/images/{program}.Dockerfile")).is_file();
        for program in image::SHIPPED.into_iter().filter(has) {
            let tagged = format!("culvert/{program}:{}", Self::TAG);
            shell::output(
                Command::new("docker").args(["tag", &image::name(program), &tagged]),
                "docker tag",
            )?;
            images.push(tagged);
        }
        let mut describe = Command::new("git");
        describe.arg("-C").arg(&folder).args(["log", "-1", "--format=%h of %cs"]);
        let commit = shell::output(&mut describe, "ask for its commit")?.trim().to_owned();
        Ok(Self { chart: folder.join("deploy/helm/culvert"), images, commit })
    }
}

/// A cluster with the mesh and the shop in it.
#[derive(Debug)]
pub(crate) struct World<'a> {
    pub(crate) root: &'a Path,
    pub(crate) cluster: &'a Cluster,
    /// The program.
    pub(crate) culvert: PathBuf,
    /// Image of nodes, for cases that make clusters of their own.
    pub(crate) node_image: Option<&'a str>,
    /// All images, for the same.
    pub(crate) images: Vec<String>,
    /// What is installed first, where an upgrade to this version is asked for.
    pub(crate) earlier: Option<Earlier>,
    /// The namespace in which ztunnel runs.
    pub(crate) system: &'static str,
    /// Istio's parts, where ours are tried among them.
    pub(crate) istio: Option<Parts>,
    /// From the label to the last of the shop's pods captured, once that was.
    pub(crate) joined: std::sync::OnceLock<Duration>,
}

impl World<'_> {
    /// Whether commands can be run on the nodes.
    pub(crate) fn has_shell(&self) -> bool {
        self.cluster.nodes.first().is_some_and(|node| self.cluster.on(node, "true").is_ok())
    }

    pub(crate) fn chart(&self) -> PathBuf {
        self.root.join("deploy/helm/culvert")
    }

    /// A file of the repository, with the images filled in.
    pub(crate) fn manifests(&self, path: &str) -> Result<String> {
        let path = self.root.join(path);
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        Ok(shop::manifests(&text, &image::name(image::TRAFFIC)))
    }

    /// Applies `tests/e2e/NAME.yaml`.
    pub(crate) fn apply(&self, name: &str) -> Result<()> {
        self.cluster.apply(&self.manifests(&format!("tests/e2e/{name}.yaml"))?)
    }

    /// Removes a namespace and waits until it is gone, whatever became of the case.
    pub(crate) fn remove(&self, namespace: &str) {
        let gone =
            self.cluster.ask(&["delete", "namespace", namespace, "--ignore-not-found", "--wait=false"]);
        if let Err(error) = gone {
            eprintln!("namespace {namespace} stays: {error:#}");
        }
    }

    /// What kubectl answers in a namespace.
    pub(crate) fn ask(&self, namespace: &str, args: &[&str]) -> Result<String> {
        self.cluster.ask(&[&["--namespace", namespace], args].concat())
    }

    /// Installs or changes the chart; `set` are values beside the default ones.
    pub(crate) fn helm(&self, set: &[&str]) -> Result<()> {
        self.helm_of(&self.chart(), set)
    }

    /// The same with another version's chart.
    pub(crate) fn helm_of(&self, chart: &Path, set: &[&str]) -> Result<()> {
        let chart = chart.to_string_lossy();
        let mut args =
            vec!["upgrade", "--install", "culvert", &chart, "--namespace", SYSTEM, "--create-namespace"];
        // What was built here is not to be looked for elsewhere. A short drain: nobody waits a minute for each roll.
        for value in ["image.pullPolicy=Never", "ztunnel.drainSeconds=20"].iter().chain(set) {
            args.extend(["--set", value]);
        }
        shell::output(&mut self.cluster.helm(&args), "install the chart")?;
        self.cluster.rolled_out(SYSTEM, &["deployment/control", "daemonset/agent", "daemonset/ztunnel"])
    }

    /// Does something in a cluster of its own, which has our images and `more`, and is removed then. What it leaves to
    /// be read of a failure is kept under the case's name.
    pub(crate) fn elsewhere(
        &self,
        case: &str,
        name: &str,
        config: PathBuf,
        more: &[String],
        work: impl FnOnce(&World<'_>) -> Result<String>,
    ) -> Result<String> {
        let tools = &self.cluster.tools;
        let folder = self.root.join("target/e2e").join(case);
        let recipe = Recipe { name, config, image: self.node_image, folder: folder.clone() };
        let outcome = Cluster::create(tools, &recipe).and_then(|cluster| {
            cluster.load(&self.images)?;
            if !more.is_empty() {
                cluster.load(more)?;
            }
            let other = World {
                root: self.root,
                cluster: &cluster,
                culvert: self.culvert.clone(),
                node_image: self.node_image,
                images: self.images.clone(),
                earlier: None,
                system: SYSTEM,
                istio: None,
                joined: std::sync::OnceLock::new(),
            };
            work(&other).inspect_err(|_| {
                // It is gone before anybody can look.
                let log = folder.join(format!("{case}.log"));
                if let Err(error) = fs::write(&log, cluster.everything()) {
                    eprintln!("{}: {error}", log.display());
                }
            })
        });
        cluster::delete(tools, name)?;
        outcome
    }

    /// Does something while the shop's customers are counted, and for some seconds after.
    pub(crate) fn counted<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<(T, Counted)> {
        let before = shop::counted(self.cluster)?;
        let done = work()?;
        std::thread::sleep(AFTER);
        let counted = shop::counted(self.cluster)?.since(&before);
        Ok((done, counted))
    }

    /// As [`Self::counted`]: none of their requests may fail.
    pub(crate) fn flawless<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<(T, String)> {
        let (done, counted) = self.counted(work)?;
        demand(counted.requests > 0 && counted.failed == 0, || {
            format!("{} of {} requests failed: {:?}", counted.failed, counted.requests, counted.failures)
        })?;
        let told = format!(
            "{} requests, {} new connections, 0 failed, {} connects over 100 ms",
            counted.requests, counted.connects, counted.slow_connects
        );
        Ok((done, told))
    }

    /// Waits until every pod of the namespace is captured, by its node's measure, and there are `count`.
    pub(crate) fn captured(&self, namespace: &str, count: usize, limit: Duration) -> Result<Duration> {
        let ask = || {
            let pods = self.cluster.items(&["pods", "--namespace", namespace])?;
            let live = |pod: &&Value| {
                pod["metadata"]["deletionTimestamp"].is_null()
                    && !matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"))
            };
            let live: Vec<&Value> = pods.iter().filter(live).collect();
            let captured = live.iter().filter(|pod| is_captured(pod)).count();
            let all = live.len() == count && captured == count;
            Ok(if all { Ok(()) } else { Err(format!("{captured} captured of {} pods", live.len())) })
        };
        eventually(limit, &format!("{count} pods of {namespace} captured"), ask).map(|((), took)| took)
    }

    /// The shop's pods that are captured, and all.
    pub(crate) fn shop(&self) -> Result<(usize, usize)> {
        let (pods, captured) = shop::pods(self.cluster)?;
        Ok((captured, pods.len()))
    }

    /// Labels the shop, or takes the label off (`istio.io/dataplane-mode-`).
    pub(crate) fn label(&self, label: &str) -> Result<()> {
        self.cluster.ask(&["label", "--overwrite", "namespace", NAMESPACE, label]).map(drop)
    }

    /// Listens on the first worker's wire for some seconds.
    pub(crate) fn wire(&self, seconds: u64) -> Result<wire::Seen> {
        let node = self.cluster.workers().next().context("a worker")?;
        wire::listen(self.cluster, node, Duration::from_secs(seconds), SECRET)
    }

    /// Runs a client of the traffic program in a pod of its own, to its end; whether it exited with 0, and its words.
    pub(crate) fn client(&self, client: &Client<'_>) -> Result<(bool, String)> {
        let image = image::name(image::TRAFFIC);
        let Client { namespace, name, account, labels, arguments } = client;
        let pod = serde_json::json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": { "name": name, "namespace": namespace, "labels": labels },
            "spec": {
                "serviceAccountName": account,
                "restartPolicy": "Never",
                "terminationGracePeriodSeconds": 1,
                "containers": [
                    { "name": "app", "image": image, "imagePullPolicy": "Never", "args": arguments }
                ],
            },
        });
        self.cluster.apply(&pod.to_string())?;
        let ended = || {
            let phase = self.ask(namespace, &["get", "pod", name, "--output=jsonpath={.status.phase}"])?;
            Ok(match phase.as_str() {
                "Succeeded" => Ok(true),
                "Failed" => Ok(false),
                other => Err(other.to_owned()),
            })
        };
        let (ok, _) = eventually(Duration::from_secs(60), &format!("{namespace}/{name} at its end"), ended)?;
        let words = self.ask(namespace, &["logs", name])?;
        self.ask(namespace, &["delete", "pod", name, "--wait=false"])?;
        Ok((ok, words))
    }
}

/// A pod that runs once.
#[derive(Debug)]
pub(crate) struct Client<'a> {
    pub(crate) namespace: &'a str,
    pub(crate) name: &'a str,
    pub(crate) account: &'a str,
    pub(crate) labels: Value,
    pub(crate) arguments: &'a [&'a str],
}

/// Whether control has written on the pod that its capture was measured.
pub(crate) fn is_captured(pod: &Value) -> bool {
    pod.pointer(CAPTURED).and_then(Value::as_str) == Some("enabled")
}
