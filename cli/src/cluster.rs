//! A small API server in this process, for tests: lists, server-side apply, merge patches, deletions.

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    sync::{Arc, Mutex, MutexGuard},
};

use http::{Method, Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use kube::{Client, client::Body};
use serde_json::{Value, json};

use crate::api::MANAGER;
use apiserver::Api;

#[derive(Clone, Default)]
pub(crate) struct Cluster {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    objects: BTreeMap<String, Value>,
    deleted: Vec<String>,
    /// Somebody else has set fields of these.
    owned: BTreeSet<String>,
    /// Nobody may ask for these.
    forbidden: BTreeSet<String>,
    version: u64,
}

impl Cluster {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn api(&self) -> Api {
        let cluster = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let cluster = cluster.clone();
            async move {
                let (head, body) = request.into_parts();
                let body = body.collect().await.unwrap().to_bytes();
                let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
                let (code, said) =
                    cluster.lock().answer(&head.method, head.uri.path(), head.uri.query(), body);
                let answer = Response::builder().status(code).header("content-type", "application/json");
                Ok::<_, Infallible>(answer.body(Full::new(Bytes::from(said.to_string()))).unwrap())
            }
        });
        Api::new(Client::new(service, "default"))
    }

    pub(crate) fn put(&self, path: &str, object: Value) {
        self.lock().objects.insert(path.to_owned(), object);
    }

    /// Applies to it conflict from now on.
    pub(crate) fn owned(&self, path: &str) {
        self.lock().owned.insert(path.to_owned());
    }

    pub(crate) fn forbid(&self, path: &str) {
        self.lock().forbidden.insert(path.to_owned());
    }

    pub(crate) fn get(&self, path: &str) -> Option<Value> {
        self.lock().objects.get(path).cloned()
    }

    pub(crate) fn paths(&self) -> Vec<String> {
        self.lock().objects.keys().cloned().collect()
    }

    /// What was deleted, in that order.
    pub(crate) fn deleted(&self) -> Vec<String> {
        self.lock().deleted.clone()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

impl State {
    fn answer(&mut self, method: &Method, path: &str, query: Option<&str>, body: Value) -> (u16, Value) {
        let absent =
            || (404, json!({"kind": "Status", "status": "Failure", "code": 404, "message": "not found"}));
        if path == "/version" {
            return (200, json!({"major": "1", "minor": "34", "gitVersion": "v1.34.0"}));
        }
        if path.ends_with("selfsubjectaccessreviews") {
            return (201, json!({"status": {"allowed": true}}));
        }
        if self.forbidden.contains(path) {
            return (
                403,
                json!({"kind": "Status", "status": "Failure", "code": 403, "message": "forbidden"}),
            );
        }
        match *method {
            Method::GET => match self.objects.get(path) {
                Some(object) => (200, object.clone()),
                None if is_collection(path) => {
                    (200, json!({"items": self.list(path, query.unwrap_or_default())}))
                }
                None => absent(),
            },
            Method::PATCH
                if query.is_some_and(|query| query.contains("fieldManager")) && self.owned.contains(path) =>
            {
                (
                    409,
                    json!({"kind": "Status", "status": "Failure", "code": 409, "message": "somebody else's field"}),
                )
            }
            Method::PATCH if query.is_some_and(|query| query.contains("dryRun")) => (200, body),
            Method::PATCH if query.is_some_and(|query| query.contains("fieldManager")) => {
                (200, self.apply(path, body))
            }
            Method::PATCH => match self.objects.get_mut(path) {
                Some(object) => {
                    merge(object, body);
                    (200, object.clone())
                }
                None => absent(),
            },
            Method::DELETE => match self.objects.remove(path) {
                Some(object) => {
                    self.deleted.push(path.to_owned());
                    (200, object)
                }
                None => absent(),
            },
            _ => (405, json!({})),
        }
    }

    fn apply(&mut self, path: &str, mut object: Value) -> Value {
        self.version += 1;
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        object["metadata"]["managedFields"] = json!([{"manager": MANAGER, "operation": "Apply"}]);
        // Everything is ready at once, on no node.
        if object["kind"] == "DaemonSet" {
            object["status"] = json!({"desiredNumberScheduled": 0});
        }
        if object["kind"] == "Deployment" {
            let replicas = object["spec"]["replicas"].clone();
            object["status"] =
                json!({"replicas": replicas, "updatedReplicas": replicas, "availableReplicas": replicas});
        }
        self.objects.insert(path.to_owned(), object.clone());
        object
    }

    /// The objects of a collection; of one without a namespace, those of all namespaces.
    fn list(&self, path: &str, query: &str) -> Vec<Value> {
        let (group, plural) = path.rsplit_once('/').unwrap();
        let selector = form_urlencoded::parse(query.as_bytes()).find(|(key, _)| key == "labelSelector");
        let selector = selector.map(|(_, value)| value.into_owned()).unwrap_or_default();
        let wanted: Vec<(&str, &str)> = selector.split(',').filter_map(|pair| pair.split_once('=')).collect();
        let inside = |held: &str| {
            let Some((collection, _)) = held.rsplit_once('/') else { return false };
            let everywhere = held.starts_with(&format!("{group}/namespaces/"));
            collection == path || (everywhere && collection.ends_with(&format!("/{plural}")))
        };
        let chosen =
            |object: &Value| wanted.iter().all(|(key, value)| object["metadata"]["labels"][*key] == *value);
        let found = self.objects.iter().filter(|(held, object)| inside(held) && chosen(object));
        found.map(|(_, object)| object.clone()).collect()
    }
}

/// Plural names are the last step of a collection, and no object here is called so.
fn is_collection(path: &str) -> bool {
    let last = path.rsplit('/').next().unwrap_or_default();
    let known =
        ["nodes", "pods", "namespaces", "events", "networkpolicies", "felixconfigurations", "gateways"];
    known.contains(&last)
        || last.ends_with("policies")
        || last.ends_with("authentications")
        || last.ends_with("entries")
        || crate::object::kinds()
            .any(|kind| crate::object::collection(kind, "").ends_with(&format!("/{last}")))
}

/// A JSON merge patch (RFC 7386).
fn merge(object: &mut Value, patch: Value) {
    let Value::Object(patch) = patch else {
        *object = patch;
        return;
    };
    if !object.is_object() {
        *object = json!({});
    }
    for (key, value) in patch {
        match value {
            Value::Null => drop(object.as_object_mut().and_then(|object| object.remove(&key))),
            value => merge(&mut object[key.as_str()], value),
        }
    }
}

/// The options of a command, as somebody types them.
pub(crate) fn args<A: clap::Args>(flags: &[&str]) -> A {
    #[derive(clap::Parser)]
    struct Line<A: clap::Args> {
        #[command(flatten)]
        args: A,
    }
    <Line<A> as clap::Parser>::parse_from([&["culvert"], flags].concat()).args
}
