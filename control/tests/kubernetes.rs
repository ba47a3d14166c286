//! Control on an API server of this process: what it makes of a cluster, of its troubles, and of nodes' tokens.

mod cluster;
mod policies;
mod waypoints;

use std::{collections::BTreeMap, fs, path::PathBuf, sync::Arc, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD};
use cluster::{Cluster, POLICIES};
use control::{
    compile::Options,
    kubernetes::{Connection, Settings as Kubernetes},
    metrics::Metrics,
    nodes::Nodes,
    program::{Control, Settings, Source},
    publish::Store,
    shards::Outline,
};
use mesh::Tunnel;
use prost::Message;
use proto::{
    node::{
        CaptureState, NodeDirective, NodePod, NodeReport, PodReport, node_service_client::NodeServiceClient,
    },
    workload::TunnelProtocol,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::{sleep, timeout},
};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Code, Request, Streaming};

const PATIENCE: Duration = Duration::from_secs(40);
const PODS: &str = "/api/v1/pods";
const REDIRECTION: &str = "ambient.istio.io/redirection";
const MARK: &str = "culvert.dev/redirection";

fn pod(namespace: &str, name: &str, node: &str, account: &str, ip: &str) -> Value {
    json!({
        "metadata": {"name": name, "namespace": namespace, "uid": format!("u-{name}"), "labels": {"app": name}},
        "spec": {"nodeName": node, "serviceAccountName": account, "containers": [{"name": "app"}]},
        "status": {"phase": "Running", "podIP": ip, "conditions": [{"type": "Ready", "status": "True"}]},
    })
}

/// Two nodes with an agent each, and a shop.
fn shop() -> Cluster {
    let cluster = Cluster::new();
    for node in ["a", "b"] {
        cluster.put("/api/v1/nodes", json!({"metadata": {"name": node}}));
        cluster.put(PODS, pod("culvert-system", &format!("agent-{node}"), node, "agent", "192.168.0.1"));
        cluster.token(&format!("token-{node}"), status("agent", &format!("agent-{node}"), node));
    }
    cluster.put(
        "/api/v1/namespaces",
        json!({"metadata": {"name": "shop", "labels": {"istio.io/dataplane-mode": "ambient"}}}),
    );
    cluster.put(PODS, pod("shop", "client", "a", "client", "10.0.1.1"));
    cluster.put(PODS, pod("shop", "web", "b", "web", "10.0.2.1"));
    cluster.put(
        "/api/v1/services",
        json!({
            "metadata": {"name": "web", "namespace": "shop"},
            "spec": {"clusterIP": "10.96.0.1", "selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]},
        }),
    );
    cluster
}

fn status(account: &str, pod: &str, node: &str) -> Value {
    json!({
        "authenticated": true,
        "audiences": ["istio-ca"],
        "user": {
            "username": format!("system:serviceaccount:culvert-system:{account}"),
            "extra": {
                "authentication.kubernetes.io/pod-name": [pod],
                "authentication.kubernetes.io/pod-uid": [format!("u-{pod}")],
                "authentication.kubernetes.io/node-name": [node],
            },
        },
    })
}

fn policy(port: &str) -> Value {
    json!({
        "metadata": {"name": "p", "namespace": "shop"},
        "spec": {"action": "DENY", "rules": [{"to": [{"operation": {"ports": [port]}}]}]},
    })
}

/// What is published, decoded, and what is known besides.
struct Seen {
    workloads: BTreeMap<String, proto::workload::Workload>,
    services: usize,
    /// Names and versions.
    policies: Vec<(String, String)>,
    outline: Arc<Outline>,
}

fn seen(store: &Store, outline: Arc<Outline>) -> Seen {
    use proto::workload::{Address, address::Type};
    let state = store.subscribe().borrow().clone();
    let (mut workloads, mut services) = (BTreeMap::new(), 0);
    for resource in state.addresses.values() {
        let any = resource.on_the_wire().resource.unwrap();
        match Address::decode(any.value).unwrap().r#type.unwrap() {
            Type::Workload(workload) => drop(workloads.insert(workload.uid.clone(), workload)),
            Type::Service(_) => services += 1,
        }
    }
    let policies = state.policies.values().map(|policy| (policy.name().to_owned(), policy.version()));
    Seen { workloads, services, policies: policies.collect(), outline }
}

