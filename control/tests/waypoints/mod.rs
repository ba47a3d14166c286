//! Waypoints: what a pod of one may have, and what a Gateway is made into.

use control::kubernetes::WaypointPods;
use identity::{Identity, Issuer as _};
use proto::discovery::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use serde_json::{Value, json};
use tokio::{
    sync::mpsc,
    time::{sleep, timeout},
};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Code, Request};

use crate::{Duration, PATIENCE, PODS, Running, cluster::Cluster, eventually, pod, shop, status};

const VERSION: &str = "gateway.networking.k8s.io/v1";
const GATEWAYS: &str = "/apis/gateway.networking.k8s.io/v1/gateways";
const CLASSES: &str = "/apis/gateway.networking.k8s.io/v1/gatewayclasses";
const DEPLOYMENTS: &str = "/apis/apps/v1/deployments";
const SERVICES: &str = "/api/v1/services";
const AUTOSCALERS: &str = "/apis/autoscaling/v2/horizontalpodautoscalers";
const BUDGETS: &str = "/apis/policy/v1/poddisruptionbudgets";

pub fn pods() -> WaypointPods {
    WaypointPods {
        image: "culvert/waypoint:test".to_owned(),
        pull_policy: None,
        pull_secrets: Vec::new(),
        resources: json!({"requests": {"cpu": "100m"}}),
        arguments: Vec::new(),
        scrape: false,
    }
}

fn gateway(class: &str) -> Value {
    json!({
        "metadata": {"name": "wp", "namespace": "shop", "uid": "u-gateway", "generation": 1},
        "spec": {
            "gatewayClassName": class,
            "listeners": [{"name": "mesh", "port": 15008, "protocol": "HBONE"}],
        },
    })
}

/// The shop, where Gateways are known, with one.
fn with_gateway(class: &str) -> Cluster {
    let cluster = shop();
    cluster.serve(VERSION, "gateways");
    cluster.put(GATEWAYS, gateway(class));
    cluster
}

fn waypoint(name: &str) -> Value {
    let mut pod = pod("shop", name, "b", "wp", "10.0.2.9");
    pod["metadata"]["labels"] = json!({"gateway.networking.k8s.io/gateway-name": "wp"});
    pod
}

/// What a review says of a token of the shop.
fn of_shop(account: &str, pod: &str, node: &str) -> Value {
    let mut status = status(account, pod, node);
    status["user"]["username"] = format!("system:serviceaccount:shop:{account}").into();
    status
}

