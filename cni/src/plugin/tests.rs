//! The plugin against an agent that is played: one that lets start, refuses, is silent, absent, or mad.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    os::unix::net::UnixListener,
    path::Path,
    thread,
    time::Instant,
};

use super::*;

const RESULT: &str = r#"{ "dns":{}, "cniVersion":"1.0.0", "interfaces":[{"name":"eth0"}],"ips":[{"address":"10.244.1.5/24"}] }"#;

fn call(folder: &Path, command: &str, namespace: &str) -> Call {
    let config = format!(
        r#"{{"cniVersion":"1.0.0","name":"kindnet","type":"culvert-cni","socket":"{0}/cni.sock","state":"{0}/cni.json",
            "exemptNamespaces":["kube-system"],"prevResult":{RESULT}}}"#,
        folder.display()
    );
    let arguments = format!("IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME=web;K8S_POD_UID=u1");
    let environment = [
        ("CNI_COMMAND", command),
        ("CNI_CONTAINERID", "c1"),
        ("CNI_NETNS", "/var/run/netns/x"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_ARGS", &arguments),
    ];
    let environment = environment.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    Call { environment, input: config.into_bytes() }
}

fn add(folder: &Path, namespace: &str) -> Result<String, Failure> {
    run(&call(folder, "ADD", namespace), Duration::from_millis(500))
}

/// An agent that answers one question so, and what it was asked.
fn agent(folder: &Path, answer: &'static [u8]) -> thread::JoinHandle<Request> {
    let listener = UnixListener::bind(folder.join("cni.sock")).expect("listens");
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("accepts");
        let mut line = String::new();
        BufReader::new(&stream).read_line(&mut line).expect("reads");
        // Who gives up early does not hear it.
        let _ = stream.write_all(answer);
        serde_json::from_str(&line).expect("a request")
    })
}

fn state(folder: &Path) {
    let text = r#"{"namespaces":{"shop":"in_the_mesh","default":"not_in_the_mesh"}}"#;
    fs::write(folder.join("cni.json"), text).expect("writes");
}

#[test]
fn a_pod_that_may_start_hands_the_result_on_to_the_byte() {
    let folder = tempfile::tempdir().expect("a folder");
    let agent = agent(folder.path(), b"\"start\"\n");
    assert_eq!(add(folder.path(), "shop").as_deref(), Ok(RESULT));
    let asked = agent.join().expect("asked");
    assert_eq!((asked.namespace.as_str(), asked.name.as_str(), asked.uid.as_str()), ("shop", "web", "u1"));
    assert_eq!(asked.netns, Path::new("/var/run/netns/x"));
    assert_eq!(asked.addresses, ["10.244.1.5".parse::<std::net::IpAddr>().expect("an address")]);
}

#[test]
fn a_refusal_is_told_in_the_form_of_the_specification() {
    let folder = tempfile::tempdir().expect("a folder");
    // What the file says does not count while the agent answers.
    state(folder.path());
    let _agent = agent(folder.path(), b"{\"refuse\":{\"message\":\"no ztunnel\",\"details\":\"look\"}}\n");
    let failure = add(folder.path(), "default").expect_err("refused");
    let told: Value = serde_json::from_str(&failure.json()).expect("JSON");
    let expected =
        json!({"cniVersion": "1.0.0", "code": 11, "msg": "culvert-cni: no ztunnel", "details": "look"});
    assert_eq!(told, expected);
}

#[test]
fn without_an_agent_the_namespace_decides() {
    let folder = tempfile::tempdir().expect("a folder");
    assert!(add(folder.path(), "kube-system").is_ok(), "exempt, and nothing is known");
    let never = add(folder.path(), "default").expect_err("nothing is known yet");
    assert!(never.message.contains("never known"), "{never:?}");
    state(folder.path());
    assert!(add(folder.path(), "default").is_ok());
    for namespace in ["shop", "new"] {
        let failure = add(folder.path(), namespace).expect_err("refused");
        assert!(failure.message.contains("the agent of this node does not run"), "{failure:?}");
    }
}

#[test]
fn an_agent_that_is_silent_or_mad_is_as_good_as_none() {
    for (answer, why) in [
        (&b""[..], "it closed the connection"),
        (b"\"star", "not understood"),
        (b"{}\n", "not understood"),
        (&[b'x'; 100_000], "not understood"),
    ] {
        let folder = tempfile::tempdir().expect("a folder");
        state(folder.path());
        let _agent = agent(folder.path(), answer);
        let failure = add(folder.path(), "shop").expect_err("refused");
        assert!(failure.message.contains(why), "{failure:?}");
    }
    let folder = tempfile::tempdir().expect("a folder");
    state(folder.path());
    let _listener = UnixListener::bind(folder.path().join("cni.sock")).expect("listens");
    let begun = Instant::now();
    let failure = add(folder.path(), "shop").expect_err("refused");
    assert!(failure.message.contains("took too long"), "{failure:?}");
    assert!(begun.elapsed() < Duration::from_secs(5));
    assert!(add(folder.path(), "default").is_ok());
}

#[test]
fn what_is_removed_is_removed_whatever_is_said() {
    let nothing = Call { environment: [("CNI_COMMAND".into(), "DEL".into())].into(), input: b"{".to_vec() };
    assert_eq!(run(&nothing, PATIENCE), Ok(String::new()));
}

#[test]
fn versions_are_told_and_others_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let told = run(&call(folder.path(), "VERSION", "shop"), PATIENCE).expect("told");
    let told: Value = serde_json::from_str(&told).expect("JSON");
    assert_eq!(told["cniVersion"], "1.0.0");
    assert!(told["supportedVersions"].as_array().is_some_and(|all| all.contains(&json!("0.4.0"))));
    let mut old = call(folder.path(), "ADD", "shop");
    old.input = br#"{"cniVersion":"0.2.0"}"#.to_vec();
    assert_eq!(run(&old, PATIENCE).map_err(|failure| failure.code), Err(1));
}

#[test]
fn what_the_runtime_leaves_out_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut alone = call(folder.path(), "ADD", "shop");
    alone.input = br#"{"cniVersion":"1.0.0"}"#.to_vec();
    assert_eq!(run(&alone, PATIENCE).map_err(|failure| failure.code), Err(7));
    alone.input = b"[".to_vec();
    assert_eq!(run(&alone, PATIENCE).map_err(|failure| failure.code), Err(6));
    let mut bare = call(folder.path(), "ADD", "shop");
    bare.environment.remove("CNI_NETNS");
    let failure = run(&bare, PATIENCE).expect_err("refused");
    assert!(failure.message.contains("CNI_NETNS"), "{failure:?}");
    // A container of nobody's pod.
    let mut other = call(folder.path(), "ADD", "shop");
    other.environment.remove("CNI_ARGS");
    assert_eq!(run(&other, PATIENCE).as_deref(), Ok(RESULT));
    for command in ["CHECK", "STATUS", "GC"] {
        assert_eq!(run(&call(folder.path(), command, "shop"), PATIENCE), Ok(String::new()));
    }
    assert_eq!(run(&Call::default(), PATIENCE).map_err(|failure| failure.code), Err(4));
}

proptest::proptest! {
    #[test]
    fn no_input_makes_it_fall(input: Vec<u8>, arguments: String) {
        for command in ["ADD", "CHECK", "DEL", "VERSION"] {
            let environment = [("CNI_COMMAND", command), ("CNI_ARGS", &arguments)];
            let environment = environment.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
            let _ = run(&Call { environment, input: input.clone() }, Duration::from_millis(1));
        }
    }
}
