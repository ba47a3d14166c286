//! `culvert status`: who is in the mesh and by what proof, and what carries it.

use std::process::ExitCode;

use futures_util::future::try_join_all;
use serde_json::{Value, json};

use crate::{
    api::{self, Reach},
    check::{self, Output},
    enrolled::{Adrift, COME_BACK},
    object, policies,
    programs::{self, Program},
    rollout,
    table::{self, Paint},
};
use apiserver::Api;

mod pods;

use pods::{Row, State};

/// How much of a program's standing a table has room for, in characters: its version, and why it is not ready.
const ROOM: usize = 44;

/// Whom to show.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A namespace, or one of its pods; all of the mesh without it
    #[arg(value_name = "NAMESPACE[/POD]")]
    whom: Option<String>,

    /// Table for people, JSON for programs
    #[arg(long, short, value_enum, default_value = "table")]
    output: Output,
}

/// What is seen of the cluster.
struct Seen {
    namespaces: Vec<Value>,
    pods: Vec<Value>,
    nodes: Vec<Value>,
    /// `None` where they cannot be seen.
    peer_authentication: Option<Vec<Value>>,
    workloads: Vec<Value>,
    programs: Vec<Program>,
    /// Seconds since 1970, by the API server's clock.
    now: i64,
}

/// A node, and what runs there.
#[derive(Debug, PartialEq, Eq)]
struct Node {
    name: String,
    agent: String,
    ztunnel: String,
    held: usize,
    certificates: String,
}

/// Looks, and tells.
///
/// # Errors
/// If the API server cannot be asked, or who was named is not there.
pub(crate) async fn run(reach: &Reach, namespace: &str, args: &Args) -> anyhow::Result<ExitCode> {
    let api = api::connect(reach).await?;
    let (within, pod) = match &args.whom {
        None => (None, None),
        Some(whom) => match whom.split_once('/') {
            Some((namespace, pod)) => (Some(namespace), Some(pod)),
            None => (Some(whom.as_str()), None),
        },
    };
    let seen = Seen::gather(&api, namespace, within).await?;
    if args.output == Output::Table && seen.workloads.iter().all(|workload| workload["status"].is_null()) {
        println!("{}", nowhere(&api, namespace).await);
        return Ok(ExitCode::FAILURE);
    }
    let named = |row: &Row| pod.is_none_or(|pod| row.pod == pod);
    let rows: Vec<Row> = seen.rows(within.is_some()).into_iter().filter(named).collect();
    if let (Some(whom), true) = (&args.whom, rows.is_empty()) {
        anyhow::bail!(
            "there is no pod {}: see kubectl get pods --all-namespaces",
            if pod.is_some() { whom.clone() } else { format!("in {whom}") }
        );
    }
    match args.output {
        Output::Json => println!("{:#}", seen.json(&rows)),
        Output::Table => print!("{}", seen.text(&rows, within.is_none(), &Paint::of_stdout())),
    }
    Ok(ExitCode::SUCCESS)
}

/// What there is to say where no program is. Pods that are in the mesh still have nobody else to say so.
async fn nowhere(api: &Api, namespace: &str) -> String {
    match Adrift::look(api).await {
        Some(adrift) => {
            format!("Culvert is not in the namespace {namespace}: {}.\n\n{COME_BACK}.", adrift.text())
        }
        None => format!(
            "Culvert is not in the namespace {namespace}. `culvert install` puts it there; --namespace names another."
        ),
    }
}

