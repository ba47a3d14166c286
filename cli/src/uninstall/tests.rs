//! Who is left behind, and in which order all goes, against an API server of our own.

use super::{left::*, *};
use crate::{
    check::AMBIENT,
    cluster::{Cluster, args},
    enrolled::REDIRECTION,
    manifests,
};

fn pod(namespace: &str, name: &str, labels: Value, annotations: Value) -> Value {
    json!({"metadata": {"namespace": namespace, "name": name, "labels": labels, "annotations": annotations},
           "status": {"phase": "Running"}})
}

#[test]
fn who_is_left_behind_is_known_by_labels_and_marks() {
    let namespaces = [
        json!({"metadata": {"name": "shop", "labels": {DATAPLANE_MODE: AMBIENT}}}),
        json!({"metadata": {"name": "other", "labels": {DATAPLANE_MODE: "none"}}}),
    ];
    let pods = [
        pod("shop", "in", json!({}), json!({MARK: "measured", REDIRECTION: "enabled"})),
        pod("shop", "leaving", json!({}), json!({MARK: "withdrawing"})),
        pod("shop", "left", json!({}), json!({MARK: "none", REDIRECTION: "enabled"})),
        pod("x", "alone", json!({DATAPLANE_MODE: AMBIENT}), json!({REDIRECTION: "enabled"})),
    ];
    let enrolled = Enrolled::of(&namespaces, &pods);
    assert_eq!(enrolled.namespaces, ["shop"]);
    assert_eq!(enrolled.labelled, [("x".to_owned(), "alone".to_owned())]);
    assert_eq!(enrolled.captured, ["shop/in", "shop/leaving", "x/alone"]);
    assert!(!enrolled.is_nobody() && enrolled.text().contains("shop/leaving"));
    assert!(Enrolled::of(&namespaces[1..], &pods[2..3]).is_nobody());
}

#[test]
fn definitions_of_others_are_no_concern_of_ours() {
    let of =
        |manager: &str| json!({"metadata": {"managedFields": [{"manager": manager, "operation": "Apply"}]}});
    assert!(is_ours(&of("culvert")) && !is_ours(&of("helm")));
    assert_eq!(definitions().unwrap().len(), 5);
    let mut both = of("culvert");
    let fields = |object: &mut Value, one: Value| {
        object["metadata"]["managedFields"].as_array_mut().unwrap().push(one);
    };
    fields(&mut both, json!({"manager": "kube-apiserver", "operation": "Update", "subresource": "status"}));
    assert!(others(&both).is_empty());
    fields(&mut both, json!({"manager": "argocd-controller", "operation": "Apply"}));
    assert_eq!(others(&both), ["argocd-controller"]);
}

/// A mesh with one pod in it, which control lets go when the label is gone.
async fn cluster() -> Cluster {
    let cluster = Cluster::new();
    let api = cluster.api();
    for object in manifests::objects("mesh", &manifests::unchosen(), (1, 34)).unwrap() {
        api::apply(&api, &object, false).await.unwrap();
    }
    let shop =
        json!({"kind": "Namespace", "metadata": {"name": "shop", "labels": {DATAPLANE_MODE: AMBIENT}}});
    cluster.put("/api/v1/namespaces/shop", shop);
    cluster.put("/api/v1/namespaces/shop/pods/web", pod("shop", "web", json!({}), json!({MARK: "measured"})));
    cluster.put("/api/v1/namespaces/mesh/secrets/culvert-ca", json!({"metadata": {"name": "culvert-ca"}}));
    cluster
}

#[tokio::test(start_paused = true)]
async fn nobody_is_left_behind_unasked() {
    let cluster = cluster().await;
    let before = cluster.paths();
    let refused = uninstall(&cluster.api(), "mesh", &args(&[])).await.unwrap_err().to_string();
    assert!(refused.contains("--release-all"), "{refused}");
    assert_eq!(cluster.paths(), before);
    // A pod that is not let go holds everything up.
    let late = uninstall(&cluster.api(), "mesh", &args(&["--release-all", "--timeout=3"])).await.unwrap_err();
    assert!(late.to_string().contains("still captured: shop/web"), "{late}");
    assert!(cluster.get("/apis/apps/v1/namespaces/mesh/daemonsets/agent").is_some());
}

