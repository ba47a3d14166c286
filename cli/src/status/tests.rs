//! How a pod stands, from its labels and its agent's word.

use serde_json::json;

use super::{pods::State, *};
use crate::{check::DATAPLANE_MODE, rollout::Standing};

fn agent(said: Result<Value, String>) -> Program {
    let standing = Standing {
        program: "agent".to_owned(),
        pod: "agent-1".to_owned(),
        node: "n1".to_owned(),
        ready: true,
        why: String::new(),
    };
    Program { standing, tag: "1".to_owned(), said: [("/pods", said)].into(), ahead: None }
}

fn row(labels: Value, spec: Value, word: Option<Value>) -> Row {
    let namespace = json!({"metadata": {"name": "shop", "labels": {DATAPLANE_MODE: "ambient"}}});
    let mut pod = json!({"metadata": {"name": "web", "namespace": "shop", "uid": "u", "labels": labels},
                         "spec": {"nodeName": "n1", "serviceAccountName": "web"}, "status": {"phase": "Running"}});
    for (key, value) in spec.as_object().unwrap() {
        pod["spec"][key] = value.clone();
    }
    let agent = agent(Ok(json!({"pods": word.into_iter().collect::<Vec<_>>()})));
    let word = pods::word_of(Some(&agent), "u");
    pods::row(&pod, Some(&namespace), Some(&agent), word, "cluster.local")
}

#[test]
fn a_pod_stands_as_its_agent_says() {
    let word = |state: &str, reason: &str| {
        Some(json!({"uid": "u", "state": state, "reason": reason, "measured_seconds_ago": 4}))
    };
    for (labels, spec, word, state, says) in [
        (json!({}), json!({}), word("CAPTURE_MEASURED", ""), State::Captured, ""),
        (
            json!({}),
            json!({}),
            word("CAPTURE_UNSPECIFIED", "its capture is being attached"),
            State::Enrolling,
            "attached",
        ),
        (json!({}), json!({}), word("CAPTURE_FAILED", "no namespace"), State::Failed, "no namespace"),
        (json!({}), json!({}), word("CAPTURE_WITHDRAWING", ""), State::Leaving, "leaves"),
        (json!({}), json!({}), None, State::Enrolling, "control"),
        (json!({}), json!({"nodeName": ""}), None, State::Enrolling, "no node"),
        (json!({}), json!({"hostNetwork": true}), None, State::Out, "own network"),
        (json!({}), json!({"runtimeClassName": "kata-qemu"}), None, State::Out, "kernel of their own"),
        (json!({DATAPLANE_MODE: "none"}), json!({}), None, State::Out, "keeps it out"),
        (json!({DATAPLANE_MODE: "nope"}), json!({}), None, State::Out, "means nothing"),
        // The label is off, and its node still holds it: the node is believed.
        (json!({DATAPLANE_MODE: "none"}), json!({}), word("CAPTURE_MEASURED", ""), State::Captured, ""),
    ] {
        let row = row(labels, spec, word);
        assert_eq!(row.state, state, "{row:?}");
        assert!(row.why.contains(says) && row.concerns, "{row:?}");
    }
    let alone = Some(json!({"uid": "u", "state": "CAPTURE_MEASURED", "held_by_ztunnel": false}));
    assert_eq!(row(json!({}), json!({}), alone).state, State::CutOff);
    let captured = row(json!({}), json!({}), word("CAPTURE_MEASURED", ""));
    assert_eq!(captured.proof, "probed 4 s ago");
    assert_eq!(captured.identity, "spiffe://cluster.local/ns/shop/sa/web");
}

#[test]
fn an_agent_that_cannot_be_asked_leaves_the_annotation() {
    let namespace = json!({"metadata": {"name": "shop", "labels": {DATAPLANE_MODE: "ambient"}}});
    let pod = json!({"metadata": {"name": "web", "namespace": "shop", "annotations": {"culvert.dev/redirection": "measured"}},
                     "spec": {"nodeName": "n1"}, "status": {"phase": "Running"}});
    let silent = agent(Err("no answer".to_owned()));
    let held = pods::row(&pod, Some(&namespace), Some(&silent), None, "d");
    assert_eq!((held.state, held.proof.as_str()), (State::Captured, "annotation only"));
    assert!(held.why.contains("no answer"));
    let alone = pods::row(&pod, Some(&namespace), None, None, "d");
    assert!(alone.state == State::Failed && alone.why.contains("no agent"));
}

#[test]
fn mutual_tls_is_that_of_the_nearest_policy() {
    let policy = |namespace: &str, labels: Value, mode: &str| {
        json!({"metadata": {"name": mode, "namespace": namespace},
        "spec": {"selector": {"matchLabels": labels}, "mtls": {"mode": mode}}})
    };
    let pod = json!({"metadata": {"namespace": "shop", "labels": {"app": "web"}}});
    let mesh = policy("istio-system", json!({}), "STRICT");
    let of_namespace = policy("shop", json!({}), "PERMISSIVE");
    let own = policy("shop", json!({"app": "web"}), "STRICT");
    let unset = policy("shop", json!({"app": "web"}), "UNSET");
    let other = policy("shop", json!({"app": "db"}), "STRICT");
    for (policies, mode) in [
        (vec![], "PERMISSIVE"),
        (vec![mesh.clone()], "STRICT"),
        (vec![mesh.clone(), of_namespace.clone()], "PERMISSIVE"),
        (vec![mesh.clone(), of_namespace.clone(), own], "STRICT"),
        (vec![of_namespace.clone(), other], "PERMISSIVE"),
        (vec![mesh, unset], "STRICT"),
    ] {
        assert_eq!(check::tls_mode(&pod, &policies, &[]), mode, "{policies:?}");
    }
}

