//! Each check: objects in, findings out.

use serde_json::json;

use super::*;
use crate::{programs::Program, rollout::Standing};

fn facts() -> Facts {
    Facts {
        namespace: "mesh".to_owned(),
        version: json!({"major": "1", "minor": "34", "gitVersion": "v1.34.0"}),
        namespaces: vec![
            json!({"metadata": {"name": "shop", "labels": {DATAPLANE_MODE: AMBIENT, "team": "shop"}}}),
            json!({"metadata": {"name": "plain", "labels": {"team": "other"}}}),
        ],
        asked: true,
        now: 1_000_000,
        ..Facts::default()
    }
}

fn program(name: &str, node: &str, path: &'static str, said: Value) -> Program {
    Program {
        standing: Standing {
            program: name.to_owned(),
            pod: format!("{name}-{node}"),
            node: node.to_owned(),
            ready: true,
            why: String::new(),
        },
        tag: "cli".to_owned(),
        said: [(path, Ok(said))].into(),
        ahead: Some(0),
    }
}

/// The findings of a check that are not ok: level, object, and that both texts say something.
fn wrong(findings: &[Finding]) -> Vec<(Level, &str)> {
    let wrong = findings.iter().filter(|one| one.level != Level::Ok);
    wrong.map(|one| (one.level, one.about.as_str())).collect()
}

fn one(findings: &[Finding], level: Level, says: &str) {
    let matching: Vec<&Finding> = findings
        .iter()
        .filter(|one| one.level == level && format!("{} {} {}", one.about, one.seen, one.mend).contains(says))
        .collect();
    assert_eq!(matching.len(), 1, "{level:?} {says:?} in {findings:#?}");
}

#[test]
fn versions_of_kubernetes_are_compared_as_numbers() {
    for (minor, level) in
        [("34", Level::Ok), ("28+", Level::Ok), ("27", Level::Problem), ("9", Level::Problem)]
    {
        let version = json!({"major": "1", "minor": minor, "gitVersion": "v"});
        assert_eq!(before::kubernetes(&Facts { version, ..facts() })[0].level, level, "{minor}");
    }
}

#[test]
fn missing_rights_are_named() {
    let with = |refused: &[&str]| Facts {
        refused: refused.iter().map(|one| (*one).to_owned()).collect(),
        ..facts()
    };
    assert!(wrong(&before::rights(&with(&[]))).is_empty());
    one(&before::rights(&with(&["patch clusterroles"])), Level::Problem, "patch clusterroles");
    let unseen = Facts { unseen: vec!["nodes".to_owned()], ..facts() };
    one(&before::rights(&unseen), Level::Warning, "may not list nodes");
    one(&before::rights(&with(&["create pods/portforward"])), Level::Warning, "forward ports");
}

#[test]
fn a_namespace_that_refuses_privileged_pods_is_a_problem() {
    let mut facts = facts();
    assert!(wrong(&before::pod_security(&facts)).is_empty());
    facts.namespaces.push(
        json!({"metadata": {"name": "mesh", "labels": {"pod-security.kubernetes.io/enforce": "restricted"}}}),
    );
    one(&before::pod_security(&facts), Level::Problem, "kubectl label --overwrite namespace mesh");
}

#[test]
fn other_meshes_are_seen() {
    let mut facts = facts();
    assert!(wrong(&before::other_meshes(&facts)).is_empty());
    facts.daemonsets = vec![
        json!({"metadata": {"name": "ztunnel", "namespace": "istio-system"}}),
        json!({"metadata": {"name": "ztunnel", "namespace": "mesh", "labels": {"app.kubernetes.io/part-of": "culvert"}}}),
    ];
    facts.deployments = vec![
        json!({"metadata": {"name": "istiod", "namespace": "istio-system", "labels": {"app": "istiod"}}}),
    ];
    let findings = before::other_meshes(&facts);
    one(&findings, Level::Problem, "istio-system/ztunnel");
    one(&findings, Level::Warning, "istiod is there");
    assert_eq!(findings.len(), 2);
}

