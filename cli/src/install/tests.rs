//! What an install does and leaves alone, against an API server of our own.

use serde_json::json;

use super::*;
use crate::cluster::{Cluster, args};

const AGENT: &str = "/apis/apps/v1/namespaces/mesh/daemonsets/agent";
const CONTROL: &str = "/apis/apps/v1/namespaces/mesh/deployments/control";
const BUDGET: &str = "/apis/policy/v1/namespaces/mesh/poddisruptionbudgets/control";
const DEFINITION: &str =
    "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/authorizationpolicies.security.istio.io";

async fn run(cluster: &Cluster, flags: &[&str]) -> Result<(), String> {
    let done = install(&cluster.api(), (1, 34), "mesh", &args(flags)).await;
    done.map_err(|error| format!("{error:#}"))
}

#[tokio::test(start_paused = true)]
async fn an_install_makes_all_and_a_second_one_removes_what_is_not_wanted_any_more() {
    let cluster = Cluster::new();
    run(&cluster, &["--replicas=2"]).await.unwrap();
    assert!(cluster.get("/api/v1/namespaces/mesh").is_some() && cluster.get(BUDGET).is_some());
    // Of another make, and of another install of ours: neither is a concern.
    let labels = json!({PART_OF: "culvert", MANAGED_BY: "Helm"});
    cluster.put(
        "/api/v1/namespaces/mesh/services/theirs",
        json!({"metadata": {"name": "theirs", "namespace": "mesh", "labels": labels}}),
    );
    let labels = json!({PART_OF: "culvert", MANAGED_BY: MANAGER_LABEL});
    let elsewhere = "/apis/rbac.authorization.k8s.io/v1/clusterroles/other-control";
    cluster.put(elsewhere, json!({"metadata": {"name": "other-control", "labels": labels}}));
    // A namespace may be called as ours begins.
    let longer = "/apis/rbac.authorization.k8s.io/v1/clusterroles/mesh-prod-control";
    cluster.put(longer, json!({"metadata": {"name": "mesh-prod-control", "labels": labels}}));
    run(&cluster, &["--replicas=1"]).await.unwrap();
    assert_eq!(cluster.deleted(), [BUDGET]);
    assert_eq!(
        cluster.get("/apis/apps/v1/namespaces/mesh/deployments/control").unwrap()["spec"]["replicas"],
        1
    );
}

#[tokio::test(start_paused = true)]
async fn what_belongs_to_others_is_left_alone() {
    let cluster = Cluster::new();
    let theirs = json!({"kind": "CustomResourceDefinition", "metadata": {"name": "authorizationpolicies.security.istio.io"}, "spec": "theirs"});
    cluster.put(DEFINITION, theirs);
    run(&cluster, &[]).await.unwrap();
    assert_eq!(cluster.get(DEFINITION).unwrap()["spec"], "theirs");

    let mut agent = cluster.get(AGENT).unwrap();
    agent["metadata"]["annotations"] = json!({RELEASE: "culvert", "meta.helm.sh/release-namespace": "mesh"});
    cluster.put(AGENT, agent.clone());
    let refused = run(&cluster, &[]).await.unwrap_err();
    assert!(
        refused.contains("helm upgrade culvert") && refused.contains("DaemonSet mesh/agent"),
        "{refused}"
    );
    agent["metadata"] = json!({"name": "agent", "namespace": "mesh"});
    cluster.put(AGENT, agent);
    let refused = run(&cluster, &[]).await.unwrap_err();
    assert!(refused.contains("not Culvert's"), "{refused}");
}

