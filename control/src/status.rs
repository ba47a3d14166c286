//! What control shows of itself: JSON for the admin server, words for `control check`.

use std::{collections::BTreeMap, fmt::Write, path::Path};

use serde_json::{Value, json};

use crate::{
    compile::{Compiled, Options, ParentStatus, Word, compile},
    folder::Folder,
    manifest::{ObjectKey, Problem, Severity},
    nodes::Nodes,
    program::Control,
    publish::{Clients, State},
    shards::Outline,
};

/// Everything that is known now.
pub fn json(outline: &Outline, nodes: &Nodes, clients: &Clients, state: &State) -> Value {
    let problems = |severity: Severity| -> Vec<Value> {
        let of = outline.problems.iter().filter(|problem| problem.severity == severity);
        of.map(|problem| {
            let mut value = serde_json::to_value(problem).unwrap_or(Value::Null);
            value["text"] = problem.to_string().into();
            value
        })
        .collect()
    };
    let pods: BTreeMap<&str, Vec<Value>> = outline
        .nodes
        .iter()
        .map(|(node, pods)| {
            let pods = pods.iter().map(|pod| {
                json!({
                    "uid": *pod.uid.text(), "namespace": pod.namespace, "name": pod.name,
                    "serviceAccount": pod.service_account, "addresses": *pod.addresses, "enroll": pod.enroll,
                    "capture": nodes.capture(node, &pod.uid.text()),
                })
            });
            (&**node, pods.collect())
        })
        .collect();
    json!({
        "version": runtime::VERSION,
        "generation": state.generation,
        "refused": problems(Severity::Refused),
        "warnings": problems(Severity::Warning),
        "published": {
            "workloads": outline.workloads,
            "services": outline.services,
            "policies": state.policies.values().map(|policy| policy.name()).collect::<Vec<_>>(),
        },
        "routes": outline.routes_status.iter().map(|(key, parents)| route(key, parents)).collect::<Vec<_>>(),
        "pods": pods,
        "nodes": nodes.list(),
        "clients": clients.list(),
    })
}

/// How a route stands with its parents, as its status has it.
fn route(key: &ObjectKey, parents: &[ParentStatus]) -> Value {
    let parents = parents.iter().map(|of| {
        let conditions = of.conditions.iter().map(|condition| {
            let status = if condition.status { "True" } else { "False" };
            json!({
                "type": condition.kind, "status": status, "reason": condition.reason,
                "message": condition.message,
            })
        });
        json!({ "parentRef": of.parent, "conditions": conditions.collect::<Vec<_>>() })
    });
    json!({
        "kind": format!("{:?}", key.kind), "namespace": key.namespace, "name": key.name,
        "parents": parents.collect::<Vec<_>>(),
    })
}

/// The same in words, one line for each parent.
fn route_in_words(key: &ObjectKey, parents: &[ParentStatus]) -> String {
    let mut text = String::new();
    for ParentStatus { parent, conditions } in parents {
        let namespace = parent.namespace.as_ref().unwrap_or(&key.namespace);
        let kind = parent.kind.as_deref().unwrap_or("Gateway");
        let _ = write!(text, "{key} at {kind} {namespace}/{}", parent.name);
        if let Some(port) = parent.port {
            let _ = write!(text, ":{port}");
        }
        for (at, condition) in conditions.iter().enumerate() {
            let gap = if at == 0 { ": " } else { ", " };
            let _ = match condition.status {
                true => write!(text, "{gap}{}", condition.kind),
                false => write!(text, "{gap}not {}: {}", condition.kind, condition.reason),
            };
        }
        text.push('\n');
    }
    text
}

/// Everything that is published, in full.
pub fn dump(compiled: &Compiled) -> Value {
    // `mesh` types are decisions, not documents: their own text form is what a person can compare.
    let text = |value: &dyn std::fmt::Debug| Value::from(format!("{value:?}"));
    json!({
        "workloads": compiled.workloads.values().map(|one| text(one)).collect::<Vec<_>>(),
        "services": compiled.services.values().map(|one| text(one)).collect::<Vec<_>>(),
        "policies": compiled.policies.values().map(|one| text(one)).collect::<Vec<_>>(),
        "routes": compiled.routes.values().map(|one| text(&(&one.service, one.routes()))).collect::<Vec<_>>(),
    })
}

/// What `control check` says of a folder.
pub struct Checked {
    pub text: String,
    /// Objects that control would refuse.
    pub refused: usize,
}

/// Reads a folder as control would, and says what it makes of it.
pub fn check(folder: &Path, options: &Options) -> Checked {
    let mut read = Folder::new(folder.to_owned(), None);
    read.scan(&Default::default(), &Default::default());
    let objects = read.objects();
    let objects = objects.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let view = objects.view();
    let compiled = compile(&view, &|_, _| Word::None, options);
    let mut text = String::new();
    let mut kinds: BTreeMap<_, Vec<String>> = BTreeMap::new();
    for key in view.objects.keys() {
        let name = if key.namespace.is_empty() {
            key.name.to_string()
        } else {
            format!("{}/{}", key.namespace, key.name)
        };
        kinds.entry(key.kind).or_default().push(name);
    }
    for (kind, names) in kinds {
        let _ = writeln!(text, "{:>4} {kind:?}: {}", names.len(), shortened(&names));
    }
    let pods = compiled.nodes.values().flatten();
    let enrolled: Vec<String> =
        pods.filter(|pod| pod.enroll).map(|pod| format!("{}/{}", pod.namespace, pod.name)).collect();
    let _ = writeln!(text, "{:>4} pods to enroll: {}", enrolled.len(), shortened(&enrolled));
    for (key, parents) in &compiled.routes_status {
        text.push_str(&route_in_words(key, parents));
    }
    let refused: Vec<&Problem> =
        compiled.problems.iter().filter(|problem| problem.severity == Severity::Refused).collect();
    let warnings = compiled.problems.iter().filter(|problem| problem.severity == Severity::Warning);
    for problem in warnings {
        let _ = writeln!(text, "warning: {problem}");
    }
    for problem in &refused {
        let _ = writeln!(text, "refused: {problem}");
    }
    let _ = match refused.len() {
        0 => writeln!(text, "nothing is refused"),
        1 => writeln!(text, "1 object is refused"),
        more => writeln!(text, "{more} objects are refused"),
    };
    Checked { text, refused: refused.len() }
}

/// The first names, and how many more there are.
fn shortened(names: &[String]) -> String {
    const SHOWN: usize = 12;
    let mut text = names.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN {
        let _ = write!(text, " and {} more", names.len() - SHOWN);
    }
    text
}

/// Registers `/status` and `/config_dump` with the admin server.
pub fn register(handlers: &runtime::admin::Handlers, control: &Control) {
    let whole = control.whole.clone();
    handlers.add("/config_dump", "everything that is published", move |_| {
        let whole = whole.clone();
        async move {
            let dumped = tokio::task::spawn_blocking(move || dump(&whole())).await;
            dumped.map_err(|error| format!("the dump broke off: {error}"))
        }
    });
    let (newest, states) = (control.outline.subscribe(), control.store.subscribe());
    let (nodes, clients) = (control.nodes.clone(), control.clients.clone());
    handlers.add("/status", "refused objects, nodes, clients, and what is published", move |_| {
        let (outline, state) = (newest.borrow().clone(), states.borrow().clone());
        let status = json(&outline, &nodes, &clients, &state);
        async move { Ok(status) }
    });
}