#[tokio::test(start_paused = true)]
async fn all_are_let_go_and_the_agents_end_first() {
    let cluster = cluster().await;
    let lets_go = cluster.clone();
    tokio::spawn(async move {
        loop {
            let shop = lets_go.get("/api/v1/namespaces/shop").unwrap();
            if object::label(&shop, DATAPLANE_MODE).is_none() {
                tokio::time::sleep(Duration::from_secs(2)).await;
                assert!(lets_go.get("/apis/apps/v1/namespaces/mesh/daemonsets/agent").is_some());
                lets_go.put(
                    "/api/v1/namespaces/shop/pods/web",
                    pod("shop", "web", json!({}), json!({MARK: "none"})),
                );
                return;
            }
            tokio::time::sleep(EVERY).await;
        }
    });
    uninstall(&cluster.api(), "mesh", &args(&["--release-all"])).await.unwrap();
    let deleted = cluster.deleted();
    let at = |name: &str| deleted.iter().position(|path| path.ends_with(name)).expect(name);
    assert!(
        at("daemonsets/agent") < at("daemonsets/ztunnel")
            && at("daemonsets/ztunnel") < at("deployments/control")
    );
    let web = cluster.get("/api/v1/namespaces/shop/pods/web").unwrap();
    assert_eq!(object::annotation(&web, MARK), None);
    let left: Vec<String> = cluster.paths().into_iter().filter(|path| !path.contains("shop")).collect();
    let of_ours =
        |path: &&String| path.contains("customresourcedefinitions") || path.ends_with("secrets/culvert-ca");
    assert_eq!(left.iter().filter(of_ours).count(), 6);
    assert_eq!(left.len(), 6, "{left:?}");
    uninstall(&cluster.api(), "mesh", &args(&["--purge"])).await.unwrap();
    let left: Vec<String> = cluster.paths().into_iter().filter(|path| !path.contains("shop")).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test(start_paused = true)]
async fn where_nothing_of_ours_is_nothing_is_touched() {
    let cluster = cluster().await;
    cluster.put("/api/v1/namespaces/shop/pods/old", pod("shop", "old", json!({}), json!({MARK: "none"})));
    let before: Vec<_> = cluster.paths().into_iter().map(|path| cluster.get(&path)).collect();
    for flags in [&["--force", "--purge"][..], &["--release-all", "--purge", "--purge-policies"]] {
        let refused = uninstall(&cluster.api(), "typo", &args(flags)).await.unwrap_err().to_string();
        assert!(refused.contains("Deployment mesh/control") && refused.contains("--namespace"), "{refused}");
    }
    let after: Vec<_> = cluster.paths().into_iter().map(|path| cluster.get(&path)).collect();
    assert_eq!(before, after);
}

#[tokio::test(start_paused = true)]
async fn definitions_go_only_where_nobody_needs_them() {
    let definition = |name: &str| format!("{}/{name}", object::collection("CustomResourceDefinition", ""));
    let (policies, tls) = (
        definition("authorizationpolicies.security.istio.io"),
        definition("peerauthentications.security.istio.io"),
    );
    let cluster = Cluster::new();
    let api = cluster.api();
    for one in definitions().unwrap() {
        api::apply(&api, &one, false).await.unwrap();
    }
    let mut shared = cluster.get(&tls).unwrap();
    let managers = shared["metadata"]["managedFields"].as_array_mut().unwrap();
    managers.push(json!({"manager": "argocd-controller", "operation": "Apply"}));
    cluster.put(&tls, shared);
    cluster.put(
        "/apis/security.istio.io/v1/namespaces/shop/authorizationpolicies/p",
        json!({"metadata": {"name": "p", "namespace": "shop"}}),
    );
    let all = || cluster.paths().iter().filter(|path| path.contains("customresourcedefinitions")).count();
    // Another mesh reads all five.
    let theirs = "/apis/apps/v1/namespaces/other/daemonsets/agent";
    let labels = json!({"app.kubernetes.io/part-of": "culvert"});
    cluster.put(theirs, json!({"metadata": {"name": "agent", "namespace": "other", "labels": labels}}));
    let elsewhere = elsewhere(&api, "mesh").await.unwrap();
    assert_eq!(elsewhere, ["DaemonSet other/agent"]);
    purge(&api, "mesh", &elsewhere, true).await.unwrap();
    assert_eq!(all(), 5);
    purge(&api, "mesh", &[], false).await.unwrap();
    assert!(all() == 2 && cluster.get(&policies).is_some() && cluster.get(&tls).is_some());
    purge(&api, "mesh", &[], true).await.unwrap();
    assert!(all() == 1 && cluster.get(&tls).is_some());
}

