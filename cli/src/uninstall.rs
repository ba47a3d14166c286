//! `culvert uninstall`: takes everybody out first, then the programs, so that nothing is left on any node.
//!
//! The order matters. A pod that is captured when its node's programs go stays captured, and is cut off rather than
//! sent in plaintext; and an agent clears its node only when it ends while no pod is captured there. So labels go
//! first, pods are waited for, then the agents end while control and ztunnels still serve, then the rest.

use std::{collections::BTreeSet, process::ExitCode, time::Duration};

use anyhow::{Context as _, bail};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::{
    api::{self, Reach},
    check::DATAPLANE_MODE,
    enrolled::{Adrift, COME_BACK, Enrolled, MARK, some},
    install, object, rollout,
};
use apiserver::Api;

mod left;
mod nodes;

use nodes::{Nodes, ON_THE_NODE};

const EVERY: Duration = Duration::from_millis(500);
/// Nobody is captured only if that is seen twice, this far apart: marks and words of agents come late, and what an
/// agent knows of namespaces cannot be asked.
const SETTLED: Duration = Duration::from_secs(5);

/// How to leave.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Take the labels off all namespaces and pods first, and wait until no pod is captured
    #[arg(long)]
    release_all: bool,

    /// Uninstall although pods are captured, or no control is there to let them go: they stay captured, and are cut
    /// off, and new pods of labelled namespaces do not start
    #[arg(long, conflicts_with = "release_all")]
    force: bool,

    /// Also remove the certificate authority's Secret, the definitions if nobody else uses them and no policy is
    /// written, and the namespace if `culvert install` made it
    #[arg(long)]
    purge: bool,

    /// With --purge: remove the definitions although policies are written, which go with them
    #[arg(long, requires = "purge")]
    purge_policies: bool,

    /// How long to wait for the pods to be let go, and then for the programs to end
    #[arg(long, value_name = "SECONDS", default_value_t = 180)]
    timeout: u64,
}

/// Uninstalls.
///
/// # Errors
/// What stands against it, with what to do.
pub(crate) async fn run(reach: &Reach, namespace: &str, args: &Args) -> anyhow::Result<ExitCode> {
    uninstall(&api::connect(reach).await?, namespace, args).await
}

async fn uninstall(api: &Api, namespace: &str, args: &Args) -> anyhow::Result<ExitCode> {
    let limit = Duration::from_secs(args.timeout);
    let found = install::installed(api, namespace).await?;
    let elsewhere = left::elsewhere(api, namespace).await?;
    let enrolled = Enrolled::look(api).await?;
    let lack = lack(api, namespace, &found, &enrolled).await?;
    if found.is_empty() {
        refuse_nothing(api, namespace, &elsewhere).await?;
        if args.release_all
            && elsewhere.is_empty()
            && let Some(lack) = lack
        {
            bail!(refusal(namespace, lack));
        }
        finish(api, namespace, &elsewhere, args).await?;
        // Of those who left by --force before; another mesh has its own.
        let behind = match elsewhere.is_empty() {
            true => left_behind(&Enrolled::look(api).await?, None),
            false => Vec::new(),
        };
        return Ok(told_at_last(&behind));
    }
    if !enrolled.is_nobody() {
        println!("In the mesh now:\n{}\n", enrolled.text());
    }
    if !args.force {
        if let Some(lack) = lack {
            bail!(refusal(namespace, lack));
        }
        if !enrolled.is_nobody() && !args.release_all {
            bail!(
                "nothing was uninstalled: a captured pod without the mesh's programs is cut off. Let all go first with \
                 `culvert uninstall --release-all` (connections that are open go on), or take labels off yourself: \
                 kubectl label namespace NAME {DATAPLANE_MODE}-"
            );
        }
    }
    let mut nodes = Nodes::default();
    if !args.force {
        if args.release_all {
            if !elsewhere.is_empty() {
                println!("  another    mesh is there, and its pods are let go, too: {}", some(&elsewhere));
            }
            take_labels_off(api, &enrolled).await?;
        }
        nodes = let_go(api, namespace, limit).await?;
    }
    remove(api, namespace, &found, limit).await?;
    finish(api, namespace, &elsewhere, args).await?;
    let behind = match args.force {
        true => left_behind(&Enrolled::look(api).await?, lack),
        false => nodes.unkempt.iter().map(|one| format!("no agent was there to clear {one}")).collect(),
    };
    if !nodes.silent.is_empty() {
        println!("\nThese agents could not be asked, and were judged by control's marks:");
        println!(
            "  {}\nIf new pods do not start there, run on that node: {ON_THE_NODE}",
            nodes.silent.join("\n  ")
        );
    }
    Ok(told_at_last(&behind))
}