/// The answer to a request for a certificate.
async fn certificate(control: &Running, token: &str, account: &str) -> Result<String, String> {
    let identity = Identity::new("cluster.local", "shop", account);
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::default();
    params.subject_alt_names = vec![rcgen::SanType::URI(identity.to_string().try_into().unwrap())];
    let request = params.serialize_request(&key).unwrap().pem().unwrap();
    let client = xds::CaClient::new(control.access(token), "Kubernetes", Duration::from_secs(600));
    let issued = timeout(PATIENCE, client.issue(&identity, request)).await.expect("an answer");
    issued.map(|issued| issued.chain_pem.concat()).map_err(|error| error.to_string())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_waypoints_pod_proves_itself_and_nobody_else() {
    let cluster = with_gateway("culvert-waypoint");
    cluster.put(PODS, waypoint("wp-1"));
    cluster.token("token-wp", of_shop("wp", "wp-1", "b"));
    cluster.token("token-web", of_shop("web", "web", "b"));
    // A pod of the same account that is no waypoint's.
    cluster.put(PODS, pod("shop", "idle", "a", "wp", "10.0.1.8"));
    cluster.token("token-idle", of_shop("wp", "idle", "a"));
    let control = Running::start(&cluster).await;
    let chain = certificate(&control, "token-wp", "wp").await.expect("its own certificate");
    assert!(chain.contains("BEGIN CERTIFICATE"));
    let refused = certificate(&control, "token-wp", "web").await.expect_err("another's");
    assert!(refused.contains("no enrolled pod"), "{refused}");
    for token in ["token-web", "token-idle"] {
        for account in ["wp", "web"] {
            let refused = certificate(&control, token, account).await.expect_err(token);
            assert!(refused.contains("is no waypoint that is known"), "{token}: {refused}");
        }
    }
    // Nothing of a node's.
    let refused = control.agent("token-wp").await.err().expect("a waypoint is no agent");
    assert_eq!(refused.code(), Code::PermissionDenied, "{}", refused.message());
    // Nor does its node get its certificate.
    let refused = certificate(&control, "token-b", "wp").await.expect_err("the node of the waypoint");
    assert!(refused.contains("no enrolled pod"), "{refused}");
    // With its pod it ends.
    cluster.delete(PODS, "shop", "wp-1");
    eventually("the pod is gone", || !control.now().workloads.contains_key("Kubernetes//Pod/shop/wp-1"))
        .await;
    let refused = certificate(&control, "token-wp", "wp").await.expect_err("its pod is gone");
    assert!(refused.contains("not known"), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_waypoint_that_is_none_any_more_loses_its_stream() {
    let cluster = with_gateway("culvert-waypoint");
    cluster.put(PODS, waypoint("wp-1"));
    cluster.token("token-wp", of_shop("wp", "wp-1", "b"));
    let control = Running::start(&cluster).await;
    let access = control.access("token-wp");
    let mut client = AggregatedDiscoveryServiceClient::new(access.connect().await.unwrap());
    let (_requests, outgoing) = mpsc::unbounded_channel();
    let mut request = Request::new(UnboundedReceiverStream::new(outgoing));
    request.metadata_mut().insert("authorization", access.bearer().await.unwrap());
    let mut stream = client.delta_aggregated_resources(request).await.expect("it is let in").into_inner();
    assert!(timeout(Duration::from_millis(300), stream.message()).await.is_err(), "it goes on");
    cluster.delete(GATEWAYS, "shop", "wp");
    let ended = timeout(PATIENCE, stream.message()).await.expect("an end");
    let status = ended.expect_err("not for nothing");
    assert_eq!(
        (status.code(), status.message()),
        (Code::PermissionDenied, "the caller is no waypoint any more")
    );
}

fn condition(object: &Value, kind: &str) -> (String, String) {
    let all = object["status"]["conditions"].as_array().into_iter().flatten();
    let one = all.into_iter().find(|condition| condition["type"] == kind).cloned().unwrap_or_default();
    (
        one["status"].as_str().unwrap_or_default().to_owned(),
        one["reason"].as_str().unwrap_or_default().to_owned(),
    )
}

fn said(status: &str, reason: &str) -> (String, String) {
    (status.to_owned(), reason.to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_is_deployed_mended_and_told() {
    let cluster = with_gateway("culvert-waypoint");
    let _control = Running::start(&cluster).await;
    let deployment = || cluster.get(DEPLOYMENTS, "shop", "wp");
    let gateway = || cluster.get(GATEWAYS, "shop", "wp").unwrap();
    eventually("a deployment", || deployment().is_some()).await;
    let image = |deployment: &Value| deployment["spec"]["template"]["spec"]["containers"][0]["image"].clone();
    assert_eq!(image(&deployment().unwrap()), "culvert/waypoint:test");
    let roots =
        cluster.get("/api/v1/configmaps", "shop", "culvert-ca-root-cert").expect("the roots before it");
    assert_eq!(roots["metadata"]["ownerReferences"][0]["uid"], "u-gateway");
    eventually("the class", || {
        cluster
            .get(CLASSES, "", "culvert-waypoint")
            .is_some_and(|class| condition(&class, "Accepted").0 == "True")
    })
    .await;
    eventually("no address", || condition(&gateway(), "Programmed") == said("False", "AddressNotAssigned"))
        .await;

    // The API server gives the Service an address, and the pod becomes ready.
    let mut service = cluster.get(SERVICES, "shop", "wp").expect("a service");
    service["spec"]["clusterIP"] = "10.96.0.9".into();
    cluster.put(SERVICES, service);
    eventually("no pod", || condition(&gateway(), "Programmed") == said("False", "Pending")).await;
    cluster.put(PODS, waypoint("wp-1"));
    eventually("programmed", || condition(&gateway(), "Programmed") == said("True", "Programmed")).await;
    assert_eq!(gateway()["status"]["addresses"], json!([{"type": "IPAddress", "value": "10.96.0.9"}]));
    assert_eq!(condition(&gateway()["status"]["listeners"][0].clone_as_status(), "Accepted").0, "True");

    // Somebody has a hand in it.
    let applies = cluster.applies();
    sleep(Duration::from_secs(2)).await;
    assert_eq!(cluster.applies(), applies, "what is as it should be is left alone");
    let mut edited = deployment().unwrap();
    edited["spec"]["template"]["spec"]["containers"][0]["image"] = "other".into();
    edited["metadata"]["generation"] = 7.into();
    cluster.put(DEPLOYMENTS, edited);
    eventually("mended", || image(&deployment().unwrap()) == "culvert/waypoint:test").await;
    cluster.delete(DEPLOYMENTS, "shop", "wp");
    eventually("made again", || deployment().is_some()).await;

    // What scales it is made, mended and taken away again.
    let of = |collection: &str| cluster.get(collection, "shop", "wp");
    let mut scaled = gateway();
    scaled["metadata"]["annotations"] =
        json!({"culvert.dev/max-replicas": "5", "culvert.dev/max-unavailable": "1"});
    cluster.put(GATEWAYS, scaled);
    eventually("an autoscaler and a budget", || of(AUTOSCALERS).is_some() && of(BUDGETS).is_some()).await;
    let mut edited = of(AUTOSCALERS).unwrap();
    assert_eq!(edited["metadata"]["ownerReferences"][0]["uid"], "u-gateway");
    edited["spec"]["maxReplicas"] = 50.into();
    cluster.put(AUTOSCALERS, edited);
    eventually("mended", || of(AUTOSCALERS).unwrap()["spec"]["maxReplicas"] == 5).await;
    assert!(deployment().unwrap()["spec"]["replicas"].is_null(), "that is the autoscaler's to say");
    let mut plain = gateway();
    plain["metadata"]["annotations"] = json!({"culvert.dev/max-unavailable": "1"});
    cluster.put(GATEWAYS, plain);
    eventually("no autoscaler", || of(AUTOSCALERS).is_none()).await;
    assert!(of(BUDGETS).is_some());
    // One of that name that is somebody's is left to them.
    let theirs = json!({"metadata": {"name": "wp", "namespace": "shop"}, "spec": {"maxReplicas": 9}});
    cluster.put(AUTOSCALERS, theirs);

    // What is to be otherwise is; what cannot be is said.
    let mut more = gateway();
    more["metadata"]["annotations"] = json!({"culvert.dev/replicas": "3"});
    cluster.put(GATEWAYS, more);
    eventually("three", || deployment().unwrap()["spec"]["replicas"] == 3).await;
    // An autoscaler begins with them: not for a moment there is one alone.
    cluster.delete(AUTOSCALERS, "shop", "wp");
    let mut scaled = gateway();
    scaled["metadata"]["annotations"] = json!({"culvert.dev/max-replicas": "5"});
    cluster.put(GATEWAYS, scaled);
    eventually("an autoscaler", || of(AUTOSCALERS).is_some()).await;
    let left = deployment().unwrap();
    let managers: Vec<&Value> = left["metadata"]["managedFields"].as_array().into_iter().flatten().collect();
    assert_eq!((&left["spec"]["replicas"], managers.len()), (&json!(3), 1), "{managers:?}");
    assert_eq!(managers[0]["manager"], "culvert-control-replicas");
    cluster.put(
        AUTOSCALERS,
        json!({"metadata": {"name": "wp", "namespace": "shop"}, "spec": {"maxReplicas": 9}}),
    );
    let mut wrong = gateway();
    wrong["metadata"]["annotations"] = json!({"culvert.dev/replicas": "many"});
    cluster.put(GATEWAYS, wrong);
    eventually("refused", || condition(&gateway(), "Accepted") == said("False", "InvalidParameters")).await;
    assert_eq!(of(AUTOSCALERS).unwrap()["spec"]["maxReplicas"], 9);
}

trait AsStatus {
    fn clone_as_status(&self) -> Value;
}

impl AsStatus for Value {
    /// A listener's status as if it were an object's.
    fn clone_as_status(&self) -> Value {
        json!({"status": self})
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_somebody_elses_is_left_alone() {
    // Istio's control plane is there, and the class is its own.
    let cluster = with_gateway("istio-waypoint");
    let class = json!({"metadata": {"name": "istio-waypoint"}, "spec": {"controllerName": "istio.io/mesh-controller"}});
    cluster.put(CLASSES, class);
    // A Service of the name of a Gateway, which is somebody's.
    let mut other = gateway("culvert-waypoint");
    (other["metadata"]["name"], other["metadata"]["uid"]) = ("web".into(), "u-other".into());
    cluster.put(GATEWAYS, other);
    let service = cluster.get(SERVICES, "shop", "web").unwrap();
    let _control = Running::start(&cluster).await;
    let told = || condition(&cluster.get(GATEWAYS, "shop", "web").unwrap(), "Programmed");
    eventually("refused", || told() == said("False", "Invalid")).await;
    assert_eq!(cluster.get(SERVICES, "shop", "web").unwrap(), service);
    assert_eq!(cluster.get(DEPLOYMENTS, "shop", "web"), None);
    assert_eq!(cluster.get(DEPLOYMENTS, "shop", "wp"), None, "istiod deploys it");
    assert!(cluster.get(GATEWAYS, "shop", "wp").unwrap()["status"].is_null());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_class_without_an_object_is_nobodys_and_so_are_roots_of_anothers() {
    let cluster = with_gateway("istio-waypoint");
    let mut own = gateway("culvert-waypoint");
    (own["metadata"]["name"], own["metadata"]["uid"]) = ("own".into(), "u-own".into());
    cluster.put(GATEWAYS, own);
    let theirs = json!({"metadata": {"name": "culvert-ca-root-cert", "namespace": "shop"}, "data": {"root-cert.pem": "theirs"}});
    cluster.put("/api/v1/configmaps", theirs);
    let _control = Running::start(&cluster).await;
    let roots = || cluster.get("/api/v1/configmaps", "shop", "culvert-ca-root-cert").unwrap();
    let told = || condition(&cluster.get(GATEWAYS, "shop", "own").unwrap(), "Programmed");
    eventually("roots that are another's", || told() == said("False", "Invalid")).await;
    assert_eq!(
        (&roots()["data"]["root-cert.pem"], cluster.get(DEPLOYMENTS, "shop", "own")),
        (&json!("theirs"), None)
    );
    assert_eq!(cluster.get(DEPLOYMENTS, "shop", "wp"), None, "no class says whose it is");
    assert!(cluster.get(GATEWAYS, "shop", "wp").unwrap()["status"].is_null());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_class_of_istios_name_that_is_ours_is_carried_out() {
    let cluster = with_gateway("istio-waypoint");
    let class = json!({"metadata": {"name": "istio-waypoint"}, "spec": {"controllerName": "culvert.dev/gateway-controller"}});
    cluster.put(CLASSES, class);
    let _control = Running::start(&cluster).await;
    eventually("a deployment", || cluster.get(DEPLOYMENTS, "shop", "wp").is_some()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_route_is_told_how_it_stands_with_its_parents() {
    const ROUTES: &str = "/apis/gateway.networking.k8s.io/v1/httproutes";
    let cluster = with_gateway("culvert-waypoint");
    cluster.serve(VERSION, "httproutes");
    let mut service = cluster.get(SERVICES, "shop", "web").unwrap();
    service["metadata"]["labels"] = json!({"istio.io/use-waypoint": "wp"});
    cluster.put(SERVICES, service);
    let theirs = json!({
        "parentRef": {"name": "edge"}, "controllerName": "other.example/controller", "conditions": [],
    });
    let route = |generation: i64, backend: &str| {
        json!({
            "metadata": {"name": "web", "namespace": "shop", "generation": generation},
            "spec": {
                "parentRefs": [{"group": "", "kind": "Service", "name": "web"}],
                "rules": [{"backendRefs": [{"name": backend, "port": 80}]}],
            },
            "status": {"parents": [theirs]},
        })
    };
    cluster.put(ROUTES, route(1, "web"));
    let _control = Running::start(&cluster).await;
    let parents = || cluster.get(ROUTES, "shop", "web").unwrap()["status"]["parents"].clone();
    let told = |kind: &str| condition(&json!({"status": parents()[1]}), kind);
    eventually("accepted", || told("Accepted") == said("True", "Accepted")).await;
    assert_eq!(told("ResolvedRefs"), said("True", "ResolvedRefs"));
    assert_eq!(
        (&parents()[0], &parents()[1]["controllerName"]),
        (&theirs, &json!("culvert.dev/gateway-controller"))
    );
    assert_eq!(parents()[1]["parentRef"], json!({"group": "", "kind": "Service", "name": "web"}));
    cluster.put(ROUTES, route(2, "nowhere"));
    eventually("told of what is missing", || told("ResolvedRefs") == said("False", "BackendNotFound")).await;
}
