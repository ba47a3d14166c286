//! `culvert install`: applies what was built in, waits until every node has its programs, and says why not.
//!
//! A second install is an upgrade: what a former version had and this one has not goes. What helm manages is helm's.

use std::{process::ExitCode, time::Duration};

use anyhow::{Context as _, bail};
use serde_json::Value;

use crate::{
    api::{self, Reach},
    check::{self, AMBIENT, DATAPLANE_MODE},
    manifests::{self, Choices, Flags, Installed, MANAGED_BY, PART_OF},
    object::{self, MANAGER_LABEL},
    rollout,
};
use apiserver::{Api, ApiError};

/// Written by helm on what it manages.
const RELEASE: &str = "meta.helm.sh/release-name";

/// What to install, and how.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    flags: Flags,

    /// Print the objects as YAML and do nothing. Without a cluster they are for Kubernetes 1.34
    #[arg(long)]
    dry_run: bool,

    /// Install without looking first whether the cluster can carry it
    #[arg(long)]
    skip_check: bool,

    /// Take over fields that somebody else has set since
    #[arg(long)]
    force_conflicts: bool,

    /// Change the trust domain of the mesh that is installed, and with it every identity: connections between pods
    /// that have the new one and pods that have the old one are refused, and so is what policies say of the old one
    #[arg(long)]
    force: bool,

    /// Do not wait until every node has its programs
    #[arg(long)]
    no_wait: bool,

    /// How long to wait for that
    #[arg(long, value_name = "SECONDS", default_value_t = 180)]
    timeout: u64,
}