/// An agent, with what it says.
fn agent(cluster: &Cluster, node: &str, told: bool, pods: Value, control: &str) {
    let labels = json!({"app.kubernetes.io/part-of": "culvert", "app.kubernetes.io/name": "agent"});
    let name = format!("agent-{node}");
    let path = format!("/api/v1/namespaces/mesh/pods/{name}");
    let metadata = json!({"name": name, "namespace": "mesh", "labels": labels});
    let pod = json!({"metadata": metadata, "spec": {"nodeName": node}, "status": {"phase": "Running"}});
    cluster.put(&path, pod);
    cluster.put(&format!("/admin/{name}/pods.json"), json!({"told": told, "pods": pods}));
    let checks = json!({"checks": [{"check": "control", "state": control}]});
    cluster.put(&format!("/admin/{name}/checks.json"), checks);
    // It ends when its DaemonSet goes.
    let ends = cluster.clone();
    tokio::spawn(async move {
        let set = "/apis/apps/v1/namespaces/mesh/daemonsets/agent";
        while ends.get(set).is_some() {
            tokio::time::sleep(EVERY).await;
        }
        ends.api().delete(&path).await.unwrap();
    });
}

fn free(cluster: &Cluster) {
    let shop = json!({"kind": "Namespace", "metadata": {"name": "shop"}});
    cluster.put("/api/v1/namespaces/shop", shop);
    cluster.put("/api/v1/namespaces/shop/pods/web", pod("shop", "web", json!({}), json!({})));
}

#[tokio::test(start_paused = true)]
async fn what_a_node_still_holds_is_waited_for_whatever_the_marks_say() {
    let held = |mode: Value, ztunnel: bool, state: &str| json!([{"namespace": "shop", "name": "web", "mode": mode, "held_by_ztunnel": ztunnel, "state": state}]);
    for (told, pods, control, says) in [
        (true, held(json!("enforce"), false, "CAPTURE_NONE"), "ok", "n1: shop/web is held"),
        (true, held(Value::Null, true, "CAPTURE_NONE"), "ok", "n1: shop/web is held"),
        (true, held(Value::Null, false, "CAPTURE_WITHDRAWING"), "ok", "not known to be let go"),
        (false, json!([]), "ok", "not told"),
        (true, json!([]), "problem", "no stream to control"),
    ] {
        let cluster = cluster().await;
        free(&cluster);
        agent(&cluster, "n1", told, pods, control);
        let late = uninstall(&cluster.api(), "mesh", &args(&["--timeout=3"])).await.unwrap_err().to_string();
        assert!(late.contains(says), "{late}");
        assert!(cluster.deleted().is_empty());
    }
    let cluster = cluster().await;
    free(&cluster);
    agent(&cluster, "n1", true, held(Value::Null, false, "CAPTURE_NONE"), "ok");
    let done = uninstall(&cluster.api(), "mesh", &args(&[])).await.unwrap();
    assert_eq!(done, ExitCode::SUCCESS);
}

#[tokio::test(start_paused = true)]
async fn a_node_whose_agent_does_not_run_is_not_cleared_and_that_is_told() {
    for (phase, ready, code) in [
        ("Pending", "False", ExitCode::FAILURE),
        // Only that nobody may forward a port to it: control's marks have said what they could.
        ("Running", "True", ExitCode::SUCCESS),
    ] {
        let cluster = cluster().await;
        free(&cluster);
        agent(&cluster, "n1", true, json!([]), "ok");
        for path in ["/admin/agent-n1/pods.json", "/admin/agent-n1/checks.json"] {
            cluster.api().delete(path).await.unwrap();
        }
        let path = "/api/v1/namespaces/mesh/pods/agent-n1";
        let mut pod = cluster.get(path).unwrap();
        pod["status"] = json!({"phase": phase, "conditions": [{"type": "Ready", "status": ready}]});
        cluster.put(path, pod);
        assert_eq!(uninstall(&cluster.api(), "mesh", &args(&[])).await.unwrap(), code, "{phase}");
        assert!(cluster.get("/apis/apps/v1/namespaces/mesh/daemonsets/agent").is_none());
    }
}

#[tokio::test(start_paused = true)]
async fn a_mark_that_comes_late_is_seen() {
    let cluster = cluster().await;
    free(&cluster);
    let marks = cluster.clone();
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_secs(3)).await;
        let web = pod("shop", "web", json!({}), json!({MARK: "measured"}));
        marks.put("/api/v1/namespaces/shop/pods/web", web);
    });
    let late = uninstall(&cluster.api(), "mesh", &args(&["--timeout=9"])).await.unwrap_err().to_string();
    assert!(late.contains("shop/web") && cluster.deleted().is_empty(), "{late}");
}