/// Who is missing of those who let pods go, and clear the nodes: agents do, told by control.
async fn lack(
    api: &Api,
    namespace: &str,
    found: &[Value],
    enrolled: &Enrolled,
) -> anyhow::Result<Option<&'static str>> {
    let agents = found.iter().any(|object| object["kind"] == "DaemonSet" && object::name(object) == "agent");
    if !agents && enrolled.is_nobody() {
        return Ok(None);
    }
    Ok(match nodes::control_serves(api, namespace).await? {
        false => Some("no control is available"),
        true if !agents => Some("no agent is there"),
        true => None,
    })
}

fn refusal(namespace: &str, lack: &str) -> String {
    format!(
        "nothing was changed: {lack} in the namespace {namespace}: nobody would let the pods go, and take the CNI plugin \
         away, without which new pods do not start. `culvert install` first (`culvert check` says what is missing), or \
         leave all the same with --force"
    )
}

fn told_at_last(behind: &[String]) -> ExitCode {
    if behind.is_empty() {
        println!("\nCulvert is gone.");
        return ExitCode::SUCCESS;
    }
    println!("\nCulvert's programs are gone, and not all of what they did:\n  {}", behind.join("\n  "));
    println!("\nTo undo that, run on each node: {ON_THE_NODE}");
    println!("Or put the mesh back with `culvert install`, and leave with --release-all.");
    ExitCode::FAILURE
}

/// What stays behind where nobody was let go. `lack`: who was missing for that.
fn left_behind(now: &Enrolled, lack: Option<&str>) -> Vec<String> {
    let mut behind = Vec::new();
    if !now.captured.is_empty() {
        behind.push(format!(
            "{} pods stay captured and reach nobody: {}",
            now.captured.len(),
            some(&now.captured)
        ));
    }
    if !now.namespaces.is_empty() {
        behind.push(format!(
            "labels are left on {}: new pods there, and in namespaces that are made from now on, do not start on \
             nodes that have the CNI plugin",
            some(&now.namespaces)
        ));
    }
    if !now.labelled.is_empty() {
        behind.push(format!("{} pods have a label of their own left", now.labelled.len()));
    }
    if let Some(lack) = lack {
        behind.push(format!(
            "{lack}: a node that last heard of a namespace in the mesh keeps the CNI plugin, and new pods there do not \
             start"
        ));
    }
    behind
}

/// What is left when no program is there any more.
async fn finish(api: &Api, namespace: &str, elsewhere: &[String], args: &Args) -> anyhow::Result<()> {
    // Marks are as much those of another mesh as ours.
    if !args.force && elsewhere.is_empty() {
        unmark(api).await?;
    }
    if args.purge {
        left::purge(api, namespace, elsewhere, args.purge_policies).await?;
    } else {
        left::stays(api, namespace).await?;
    }
    Ok(())
}

/// Takes control's marks off the pods, now that nobody writes them any more.
async fn unmark(api: &Api) -> anyhow::Result<()> {
    let off = json!({"metadata": {"annotations": {MARK: null}}});
    let marked = api.list("/api/v1/pods", "").await?;
    let marked: Vec<&Value> =
        marked.iter().filter(|pod| object::annotation(pod, MARK) == Some("none")).collect();
    for pod in &marked {
        let (namespace, name) = (object::namespace(pod), object::name(pod));
        match api.patch(&format!("/api/v1/namespaces/{namespace}/pods/{name}"), &off).await {
            Err(error) if error.is_absent() => {}
            done => drop(done.with_context(|| format!("take the mark off pod {namespace}/{name}"))?),
        }
    }
    if !marked.is_empty() {
        println!("  mark off   {} pods that had been in the mesh", marked.len());
    }
    Ok(())
}

/// Where nothing was installed by this command: what helm manages is taken away by helm, which would miss it
/// otherwise, and what is in another namespace is not meant. Only what a former uninstall has left goes on.
async fn refuse_nothing(api: &Api, namespace: &str, elsewhere: &[String]) -> anyhow::Result<()> {
    let control = format!("{}/control", object::collection("Deployment", namespace));
    let there = api.find(&control).await?;
    if let Some(release) =
        there.as_ref().and_then(|control| object::annotation(control, "meta.helm.sh/release-name"))
    {
        bail!(
            "this mesh belongs to the helm release {release}: take all labels off, see `culvert status`, then helm uninstall {release} --namespace {namespace}"
        );
    }
    if left::in_namespace(api, namespace).await?.is_empty() {
        let where_it_is = if elsewhere.is_empty() {
            let adrift = Adrift::look(api).await;
            let adrift = adrift.map(|one| format!(".\n  {}. {COME_BACK}", one.text()));
            let adrift = adrift.unwrap_or_default();
            format!("no mesh of ours is in this cluster; see --context for another one{adrift}")
        } else {
            format!("there is {}: name its namespace with --namespace", some(elsewhere))
        };
        bail!(
            "nothing was changed: nothing of `culvert install` is in the namespace {namespace}; {where_it_is}"
        );
    }
    println!("No program of `culvert install` is in the namespace {namespace}, only what one has left.");
    Ok(())
}