impl Seen {
    async fn gather(api: &Api, namespace: &str, within: Option<&str>) -> anyhow::Result<Self> {
        let said = api.get_dated("/version").await?;
        let ahead = programs::ahead_of_ours(said.date);
        let pods =
            within.map_or_else(|| "/api/v1/pods".to_owned(), |one| format!("/api/v1/namespaces/{one}/pods"));
        let paths = ["/api/v1/namespaces", &pods, "/api/v1/nodes"];
        let mut lists = try_join_all(paths.map(|path| api.list(path, ""))).await?.into_iter();
        let mut next = || lists.next().unwrap_or_default();
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        Ok(Self {
            namespaces: next(),
            pods: next(),
            nodes: next(),
            peer_authentication: match policies::list(api, "peerauthentications").await {
                Err(error) if error.is_forbidden() => None,
                listed => listed?,
            },
            workloads: rollout::workloads(api, namespace).await?,
            programs: programs::ask(api, namespace, ahead).await?,
            now: now.map_or(0, |since| since.as_secs() as i64) + ahead.unwrap_or(0),
        })
    }

    /// The pods that are in, or are to be, or were kept out by a word of their own; all of them if `all`.
    fn rows(&self, all: bool) -> Vec<Row> {
        let domain = check::trust_domain(&self.workloads);
        let mut rows = Vec::new();
        for pod in &self.pods {
            let namespace = self.namespaces.iter().find(|one| object::name(one) == object::namespace(pod));
            let node = object::text(&pod["spec"]["nodeName"]);
            let agent = self.programs.iter().find(|one| one.is("agent") && one.standing.node == node);
            let word = pods::word_of(agent, object::text(&pod["metadata"]["uid"]));
            let mut row = pods::row(pod, namespace, agent, word, domain);
            row.tls = self
                .peer_authentication
                .as_ref()
                .map_or("", |policies| check::tls_mode(pod, policies, &self.workloads));
            if all || row.concerns {
                rows.push(row);
            }
        }
        rows.sort_by(|a, b| (&a.namespace, &a.pod).cmp(&(&b.namespace, &b.pod)));
        rows
    }

    fn node_rows(&self) -> Vec<Node> {
        let on = |program: &str, node: &str| -> Vec<&Program> {
            let mut found: Vec<&Program> =
                self.programs.iter().filter(|one| one.is(program) && one.standing.node == node).collect();
            // While one takes over from the other there are two: the ready one speaks.
            found.sort_by_key(|one| !one.standing.ready);
            found
        };
        let mut rows = Vec::new();
        for node in &self.nodes {
            let name = object::name(node);
            let (agents, ztunnels) = (on("agent", name), on("ztunnel", name));
            let held = agents.iter().find_map(|one| one.answer("/pods")).map_or(0, |said| {
                object::items(&said["pods"])
                    .iter()
                    .filter(|pod| pod["held_by_ztunnel"] == true && !pod["mode"].is_null())
                    .count()
            });
            let certificates = ztunnels.iter().find_map(|one| one.answer("/certificates")).map_or_else(
                || "not asked".to_owned(),
                |said| certificates(object::items(&said["certificates"]), self.now),
            );
            rows.push(Node {
                name: name.to_owned(),
                agent: agents.first().map_or_else(|| "missing".to_owned(), |one| stands(one)),
                ztunnel: ztunnels.first().map_or_else(|| "missing".to_owned(), |one| stands(one)),
                held,
                certificates,
            });
        }
        rows
    }

