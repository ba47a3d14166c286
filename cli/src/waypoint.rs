//! `culvert waypoint`: a waypoint for a namespace, who has one, and away with it. Control deploys what is asked for here.

use std::{process::ExitCode, time::Duration};

use anyhow::bail;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::{
    api::{self, MANAGER, Reach},
    object::{self, items, text},
    table::{self, Paint},
};
use apiserver::{Api, ApiError};

const API: &str = "/apis/gateway.networking.k8s.io/v1";
/// Whose Gateways are waypoints.
const CLASSES: [&str; 2] = ["culvert-waypoint", "istio-waypoint"];
/// Names the waypoint, on what is behind it.
const USE: &str = "istio.io/use-waypoint";
const USE_NAMESPACE: &str = "istio.io/use-waypoint-namespace";
/// What is called through it, on the Gateway.
const FOR: &str = "istio.io/waypoint-for";
const REPLICAS: &str = "culvert.dev/replicas";
/// It is asked for again after this time.
const PAUSE: Duration = Duration::from_millis(500);
/// Where nobody has installed the Gateway API.
const NO_GATEWAY_API: &str = "this cluster does not have the Gateway API: install its definitions \
    (https://gateway-api.sigs.k8s.io/guides, standard channel), control sees them within half a minute";

/// What to do.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Make a waypoint, or change it
    Apply(Apply),
    /// The waypoints, what they are for, and who is led through them
    List(List),
    /// Take a waypoint away
    Delete(Delete),
}

/// Which, and for whom.
#[derive(Debug, clap::Args)]
struct Apply {
    /// Its namespace, and its name where it is not to be `waypoint`
    #[arg(value_name = "NAMESPACE[/NAME]")]
    whom: String,

    /// What is called through it
    #[arg(long = "for", value_name = "WHAT", default_value = "service", value_parser = ["service", "workload", "all", "none"])]
    of: String,

    /// Lead the whole namespace through it, by a label; else label what is to be behind it
    #[arg(long)]
    enroll_namespace: bool,

    /// Pods of it; without it one at first, which whoever scales it changes
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    replicas: Option<u32>,

    /// Print what would be applied, and apply nothing
    #[arg(long)]
    dry_run: bool,

    /// Seconds to wait until it can be called; 0: not at all
    #[arg(long, value_name = "SECONDS", default_value_t = 90)]
    timeout: u64,
}

#[derive(Debug, clap::Args)]
struct List {
    /// A namespace; all without it
    #[arg(value_name = "NAMESPACE")]
    whom: Option<String>,
}

#[derive(Debug, clap::Args)]
struct Delete {
    /// Its namespace and its name
    #[arg(value_name = "NAMESPACE/NAME")]
    whom: String,

    /// Even if something is led through it still: calls to that are refused then
    #[arg(long)]
    force: bool,
}

/// Does it.
///
/// # Errors
/// If the API server cannot be asked or refuses, or what was asked for does not come in time.
pub(crate) async fn run(reach: &Reach, args: &Args) -> anyhow::Result<ExitCode> {
    if let Command::Apply(args) = &args.command
        && args.dry_run
    {
        println!("{:#}", gateway(args)?);
        return Ok(ExitCode::SUCCESS);
    }
    let api = api::connect(reach).await?;
    if api.find(API).await?.is_none() {
        bail!(NO_GATEWAY_API);
    }
    match &args.command {
        Command::Apply(args) => println!("{}", apply(&api, args).await?),
        Command::List(args) => print!("{}", list(&api, args.whom.as_deref(), &Paint::of_stdout()).await?),
        Command::Delete(args) => println!("{}", delete(&api, args).await?),
    }
    Ok(ExitCode::SUCCESS)
}

fn gateway(args: &Apply) -> anyhow::Result<Value> {
    let (namespace, name) = named(&args.whom, Some("waypoint"))?;
    let mut annotations = json!({});
    if let Some(replicas) = args.replicas {
        annotations[REPLICAS] = replicas.to_string().into();
    }
    Ok(json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
        "metadata": {"name": name, "namespace": namespace, "labels": {FOR: args.of}, "annotations": annotations},
        "spec": {
            "gatewayClassName": CLASSES[0],
            "listeners": [{"name": "mesh", "port": 15008, "protocol": "HBONE"}],
        },
    }))
}

/// `NAMESPACE/NAME`, the name by default.
fn named<'w>(whom: &'w str, default: Option<&'w str>) -> anyhow::Result<(&'w str, &'w str)> {
    let (namespace, name) = match whom.split_once('/') {
        Some(pair) => pair,
        None => (whom, default.unwrap_or_default()),
    };
    if namespace.is_empty() || name.is_empty() || name.contains('/') {
        bail!("{whom:?} is not NAMESPACE/NAME of a waypoint");
    }
    Ok((namespace, name))
}

fn path(namespace: &str, name: &str) -> String {
    format!("{API}/namespaces/{namespace}/gateways/{name}")
}

