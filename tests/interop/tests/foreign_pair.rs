//! The foreign programs among themselves, without anything of ours in between: if this fails, the fault is
//! in the tests' own tools.

use std::{fs, time::Duration};

use bed::{PodSpec, World};
use identity::{Identity, authority::Authority};
use interop::{
    apps::{ECHO, SINK, SOURCE, carries_everything, serve_all, serve_page},
    ensure_curl, ensure_envoy,
    envoy::{Client, Server, arguments},
    pki::Credentials,
    scene::{HBONE, root},
};

#[test]
fn envoy_and_curl_reach_a_pod_through_envoy() {
    let binary = ensure_envoy(&root()).unwrap();
    let curl = ensure_curl(&root()).unwrap();
    let world = World::new(&["x", "y"]).unwrap();
    let client = world.pod(PodSpec::new("foreign", "client", "x")).unwrap();
    let server = world.pod(PodSpec::new("foreign", "server", "y")).unwrap();
    serve_all(&server).unwrap();
    let authority = Authority::ephemeral("cluster.local").unwrap();
    let issue = |account: &str| {
        let identity = Identity::new("cluster.local", "foreign", account);
        Credentials::issue(&authority, authority.root_pem(), identity, world.folder(), account).unwrap()
    };
    let (near, far) = (issue("client"), issue("server"));
    let door = server.at(HBONE);

    let start = |pod: &bed::Pod, name: &str, configuration: String, port: u16| {
        let file = world.folder().join(format!("{name}.yaml"));
        fs::write(&file, configuration).unwrap();
        let mut process = pod.job(&binary).args(arguments(&file)).spawn(name).unwrap();
        let reachable = || pod.netns().connect(pod.at(port), Duration::from_millis(200)).ok();
        process.wait_until(Duration::from_secs(15), "Envoy to listen", reachable).unwrap();
        process
    };
    let server_configuration = Server { listen: door, credentials: &far }.configuration();
    let mut running = vec![start(&server, "server", server_configuration, HBONE)];
    for port in [ECHO, SINK, SOURCE] {
        let configuration =
            Client { listen: client.at(port), peer: door, target: server.at(port), credentials: &near }
                .configuration();
        running.push(start(&client, &format!("client-{port}"), configuration, port));
    }
    carries_everything(|port| client.netns().connect(client.at(port), Duration::from_secs(5))).unwrap();

    serve_page(&server, 8080, "hi").unwrap();
    let (program, options, libraries) =
        curl.through(&format!("https://{door}"), &near, &format!("http://{}/", server.at(8080)));
    let mut job = client.job(program).args(options);
    if let Some(libraries) = libraries {
        job = job.env("LD_LIBRARY_PATH", libraries);
    }
    let page = job.check().unwrap();
    assert_eq!(page.stdout, "hi\nstatus=200", "{}", running[0].log());
}