#[test]
fn a_waypoint_that_cannot_be_called_is_a_problem_and_no_obstacle() {
    let gateway = |class: &str, status: &str| {
        json!({
            "metadata": {"name": "wp", "namespace": "shop"}, "spec": {"gatewayClassName": class},
            "status": {"conditions": [{"type": "Programmed", "status": status, "reason": "Pending", "message": "why"}]},
        })
    };
    let with = |gateways: Option<Vec<Value>>| {
        let workloads = vec![json!({"status": {"replicas": 1}})];
        waypoints::check(&Facts { gateways, workloads, ..facts() })
    };
    assert!(wrong(&with(None)).is_empty() && wrong(&with(Some(Vec::new()))).is_empty());
    let others = [gateway("culvert-waypoint", "True"), gateway("nginx", "False")];
    assert!(wrong(&with(Some(others.to_vec()))).is_empty());
    let findings = with(Some(vec![gateway("istio-waypoint", "False")]));
    one(&findings, Level::Problem, "Pending: why");
    assert_eq!(Report { findings, installed: true }.obstacles(), 0);
}

#[test]
fn a_second_mesh_of_ours_is_an_obstacle() {
    let labels = json!({"app.kubernetes.io/part-of": "culvert"});
    let set = |name: &str, namespace: &str| json!({"metadata": {"name": name, "namespace": namespace, "labels": labels}});
    let mut facts = facts();
    facts.daemonsets = vec![set("agent", "mesh"), set("ztunnel", "mesh")];
    assert!(wrong(&before::other_meshes(&facts)).is_empty());
    facts.daemonsets.extend([set("agent", "first"), set("ztunnel", "first")]);
    one(&before::other_meshes(&facts), Level::Problem, "--namespace first");
    let findings = before::other_meshes(&facts);
    assert_eq!(Report { findings, installed: false }.obstacles(), 1);
}

#[tokio::test]
async fn pods_whose_mesh_is_gone_are_a_problem_and_no_obstacle() {
    let cluster = crate::cluster::Cluster::new();
    let labels = json!({DATAPLANE_MODE: AMBIENT});
    let shop = |labels: Value| json!({"metadata": {"name": "shop", "labels": labels}});
    cluster.put("/api/v1/namespaces/shop", shop(labels));
    let seen = async || judge(&Facts::gather(&cluster.api(), "mesh", true).await.unwrap());
    let report = seen().await;
    one(&report.findings, Level::Warning, "shop asks for the mesh");
    assert_eq!(report.problems(), 0);
    let marks = json!({"culvert.dev/redirection": "measured"});
    cluster.put(
        "/api/v1/namespaces/shop/pods/web",
        json!({"metadata": {"name": "web", "namespace": "shop", "annotations": marks}, "status": {"phase": "Running"}}),
    );
    let report = seen().await;
    one(&report.findings, Level::Problem, "1 pod is marked as captured (shop/web)");
    one(&report.findings, Level::Problem, "culvert uninstall --release-all");
    assert!(report.problems() == 1 && !report.text(&Paint::plain()).contains("Nothing is wrong"));
    assert_eq!(before(&cluster.api(), "mesh").await.unwrap().obstacles(), 0);
    cluster.forbid("/apis/apps/v1/daemonsets");
    assert_eq!(seen().await.problems(), 0);
}

#[test]
fn old_kernels_and_strange_nodes_are_named() {
    let node = |name: &str, kernel: &str, system: &str, architecture: &str| {
        json!({"metadata": {"name": name}, "status": {"nodeInfo":
            {"kernelVersion": kernel, "operatingSystem": system, "architecture": architecture}}})
    };
    let nodes = vec![
        node("good", "6.6.1", "linux", "amd64"),
        node("old", "5.15.0-91", "linux", "arm64"),
        node("odd", "6.12.0", "linux", "s390x"),
        node("win", "10.0.20348", "windows", "amd64"),
    ];
    let findings = nodes::kernels(&Facts { nodes, ..facts() });
    one(&findings, Level::Problem, "Node old");
    one(&findings, Level::Problem, "s390x");
    one(&findings, Level::Warning, "Node win");
    assert_eq!(wrong(&findings).len(), 3);
}