/// What was done, in a line.
async fn apply(api: &Api, args: &Apply) -> anyhow::Result<String> {
    let gateway = gateway(args)?;
    let (namespace, name) = (object::namespace(&gateway), object::name(&gateway));
    let path = path(namespace, name);
    if let Some(there) = api.find(&path).await?
        && !is_waypoint(&there)
    {
        let class = text(&there["spec"]["gatewayClassName"]);
        bail!("Gateway {namespace}/{name} is there, of class {class}: it is no waypoint, and is left alone");
    }
    let query = format!("?fieldManager={MANAGER}&fieldValidation=Strict&force=true");
    api.apply(&format!("{path}{query}"), &gateway).await?;
    let waited = Duration::from_secs(args.timeout);
    if !waited.is_zero() {
        programmed(api, &path, waited).await?;
    }
    let mut said =
        format!("waypoint {namespace}/{name}: {}", if waited.is_zero() { "applied" } else { "ready" });
    // Only then: who is led to a waypoint that is not there is refused.
    if args.enroll_namespace {
        let labels = json!({"metadata": {"labels": {USE: name, USE_NAMESPACE: null}}});
        api.patch(&format!("/api/v1/namespaces/{namespace}"), &labels).await?;
        said.push_str(&format!("; namespace {namespace} is led through it"));
    }
    Ok(said)
}

async fn programmed(api: &Api, path: &str, limit: Duration) -> anyhow::Result<()> {
    let begun = Instant::now();
    loop {
        let gateway = api.get(path).await?;
        let (status, words) = condition(&gateway, "Programmed");
        if status == "True" {
            return Ok(());
        }
        if begun.elapsed() >= limit {
            bail!("it cannot be called after {} s: {words}; see kubectl describe gateway", limit.as_secs());
        }
        sleep(PAUSE).await;
    }
}

/// The Gateways of all namespaces; `None` where the cluster does not have the Gateway API.
///
/// # Errors
/// If the API server cannot be asked.
pub(crate) async fn gateways(api: &Api) -> Result<Option<Vec<Value>>, ApiError> {
    match api.find(API).await? {
        Some(_) => api.list(&format!("{API}/gateways"), "").await.map(Some),
        None => Ok(None),
    }
}

/// Whether a Gateway is a waypoint.
pub(crate) fn is_waypoint(gateway: &Value) -> bool {
    CLASSES.contains(&text(&gateway["spec"]["gatewayClassName"]))
}

/// Status and words of a condition.
pub(crate) fn condition(object: &Value, kind: &str) -> (String, String) {
    let said = items(&object["status"]["conditions"]).iter().find(|one| one["type"] == kind);
    let Some(said) = said else {
        return ("Unknown".to_owned(), "control has not said anything yet".to_owned());
    };
    let words = format!("{}: {}", text(&said["reason"]), text(&said["message"]));
    (text(&said["status"]).to_owned(), words)
}

/// The waypoints of a namespace, or of all.
async fn list(api: &Api, within: Option<&str>, paint: &Paint) -> anyhow::Result<String> {
    let collection = match within {
        Some(namespace) => format!("{API}/namespaces/{namespace}/gateways"),
        None => format!("{API}/gateways"),
    };
    let mut rows = Vec::new();
    for gateway in api.list(&collection, "").await? {
        if !is_waypoint(&gateway) {
            continue;
        }
        let (namespace, name) = (object::namespace(&gateway), object::name(&gateway));
        let (status, words) = condition(&gateway, "Programmed");
        let ready = match status.as_str() {
            "True" => "yes".to_owned(),
            _ => format!("no ({words})"),
        };
        let behind = users(api, namespace, name).await?;
        let behind = if behind.is_empty() { "nobody".to_owned() } else { behind.join(", ") };
        let of = object::label(&gateway, FOR).unwrap_or("service").to_owned();
        rows.push(vec![namespace.to_owned(), name.to_owned(), of, ready, behind]);
    }
    if rows.is_empty() {
        return Ok("There is no waypoint.\n".to_owned());
    }
    let head = ["NAMESPACE", "NAME", "FOR", "READY", "BEHIND IT"];
    Ok(table::columns(&head, &rows, |column, cell, _| match column {
        3 if cell == "yes" => paint.good(cell),
        3 => paint.bad(cell),
        _ => cell.to_owned(),
    }))
}

/// Who is led through a waypoint.
async fn users(api: &Api, namespace: &str, name: &str) -> anyhow::Result<Vec<String>> {
    let mut users = Vec::new();
    for (kind, plural) in [("Namespace", "namespaces"), ("Service", "services"), ("Pod", "pods")] {
        for mut one in api.list(&format!("/api/v1/{plural}"), &format!("{USE}={name}")).await? {
            one["kind"] = kind.into();
            let own = if kind == "Namespace" { object::name(&one) } else { object::namespace(&one) };
            if object::label(&one, USE_NAMESPACE).unwrap_or(own) == namespace {
                users.push(object::named(&one));
            }
        }
    }
    Ok(users)
}