async fn take_labels_off(api: &Api, enrolled: &Enrolled) -> anyhow::Result<()> {
    let off = json!({"metadata": {"labels": {DATAPLANE_MODE: null}}});
    for name in &enrolled.namespaces {
        api.patch(&format!("/api/v1/namespaces/{name}"), &off)
            .await
            .with_context(|| format!("take the label off namespace {name}"))?;
        println!("  label off  Namespace {name}");
    }
    for (namespace, name) in &enrolled.labelled {
        match api.patch(&format!("/api/v1/namespaces/{namespace}/pods/{name}"), &off).await {
            Err(error) if error.is_absent() => {}
            done => drop(done.with_context(|| format!("take the label off pod {namespace}/{name}"))?),
        }
        println!("  label off  Pod {namespace}/{name}");
    }
    Ok(())
}

/// Waits until no pod is captured, by control's marks and by the word of every agent. What the nodes said at last.
async fn let_go(api: &Api, namespace: &str, limit: Duration) -> anyhow::Result<Nodes> {
    let start = Instant::now();
    let (mut told, mut free_since) = (None, None);
    loop {
        let now = Enrolled::look(api).await?;
        if !now.namespaces.is_empty() || !now.labelled.is_empty() {
            bail!("somebody puts labels on again (a template, or a GitOps tool?):\n{}", now.text());
        }
        let nodes = Nodes::ask(api, namespace).await?;
        if now.captured.is_empty() && nodes.holds.is_empty() {
            let since = *free_since.get_or_insert_with(Instant::now);
            if since.elapsed() >= SETTLED {
                println!("  let go     no pod is captured ({} s)", start.elapsed().as_secs());
                return Ok(nodes);
            }
            tokio::time::sleep(EVERY).await;
            continue;
        }
        free_since = None;
        let counts = (now.captured.len(), nodes.holds.len());
        if told != Some(counts) {
            told = Some(counts);
            let (marked, held) = counts;
            println!(
                "  waiting    {marked} pods are still captured, nodes hold {held}: their open connections are served to their end"
            );
        }
        if start.elapsed() > limit {
            let mut still = now.captured;
            still.extend(nodes.holds);
            bail!(
                "no program was removed: after {} s still captured: {}\n  Long connections hold them; wait longer with --timeout, or see `culvert status` for why",
                limit.as_secs(),
                some(&still)
            );
        }
        tokio::time::sleep(EVERY).await;
    }
}

/// Agents first: they clear their nodes while they are served.
async fn remove(api: &Api, namespace: &str, found: &[Value], limit: Duration) -> anyhow::Result<()> {
    let turn = |object: &Value| match object::name(object) {
        "agent" if object["kind"] == "DaemonSet" => 0,
        "ztunnel" if object["kind"] == "DaemonSet" => 1,
        _ => 2,
    };
    for number in 0..3 {
        // What was made last goes first.
        let due: Vec<&Value> = found.iter().rev().filter(|object| turn(object) == number).collect();
        for object in &due {
            if api
                .delete(&object::path(object))
                .await
                .with_context(|| format!("delete {}", object::named(object)))?
            {
                println!("  removed    {}", object::named(object));
            }
        }
        if !due.is_empty() {
            let waited: &[&str] = match number {
                0 => &["agent"],
                1 => &["ztunnel"],
                _ => &["agent", "ztunnel", "control"],
            };
            ended(api, namespace, waited, limit).await?;
        }
    }
    Ok(())
}

async fn ended(api: &Api, namespace: &str, programs: &[&str], limit: Duration) -> anyhow::Result<()> {
    let start = Instant::now();
    loop {
        let pods = rollout::pods(api, namespace).await?;
        let left: BTreeSet<String> = pods
            .iter()
            .map(rollout::standing)
            .filter(|one| programs.contains(&one.program.as_str()))
            .map(|one| format!("{} on {}", one.program, one.node))
            .collect();
        if left.is_empty() {
            return Ok(());
        }
        if start.elapsed() > limit {
            let left: Vec<String> = left.into_iter().collect();
            bail!(
                "after {} s these have not ended: {}; run it again when their nodes answer",
                limit.as_secs(),
                some(&left)
            );
        }
        tokio::time::sleep(EVERY).await;
    }
}

#[cfg(test)]
mod tests;
