//! A small API server in this process: lists, watches, discovery, token reviews, and the troubles of a real one.
#![expect(unreachable_pub, reason = "a module of one test: what it offers is public within it")]

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    convert::Infallible,
    sync::{Arc, Mutex, MutexGuard},
};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use kube::{Client, client::Body};
use serde_json::{Value, json};
use tokio::sync::broadcast;

type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;

/// The collections that Istio's definitions make.
pub const POLICIES: &str = "/apis/security.istio.io/v1/authorizationpolicies";

#[derive(Clone)]
pub struct Cluster {
    state: Arc<Mutex<State>>,
}

struct State {
    version: u64,
    /// By the path of the collection without its namespace, then by namespace and name.
    collections: BTreeMap<String, BTreeMap<(String, String), Value>>,
    /// What happened, for those who watch from earlier on.
    log: Vec<Event>,
    /// Who watches from an earlier version is told 410.
    oldest: u64,
    live: broadcast::Sender<Heard>,
    /// What groups serve: `security.istio.io/v1` and the plural names in it.
    served: BTreeMap<String, BTreeSet<String>>,
    /// Collections that answer with this error.
    broken: BTreeMap<String, u16>,
    tokens: HashMap<String, Value>,
    pub reviews: usize,
    applies: usize,
    pub lists: BTreeMap<String, usize>,
}

#[derive(Clone)]
struct Event {
    version: u64,
    collection: String,
    line: String,
}

#[derive(Clone)]
enum Heard {
    Event(Event),
    /// Every watch breaks off.
    Cut,
}

impl Cluster {
    pub fn new() -> Self {
        let state = State {
            version: 10,
            collections: BTreeMap::new(),
            log: Vec::new(),
            oldest: 0,
            live: broadcast::channel(1024).0,
            served: BTreeMap::new(),
            broken: BTreeMap::new(),
            tokens: HashMap::new(),
            reviews: 0,
            applies: 0,
            lists: BTreeMap::new(),
        };
        Self { state: Arc::new(Mutex::new(state)) }
    }

