//! Foreign parts: our ztunnel under istiod and istio-cni. The programs of Istio are given; here they are put into
//! images, and installed by Istio's own charts.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use serde_json::json;

use super::{
    Case, cases, demand,
    world::{Client, World},
};
use crate::{
    demo::stage::span,
    image,
    kind::{
        cluster::{Cluster, ISTIO},
        shop,
        shop::NAMESPACE,
    },
    shell,
};

/// The programs that have to be there, and how each is built of the module.
const PROGRAMS: [(&str, &str); 3] = [
    ("pilot-discovery", "pilot/cmd/pilot-discovery"),
    ("install-cni", "cni/cmd/install-cni"),
    ("istio-cni", "cni/cmd/istio-cni"),
];
/// The charts, in the order in which they are installed.
const CHARTS: [(&str, &str); 4] = [
    ("istio-base", "base"),
    ("istiod", "istio-control/istio-discovery"),
    ("istio-cni", "istio-cni"),
    ("ztunnel", "ztunnel"),
];
/// From the label to the last pod captured; istio-cni takes one pod after the other.
const LIMIT: Duration = Duration::from_secs(60);
/// Prints the programs of iptables of a node and all that they need, as an archive.
const IPTABLES: &str = r#"
    set -e
    multi=$(readlink -f "$(command -v xtables-nft-multi)")
    modules=$(dirname "$(find /usr/lib /lib -name libxt_mark.so | head -1)")
    tar -chf - "$multi" "$modules" /usr/sbin/ip*tables-nft* \
        $(ldd "$multi" "$modules"/*.so | grep -o '/[^ ]* (' | tr -d ' (' | sort -u)
"#;

/// What is tried, in this order: what is Istio's own, and cases of ours that hold whoever captures.
pub(super) fn cases() -> Vec<Case> {
    let of_ours = |name: &str| cases::all().into_iter().find(|case| case.name == name);
    let (first, last) = CASES.split_at(2);
    let mut all: Vec<Case> = of_ours("shop").into_iter().chain(first.iter().copied()).collect();
    all.extend(OURS.iter().filter_map(|name| of_ours(name)));
    all.extend(last);
    all
}

/// Cases of ours that look at pods and at ztunnel alone.
const OURS: [&str; 13] = [
    "new-pods",
    "wire",
    "rolling",
    "headless",
    "job",
    "neighbours",
    "dns",
    "host-port",
    "probes",
    "authorization",
    "scaling",
    "ztunnel-rolls",
    "ztunnel-killed",
];

const CASES: &[Case] = &[
    Case {
        name: "istio-install",
        holds: "istiod, istio-cni and our ztunnel are installed by Istio's charts beside running pods",
        long: false,
        ground: true,
        on_nodes: true,
        run: install,
    },
    Case {
        name: "istio-label",
        holds: "running pods are captured by istio-cni after the label, and served by our ztunnel",
        long: false,
        ground: true,
        on_nodes: true,
        run: label,
    },
    Case {
        name: "istio-strict",
        holds: "under STRICT a call from outside of the mesh is refused",
        long: false,
        ground: false,
        on_nodes: false,
        run: strict,
    },
    Case {
        name: ZTUNNEL,
        holds: "in a new cluster, Istio's ztunnel carries the shop under our control and agent",
        long: false,
        ground: false,
        on_nodes: true,
        run: istios_ztunnel,
    },
];

/// The case that wants Istio's ztunnel.
pub(super) const ZTUNNEL: &str = "istio-ztunnel";
/// What is said where it is not given.
pub(super) const NO_ZTUNNEL: &str =
    "Istio's ztunnel is not given: it is wanted as bin/ztunnel of --istio's folder";

/// Istio's programs and charts.
#[derive(Debug)]
pub(crate) struct Parts {
    folder: PathBuf,
}

impl Parts {
    /// Looks for all that is needed, and tells of all that is missing at once.
    pub(crate) fn find(folder: &Path) -> Result<Self> {
        let folder = fs::canonicalize(folder).with_context(|| format!("look for {}", folder.display()))?;
        let parts = Self { folder };
        let mut missing = Vec::new();
        for (program, package) in PROGRAMS {
            if !parts.program(program).is_file() {
                missing.push(format!("bin/{program}: CGO_ENABLED=0 go build -o bin/ ./{package}"));
            }
        }
        for (_, chart) in CHARTS {
            if !parts.chart(chart).join("Chart.yaml").is_file() {
                missing.push(format!("manifests/charts/{chart}: copy the whole module"));
            }
        }
        if !missing.is_empty() {
            bail!("not in {}:\n  {}", parts.folder.display(), missing.join("\n  "));
        }
        Ok(parts)
    }

    fn program(&self, name: &str) -> PathBuf {
        self.folder.join("bin").join(name)
    }

    fn chart(&self, name: &str) -> PathBuf {
        self.folder.join("manifests/charts").join(name)
    }

    /// Whether Istio's ztunnel is there as well.
    pub(crate) fn has_ztunnel(&self) -> bool {
        self.program("ztunnel").is_file()
    }

    /// Builds the image of Istio's ztunnel.
    fn ztunnel(&self, root: &Path) -> Result<String> {
        self.image(root, "ztunnel", &["ztunnel"])
    }

    /// Builds the images, with the iptables of a node of the cluster's; their names.
    pub(crate) fn images(&self, root: &Path, cluster: &Cluster) -> Result<Vec<String>> {
        let node = cluster.nodes.first().context("a node")?;
        let archive = Command::new("docker")
            .args(["exec", node, "sh", "-c", IPTABLES])
            .output()
            .context("look for the iptables of a node")?;
        if !archive.status.success() {
            bail!("no iptables to be had from {node}: {}", String::from_utf8_lossy(&archive.stderr).trim());
        }
        let file = context(root, "istio-cni")?.join("iptables.tar");
        fs::write(&file, &archive.stdout).with_context(|| format!("write {}", file.display()))?;
        Ok(vec![
            self.image(root, "istiod", &["pilot-discovery"])?,
            self.image(root, "istio-cni", &["install-cni", "istio-cni"])?,
        ])
    }

    /// Builds one image; its name.
    fn image(&self, root: &Path, name: &str, programs: &[&str]) -> Result<String> {
        let context = context(root, name)?;
        for program in programs {
            let copied = fs::copy(self.program(program), context.join(program));
            copied.with_context(|| format!("copy {program} to {}", context.display()))?;
        }
        let tag = named(name);
        let mut docker = Command::new("docker");
        docker.args(["build", "--quiet", "--tag", &tag, "--file"]);
        docker.arg(root.join(format!("tests/e2e/istio/{name}.Dockerfile"))).arg(&context);
        shell::output(&mut docker, &format!("build the image {tag}")).map(|_| tag)
    }
}

/// The folder of what goes into an image.
fn context(root: &Path, name: &str) -> Result<PathBuf> {
    let folder = root.join("target/image").join(format!("foreign-{name}"));
    fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
    Ok(folder)
}

fn named(program: &str) -> String {
    format!("culvert-foreign/{program}:e2e")
}

fn install(world: &World<'_>) -> Result<String> {
    let parts = world.istio.as_ref().context("Istio's parts")?;
    let ((), told) = world.flawless(|| {
        for (release, chart) in CHARTS {
            let chart = parts.chart(chart).to_string_lossy().into_owned();
            let ours = world.root.join("deploy/istio/ztunnel.yaml").to_string_lossy().into_owned();
            let mut args: Vec<String> = ["upgrade", "--install", release, &chart, "--namespace", ISTIO]
                .into_iter()
                .chain(["--create-namespace", "--set", "profile=ambient"])
                .map(str::to_owned)
                .collect();
            let mut set = |value: String| args.extend(["--set".to_owned(), value]);
            match release {
                "istiod" => {
                    set(format!("image={}", named("istiod")));
                    set("global.imagePullPolicy=Never".to_owned());
                    set("autoscaleEnabled=false".to_owned());
                    // A machine that tests is small.
                    set("resources.requests.cpu=50m".to_owned());
                    set("resources.requests.memory=128Mi".to_owned());
                }
                "istio-cni" => {
                    set(format!("image={}", named("istio-cni")));
                    set("global.imagePullPolicy=Never".to_owned());
                }
                "ztunnel" => {
                    set(format!("image={}", image::name("ztunnel")));
                    set("imagePullPolicy=Never".to_owned());
                    set("resources.requests.cpu=50m".to_owned());
                    set("resources.requests.memory=64Mi".to_owned());
                    args.extend(["--values".to_owned(), ours]);
                }
                _ => {}
            }
            let args: Vec<&str> = args.iter().map(String::as_str).collect();
            shell::output(&mut world.cluster.helm(&args), &format!("install {release}"))?;
        }
        let all = ["deployment/istiod", "daemonset/istio-cni-node", "daemonset/ztunnel"];
        world.cluster.rolled_out(ISTIO, &all)
    })?;
    Ok(told)
}

/// istio-cni lays its rules before it tells ztunnel of a pod, and the rules meet connections that were there: what
/// fails in that moment is of its making. It is counted and told; later cases bear none.
fn label(world: &World<'_>) -> Result<String> {
    let before = shop::identity(world.cluster)?;
    let (took, counted) = world.counted(|| {
        world.label("istio.io/dataplane-mode=ambient")?;
        world.captured(NAMESPACE, cases::PODS, LIMIT)
    })?;
    let _ = world.joined.set(took);
    demand(shop::identity(world.cluster)? == before, || "a pod was made anew, or a container".to_owned())?;
    let (kept, new) = cases::split(&counted);
    let ((), told) = world.flawless(|| {
        std::thread::sleep(Duration::from_secs(4));
        Ok(())
    })?;
    Ok(format!(
        "{} pods captured after {}; meanwhile {} requests, {kept} failed on kept connections, {new} on new ones \
         {:?}; then {told}",
        cases::PODS,
        span(took),
        counted.requests,
        counted.failures
    ))
}

fn strict(world: &World<'_>) -> Result<String> {
    world.apply("probes")?;
    let (ok, words) = world.client(&Client {
        namespace: "e2e-outside",
        name: "outside",
        account: "default",
        labels: json!({"app": "outside"}),
        arguments: &["load", "--to=catalog.shop:80", "--seconds=2", "--clients=2"],
    })?;
    let refused = cases::refused(&words);
    demand(!ok && refused.is_some(), || format!("a caller from outside was served: {words}"))?;
    Ok(format!("{} calls, none served", refused.unwrap_or_default()))
}

/// Cases that look at the shop and at ztunnel, for Istio's.
const UNDER_OURS: [&str; 5] = ["label", "new-pods", "wire", "authorization", "ztunnel-rolls"];

/// What our ztunnel wants to be told by its environment where it plays Istio's; that one does not know the names.
const STAND_IN: [(&str, &str); 4] = [
    ("CULVERT_NODE", "$(NODE_NAME)"),
    ("CULVERT_CONTROL", "$(XDS_ADDRESS)"),
    ("CULVERT_CONTROL_CA", "$(XDS_ROOT_CA)"),
    ("CULVERT_TOKEN_FILE", "/var/run/secrets/tokens/istio-token"),
];

fn istios_ztunnel(world: &World<'_>) -> Result<String> {
    let image = world.istio.as_ref().context("Istio's parts")?.ztunnel(world.root)?;
    // In the place of the first one, of which nothing is wanted any more: a machine has room for so many nodes.
    let name = world.cluster.name().context("a cluster of our own")?;
    let config = world.root.join("deploy/kind/cluster.yaml");
    world.elsewhere(ZTUNNEL, name, config, std::slice::from_ref(&image), |other| under_ours(other, &image))
}

fn under_ours(world: &World<'_>, image: &str) -> Result<String> {
    let all = cases::all();
    let run = |name: &str| {
        let case = all.iter().find(|case| case.name == name).context("a case of that name")?;
        let told = (case.run)(world).with_context(|| name.to_owned())?;
        Ok::<_, anyhow::Error>(format!("{name}: {told}"))
    };
    let mut told = vec![run("shop")?];
    let mut values = vec![format!("ztunnel.foreign.image={image}")];
    values.extend(STAND_IN.map(|(name, value)| format!("ztunnel.foreign.env.{name}={value}")));
    let values: Vec<&str> = values.iter().map(String::as_str).collect();
    let ((), installed) = world.flawless(|| world.helm(&values))?;
    told.push(format!("install: {installed}"));
    for name in UNDER_OURS {
        told.push(run(name)?);
    }
    Ok(told.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_case_of_ours_that_is_tried_exists() {
        let all = cases::all();
        assert!(UNDER_OURS.iter().all(|name| all.iter().any(|case| case.name == *name)));
        let names: Vec<&str> = cases().iter().map(|case| case.name).collect();
        for name in OURS {
            assert!(names.contains(&name), "{name}");
        }
        assert_eq!(names.len(), 1 + CASES.len() + OURS.len());
    }

    #[test]
    fn what_is_missing_is_told_at_once() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
        let error = Parts::find(folder).unwrap_err().to_string();
        assert!(error.contains("bin/istio-cni") && error.contains("manifests/charts/base"), "{error}");
    }
}