/// What was done, in a line.
async fn delete(api: &Api, args: &Delete) -> anyhow::Result<String> {
    let (namespace, name) = named(&args.whom, None)?;
    let path = path(namespace, name);
    let Some(there) = api.find(&path).await? else { bail!("there is no Gateway {namespace}/{name}") };
    if !is_waypoint(&there) {
        bail!("Gateway {namespace}/{name} is no waypoint, and is left alone");
    }
    let users = users(api, namespace, name).await?;
    if !users.is_empty() && !args.force {
        bail!(
            "still led through it: {}. Calls to these would be refused: take the label {USE} off first, or --force",
            users.join(", ")
        );
    }
    api.delete(&path).await?;
    Ok(format!("waypoint {namespace}/{name} is taken away; its pods serve what they have begun"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::{Cluster, args};

    fn line(flags: &[&str]) -> Command {
        args::<Args>(flags).command
    }

    fn apply_args(flags: &[&str]) -> Apply {
        match line(&[&["apply"], flags].concat()) {
            Command::Apply(apply) => apply,
            other => panic!("{other:?}"),
        }
    }

    fn delete_args(flags: &[&str]) -> Delete {
        match line(&[&["delete"], flags].concat()) {
            Command::Delete(delete) => delete,
            other => panic!("{other:?}"),
        }
    }

    fn namespace(labels: Value) -> Value {
        json!({"kind": "Namespace", "metadata": {"name": "shop", "labels": labels}})
    }

    #[tokio::test(start_paused = true)]
    async fn a_namespace_is_led_through_a_waypoint_that_can_be_called() {
        const PATH: &str = "/apis/gateway.networking.k8s.io/v1/namespaces/shop/gateways/waypoint";
        let cluster = Cluster::new();
        cluster.put("/api/v1/namespaces/shop", namespace(json!({})));
        let flags = apply_args(&["shop", "--enroll-namespace", "--for=all", "--replicas=2", "--timeout=5"]);
        let late = apply(&cluster.api(), &flags).await.unwrap_err().to_string();
        assert!(late.contains("control has not said anything"), "{late}");
        let label = || cluster.get("/api/v1/namespaces/shop").unwrap()["metadata"]["labels"].clone();
        assert_eq!(label(), json!({}), "nobody is led where nothing is");
        let gateway = cluster.get(PATH).unwrap();
        assert_eq!(gateway["metadata"]["labels"][FOR], "all");
        assert_eq!(gateway["metadata"]["annotations"][REPLICAS], "2");
        let now = apply_args(&["shop", "--enroll-namespace", "--timeout=0"]);
        let said = apply(&cluster.api(), &now).await.unwrap();
        assert!(said.contains("namespace shop is led through it"), "{said}");
        assert_eq!(label(), json!({USE: "waypoint"}));

        let mut ready = cluster.get(PATH).unwrap();
        ready["status"]["conditions"] = json!([{"type": "Programmed", "status": "True"}]);
        cluster.put(PATH, ready);
        let table = list(&cluster.api(), None, &Paint::plain()).await.unwrap();
        assert!(table.contains("yes") && table.contains("Namespace shop"), "{table}");

        let refused = delete(&cluster.api(), &delete_args(&["shop/waypoint"])).await.unwrap_err().to_string();
        assert!(refused.contains("still led through it: Namespace shop"), "{refused}");
        cluster.put("/api/v1/namespaces/shop", namespace(json!({})));
        delete(&cluster.api(), &delete_args(&["shop/waypoint"])).await.unwrap();
        assert_eq!(cluster.deleted(), [PATH]);
    }

    #[tokio::test]
    async fn a_gateway_that_is_no_waypoint_is_left_alone() {
        let path = path("shop", "edge");
        let cluster = Cluster::new();
        let edge =
            json!({"metadata": {"name": "edge", "namespace": "shop"}, "spec": {"gatewayClassName": "nginx"}});
        cluster.put(&path, edge.clone());
        assert!(apply(&cluster.api(), &apply_args(&["shop/edge"])).await.is_err());
        assert!(delete(&cluster.api(), &delete_args(&["shop/edge", "--force"])).await.is_err());
        assert_eq!(cluster.get(&path), Some(edge));
        assert_eq!(
            list(&cluster.api(), Some("shop"), &Paint::plain()).await.unwrap(),
            "There is no waypoint.\n"
        );
    }

    #[test]
    fn a_waypoint_has_a_namespace_and_a_name() {
        assert_eq!(named("shop", Some("waypoint")).unwrap(), ("shop", "waypoint"));
        assert_eq!(named("shop/wp", None).unwrap(), ("shop", "wp"));
        for wrong in ["", "/", "shop/", "/wp", "a/b/c"] {
            assert!(named(wrong, Some("waypoint")).is_err(), "{wrong}");
        }
        assert!(named("shop", None).is_err());
    }
}