/// A control that runs.
struct Running {
    task: JoinHandle<()>,
    address: std::net::SocketAddr,
    outline: watch::Receiver<Arc<Outline>>,
    store: Arc<Store>,
    nodes: Arc<Nodes>,
    root_pem: String,
    files: TempDir,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn settings(cluster: &Cluster) -> Settings {
    Settings {
        source: Source::Kubernetes(Kubernetes {
            connection: Connection::Given(cluster.client()),
            namespace: Some("culvert-system".to_owned()),
            audiences: Vec::new(),
            node_accounts: Vec::new(),
            waypoints: Some(Arc::new(waypoints::pods())),
        }),
        listen: "127.0.0.1:0".parse().unwrap(),
        names: Vec::new(),
        mesh: Options::default(),
        certificate_lifetime: Duration::from_secs(3600),
        authority: None,
        keys: control::keys::Settings::default(),
    }
}

impl Running {
    async fn start(cluster: &Cluster) -> Self {
        Self::start_with(settings(cluster)).await
    }

    async fn start_with(settings: Settings) -> Self {
        let start = Control::start(settings, Arc::new(Metrics::default()), |_| {});
        let control = timeout(PATIENCE, start).await.expect("control starts").unwrap();
        let (address, nodes, root_pem) =
            (control.address, control.nodes.clone(), control.root_pem().to_owned());
        let (mut outline, store) = (control.outline.subscribe(), control.store.clone());
        let task = tokio::spawn(async move { control.run(|| {}, std::future::pending()).await.unwrap() });
        outline.changed().await.unwrap();
        let files = tempfile::tempdir().unwrap();
        fs::write(files.path().join("root.pem"), &root_pem).unwrap();
        Self { task, address, outline, store, nodes, root_pem, files }
    }

    /// What is published, and what is known besides.
    fn now(&self) -> Seen {
        seen(&self.store, self.outline.borrow().clone())
    }

    async fn until(&mut self, what: &str, is: impl Fn(&Seen) -> bool) {
        let store = self.store.clone();
        let is = |outline: &Arc<Outline>| is(&seen(&store, outline.clone()));
        let waited = timeout(PATIENCE, self.outline.wait_for(is)).await;
        assert!(waited.is_ok(), "never: {what}");
    }

    fn access(&self, token: &str) -> xds::Control {
        let file: PathBuf = self.files.path().join("token");
        fs::write(&file, token).unwrap();
        xds::Control {
            uri: format!("https://{}", self.address),
            ca: self.files.path().join("root.pem"),
            token: file,
            server_name: Some("control.culvert-system.svc".to_owned()),
        }
    }

    async fn agent(&self, token: &str) -> Result<Agent, tonic::Status> {
        let access = self.access(token);
        let mut client = NodeServiceClient::new(access.connect().await.unwrap());
        let (reports, outgoing) = mpsc::unbounded_channel();
        let mut request = Request::new(UnboundedReceiverStream::new(outgoing));
        request.metadata_mut().insert("authorization", access.bearer().await.unwrap());
        Ok(Agent { directives: client.sync(request).await?.into_inner(), reports })
    }
}

struct Agent {
    reports: mpsc::UnboundedSender<NodeReport>,
    directives: Streaming<NodeDirective>,
}

impl Agent {
    fn report(&self, uid: &str, state: CaptureState) {
        let pod = PodReport { uid: uid.into(), state: state.into(), ..Default::default() };
        self.reports.send(NodeReport { pods: vec![pod], ..Default::default() }).unwrap();
    }