#[test]
fn networks_that_get_in_the_way_are_told_how_to_stay_out() {
    let cilium = |data: Value| networks::check(&Facts { cilium: Some(json!({"data": data})), ..facts() });
    one(&cilium(json!({"cni-exclusive": "true"})), Level::Problem, "cni.exclusive=false");
    let findings = cilium(json!({"cni-exclusive": "false", "kube-proxy-replacement": "true"}));
    one(&findings, Level::Problem, "socketLB.hostNamespaceOnly=true");
    let good = json!({"cni-exclusive": "false", "bpf-lb-sock": "true", "bpf-lb-sock-hostns-only": "true"});
    assert!(wrong(&cilium(good)).is_empty());
    let calico = |spec: Value| networks::check(&Facts { felix: vec![json!({"spec": spec})], ..facts() });
    one(&calico(json!({"bpfEnabled": true})), Level::Problem, "bpfConnectTimeLoadBalancing");
    assert!(
        wrong(&calico(json!({"bpfEnabled": true, "bpfConnectTimeLoadBalancing": "Disabled"}))).is_empty()
    );
    assert!(wrong(&calico(json!({}))).is_empty());
}

#[test]
fn network_policies_that_close_15008_get_the_patch_that_opens_it() {
    let policy = |namespace: &str, spec: Value| json!({"metadata": {"name": "p", "namespace": namespace}, "spec": spec});
    let ports = |ports: Value| json!({"podSelector": {}, "ingress": [{"from": [{"podSelector": {}}], "ports": ports}]});
    let judge = |policies: Vec<Value>| {
        network_policy::check(&Facts { network_policies: policies, ..facts() })
            .into_iter()
            .map(|one| (one.level, one.mend))
            .collect::<Vec<_>>()
    };
    let is = |policies: Vec<Value>, level: Level| {
        let found = judge(policies);
        assert_eq!(found.iter().map(|(level, _)| *level).max(), Some(level), "{found:?}");
    };
    let closed = ports(json!([{"port": 8080}]));
    is(vec![policy("shop", closed.clone())], Level::Problem);
    let patch = &judge(vec![policy("shop", closed.clone())])[0].1;
    assert!(
        patch.contains("--namespace shop")
            && patch.contains("/spec/ingress/0/ports/-")
            && patch.contains("15008"),
        "{patch}"
    );
    // Outside of the mesh it is a word of warning at most.
    is(vec![policy("plain", json!({"ingress": [{"ports": [{"port": 8080}]}]}))], Level::Warning);
    for open in [
        ports(json!([])),
        ports(json!([{"port": 8080}, {"port": 15008}])),
        ports(json!([{"port": 15000, "endPort": 16000}])),
        ports(json!([{"protocol": "TCP"}])),
        ports(json!([{"protocol": "UDP", "port": 53}])),
        json!({"podSelector": {}, "ingress": []}),
        // Not to the mesh: to addresses, and to a namespace that is not in it.
        json!({"podSelector": {}, "egress": [{"to": [{"ipBlock": {"cidr": "192.0.2.0/24"}}], "ports": [{"port": 5432}]}]}),
        json!({"podSelector": {}, "egress": [{"to": [{"namespaceSelector": {"matchLabels": {"team": "other"}}}], "ports": [{"port": 53}]}]}),
    ] {
        is(vec![policy("shop", open)], Level::Ok);
    }
    let to_shop = json!({"egress": [{"to": [{"namespaceSelector": {"matchLabels": {"team": "shop"}}}], "ports": [{"port": 80}]}]});
    is(vec![policy("shop", to_shop)], Level::Problem);
    // Another policy of the same pods lets it through.
    let opener = json!({"podSelector": {}, "ingress": [{"ports": [{"port": 15008}]}]});
    is(vec![policy("shop", closed), policy("shop", opener)], Level::Ok);
}

#[test]
fn labels_that_mean_nothing_are_told() {
    let mut facts = facts();
    assert!(wrong(&mesh::labels(&facts)).is_empty());
    facts.namespaces.push(json!({"metadata": {"name": "typo", "labels": {DATAPLANE_MODE: "ambiant"}}}));
    facts
        .pods
        .push(json!({"metadata": {"name": "p", "namespace": "shop", "labels": {DATAPLANE_MODE: "off"}}}));
    facts
        .pods
        .push(json!({"metadata": {"name": "q", "namespace": "shop", "labels": {DATAPLANE_MODE: "none"}}}));
    assert_eq!(
        wrong(&mesh::labels(&facts)),
        [(Level::Warning, "Namespace typo"), (Level::Warning, "Pod shop/p")]
    );
}