#[tokio::test(start_paused = true)]
async fn a_cluster_that_cannot_carry_it_is_left_as_it_was() {
    let cluster = Cluster::new();
    cluster.put(
        "/api/v1/nodes/old",
        json!({"metadata": {"name": "old"}, "status": {"nodeInfo":
        {"kernelVersion": "5.15.0", "operatingSystem": "linux", "architecture": "amd64"}}}),
    );
    let refused = run(&cluster, &[]).await.unwrap_err();
    assert!(refused.contains("--skip-check"), "{refused}");
    assert!(cluster.get(AGENT).is_none() && cluster.get("/api/v1/namespaces/mesh").is_none());
    run(&cluster, &["--skip-check"]).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_policy_of_an_app_holds_up_no_upgrade() {
    let cluster = Cluster::new();
    let shop = json!({"metadata": {"name": "shop", "labels": {"istio.io/dataplane-mode": "ambient"}}});
    cluster.put("/api/v1/namespaces/shop", shop);
    cluster.put(
        "/apis/networking.k8s.io/v1/namespaces/shop/networkpolicies/p",
        json!({"metadata": {"name": "p", "namespace": "shop"}, "spec": {"ingress": [{"ports": [{"port": 80}]}]}}),
    );
    let report = check::before(&cluster.api(), "mesh").await.unwrap();
    assert_eq!((report.problems(), report.obstacles()), (1, 0));
    run(&cluster, &[]).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn who_does_not_become_ready_is_named_with_the_reason() {
    let cluster = Cluster::new();
    run(&cluster, &["--no-wait"]).await.unwrap();
    let mut agent = cluster.get(AGENT).unwrap();
    agent["status"] = json!({"desiredNumberScheduled": 1, "updatedNumberScheduled": 1, "numberAvailable": 0});
    cluster.put(AGENT, agent);
    let labels = json!({PART_OF: "culvert", "app.kubernetes.io/name": "agent"});
    cluster.put("/api/v1/namespaces/mesh/pods/agent-1", json!({"metadata": {"name": "agent-1", "namespace": "mesh", "labels": labels},
        "spec": {"nodeName": "n1"}, "status": {"containerStatuses": [
            {"name": "agent", "state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}}]}}));
    cluster
        .put("/api/v1/namespaces/mesh/events/e", json!({"reason": "Failed", "message": "the event says so"}));
    let late = rollout::wait(&cluster.api(), "mesh", Duration::from_secs(0)).await.unwrap_err().to_string();
    for said in [
        "DaemonSet agent: 0 of 1 ready",
        "agent-1 on n1",
        "ImagePullBackOff: no such image",
        "the event says so",
        "--registry",
    ] {
        assert!(late.contains(said), "{late}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_conflict_leaves_all_as_it_was() {
    let cluster = Cluster::new();
    run(&cluster, &[]).await.unwrap();
    cluster.owned("/apis/apps/v1/namespaces/mesh/daemonsets/ztunnel");
    let before = cluster.get(AGENT);
    let refused = run(&cluster, &["--tag=next"]).await.unwrap_err();
    assert!(refused.contains("DaemonSet mesh/ztunnel") && refused.contains("--force-conflicts"), "{refused}");
    assert_eq!(cluster.get(AGENT), before);
}

#[tokio::test(start_paused = true)]
async fn who_may_not_see_all_is_told_what_was_not_judged() {
    let cluster = Cluster::new();
    cluster.forbid("/api/v1/nodes");
    let report = check::before(&cluster.api(), "mesh").await.unwrap();
    assert!(report.findings.iter().any(|one| one.seen.contains("may not list nodes")), "{report:#?}");
}

#[tokio::test(start_paused = true)]
async fn an_upgrade_keeps_what_was_chosen() {
    let cluster = Cluster::new();
    let chosen = ["--trust-domain=prod.example", "--replicas=3", "--registry=r.example:5000/a", "--no-cni"];
    run(&cluster, &[&chosen[..], &["--tag=old"]].concat()).await.unwrap();
    let all = || (cluster.get(AGENT).unwrap()["spec"].clone(), cluster.get(CONTROL).unwrap()["spec"].clone());
    let before = all();
    run(&cluster, &["--tag=old"]).await.unwrap();
    assert_eq!(all(), before);
    run(&cluster, &[]).await.unwrap();
    let image = all().1["template"]["spec"]["containers"][0]["image"].clone();
    assert_eq!(image, format!("r.example:5000/a/control:{}", env!("CARGO_PKG_VERSION")));
    assert!(cluster.deleted().is_empty());
    // What is given counts.
    run(&cluster, &["--no-cni=false", "--replicas=2"]).await.unwrap();
    assert!(all().0.to_string().contains("--cni-socket") && all().1["replicas"] == 2);
    // Every identity hangs on it.
    let before = all();
    let refused = run(&cluster, &["--trust-domain=cluster.local"]).await.unwrap_err();
    assert!(refused.contains("prod.example") && refused.contains("--force"), "{refused}");
    assert_eq!(all(), before);
    run(&cluster, &["--trust-domain=prod.example"]).await.unwrap();
    // With one that was taken before anybody looked, control would not start.
    let mut odd = cluster.get(CONTROL).unwrap();
    let odd_args = json!(["--trust-domain=Foo Bar"]);
    odd["spec"]["template"]["spec"]["containers"][0]["args"] = odd_args;
    cluster.put(CONTROL, odd);
    let refused = run(&cluster, &[]).await.unwrap_err();
    assert!(refused.contains("Foo Bar") && refused.contains("nothing was changed"), "{refused}");
    run(&cluster, &["--trust-domain=cluster.local", "--force"]).await.unwrap();
    assert!(all().1.to_string().contains("--trust-domain=cluster.local"));
}

#[tokio::test]
async fn how_one_begins_is_told_to_who_has_not_begun() {
    let cluster = Cluster::new();
    let shop = |labels: Value| json!({"metadata": {"name": "shop", "labels": labels}});
    cluster.put("/api/v1/namespaces/shop", shop(json!({DATAPLANE_MODE: "none"})));
    assert!(next(&cluster.api()).await.contains("kubectl label namespace NAME"));
    cluster.put("/api/v1/namespaces/shop", shop(json!({DATAPLANE_MODE: AMBIENT})));
    assert!(!next(&cluster.api()).await.contains("kubectl label"));
}