    pub fn client(&self) -> Client {
        let cluster = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let cluster = cluster.clone();
            async move { Ok::<_, Infallible>(cluster.answer(request).await) }
        });
        Client::new(service, "default")
    }

    /// Makes an object or replaces it.
    pub fn put(&self, collection: &str, object: Value) {
        let namespace = object["metadata"]["namespace"].as_str().unwrap_or_default().to_owned();
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        self.lock().put(collection, (namespace, name), object);
    }

    pub fn delete(&self, collection: &str, namespace: &str, name: &str) {
        let mut state = self.lock();
        let held = state.collections.get_mut(collection).unwrap();
        let mut object = held.remove(&(namespace.to_owned(), name.to_owned())).unwrap();
        state.version += 1;
        object["metadata"]["resourceVersion"] = state.version.to_string().into();
        state.tell(collection, "DELETED", &object);
    }

    pub fn get(&self, collection: &str, namespace: &str, name: &str) -> Option<Value> {
        let key = (namespace.to_owned(), name.to_owned());
        self.lock().collections.get(collection)?.get(&key).cloned()
    }

    /// From now on this collection answers with an error, or works again.
    pub fn broken(&self, collection: &str, code: Option<u16>) {
        let mut state = self.lock();
        match code {
            Some(code) => state.broken.insert(collection.to_owned(), code),
            None => state.broken.remove(collection),
        };
    }

    /// Every watch breaks off.
    pub fn cut_watches(&self) {
        let _ = self.lock().live.send(Heard::Cut);
    }

    /// Nobody can watch from before now.
    pub fn forget_history(&self) {
        let mut state = self.lock();
        state.version += 1;
        state.oldest = state.version;
        state.log.clear();
    }

    /// A definition is made and served at once.
    pub fn serve(&self, group_version: &str, plural: &str) {
        let mut state = self.lock();
        state.served.entry(group_version.to_owned()).or_default().insert(plural.to_owned());
    }

    pub fn stop_serving(&self, group_version: &str) {
        self.lock().served.remove(group_version);
    }

    /// A token, and what a review of it says.
    pub fn token(&self, token: &str, status: Value) {
        self.lock().tokens.insert(token.to_owned(), status);
    }

    pub fn reviews(&self) -> usize {
        self.lock().reviews
    }

    /// How often something was applied.
    pub fn applies(&self) -> usize {
        self.lock().applies
    }

    pub fn lists(&self, collection: &str) -> usize {
        self.lock().lists.get(collection).copied().unwrap_or(0)
    }

    async fn answer(&self, request: Request<Body>) -> Answer {
        let (head, body) = request.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let mut body: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
        let kind = head.headers.get("content-type").and_then(|kind| kind.to_str().ok());
        let query: HashMap<String, String> =
            form_urlencoded::parse(head.uri.query().unwrap_or_default().as_bytes()).into_owned().collect();
        if kind == Some("application/apply-patch+yaml") {
            self.lock().applied(head.uri.path(), &query["fieldManager"], &mut body);
        }
        self.lock().answer(&head.method, head.uri.path(), &query, body)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

/// A path taken apart: collection without namespace, namespace, name.
fn parts(path: &str) -> (String, String, Option<String>) {
    let steps: Vec<&str> = path.trim_matches('/').split('/').collect();
    let head = if steps[0] == "api" { 2 } else { 3 };
    let (prefix, rest) = steps.split_at(head);
    let (namespace, rest) = match rest {
        ["namespaces", namespace, rest @ ..] if !rest.is_empty() => ((*namespace).to_owned(), rest),
        rest => (String::new(), rest),
    };
    let collection = format!("/{}/{}", prefix.join("/"), rest[0]);
    (collection, namespace, rest.get(1).map(|name| (*name).to_owned()))
}

impl State {
    fn answer(
        &mut self,
        method: &Method,
        path: &str,
        query: &HashMap<String, String>,
        body: Value,
    ) -> Answer {
        if path.ends_with("/tokenreviews") {
            self.reviews += 1;
            let token = body["spec"]["token"].as_str().unwrap_or_default();
            let status = self.tokens.get(token).cloned();
            let unknown = json!({"authenticated": false, "error": "invalid bearer token"});
            return json_answer(201, &json!({"status": status.unwrap_or(unknown)}));
        }
        if let Some(group_version) = path.strip_prefix("/apis/").filter(|rest| rest.matches('/').count() == 1)
        {
            return match self.served.get(group_version) {
                Some(plurals) => {
                    let resources: Vec<Value> = plurals.iter().map(|name| json!({"name": name})).collect();
                    json_answer(200, &json!({"resources": resources}))
                }
                None => refusal(404, "no such group"),
            };
        }
        let (collection, namespace, name) = parts(path);
        if let Some(code) = self.broken.get(&collection) {
            return refusal(*code, "broken");
        }
        let group = collection.trim_start_matches("/apis/").rsplit_once('/').unwrap().0.to_owned();
        let defined = group.contains("istio.io") || group.contains("gateway.networking");
        if defined && !self.served.contains_key(&group) {
            return refusal(404, "no such resource");
        }
        match (method.as_str(), name) {
            ("GET", None) if query.contains_key("watch") => self.watch(&collection, query),
            ("GET", None) => self.list(&collection, query),
            ("GET", Some(name)) => match self.held(&collection).get(&(namespace, name)) {
                Some(object) => json_answer(200, object),
                None => refusal(404, "not found"),
            },
            ("POST", None) => {
                let name = body["metadata"]["name"].as_str().unwrap().to_owned();
                let key = (namespace, name);
                if self.held(&collection).contains_key(&key) {
                    return refusal(409, "already exists");
                }
                json_answer(201, &self.put(&collection, key, body))
            }
            ("PUT", Some(name)) => {
                let key = (namespace, name);
                let held = self.held(&collection).get(&key).cloned().unwrap_or(Value::Null);
                if held["metadata"]["resourceVersion"] != body["metadata"]["resourceVersion"] {
                    return refusal(409, "the object has been modified");
                }
                json_answer(200, &self.put(&collection, key, body))
            }
            ("DELETE", Some(name)) => {
                let key = (namespace, name);
                let Some(mut object) = self.held(&collection).remove(&key) else {
                    return refusal(404, "not found");
                };
                self.version += 1;
                object["metadata"]["resourceVersion"] = self.version.to_string().into();
                self.tell(&collection, "DELETED", &object);
                json_answer(200, &object)
            }
            ("PATCH", Some(name)) => {
                let key = (namespace, name);
                let Some(mut object) = self.held(&collection).get(&key).cloned() else {
                    return refusal(404, "not found");
                };
                let uid = &body["metadata"]["uid"];
                if !uid.is_null() && *uid != object["metadata"]["uid"] {
                    return refusal(409, "another uid");
                }
                let version = &body["metadata"]["resourceVersion"];
                if !version.is_null() && *version != object["metadata"]["resourceVersion"] {
                    return refusal(409, "the object has been modified");
                }
                merge(&mut object, &body);
                json_answer(200, &self.put(&collection, key, object))
            }
            (method, _) => refusal(405, method),
        }
    }

    /// An apply makes what is not there, and counts the versions of what is wanted, as the API server does; of who has
    /// said what it keeps who has said how many replicas there are, which are one where nobody does any more.
    fn applied(&mut self, path: &str, manager: &str, body: &mut Value) {
        let (collection, namespace, name) = parts(path);
        let group = collection.trim_start_matches("/apis/").rsplit_once('/').unwrap().0.to_owned();
        if group.contains("gateway.networking") && !self.served.contains_key(&group) {
            return;
        }
        let key = (namespace, name.unwrap());
        let uid = format!("u-{}", key.1);
        let held = self.held(&collection);
        let before = held.entry(key).or_insert_with(|| json!({"metadata": {"uid": uid}}));
        let changed = before["spec"] != body["spec"];
        let generation = before["metadata"]["generation"].as_i64().unwrap_or_default();
        body["metadata"]["generation"] = (generation + i64::from(changed)).into();
        let managers = before["metadata"]["managedFields"].as_array().cloned().unwrap_or_default();
        let (own, mut managers): (Vec<Value>, Vec<Value>) =
            managers.into_iter().partition(|entry| entry["manager"] == manager);
        if !body["spec"]["replicas"].is_null() {
            let fields = json!({"f:spec": {"f:replicas": {}}});
            managers.push(json!({"manager": manager, "operation": "Apply", "fieldsV1": fields}));
        } else if !own.is_empty() && managers.is_empty() {
            body["spec"]["replicas"] = 1.into();
        }
        body["metadata"]["managedFields"] = managers.into();
        self.applies += 1;
    }

    fn held(&mut self, collection: &str) -> &mut BTreeMap<(String, String), Value> {
        self.collections.entry(collection.to_owned()).or_default()
    }

    fn put(&mut self, collection: &str, key: (String, String), mut object: Value) -> Value {
        self.version += 1;
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        let before = self.held(collection).insert(key, object.clone());
        self.tell(collection, if before.is_some() { "MODIFIED" } else { "ADDED" }, &object);
        object
    }

    fn tell(&mut self, collection: &str, what: &str, object: &Value) {
        let line = format!("{}\n", json!({"type": what, "object": object}));
        let event = Event { version: self.version, collection: collection.to_owned(), line };
        self.log.push(event.clone());
        let _ = self.live.send(Heard::Event(event));
    }

    /// Two objects a page: lists of several pages are the rule.
    fn list(&mut self, collection: &str, query: &HashMap<String, String>) -> Answer {
        *self.lists.entry(collection.to_owned()).or_default() += 1;
        let version = self.version;
        let from: usize = query.get("continue").and_then(|from| from.parse().ok()).unwrap_or(0);
        let items: Vec<Value> = self.held(collection).values().cloned().collect();
        let page: Vec<&Value> = items.iter().skip(from).take(2).collect();
        let more = if from + 2 < items.len() { (from + 2).to_string() } else { String::new() };
        json_answer(
            200,
            &json!({"metadata": {"resourceVersion": version.to_string(), "continue": more}, "items": page}),
        )
    }

    fn watch(&mut self, collection: &str, query: &HashMap<String, String>) -> Answer {
        let from = query.get("resourceVersion").map_or(self.oldest, |from| from.parse().unwrap());
        if from < self.oldest {
            let gone = json!({"type": "ERROR", "object": {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"}});
            let line = Bytes::from(format!("{gone}\n"));
            return answer(200, Full::new(line).boxed_unsync());
        }
        let mine = collection.to_owned();
        let missed: Vec<String> = self
            .log
            .iter()
            .filter(|event| event.collection == mine && event.version > from)
            .map(|event| event.line.clone())
            .collect();
        let bookmark = json!({"type": "BOOKMARK", "object": {
            "kind": "X", "apiVersion": "v1", "metadata": {"resourceVersion": self.version.to_string()},
        }});
        let missed = missed.into_iter().chain([format!("{bookmark}\n")]);
        let live = stream::unfold((self.live.subscribe(), mine), |(mut live, mine)| async move {
            loop {
                match live.recv().await {
                    Ok(Heard::Event(event)) if event.collection == mine => {
                        return Some((event.line, (live, mine)));
                    }
                    Ok(Heard::Event(_)) => {}
                    Ok(Heard::Cut) | Err(_) => return None,
                }
            }
        });
        let lines = stream::iter(missed).chain(live);
        let frames = lines.map(|line| Ok(http_body::Frame::data(Bytes::from(line))));
        answer(200, StreamBody::new(frames).boxed_unsync())
    }
}

/// RFC 7386.
fn merge(object: &mut Value, patch: &Value) {
    let (Some(fields), true) = (patch.as_object(), object.is_object()) else {
        *object = patch.clone();
        return;
    };
    for (key, value) in fields {
        if value.is_null() {
            object.as_object_mut().unwrap().remove(key);
        } else {
            let held = &mut object[key.as_str()];
            if value.is_object() && held.is_null() {
                *held = json!({});
            }
            merge(held, value);
        }
    }
}

fn json_answer(code: u16, body: &Value) -> Answer {
    answer(code, Full::new(Bytes::from(body.to_string())).boxed_unsync())
}

fn refusal(code: u16, message: &str) -> Answer {
    json_answer(
        code,
        &json!({"kind": "Status", "status": "Failure", "code": code, "message": message, "reason": "X"}),
    )
}

fn answer(code: u16, body: UnsyncBoxBody<Bytes, Infallible>) -> Answer {
    let mut answer = Response::new(body);
    *answer.status_mut() = StatusCode::from_u16(code).unwrap();
    answer
}