#[test]
fn policies_that_control_refuses_or_that_select_nothing_are_told_with_their_field() {
    let mut facts = facts();
    facts.pods.push(json!({"metadata": {"name": "web", "namespace": "shop", "labels": {"app": "web"}}}));
    let policy = |app: &str, rules: Value| {
        json!({"metadata": {"name": app, "namespace": "shop"},
        "spec": {"selector": {"matchLabels": {"app": app}}, "rules": rules}})
    };
    let paths = json!([{"to": [{"operation": {"paths": ["/x"]}}]}]);
    facts.authorization = vec![policy("web", paths), policy("wep", json!([]))];
    let findings = mesh::policies(&facts);
    one(&findings, Level::Warning, "spec.rules[0].to[0].operation.paths");
    one(&findings, Level::Warning, "shop/wep");
    // Control, once it speaks, says the former itself, and better; replicas say it once.
    let problem =
        json!({"object": "AuthorizationPolicy shop/web", "field": "spec.rules[0]", "reason": "only layer 7"});
    let label = json!({"object": "Pod shop/p", "field": "metadata.labels", "reason": "means nothing"});
    let said = json!({"refused": [problem], "warnings": [label]});
    facts.programs = ["n1", "n2"].map(|node| program("control", node, "/status", said.clone())).into();
    let findings = mesh::policies(&facts);
    one(&findings, Level::Problem, "spec.rules[0]: only layer 7");
    assert_eq!(wrong(&findings).len(), 2, "{findings:#?}");
}

#[test]
fn nodes_without_programs_and_programs_of_other_versions_are_named() {
    let mut facts = facts();
    let set = |name: &str| {
        json!({"kind": "DaemonSet", "metadata": {"name": name}, "status": {},
        "spec": {"template": {"spec": {"nodeSelector": {"kubernetes.io/os": "linux"}}}}})
    };
    facts.workloads = vec![set("agent"), json!({"kind": "Deployment", "metadata": {"name": "control"}})];
    let node = |name: &str, os: &str| json!({"metadata": {"name": name, "labels": {"kubernetes.io/os": os}}});
    facts.nodes = vec![node("n1", "linux"), node("n2", "linux"), node("w", "windows")];
    facts.programs = vec![program("agent", "n1", "/checks", json!({"version": "9.9"}))];
    let findings = nodes::programs(&facts);
    one(&findings, Level::Problem, "Node n2");
    one(&findings, Level::Problem, "Deployment control");
    assert_eq!(wrong(&findings).len(), 2);
    one(&nodes::versions(&facts), Level::Warning, "agent on n1 9.9");
    facts.nodes.clear();
    let none = Facts { programs: Vec::new(), ..facts };
    one(&nodes::programs(&none), Level::Problem, "agent it runs nowhere");
    let mut facts = none;
    facts.programs = vec![program("agent", "n1", "/checks", json!({"version": "9.9"}))];
    facts.programs[0].standing.ready = false;
    facts.programs[0].standing.why = "agent: CrashLoopBackOff: x".to_owned();
    one(&nodes::programs(&facts), Level::Problem, "logs agent-n1");
    facts.programs[0].standing.why = "agent: ImagePullBackOff: x".to_owned();
    let findings = nodes::programs(&facts);
    one(&findings, Level::Problem, "kind load docker-image");
    assert!(!findings.iter().any(|one| one.mend.contains("logs")), "{findings:#?}");
}

#[test]
fn what_agents_find_is_told_once_for_all_nodes_that_find_it() {
    let said = |state: &str| json!({"checks": [{"check": "btf", "state": state, "found": "f", "mend": "m"}]});
    let mut facts = facts();
    facts.programs = ["n1", "n2"].map(|node| program("agent", node, "/checks", said("ok"))).into();
    facts.programs.push(program("agent", "n3", "/checks", said("problem")));
    let findings = nodes::own(&facts);
    assert_eq!(findings.len(), 2);
    one(&findings, Level::Ok, "n1, n2");
    assert_eq!(wrong(&findings), [(Level::Problem, "n3")]);
}