    fn text(&self, rows: &[Row], whole: bool, paint: &Paint) -> String {
        let mut text = String::new();
        if rows.is_empty() {
            text.push_str("No pod is in the mesh. Take a namespace in, nothing in it is restarted:\n\n    kubectl label namespace NAME istio.io/dataplane-mode=ambient\n");
        } else {
            let cells: Vec<Vec<String>> = rows.iter().map(Row::cells).collect();
            text.push_str(&table::columns(&Row::HEAD, &cells, |column, cell, _| match column {
                2 => State::of(cell).map_or_else(|| cell.to_owned(), |state| state.painted(paint)),
                5 => paint.quiet(cell),
                _ => cell.to_owned(),
            }));
            for row in rows.iter().filter(|row| !row.why.is_empty()) {
                let said =
                    table::wrapped(&format!("{}/{}: {}", row.namespace, row.pod, row.why), 4, paint.width);
                text.push_str(&format!("\n  • {said}"));
            }
            if rows.iter().any(|row| !row.why.is_empty()) {
                text.push('\n');
            }
            if rows.iter().any(|row| row.tls.ends_with('*')) {
                text.push_str(
                    "\n* some ports have the other mode: spec.portLevelMtls of a PeerAuthentication\n",
                );
            }
            if self.peer_authentication.is_none() {
                text.push_str("\nPeerAuthentications cannot be seen: the mode of mutual TLS is not known.\n");
            }
        }
        if !whole {
            return text;
        }
        text.push('\n');
        let cut = |stands: &str| rollout::shortened(stands, ROOM);
        let nodes = self.node_rows();
        let cells: Vec<Vec<String>> = nodes
            .iter()
            .map(|node| {
                let (agent, ztunnel) = (cut(&node.agent), cut(&node.ztunnel));
                vec![node.name.clone(), agent, ztunnel, node.held.to_string(), node.certificates.clone()]
            })
            .collect();
        text.push_str(&table::columns(
            &["NODE", "AGENT", "ZTUNNEL", "HELD", "CERTIFICATES"],
            &cells,
            |column, cell, _| match (column, cell.ends_with(" ready")) {
                (1 | 2, true) => paint.good(cell),
                (1 | 2, false) => paint.bad(cell),
                _ => cell.to_owned(),
            },
        ));
        text.push_str(&format!("\n{}\n", self.control()));
        if self.programs.iter().any(|one| !one.standing.ready) {
            text.push_str("\nWhat is not ready, and how to mend it: culvert check\n");
        }
        text
    }

    /// Control, in a line.
    fn control(&self) -> String {
        let replicas: Vec<String> = self
            .programs
            .iter()
            .filter(|one| one.is("control"))
            .map(|one| format!("{} on {}", rollout::shortened(&stands(one), ROOM), one.standing.node))
            .collect();
        if replicas.is_empty() {
            return "control  missing: nodes keep what they have; culvert check says more".to_owned();
        }
        let said = self.programs.iter().find_map(|one| one.answer("/status"));
        let refused = said.map_or(0, |said| object::items(&said["refused"]).len());
        let refused = match refused {
            0 => String::new(),
            1 => "; 1 object is refused: culvert check".to_owned(),
            more => format!("; {more} objects are refused: culvert check"),
        };
        format!("control  {}{refused}", replicas.join(", "))
    }

    fn json(&self, rows: &[Row]) -> Value {
        let nodes: Vec<Value> = self
            .node_rows()
            .into_iter()
            .map(|node| json!({"node": node.name, "agent": node.agent, "ztunnel": node.ztunnel, "held": node.held, "certificates": node.certificates}))
            .collect();
        let control: Vec<Value> = self
            .programs
            .iter()
            .filter(|one| one.is("control"))
            .map(|one| json!({"pod": one.standing.pod, "node": one.standing.node, "ready": one.standing.ready, "version": version(one)}))
            .collect();
        json!({"pods": rows.iter().map(Row::json).collect::<Vec<_>>(), "nodes": nodes, "control": control})
    }
}

/// What a program says its version is, else its image's tag.
fn version(program: &Program) -> &str {
    let said = program.said.values().filter_map(|said| said.as_ref().ok());
    said.into_iter().find_map(|said| said["version"].as_str()).unwrap_or(&program.tag)
}

/// A program's version, and whether it is ready.
fn stands(program: &Program) -> String {
    match program.standing.ready {
        true => format!("{} ready", version(program)),
        false => format!("{} not ready: {}", version(program), program.standing.why),
    }
}

/// How many, and until when the first of them holds.
fn certificates(all: &[Value], now: i64) -> String {
    let first = all.iter().filter_map(|one| one["not_after"].as_i64()).min();
    match first {
        None => "none".to_owned(),
        Some(end) if end <= now => {
            format!("{}, the first expired {} ago", all.len(), table::seconds(now - end))
        }
        Some(end) => format!("{}, the first ends in {}", all.len(), table::seconds(end - now)),
    }
}

#[cfg(test)]
mod tests;
