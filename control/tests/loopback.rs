//! Control and its clients in one process, over loopback TLS.

mod bed;

use std::{fs, time::Duration};

use bed::{Bed, CLIENT, PATIENCE, SHOP, WEB, deny, until};
use identity::{Identity, IssueError, Issuer};
use mesh::{PolicyKey, ServiceKey, Snapshot, Tunnel};
use proto::{ADDRESS_TYPE, AUTHORIZATION_TYPE, node::CaptureState};
use tokio::time::timeout;
use tonic::Code;

fn denied_port(snapshot: &Snapshot) -> Option<u16> {
    let policy = snapshot.policy(&PolicyKey { namespace: "shop".into(), name: "p".into() })?;
    Some(policy.rules[0].clauses[0].matches[0].destination_ports[0])
}

fn tunnel(snapshot: &Snapshot, uid: &str) -> Option<Tunnel> {
    Some(snapshot.workload(uid)?.tunnel)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_folder_becomes_the_mesh_of_a_node() {
    let bed = Bed::start(SHOP).await;
    let follower = bed.follow("node-a");
    follower.complete().await;
    let snapshot = follower.mesh.current();
    assert_eq!(snapshot.workloads().count(), 2);
    let web = snapshot.workload_at("", "10.0.2.1".parse().unwrap()).unwrap();
    assert_eq!((&*web.uid, &*web.node, web.tunnel), (WEB, "node-b", Tunnel::None));
    let key = ServiceKey { namespace: "shop".into(), hostname: "web.shop.svc.cluster.local".into() };
    assert_eq!(snapshot.service_at("", "10.96.0.1".parse().unwrap()).unwrap().key, key);
    assert!(web.services.contains_key(&key));
    assert_eq!(snapshot.policies().count(), 0, "complete without any policy");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_edit_is_in_force_within_a_second_and_a_bad_one_changes_nothing() {
    let bed = Bed::start(SHOP).await;
    let follower = bed.follow("node-a");
    follower.complete().await;
    bed.write("policy.yaml", &deny("8080"));
    let took = follower.until("8080 denied", |snapshot| denied_port(snapshot) == Some(8080)).await;
    assert!(took < Duration::from_secs(1), "{took:?}");
    let named = |snapshot: &Snapshot| !snapshot.workload(WEB).unwrap().authorization_policies.is_empty();
    follower.until("the workload names it", named).await;

    bed.write("policy.yaml", &deny("eighty"));
    // A second file proves that the first was read.
    bed.write(
        "more.yaml",
        "{apiVersion: v1, kind: Pod, metadata: {name: more, namespace: shop}, status: {podIP: 10.0.9.9}}",
    );
    follower.until("a third pod", |snapshot| snapshot.workloads().count() == 3).await;
    assert_eq!(denied_port(&follower.mesh.current()), Some(8080));

    // Not after a restart of control either.
    let bed = bed.restart().await;
    let other = bed.follow("node-b");
    other.complete().await;
    assert_eq!(denied_port(&other.mesh.current()), Some(8080));

    bed.write("policy.yaml", &deny("9090"));
    follower.until("9090 denied", |snapshot| denied_port(snapshot) == Some(9090)).await;
    fs::remove_file(bed.manifests.path().join("policy.yaml")).unwrap();
    follower.until("no policy", |snapshot| denied_port(snapshot).is_none() && !named(snapshot)).await;
}

/// At no moment does a workload name a policy that is not there: its callers would be refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_comes_before_who_names_it_and_goes_after() {
    let bed = Bed::start(SHOP).await;
    let follower = bed.follow("node-a");
    follower.complete().await;
    let (mesh, mut changes) = (follower.mesh.clone(), follower.mesh.subscribe());
    let watcher = tokio::spawn(async move {
        let mut seen = 0;
        while changes.changed().await.is_ok() {
            let snapshot = changes.borrow_and_update().clone();
            let Some(web) = snapshot.workload(WEB) else { break };
            for key in &web.authorization_policies {
                assert!(snapshot.policy(key).is_some(), "{key} is named and not there");
                seen += 1;
            }
            if snapshot.workload("Kubernetes//Pod/shop/last").is_some() {
                break;
            }
        }
        drop(mesh);
        seen
    });
    for _ in 0..5 {
        bed.write("policy.yaml", &deny("8080"));
        follower.until("denied", |snapshot| denied_port(snapshot) == Some(8080)).await;
        fs::remove_file(bed.manifests.path().join("policy.yaml")).unwrap();
        follower.until("allowed", |snapshot| denied_port(snapshot).is_none()).await;
    }
    bed.write(
        "last.yaml",
        "{apiVersion: v1, kind: Pod, metadata: {name: last, namespace: shop}, status: {podIP: 10.0.9.9}}",
    );
    assert!(timeout(PATIENCE, watcher).await.unwrap().unwrap() >= 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_comes_back_is_sent_only_what_differs() {
    let bed = Bed::start(SHOP).await;
    let mut stream = bed.stream("node-a").await.unwrap();
    stream.subscribe(ADDRESS_TYPE, &["*"], &[]);
    let first = stream.next().await;
    assert_eq!(first.resources.len(), 3);
    let mut held: Vec<(String, String)> =
        first.resources.iter().map(|resource| (resource.name.clone(), resource.version.clone())).collect();
    held.push(("Kubernetes//Pod/shop/gone".into(), "1".into()));
    drop(stream);
    let bed = bed.restart().await;
    bed.write(
        "more.yaml",
        "{apiVersion: v1, kind: Pod, metadata: {name: more, namespace: shop}, status: {podIP: 10.0.9.9}}",
    );
    let proof = bed.follow("node-b");
    proof.until("a third pod", |snapshot| snapshot.workloads().count() == 3).await;

    let mut stream = bed.stream("node-a").await.unwrap();
    stream.subscribe(ADDRESS_TYPE, &["*"], &held);
    let again = stream.next().await;
    let names: Vec<&str> = again.resources.iter().map(|resource| resource.name.as_str()).collect();
    assert_eq!(names, ["Kubernetes//Pod/shop/more"]);
    assert_eq!(again.removed_resources, ["Kubernetes//Pod/shop/gone"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn addresses_can_be_asked_for_one_by_one() {
    let bed = Bed::start(SHOP).await;
    let mut stream = bed.stream("node-a").await.unwrap();
    stream.subscribe(ADDRESS_TYPE, &["/10.96.0.1", CLIENT, "/10.8.8.8"], &[]);
    let answer = stream.next().await;
    let mut names: Vec<&str> = answer.resources.iter().map(|resource| resource.name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, [CLIENT, WEB, "shop/web.shop.svc.cluster.local"]);
    assert_eq!(answer.removed_resources, ["/10.8.8.8"]);
    stream.subscribe(AUTHORIZATION_TYPE, &["*"], &[]);
    let answer = stream.next().await;
    assert_eq!((answer.type_url.as_str(), answer.resources.len()), (AUTHORIZATION_TYPE, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_shows_in_status_and_does_not_stop_the_stream() {
    let bed = Bed::start(SHOP).await;
    let mut stream = bed.stream("node-a").await.unwrap();
    stream.subscribe(ADDRESS_TYPE, &["*"], &[]);
    let answer = stream.next().await;
    stream.acknowledge(&answer, Some("shop/web: I do not like it"));
    let clients = bed.clients.clone();
    until("the refusal is known", || {
        clients.list().iter().any(|client| {
            client.node == "node-a"
                && client.refused.get("address").is_some_and(|text| text.contains("do not like"))
        })
    })
    .await;
    bed.write(
        "more.yaml",
        "{apiVersion: v1, kind: Pod, metadata: {name: more, namespace: shop}, status: {podIP: 10.0.9.9}}",
    );
    assert_eq!(stream.next().await.resources[0].name, "Kubernetes//Pod/shop/more");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_proves_no_node_gets_nothing() {
    let bed = Bed::start(SHOP).await;
    let write = |name: &str, token: &str| {
        let path = bed.state.path().join(name);
        fs::write(&path, token).unwrap();
        path
    };
    let good = fs::read_to_string(bed.state.path().join("tokens/node-a")).unwrap();
    let tokens = control::tokens::Tokens::load_or_create(bed.state.path()).unwrap();
    let now = std::time::SystemTime::now();
    let others = control::tokens::Tokens::from_key(&[7; 32]).unwrap();
    let forged = others.make("node-a", now + Duration::from_secs(60));
    let cases = [
        ("forged", forged, "was not made by this control"),
        ("foreign", "eyJhbGciOiJub25lIn0.e30.".to_owned(), "not one of control's"),
        ("stranger", tokens.make("node-z", now + Duration::from_secs(60)), "no Node object is named node-z"),
        ("old", tokens.make("node-a", now - Duration::from_secs(60)), "ended"),
    ];
    for (name, token, reason) in cases {
        let access = bed.access_with(write(name, &token));
        let Err(status) = bed::RawStream::open(access).await else { panic!("{name} was let in") };
        assert_eq!(status.code(), Code::Unauthenticated, "{name}");
        assert!(status.message().contains(reason), "{name}: {}", status.message());
    }
    // A node that is taken out of the mesh is out, token or not.
    bed.write("shop.yaml", &SHOP.replace("{apiVersion: v1, kind: Node, metadata: {name: node-a}}\n---", ""));
    let access = bed.access_with(write("kept", &good));
    let token = bed.state.path().join("tokens/node-a");
    until("the token is gone", || !token.exists()).await;
    let Err(status) = bed::RawStream::open(access).await else { panic!("a removed node was let in") };
    assert_eq!(status.code(), Code::Unauthenticated);
}

/// The request of a ztunnel for an identity, with a key of its own.
async fn certificate(bed: &Bed, node: &str, identity: &Identity) -> Result<Vec<String>, IssueError> {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::default();
    let uri = identity.to_string().try_into().unwrap();
    params.subject_alt_names = vec![rcgen::SanType::URI(uri)];
    let csr = params.serialize_request(&key).unwrap().pem().unwrap();
    let client = xds::CaClient::new(bed.access(node), "Kubernetes", Duration::from_secs(600));
    client.issue(identity, csr).await.map(|issued| issued.chain_pem)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_gets_certificates_of_its_own_pods_only() {
    let bed = Bed::start(SHOP).await;
    let of = |account: &str| Identity::new("cluster.local", "shop", account);
    let chain = certificate(&bed, "node-a", &of("client")).await.unwrap();
    let root = fs::read_to_string(bed.state.path().join("ca/root.pem")).unwrap();
    assert_eq!(chain.last().map(|pem| pem.trim()), Some(root.trim()));
    let Err(IssueError::Denied(reason)) = certificate(&bed, "node-a", &of("web")).await else {
        panic!("node-a got the identity of a pod of node-b")
    };
    assert_eq!(reason, "no enrolled pod of spiffe://cluster.local/ns/shop/sa/web runs on node node-a");
    assert!(certificate(&bed, "node-b", &of("web")).await.is_ok());
    let foreign = Identity::new("elsewhere", "shop", "client");
    assert!(matches!(certificate(&bed, "node-a", &foreign).await, Err(IssueError::Denied(_))));

    // A pod that is not to be in the mesh gives its node no identity.
    bed.write("shop.yaml", &SHOP.replace("istio.io/dataplane-mode: ambient", "a: b"));
    let proof = bed.agent("node-a").await;
    proof.unwrap().until("u-client", |pod| !pod.enroll).await;
    assert!(matches!(certificate(&bed, "node-a", &of("client")).await, Err(IssueError::Denied(_))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_is_told_as_hbone_once_measured_and_withdrawn_before_it_is_let_go() {
    let bed = Bed::start(SHOP).await;
    let follower = bed.follow("node-b");
    follower.complete().await;
    let mut agent = bed.agent("node-a").await.unwrap();
    let pod = agent.until("u-client", |pod| pod.enroll).await;
    assert_eq!(
        (pod.addresses, pod.service_account.as_str(), pod.trust_domain.as_str()),
        (vec!["10.0.1.1".to_owned()], "client", "cluster.local")
    );
    assert_eq!(tunnel(&follower.mesh.current(), CLIENT), Some(Tunnel::None));
    agent.report("u-client", CaptureState::CaptureMeasured);
    follower.until("hbone", |snapshot| tunnel(snapshot, CLIENT) == Some(Tunnel::Hbone)).await;

    // A control that restarts, and an agent that does not know yet, change nothing.
    let bed = bed.restart().await;
    let other = bed.follow("node-b");
    other.complete().await;
    assert_eq!(tunnel(&other.mesh.current(), CLIENT), Some(Tunnel::Hbone));
    drop((follower, other));

    // A peer that takes its time to acknowledge.
    let mut peer = bed.stream("node-b").await.unwrap();
    peer.subscribe(ADDRESS_TYPE, &["*"], &[]);
    let first = peer.next().await;
    peer.acknowledge(&first, None);
    let mut agent = bed.agent("node-a").await.unwrap();
    bed.write(
        "shop.yaml",
        &SHOP.replace("istio.io/dataplane-mode: ambient", "istio.io/dataplane-mode: none"),
    );
    let pod = agent.until("u-client", |pod| !pod.enroll).await;
    assert!(!pod.withdrawn);
    agent.report("u-client", CaptureState::CaptureWithdrawing);
    let withdrawal = peer.next().await;
    assert_eq!(withdrawal.resources.len(), 1);
    let early = timeout(Duration::from_millis(300), agent.until("u-client", |pod| pod.withdrawn)).await;
    assert!(early.is_err(), "withdrawn before the peer has acknowledged");
    peer.acknowledge(&withdrawal, None);
    agent.until("u-client", |pod| pod.withdrawn).await;

    // Enrolled again while it drains: from the beginning.
    bed.write("shop.yaml", SHOP);
    let pod = agent.until("u-client", |pod| pod.enroll).await;
    assert!(!pod.withdrawn);
}

/// A directive without pods would make the agent let all of them go.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_that_empties_under_control_is_no_word_to_the_nodes() {
    let bed = Bed::start(SHOP).await;
    let follower = bed.follow("node-a");
    follower.complete().await;
    let mut agent = bed.agent("node-a").await.unwrap();
    agent.until("u-client", |pod| pod.enroll).await;
    // Word of a namespace may come, and names the pod as before.
    let silence = async |agent: &mut bed::RawAgent| {
        while let Ok(word) = timeout(Duration::from_secs(1), agent.directives.message()).await {
            let word = word.unwrap().unwrap();
            let pods: Vec<(&str, bool)> = word.pods.iter().map(|pod| (&*pod.uid, pod.enroll)).collect();
            assert_eq!(pods, [("u-client", true)], "{word:?}");
        }
    };
    fs::remove_file(bed.manifests.path().join("shop.yaml")).unwrap();
    silence(&mut agent).await;
    assert_eq!(follower.mesh.current().workloads().count(), 2);
    // Something is there again, and the Node is not among it.
    bed.write("more.yaml", "{apiVersion: v1, kind: Namespace, metadata: {name: other}}");
    follower.until("no workload", |snapshot| snapshot.workloads().count() == 0).await;
    silence(&mut agent).await;
    // Of a node that is known, no pod means no pod.
    bed.write("more.yaml", "{apiVersion: v1, kind: Node, metadata: {name: node-a}}");
    let word = timeout(PATIENCE, agent.directives.message()).await.unwrap().unwrap().unwrap();
    assert_eq!(word.pods, []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_speaks_for_itself_only() {
    let bed = Bed::start(SHOP).await;
    let follower = bed.follow("node-a");
    follower.complete().await;
    let agent = bed.agent("node-a").await.unwrap();
    // A pod of another node: noted by nobody.
    agent.report("u-web", CaptureState::CaptureMeasured);
    agent.report("u-client", CaptureState::CaptureMeasured);
    follower.until("its own pod", |snapshot| tunnel(snapshot, CLIENT) == Some(Tunnel::Hbone)).await;
    assert_eq!(tunnel(&follower.mesh.current(), WEB), Some(Tunnel::None));
    // A report in another node's name ends the stream.
    let mut agent = agent;
    let lie = proto::node::NodeReport { node: "node-b".into(), ..Default::default() };
    agent.reports.send(lie).unwrap();
    let ended = async {
        loop {
            if let Err(status) = agent.directives.message().await {
                return status.code();
            }
        }
    };
    assert_eq!(timeout(PATIENCE, ended).await.unwrap(), Code::PermissionDenied);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_does_not_read_holds_up_nobody() {
    let bed = Bed::start(SHOP).await;
    let stuck = bed.stream("node-b").await.unwrap();
    stuck.subscribe(ADDRESS_TYPE, &["*"], &[]);
    let follower = bed.follow("node-a");
    follower.complete().await;
    for round in 0..3 {
        bed.write("more.yaml", &format!("{{apiVersion: v1, kind: Pod, metadata: {{name: more-{round}, namespace: shop}}, status: {{podIP: 10.0.9.9}}}}"));
        let uid = format!("Kubernetes//Pod/shop/more-{round}");
        follower.until("the edit", |snapshot| snapshot.workload(&uid).is_some()).await;
    }
}

/// ztunnel's way to reach control after control was away.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mesh_is_kept_while_control_is_away_and_goes_on_afterwards() {
    let bed = Bed::start(SHOP).await;
    let follower = bed.follow("node-a");
    follower.complete().await;
    let before = follower.mesh.connects();
    let bed = bed.restart().await;
    let mut connection = follower.mesh.connection();
    let mesh = follower.mesh.clone();
    until("connected again", || mesh.connects() > before).await;
    assert_eq!(*connection.borrow_and_update(), xds::Connection::Up);
    assert_eq!(follower.mesh.current().workloads().count(), 2);
    bed.write(
        "more.yaml",
        "{apiVersion: v1, kind: Pod, metadata: {name: more, namespace: shop}, status: {podIP: 10.0.9.9}}",
    );
    follower.until("a third pod", |snapshot| snapshot.workloads().count() == 3).await;
}