#[test]
fn ports_with_another_mode_are_starred() {
    let policy = |mode: &str, port: &str| {
        json!({"metadata": {"name": "p", "namespace": "shop"},
        "spec": {"selector": {"matchLabels": {"app": "web"}}, "mtls": {"mode": mode}, "portLevelMtls": {"80": {"mode": port}}}})
    };
    let pod = json!({"metadata": {"namespace": "shop", "labels": {"app": "web"}}});
    for (mode, port, says) in [
        ("STRICT", "PERMISSIVE", "STRICT*"),
        ("STRICT", "STRICT", "STRICT"),
        ("STRICT", "UNSET", "STRICT"),
        ("UNSET", "STRICT", "PERMISSIVE*"),
    ] {
        assert_eq!(check::tls_mode(&pod, &[policy(mode, port)], &[]), says, "{mode} {port}");
    }
}

#[tokio::test]
async fn policies_of_the_older_version_count_and_those_unseen_are_not_guessed() {
    let cluster = crate::cluster::Cluster::new();
    let labels = json!({DATAPLANE_MODE: "ambient"});
    cluster.put("/api/v1/namespaces/shop", json!({"metadata": {"name": "shop", "labels": labels}}));
    cluster.put(
        "/api/v1/namespaces/shop/pods/web",
        json!({"metadata": {"name": "web", "namespace": "shop"}, "spec": {"nodeName": "n1"}, "status": {"phase": "Running"}}),
    );
    let group = "/apis/security.istio.io/v1beta1";
    cluster.put(group, json!({"resources": [{"name": "peerauthentications"}]}));
    cluster.put(
        &format!("{group}/namespaces/shop/peerauthentications/p"),
        json!({"metadata": {"name": "p", "namespace": "shop"}, "spec": {"mtls": {"mode": "STRICT"}}}),
    );
    let api = cluster.api();
    let seen = Seen::gather(&api, "mesh", None).await.unwrap();
    assert_eq!(seen.rows(false)[0].tls, "STRICT");
    cluster.forbid(&format!("{group}/peerauthentications"));
    let seen = Seen::gather(&api, "mesh", None).await.unwrap();
    let rows = seen.rows(false);
    assert!(rows[0].tls.is_empty() && rows[0].cells()[4] == "–", "{rows:?}");
    assert!(seen.text(&rows, false, &Paint::plain()).contains("not known"));
}

#[tokio::test]
async fn where_no_mesh_is_those_it_has_left_behind_are_named() {
    let cluster = crate::cluster::Cluster::new();
    let said = async || nowhere(&cluster.api(), "mesh").await;
    assert!(said().await.contains("`culvert install` puts it there"));
    let marks = json!({"ambient.istio.io/redirection": "enabled"});
    cluster.put(
        "/api/v1/namespaces/shop/pods/web",
        json!({"metadata": {"name": "web", "namespace": "shop", "annotations": marks}, "status": {"phase": "Running"}}),
    );
    let said = said().await;
    for word in
        ["1 pod is marked as captured (shop/web)", "cut off", "new pods may not start", "--release-all"]
    {
        assert!(said.contains(word), "{said}");
    }
}

#[test]
fn a_long_reason_is_cut_in_the_table_and_whole_in_json() {
    let mut agent = agent(Err("it does not run".to_owned()));
    agent.standing.ready = false;
    agent.standing.why = format!("agent: ImagePullBackOff: Back-off pulling image {}", "x".repeat(400));
    let control = Program {
        standing: Standing { program: "control".to_owned(), ..agent.standing.clone() },
        ..agent.clone()
    };
    let seen = Seen {
        namespaces: Vec::new(),
        pods: Vec::new(),
        nodes: vec![json!({"metadata": {"name": "n1"}})],
        peer_authentication: None,
        workloads: Vec::new(),
        programs: vec![agent, control],
        now: 0,
    };
    let text = seen.text(&[], true, &Paint::plain());
    assert!(text.lines().all(|line| line.chars().count() <= 120), "{text}");
    assert!(
        text.contains("1 not ready: agent: ImagePullBackOff") && text.contains("culvert check"),
        "{text}"
    );
    assert!(seen.json(&[])["nodes"][0]["agent"].as_str().is_some_and(|said| said.len() > 400));
}

#[test]
fn certificates_are_counted_with_the_first_that_ends() {
    assert_eq!(certificates(&[], 0), "none");
    let all = [json!({"not_after": 7200}), json!({"not_after": 90_000})];
    assert_eq!(certificates(&all, 0), "2, the first ends in 2 h");
    assert_eq!(certificates(&all, 7260), "2, the first expired 1 min ago");
}