    async fn until(&mut self, uid: &str, is: impl Fn(&NodePod) -> bool) {
        let found = async {
            loop {
                let directive = self.directives.message().await.unwrap().expect("a directive");
                if directive.pods.iter().any(|pod| pod.uid == uid && is(pod)) {
                    return;
                }
            }
        };
        timeout(PATIENCE, found).await.expect("the directive in time");
    }
}

fn tunnel(seen: &Seen, name: &str) -> Tunnel {
    match seen.workloads[&format!("Kubernetes//Pod/shop/{name}")].tunnel_protocol() {
        TunnelProtocol::Hbone => Tunnel::Hbone,
        _ => Tunnel::None,
    }
}

/// Waits for what nobody announces.
async fn eventually(what: &str, is: impl Fn() -> bool) {
    let waited = async {
        while !is() {
            sleep(Duration::from_millis(10)).await;
        }
    };
    assert!(timeout(PATIENCE, waited).await.is_ok(), "never: {what}");
}

#[tokio::test(start_paused = true)]
async fn nothing_begins_before_every_kind_was_seen() {
    let cluster = shop();
    cluster.broken(PODS, Some(403));
    let (waiting, waits_for) = watch::channel(String::new());
    let waiting = move |what| drop(waiting.send_replace(what));
    let mut start = Box::pin(Control::start(settings(&cluster), Arc::new(Metrics::default()), waiting));
    assert!(timeout(Duration::from_secs(300), &mut start).await.is_err(), "control began without the pods");
    let what = waits_for.borrow().clone();
    assert!(what.contains("Pod") && what.contains("403") && !what.contains("Node"), "{what}");
    cluster.broken(PODS, None);
    let control = timeout(PATIENCE, start).await.expect("control begins").unwrap();
    assert_eq!(control.store.subscribe().borrow().generation, 0, "nothing is compiled before it runs");
}

#[tokio::test(start_paused = true)]
async fn a_cluster_is_compiled_and_followed() {
    let cluster = shop();
    cluster.serve("security.istio.io/v1", "authorizationpolicies");
    cluster.put(POLICIES, policy("80"));
    let mut control = Running::start(&cluster).await;
    let first = control.now();
    assert_eq!((first.workloads.len(), first.services, first.policies.len()), (4, 1, 1));
    assert!(first.outline.problems.is_empty());
    assert!(first.outline.nodes["b"].iter().any(|pod| &*pod.name == "web" && pod.enroll));

    // A refused update leaves the last good version, and says why.
    cluster.put(POLICIES, policy("http"));
    control.until("refused", |now| now.outline.problems.len() == 1).await;
    let now = control.now();
    assert_eq!(now.policies, first.policies);
    let text = now.outline.problems.first().unwrap().to_string();
    assert!(text.starts_with("AuthorizationPolicy shop/p: spec.rules[0]"), "{text}");
    cluster.delete(POLICIES, "shop", "p");
    control.until("the policy gone", |now| now.policies.is_empty() && now.outline.problems.is_empty()).await;

    // A watch that breaks is taken up where it was; nothing is listed again.
    let lists = cluster.lists(PODS);
    cluster.cut_watches();
    cluster.put(PODS, pod("shop", "late", "a", "web", "10.0.1.9"));
    control.until("a pod made while the watch was broken", |now| now.workloads.len() == 5).await;
    assert_eq!(cluster.lists(PODS), lists);

    // Too late for that: everything is listed again, and what is gone meanwhile is gone.
    cluster.broken(PODS, Some(503));
    cluster.cut_watches();
    cluster.delete(PODS, "shop", "late");
    cluster.forget_history();
    sleep(Duration::from_secs(60)).await;
    assert_eq!(control.now().workloads.len(), 5, "what cannot be seen is not gone");
    cluster.broken(PODS, None);
    control.until("the pod gone", |now| now.workloads.len() == 4).await;
    assert!(cluster.lists(PODS) > lists);
}

#[tokio::test(start_paused = true)]
async fn a_kind_that_appears_later_is_followed_and_one_that_goes_is_let_go() {
    let cluster = shop();
    let mut control = Running::start(&cluster).await;
    cluster.serve("networking.istio.io/v1beta1", "serviceentries");
    cluster.put(
        "/apis/networking.istio.io/v1beta1/serviceentries",
        json!({
            "metadata": {"name": "outside", "namespace": "shop"},
            "spec": {
                "hosts": ["outside.example"], "addresses": ["192.0.2.7"], "resolution": "STATIC",
                "ports": [{"number": 80, "name": "http"}], "endpoints": [{"address": "198.51.100.1"}],
            },
        }),
    );
    control.until("an older version of a kind that came later", |now| now.services == 2).await;
    cluster.stop_serving("networking.istio.io/v1beta1");
    cluster.cut_watches();
    control.until("gone with its kind", |now| now.services == 1).await;
}

#[tokio::test(start_paused = true)]
async fn a_kind_that_is_defined_and_not_served_yet_is_waited_for() {
    let cluster = shop();
    cluster.put(
        "/apis/apiextensions.k8s.io/v1/customresourcedefinitions",
        json!({
            "metadata": {"name": "authorizationpolicies.security.istio.io"},
            "spec": {"versions": [{"name": "v1", "served": true}]},
        }),
    );
    let mut start = Box::pin(Control::start(settings(&cluster), Arc::new(Metrics::default()), |_| {}));
    assert!(
        timeout(Duration::from_secs(300), &mut start).await.is_err(),
        "control began without the policies"
    );
    cluster.serve("security.istio.io/v1", "authorizationpolicies");
    timeout(PATIENCE, start).await.expect("control begins").unwrap();
}

#[tokio::test(start_paused = true)]
async fn replicas_share_a_root_and_one_leads() {
    let cluster = shop();
    let (one, two) = tokio::join!(Running::start(&cluster), Running::start(&cluster));
    assert_eq!(one.root_pem, two.root_pem);
    assert!(cluster.get("/api/v1/secrets", "culvert-system", "culvert-ca").is_some());
    let bundle = || cluster.get("/api/v1/configmaps", "culvert-system", "culvert-ca-root-cert");
    eventually("the roots are published", || bundle().is_some()).await;
    assert_eq!(bundle().unwrap()["data"]["root-cert.pem"], one.root_pem);
    let lease = || {
        let leases = "/apis/coordination.k8s.io/v1/leases";
        let lease = cluster.get(leases, "culvert-system", "culvert-control").unwrap();
        (lease["spec"]["holderIdentity"].clone(), lease["spec"]["renewTime"].clone())
    };
    let holder = lease().0;
    sleep(Duration::from_secs(60)).await;
    assert_eq!(lease().0, holder, "a living leader stays");
    // Both go, another comes, and has to wait for the lease to end.
    drop((one, two));
    let _three = Running::start(&cluster).await;
    eventually("somebody else leads", || lease().0 != holder).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_is_who_the_api_server_says() {
    let cluster = shop();
    cluster.put(PODS, pod("shop", "moved", "b", "web", "10.0.2.2"));
    let mut other = status("agent", "agent-a", "a");
    other["audiences"] = json!(["elsewhere"]);
    cluster.token("token-elsewhere", other);
    cluster.token("token-web", status("web", "agent-a", "a"));
    cluster.token("token-stolen", status("agent", "agent-b", "a"));
    let mut unbound = status("agent", "agent-a", "a");
    unbound["user"]["extra"] = json!({});
    cluster.token("token-unbound", unbound);
    let control = Running::start(&cluster).await;
    for (token, reason) in [
        ("token-unknown", "invalid bearer token"),
        ("token-elsewhere", "not for istio-ca"),
        ("token-web", "pod culvert-system/agent-a does not run as culvert-system/web"),
        ("token-stolen", "made on node a, its pod culvert-system/agent-b runs on b"),
        ("token-unbound", "not bound to a pod"),
    ] {
        let status = control.agent(token).await.err().unwrap_or_else(|| panic!("{token} was let in"));
        assert_eq!(status.code(), Code::Unauthenticated, "{token}");
        assert!(status.message().contains(reason), "{token}: {}", status.message());
    }
    let mut agent = control.agent("token-b").await.expect("the agent of b");
    agent.until("u-web", |pod| pod.enroll).await;
    // A refusal is remembered, too.
    let asked = cluster.reviews();
    assert!(control.agent("token-unknown").await.is_err());
    assert_eq!(cluster.reviews(), asked);
    // With its pod the token ends, whatever is remembered of it.
    cluster.delete(PODS, "culvert-system", "agent-b");
    eventually("the token is worth nothing", || control.now().workloads.len() == 4).await;
    let status = control.agent("token-b").await.err().expect("a pod that is gone speaks for no node");
    assert!(status.message().contains("not known"), "{}", status.message());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_agent_measured_is_known_to_all_replicas() {
    let cluster = shop();
    let (mut one, mut two) = tokio::join!(Running::start(&cluster), Running::start(&cluster));
    let mut agent = one.agent("token-b").await.unwrap();
    agent.until("u-web", |pod| pod.enroll).await;
    agent.report("u-web", CaptureState::CaptureMeasured);
    let annotations = || cluster.get(PODS, "shop", "web").unwrap()["metadata"]["annotations"].clone();
    for control in [&mut one, &mut two] {
        control.until("HBONE", |now| tunnel(now, "web") == Tunnel::Hbone).await;
    }
    assert_eq!(annotations(), json!({REDIRECTION: "enabled", MARK: "measured"}));
    assert_eq!(cluster.get(PODS, "shop", "client").unwrap()["metadata"]["annotations"], Value::Null);

    // The label goes: peers of every replica are told before the pod is let go.
    let mut web = cluster.get(PODS, "shop", "web").unwrap();
    web["metadata"]["labels"]["istio.io/dataplane-mode"] = "none".into();
    cluster.put(PODS, web);
    agent.until("u-web", |pod| !pod.enroll && !pod.withdrawn).await;
    let begun = std::time::Instant::now();
    agent.report("u-web", CaptureState::CaptureWithdrawing);
    for control in [&mut one, &mut two] {
        control.until("plain", |now| tunnel(now, "web") == Tunnel::None).await;
    }
    assert_eq!(annotations(), json!({MARK: "withdrawing"}));
    agent.until("u-web", |pod| pod.withdrawn).await;
    assert!(begun.elapsed() >= Duration::from_secs(5), "peers of the other replica were not given time");
    agent.report("u-web", CaptureState::CaptureNone);
    eventually("the mark says none", || annotations() == json!({MARK: "none"})).await;

    // The agent goes over to the other replica; what the first heard is old then.
    let mut web = cluster.get(PODS, "shop", "web").unwrap();
    web["metadata"]["labels"]["istio.io/dataplane-mode"] = "ambient".into();
    cluster.put(PODS, web);
    drop(agent);
    let nodes = one.nodes.clone();
    eventually("the agent is gone", || nodes.list().values().all(|node| node.agents == 0)).await;
    let mut agent = two.agent("token-b").await.unwrap();
    agent.until("u-web", |pod| pod.enroll).await;
    agent.report("u-web", CaptureState::CaptureMeasured);
    one.until("HBONE by the mark", |now| tunnel(now, "web") == Tunnel::Hbone).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_root_is_trusted_before_it_signs() {
    const SECRETS: &str = "/api/v1/secrets";
    const CONFIG_MAPS: &str = "/api/v1/configmaps";
    let cluster = shop();
    // The Secret is looked at in a quarter of this.
    let settings = Settings { certificate_lifetime: Duration::from_secs(2), ..settings(&cluster) };
    let control = Running::start_with(settings).await;
    let roots = || {
        let map = cluster.get(CONFIG_MAPS, "culvert-system", "culvert-ca-root-cert");
        let bundle = map.and_then(|map| map["data"]["root-cert.pem"].as_str().map(str::to_owned));
        bundle.unwrap_or_default()
    };
    let until = |what: &'static str, is: Box<dyn Fn(&str) -> bool>| async move {
        let waited = timeout(PATIENCE, async {
            while !is(&roots()) {
                sleep(Duration::from_millis(20)).await;
            }
        });
        assert!(waited.await.is_ok(), "never: {what}");
    };
    let old = control.root_pem.clone();
    until(
        "the root is published",
        Box::new({
            let old = old.clone();
            move |roots| roots == old
        }),
    )
    .await;
    let mut secret = cluster.get(SECRETS, "culvert-system", "culvert-ca").unwrap();
    secret["metadata"]["annotations"] = json!({"culvert.dev/rotate": "now"});
    cluster.put(SECRETS, secret);
    until(
        "both are trusted",
        Box::new({
            let old = old.clone();
            move |roots| roots.contains(old.trim()) && roots.matches("BEGIN CERTIFICATE").count() == 2
        }),
    )
    .await;
    // Then the new one signs, and then the old one is gone.
    until(
        "the old one is gone",
        Box::new({
            let old = old.clone();
            move |roots| !roots.contains(old.trim()) && roots.matches("BEGIN CERTIFICATE").count() == 1
        }),
    )
    .await;
    let secret = cluster.get(SECRETS, "culvert-system", "culvert-ca").unwrap();
    let text = |key: &str| {
        let decoded = STANDARD.decode(secret["data"][key].as_str().unwrap()).unwrap();
        String::from_utf8(decoded).unwrap()
    };
    let new = text("ca-cert.pem");
    assert_eq!((new.trim(), secret["metadata"]["annotations"].clone()), (roots().trim(), json!({})));
    // An authority from elsewhere that nobody trusts yet is not taken: nodes would refuse each other.
    let (root, key) = identity::authority::new_root("cluster.local").unwrap();
    let plugged = |cert: &str, key: &str, bundle: &str| {
        let encoded = |text: &str| STANDARD.encode(text);
        json!({
            "metadata": {"name": "cacerts", "namespace": "culvert-system"},
            "data": {"ca-cert.pem": encoded(cert), "ca-key.pem": encoded(key), "root-cert.pem": encoded(bundle)},
        })
    };
    let both = format!("{new}{root}");
    cluster.put(SECRETS, plugged(&root, &key, &both));
    sleep(Duration::from_millis(1200)).await;
    assert_eq!(roots().trim(), new.trim(), "the one from before");
    // By the steps it is: the same authority with both roots, then the other one.
    cluster.put(SECRETS, plugged(&new, &text("ca-key.pem"), &both));
    until(
        "both are trusted",
        Box::new({
            let root = root.clone();
            move |roots| roots.contains(root.trim())
        }),
    )
    .await;
    cluster.put(SECRETS, plugged(&root, &key, &root));
    sleep(Duration::from_millis(1200)).await;
    assert!(roots().contains(new.trim()), "not without the one that signed until now");
    cluster.put(SECRETS, plugged(&root, &key, &format!("{root}{new}")));
    until(
        "the plugged one signs",
        Box::new(move |roots| roots.starts_with(root.trim()) && roots.contains(new.trim())),
    )
    .await;
}
