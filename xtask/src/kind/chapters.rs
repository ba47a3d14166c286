//! What happens in the cluster, told and checked in order.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, Result};

use super::{
    cluster::{Cluster, SYSTEM, eventually},
    leftovers,
    shop::{self, NAMESPACE, SECRET},
    wire,
};
use crate::{
    demo::stage::{Stage, span},
    image, shell,
};

/// From the label to the last pod measured.
const CAPTURE_LIMIT: Duration = Duration::from_secs(5);
/// From its removal to the last pod released: control waits for the peers, the agent for what is carried. The
/// customers' kept connections never end, so they are not waited for here.
const RELEASE_LIMIT: Duration = Duration::from_secs(20);
/// How long each state is watched under load.
const WATCH: Duration = Duration::from_secs(6);

/// The play, and what it needs.
#[derive(Debug)]
pub(crate) struct Story<'a> {
    pub(crate) cluster: &'a Cluster,
    pub(crate) chart: PathBuf,
    /// The program.
    pub(crate) culvert: PathBuf,
    /// The shop's manifests, and those of its customers.
    pub(crate) shop: String,
    pub(crate) customers: String,
}

impl Story<'_> {
    /// Plays every chapter; with `keep` the shop is in the mesh at the end.
    pub(crate) fn tell(&self, stage: &mut Stage, keep: bool) -> Result<()> {
        let pods = self.open_shop(stage)?;
        self.install(stage)?;
        self.enroll(stage, &pods)?;
        if keep {
            return Ok(());
        }
        self.release(stage, &pods)?;
        self.uninstall(stage, &pods)
    }

    fn open_shop(&self, stage: &mut Stage) -> Result<Vec<String>> {
        stage.chapter(
            "A shop",
            "Three services with two replicas each, and customers on both nodes who keep connections open, make \
             new ones, compare every byte, and never try twice. No mesh yet.",
        );
        stage.check("the shop is open", || {
            let image = image::name(image::TRAFFIC);
            self.cluster.apply(&shop::manifests(&self.shop, &image))?;
            let services = ["deployment/catalog", "deployment/cart", "deployment/checkout"];
            self.cluster.rolled_out(NAMESPACE, &services)?;
            // Ready is not yet reachable: kube-proxy is told a moment later.
            std::thread::sleep(Duration::from_secs(3));
            self.cluster.apply(&shop::manifests(&self.customers, &image))?;
            self.cluster.rolled_out(NAMESPACE, &["deployment/customers"])?;
            Ok(((), "8 pods on 2 nodes".to_owned()))
        })?;
        self.flawless(stage, "the customers are served")?;
        stage.check("on the wire between the nodes the shop's secret can be read", || {
            let seen = self.wire()?;
            Stage::demand(seen.secrets > 0, || {
                format!("it cannot, so nothing would be proved later: {seen:?}")
            })?;
            Ok(((), format!("in {} of {} segments", seen.secrets, seen.segments)))
        })?;
        shop::identity(self.cluster)
    }

    fn install(&self, stage: &mut Stage) -> Result<()> {
        stage.chapter(
            "The mesh is installed",
            "One chart: control, and on every node an agent and a ztunnel.",
        );
        stage.show(&format!(
            "helm install culvert deploy/helm/culvert --namespace {SYSTEM} --create-namespace"
        ));
        let took = stage.check("every node has its programs", || {
            let start = std::time::Instant::now();
            let chart = self.chart.to_string_lossy();
            let flags = ["install", "culvert", &chart, "--namespace", SYSTEM, "--create-namespace"];
            // What was built here is not to be looked for elsewhere.
            let mut helm = self.cluster.helm(&[&flags[..], &["--set", "image.pullPolicy=Never"]].concat());
            shell::output(&mut helm, "install the chart")?;
            self.cluster
                .rolled_out(SYSTEM, &["deployment/control", "daemonset/agent", "daemonset/ztunnel"])?;
            Ok((start.elapsed(), "control, 3 agents, 3 ztunnels: all ready".to_owned()))
        })?;
        stage.fact("installed, every program ready", span(took));
        self.flawless(stage, "the shop did not notice")
    }

    fn enroll(&self, stage: &mut Stage, pods: &[String]) -> Result<()> {
        stage
            .chapter("One label", "The shop joins. Nothing in it is restarted, and no connection may break.");
        stage.show(&format!("kubectl label namespace {NAMESPACE} istio.io/dataplane-mode=ambient"));
        let took = stage.check("every pod is captured, measured by its node, within 5 s", || {
            self.label("istio.io/dataplane-mode=ambient")?;
            let ((), took) = eventually(CAPTURE_LIMIT, "every pod captured", || {
                let (pods, captured) = shop::pods(self.cluster)?;
                let all = pods.len() == captured && captured > 0;
                Ok(if all { Ok(()) } else { Err(format!("{captured} of {} pods", pods.len())) })
            })?;
            Ok((took, format!("the last one after {}", span(took))))
        })?;
        stage.fact("from the label to all pods captured", span(took));
        stage.show(&format!("culvert status {NAMESPACE}"));
        let mut status = self.cluster.culvert(&self.culvert, &["status", NAMESPACE]);
        let status = shell::output(&mut status, "culvert status")?;
        stage.picture(&status.lines().map(str::to_owned).collect::<Vec<_>>());
        std::thread::sleep(WATCH);
        self.flawless(stage, "no request failed, on connections from before and on new ones")?;
        self.same(stage, pods)?;
        stage.check("what is new crosses the wire in TLS", || {
            let seen = self.wire()?;
            Stage::demand(seen.tls > 0, || format!("no record of TLS to port 15008 was seen: {seen:?}"))?;
            let old =
                format!("; connections from before the label are left in peace: {} segments", seen.secrets);
            let old = if seen.secrets == 0 { String::new() } else { old };
            Ok((
                (),
                format!(
                    "{} segments to port 15008, {} begin with a record of TLS{old}",
                    seen.hbone, seen.tls
                ),
            ))
        })?;
        stage.check("new customers come, in new pods, and are captured as well", || {
            self.cluster.ask(&["--namespace", NAMESPACE, "rollout", "restart", "deployment/customers"])?;
            self.cluster.rolled_out(NAMESPACE, &["deployment/customers"])?;
            let ((), took) = eventually(RELEASE_LIMIT, "the new customers captured", || {
                let (pods, captured) = shop::pods(self.cluster)?;
                let all = pods.len() == 8 && captured == 8;
                Ok(if all { Ok(()) } else { Err(format!("{captured} of {} pods", pods.len())) })
            })?;
            Ok(((), format!("{} after they were ready", span(took))))
        })?;
        self.flawless(stage, "none of their requests failed, from their very first one")?;
        stage.check("the shop's secret cannot be read on the wire any more", || {
            // What the new ones opened before they were captured, they keep for ever: they begin anew.
            self.renew_customers()?;
            let seen = self.wire()?;
            Stage::demand(seen.secrets == 0 && seen.tls > 0, || format!("{seen:?}"))?;
            Ok(((), format!("{} segments, {} records of TLS, the secret in none", seen.segments, seen.tls)))
        })?;
        self.flawless(stage, "and who begins anew is served")
    }

    fn release(&self, stage: &mut Stage, pods: &[String]) -> Result<()> {
        stage.chapter(
            "The label goes",
            "The shop leaves as quietly as it came; what is carried is carried to its end.",
        );
        stage.show(&format!("kubectl label namespace {NAMESPACE} istio.io/dataplane-mode-"));
        let took = stage.check("no pod is told to be captured any more", || {
            self.label("istio.io/dataplane-mode-")?;
            let ((), took) = eventually(RELEASE_LIMIT, "every pod released", || {
                let (_, captured) = shop::pods(self.cluster)?;
                Ok(if captured == 0 { Ok(()) } else { Err(format!("{captured} pods are captured")) })
            })?;
            Ok((took, format!("the last one after {}", span(took))))
        })?;
        stage.fact("from the label's end to all pods withdrawn", span(took));
        std::thread::sleep(WATCH);
        self.flawless(stage, "no request failed")?;
        self.same_services(stage, pods)
    }

    fn uninstall(&self, stage: &mut Stage, pods: &[String]) -> Result<()> {
        stage.chapter(
            "The mesh goes",
            "When the customers have left, nothing is carried any more, and nothing may stay behind.",
        );
        let counted = self.flawless_counted(stage, "the customers' last count")?;
        stage.fact(
            "requests of the last customers, failed",
            format!("{}, {}", counted.requests, counted.failed),
        );
        self.cluster.ask(&["--namespace", NAMESPACE, "scale", "deployment/customers", "--replicas=0"])?;
        stage.check("no pod has pins on any node", || {
            let ((), took) = eventually(RELEASE_LIMIT, "no pod pinned", || {
                let pinned = leftovers::on_nodes(self.cluster, "ls /sys/fs/bpf/culvert/pods 2>/dev/null")?;
                Ok(if pinned.is_empty() { Ok(()) } else { Err(pinned) })
            })?;
            Ok(((), format!("after {}", span(took))))
        })?;
        stage.show(&format!("helm uninstall culvert --namespace {SYSTEM}"));
        stage.check("nothing is left: no pod, no pin, no routing rule, no socket, no CNI file", || {
            let flags = ["uninstall", "culvert", "--namespace", SYSTEM, "--wait"];
            shell::output(&mut self.cluster.helm(&flags), "uninstall the chart")?;
            let gone = || {
                let left = leftovers::of_ours(self.cluster)?;
                Ok(if left.is_empty() { Ok(()) } else { Err(left) })
            };
            let ((), took) = eventually(Duration::from_secs(60), "nothing left", gone)?;
            Ok(((), format!("on 3 nodes, {} after helm was done", span(took))))
        })?;
        self.same_services(stage, pods)
    }

    fn label(&self, label: &str) -> Result<()> {
        self.cluster.ask(&["label", "--overwrite", "namespace", NAMESPACE, label]).map(drop)
    }

    /// Ends the customers' programs, whose pods stay, captured as they are; the kubelet starts them again.
    fn renew_customers(&self) -> Result<()> {
        let pods = shop::customers(self.cluster)?;
        let restarts = || -> Result<i64> {
            let pods = shop::customers(self.cluster)?;
            Ok(pods
                .iter()
                .filter_map(|pod| pod["status"]["containerStatuses"][0]["restartCount"].as_i64())
                .sum())
        };
        let before = restarts()?;
        for node in &self.cluster.nodes {
            self.cluster.on(node, "pkill -TERM -f '^/app load' || true")?;
        }
        let again = || {
            let now = restarts()? - before;
            Ok(if now == pods.len() as i64 { Ok(()) } else { Err(format!("{now} of {}", pods.len())) })
        };
        eventually(Duration::from_secs(30), "the customers' programs again", again)?;
        self.cluster.rolled_out(NAMESPACE, &["deployment/customers"])?;
        std::thread::sleep(Duration::from_secs(2));
        Ok(())
    }

    fn wire(&self) -> Result<wire::Seen> {
        let node = self.cluster.nodes.iter().find(|node| node.ends_with("worker")).context("a worker")?;
        wire::listen(self.cluster, node, Duration::from_secs(4), SECRET)
    }

    fn flawless(&self, stage: &mut Stage, what: &str) -> Result<()> {
        self.flawless_counted(stage, what).map(drop)
    }

    fn flawless_counted(&self, stage: &mut Stage, what: &str) -> Result<shop::Counted> {
        stage.check(what, || {
            let enough = || {
                let counted = shop::counted(self.cluster)?;
                let (seconds, wanted) = (counted.seconds, 2 * WATCH.as_secs() as usize);
                Ok(if seconds >= wanted { Ok(counted) } else { Err(format!("{seconds} lines of customers")) })
            };
            let (counted, _) = eventually(Duration::from_secs(60), "some seconds of customers", enough)?;
            let evidence = counted.demand_flawless()?;
            Ok((counted, evidence))
        })
    }

    fn same(&self, stage: &mut Stage, pods: &[String]) -> Result<()> {
        stage.check("every pod is the one it was, and no container was started again", || {
            Stage::demand(shop::identity(self.cluster)? == pods, || "the pods have changed".to_owned())?;
            Ok(((), String::new()))
        })
    }

    /// The customers have changed by our own doing.
    fn same_services(&self, stage: &mut Stage, pods: &[String]) -> Result<()> {
        stage.check("the services' pods are the ones they were", || {
            let now = shop::identity(self.cluster)?;
            let same = pods.iter().filter(|pod| now.contains(pod)).count();
            Stage::demand(same >= 6, || format!("{same} of 6"))?;
            Ok(((), String::new()))
        })
    }
}