/// Installs.
///
/// # Errors
/// What stands against it, with what to do.
pub(crate) async fn run(reach: &Reach, namespace: &str, args: &Args) -> anyhow::Result<ExitCode> {
    let reached = match api::connect(reach).await {
        Ok(api) => api.get("/version").await.map(|version| (api, version)).map_err(Into::into),
        Err(error) => Err(error),
    };
    if args.dry_run {
        let kubernetes = reached.as_ref().map_or((1, 34), |(_, version)| check::version(version));
        let installed = match &reached {
            Ok((api, _)) => chosen(api, namespace).await.unwrap_or_else(|error| {
                eprintln!("culvert: what is installed cannot be seen, unset flags are the chart's: {error}");
                None
            }),
            Err(_) => None,
        };
        let (choices, kept) = args.flags.over(&installed.unwrap_or_default());
        if !kept.is_empty() {
            eprintln!("culvert: as it is installed: {}", kept.join(" "));
        }
        print_yaml(namespace, &manifests::objects(namespace, &choices, kubernetes)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    let (api, version) = reached?;
    install(&api, check::version(&version), namespace, args).await?;
    Ok(ExitCode::SUCCESS)
}

async fn install(api: &Api, kubernetes: (u32, u32), namespace: &str, args: &Args) -> anyhow::Result<()> {
    let installed = chosen(api, namespace).await?;
    let (choices, kept) = args.flags.over(&installed.clone().unwrap_or_default());
    // One that is kept was once taken without a look, and control would not start with it.
    if let Err(why) = mesh::identity::trust_domain(&choices.trust_domain) {
        bail!(
            "nothing was changed: --trust-domain {:?}: {why}; say another with --force",
            choices.trust_domain
        );
    }
    let objects = manifests::objects(namespace, &choices, kubernetes)?;
    refuse_helms(api, &objects).await?;
    if let Some(installed) = &installed
        && !args.force
    {
        refuse_another_domain(installed, &choices)?;
    }
    if !kept.is_empty() {
        println!("  kept       as it is installed: {} (a flag changes it)", kept.join(" "));
    }
    if !args.skip_check {
        let report = check::before(api, namespace).await?;
        report.print_findings();
        if report.obstacles() > 0 {
            bail!(
                "nothing was installed: mend the problems above, or install all the same with --skip-check"
            );
        }
    }
    let namespace_path = format!("/api/v1/namespaces/{namespace}");
    if api.find(&namespace_path).await?.is_none() {
        api::apply(api, &manifests::namespace(namespace), false).await.context("make the namespace")?;
        println!("  made       Namespace {namespace}");
    }
    apply(api, &objects, args.force_conflicts).await?;
    for gone in former(api, namespace, &objects).await? {
        let deleted = api.delete(&object::path(&gone)).await;
        deleted.with_context(|| format!("delete {}", object::named(&gone)))?;
        println!("  removed    {}, which is not wanted any more", object::named(&gone));
    }
    if args.no_wait {
        println!("\nNot waited for. See `culvert check`.");
        return Ok(());
    }
    println!();
    rollout::wait(api, namespace, Duration::from_secs(args.timeout)).await?;
    println!("\nEvery node has its programs. {}", next(api).await);
    Ok(())
}

/// What there is to do after an install: where somebody is in the mesh already, to look.
async fn next(api: &Api) -> &'static str {
    let labelled = format!("{DATAPLANE_MODE}={AMBIENT}");
    for path in ["/api/v1/namespaces", "/api/v1/pods"] {
        // Who may not list them is told how one begins.
        if api.list(path, &labelled).await.is_ok_and(|found| !found.is_empty()) {
            return "See who is in the mesh: culvert status";
        }
    }
    "Take a namespace in, nothing in it is restarted:\n\n    kubectl label namespace NAME \
     istio.io/dataplane-mode=ambient\n    culvert status NAME"
}

/// What was chosen for the mesh that this command has installed, if it has.
async fn chosen(api: &Api, namespace: &str) -> Result<Option<Installed>, ApiError> {
    let at = |kind: &str, name: &str| format!("{}/{name}", object::collection(kind, namespace));
    let ours = |object: &Value| object::label(object, MANAGED_BY) == Some(MANAGER_LABEL);
    let Some(control) = api.find(&at("Deployment", "control")).await?.filter(ours) else { return Ok(None) };
    let agent = api.find(&at("DaemonSet", "agent")).await?.filter(ours);
    Ok(Some(Installed::of(&control, agent.as_ref())))
}

fn refuse_another_domain(installed: &Installed, choices: &Choices) -> anyhow::Result<()> {
    match &installed.trust_domain {
        Some(domain) if *domain != choices.trust_domain => bail!(
            "nothing was changed: the trust domain of the installed mesh is {domain}, and {} would change every \
             identity: pods refuse each other until all have new certificates, and policies that name the old one \
             do not match. Leave --trust-domain out, or say --force",
            choices.trust_domain
        ),
        _ => Ok(()),
    }
}

fn print_yaml(namespace: &str, objects: &[Value]) -> anyhow::Result<()> {
    for object in std::iter::once(&manifests::namespace(namespace)).chain(objects) {
        print!("---\n{}", serde_yaml_ng::to_string(object)?);
    }
    Ok(())
}

/// Two managers of the same objects would undo each other's work.
async fn refuse_helms(api: &Api, objects: &[Value]) -> anyhow::Result<()> {
    for object in objects.iter().filter(|object| object["kind"] != "CustomResourceDefinition") {
        let Some(there) = api.find(&object::path(object)).await? else { continue };
        if let Some(release) = object::annotation(&there, RELEASE) {
            let namespace = object::annotation(&there, "meta.helm.sh/release-namespace").unwrap_or("?");
            bail!(
                "{} belongs to the helm release {release}: upgrade it by \
                 `helm upgrade {release} deploy/helm/culvert --namespace {namespace}`, or take it away first by \
                 `helm uninstall {release} --namespace {namespace}`",
                object::named(object)
            );
        }
        if object::label(&there, PART_OF) != Some("culvert") {
            bail!(
                "nothing was changed: {} is there and is not Culvert's. See whose it is, and remove it or give it \
                 another name",
                object::named(object)
            );
        }
    }
    Ok(())
}

async fn apply(api: &Api, objects: &[Value], force: bool) -> anyhow::Result<()> {
    let mut due = Vec::new();
    for object in objects {
        let there = api.find(&object::path(object)).await?;
        if object["kind"] == "CustomResourceDefinition" && there.is_some() {
            // Istio's own, perhaps, and newer.
            println!("  is there   {}", object::named(object));
            continue;
        }
        due.push((object, there));
    }
    // First all without effect: what is refused is not to leave half of it changed.
    for (object, there) in &due {
        if there.is_none() && matches!(object::text(&object["kind"]), "ClusterRoleBinding" | "RoleBinding") {
            // The role that it names is made by then, and not by a rehearsal.
            continue;
        }
        match api::rehearse(api, object, force).await {
            Err(error) if error.is_conflict() => bail!(
                "nothing was changed: {}: {error}\n  Undo that, or take it over with --force-conflicts",
                object::named(object)
            ),
            rehearsed => {
                rehearsed.with_context(|| format!("nothing was changed: {}", object::named(object)))?;
            }
        }
    }
    for (object, there) in due {
        let named = object::named(object);
        let applied = api::apply(api, object, force).await.with_context(|| format!("apply {named}"))?;
        let version = |object: &Value| object::text(&object["metadata"]["resourceVersion"]).to_owned();
        let said = match there {
            None => "made",
            Some(there) if version(&there) == version(&applied) => "unchanged",
            Some(_) => "changed",
        };
        println!("  {said:<10} {named}");
    }
    Ok(())
}

/// What a former install has made and is not wanted any more.
async fn former(api: &Api, namespace: &str, objects: &[Value]) -> anyhow::Result<Vec<Value>> {
    let wanted: Vec<String> = objects.iter().map(object::path).collect();
    let all = installed(api, namespace).await?;
    Ok(all.into_iter().filter(|object| !wanted.contains(&object::path(object))).collect())
}

/// Everything that this command has installed, but for definitions and the namespace, in the order of making.
pub(crate) async fn installed(api: &Api, namespace: &str) -> anyhow::Result<Vec<Value>> {
    let selector = format!("{PART_OF}=culvert,{MANAGED_BY}={MANAGER_LABEL}");
    let mut found = Vec::new();
    for kind in object::kinds().filter(|kind| !matches!(*kind, "Namespace" | "CustomResourceDefinition")) {
        let listed = api.list(&object::collection(kind, namespace), &selector).await;
        for mut object in listed.with_context(|| format!("list objects of kind {kind}"))? {
            // A list does not repeat it for each.
            object["kind"] = kind.into();
            // Of those in no namespace, another install in another one may have some. The whole name counts: that
            // of another namespace may begin like ours.
            let of_this_one = |program: &str| object::name(&object) == format!("{namespace}-{program}");
            if !object::namespace(&object).is_empty()
                || rollout::PROGRAMS.iter().any(|(program, _)| of_this_one(program))
            {
                found.push(object);
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests;