#[tokio::test(start_paused = true)]
async fn without_control_nobody_leaves_unless_forced_and_that_is_told() {
    let control = "/apis/apps/v1/namespaces/mesh/deployments/control";
    let cluster = cluster().await;
    let mut down = cluster.get(control).unwrap();
    down["status"] = json!({"replicas": 1});
    cluster.put(control, down);
    let before = cluster.get("/api/v1/namespaces/shop");
    let refused = uninstall(&cluster.api(), "mesh", &args(&["--release-all"])).await.unwrap_err().to_string();
    assert!(refused.contains("no control is available") && refused.contains("--force"), "{refused}");
    assert_eq!(cluster.get("/api/v1/namespaces/shop"), before);
    free(&cluster);
    assert!(uninstall(&cluster.api(), "mesh", &args(&[])).await.is_err());
    assert!(cluster.deleted().is_empty());
    let forced = uninstall(&cluster.api(), "mesh", &args(&["--force"])).await.unwrap();
    assert_eq!((forced, cluster.get(control)), (ExitCode::FAILURE, None));
}

#[tokio::test(start_paused = true)]
async fn without_anybody_to_let_pods_go_no_label_is_taken_off() {
    let all = |cluster: &Cluster| -> Vec<_> {
        cluster.paths().into_iter().map(|path| (cluster.get(&path), path)).collect()
    };
    // As `kubectl delete namespace` leaves it: what is in no namespace is there still.
    let without = |cluster: &Cluster, gone: &str| {
        let paths = cluster.paths().into_iter().filter(|path| path.contains(gone));
        let api = cluster.api();
        let paths: Vec<String> = paths.collect();
        async move {
            for path in paths {
                api.delete(&path).await.unwrap();
            }
        }
    };
    for (gone, says) in [
        ("/namespaces/mesh/", "no control is available in the namespace mesh"),
        ("/daemonsets/agent", "no agent is there in the namespace mesh"),
        // All but control's keepsakes.
        ("mesh-", "no control is available in the namespace mesh"),
    ] {
        let cluster = cluster().await;
        without(&cluster, gone).await;
        if gone == "mesh-" {
            without(&cluster, "/apis/apps/v1/namespaces/mesh/").await;
            without(&cluster, "serviceaccounts").await;
            without(&cluster, "roles").await;
            without(&cluster, "rolebindings").await;
            without(&cluster, "mesh/services").await;
        }
        let before = all(&cluster);
        let started = Instant::now();
        let refused = uninstall(&cluster.api(), "mesh", &args(&["--release-all"])).await.unwrap_err();
        let refused = refused.to_string();
        assert!(refused.contains(says) && refused.contains("culvert install"), "{gone}: {refused}");
        assert_eq!((all(&cluster), started.elapsed()), (before, Duration::ZERO), "{gone}");
        if gone != "mesh-" {
            let plain = uninstall(&cluster.api(), "mesh", &args(&[])).await.unwrap_err().to_string();
            assert!(plain.contains(says), "{gone}: {plain}");
        }
        let forced = uninstall(&cluster.api(), "mesh", &args(&["--force"])).await.unwrap();
        assert_eq!(forced, ExitCode::FAILURE, "{gone}");
    }
    // Where nobody is in the mesh, what is left of one goes without control.
    let cluster = cluster().await;
    free(&cluster);
    without(&cluster, "/namespaces/mesh/").await;
    assert_eq!(uninstall(&cluster.api(), "mesh", &args(&[])).await.unwrap(), ExitCode::SUCCESS);
    // Nothing at all is left of it, but its captured pods.
    cluster.put("/api/v1/namespaces/shop/pods/web", pod("shop", "web", json!({}), json!({MARK: "measured"})));
    let refused = uninstall(&cluster.api(), "mesh", &args(&["--release-all"])).await.unwrap_err().to_string();
    assert!(refused.contains("shop/web") && refused.contains("cut off"), "{refused}");
}

#[tokio::test(start_paused = true)]
async fn labels_that_are_left_are_no_success() {
    let cluster = cluster().await;
    cluster.put("/api/v1/namespaces/shop/pods/web", pod("shop", "web", json!({}), json!({})));
    let forced = uninstall(&cluster.api(), "mesh", &args(&["--force"])).await.unwrap();
    assert_eq!(forced, ExitCode::FAILURE);
    // Nor are they at the next try, when no program is left.
    assert_eq!(uninstall(&cluster.api(), "mesh", &args(&[])).await.unwrap(), ExitCode::FAILURE);
    let behind = left_behind(&Enrolled::look(&cluster.api()).await.unwrap(), None);
    assert!(
        behind.len() == 1 && behind[0].contains("shop") && behind[0].contains("do not start"),
        "{behind:?}"
    );
    assert!(left_behind(&Enrolled::default(), None).is_empty());
    assert_eq!(left_behind(&Enrolled::default(), Some("no control")).len(), 1);
}