#[test]
fn clocks_and_certificates_that_are_off_are_named() {
    let mut facts = facts();
    let of = |begin: i64, end: i64, error: Value| json!({"identity": "i", "not_before": begin, "not_after": end, "last_error": error});
    for (ahead, level) in [(2, Level::Ok), (-30, Level::Warning), (90, Level::Problem)] {
        facts.programs = vec![Program { ahead: Some(ahead), ..program("agent", "n1", "/checks", json!({})) }];
        assert_eq!(clocks::clocks(&facts)[0].level, level, "{ahead}");
    }
    for (certificate, level) in [
        (of(999_000, 1_001_000, Value::Null), Level::Ok),
        (of(900_000, 1_000_100, Value::Null), Level::Warning),
        (of(999_000, 1_001_000, json!("control is away")), Level::Warning),
        (of(900_000, 999_000, Value::Null), Level::Problem),
        (json!({"identity": "i"}), Level::Problem),
    ] {
        facts.programs =
            vec![program("ztunnel", "n1", "/certificates", json!({"certificates": [certificate]}))];
        assert_eq!(clocks::certificates(&facts)[0].level, level, "{certificate}");
    }
    assert_eq!(clocks::root(&facts)[0].level, Level::Problem);
    facts.roots = Some(json!({"data": {"root-cert.pem": "nonsense"}}));
    one(&clocks::root(&facts), Level::Problem, "holds no certificate");
}

#[test]
fn a_root_that_ends_is_exchanged_where_it_is_from() {
    let advice = |cacerts| clocks::another_root(&Facts { cacerts, ..facts() });
    let rotate = "kubectl --namespace mesh annotate secret culvert-ca culvert.dev/rotate=now";
    let (own, given, unknown) = (advice(Some(false)), advice(Some(true)), advice(None));
    assert!(own.starts_with(rotate) && !own.contains("cacerts"), "{own}");
    assert!(given.contains("root-cert.pem") && given.contains("cert-chain.pem") && !given.contains(rotate));
    assert!(unknown.contains(rotate) && unknown.contains("root-cert.pem"), "{unknown}");
}

#[tokio::test]
async fn who_signs_and_what_is_written_is_seen() {
    let cluster = crate::cluster::Cluster::new();
    let secret = "/api/v1/namespaces/mesh/secrets/cacerts";
    let gathered = async || Facts::gather(&cluster.api(), "mesh", false).await.unwrap();
    assert_eq!(gathered().await.cacerts, Some(false));
    cluster.put(secret, json!({"metadata": {"name": "cacerts"}}));
    assert_eq!(gathered().await.cacerts, Some(true));
    cluster.forbid(secret);
    assert_eq!(gathered().await.cacerts, None);
    let group = "/apis/security.istio.io/v1beta1";
    cluster.put(group, json!({"resources": [{"name": "authorizationpolicies"}]}));
    cluster.put(
        &format!("{group}/namespaces/shop/authorizationpolicies/p"),
        json!({"metadata": {"name": "p", "namespace": "shop"}}),
    );
    assert_eq!(gathered().await.authorization.len(), 1);
    cluster.forbid(&format!("{group}/authorizationpolicies"));
    assert_eq!(gathered().await.unseen, ["authorizationpolicies"]);
    let definition =
        "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/peerauthentications.security.istio.io";
    cluster.put(definition, json!({"metadata": {"name": "peerauthentications.security.istio.io"}}));
    one(&mesh::policies(&gathered().await), Level::Warning, "peerauthentications.security.istio.io");
}

#[test]
fn the_worst_comes_last_and_the_sum_says_it() {
    let findings = vec![Finding::problem("a", "x", "bad", "do"), Finding::ok("b", "fine")];
    let text = Report { findings, installed: true }.text(&Paint::plain());
    assert!(text.find("fine") < text.find("bad") && text.contains("→ do"), "{text}");
    assert!(text.ends_with("1 problem with the mesh.\n"), "{text}");
}
