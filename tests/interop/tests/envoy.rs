//! Envoy as a foreign HBONE client of our server.

use std::time::Duration;

use interop::{
    apps::{ECHO, Innocent, SINK, SOURCE, carries_everything},
    ensure_envoy, envoy,
    scene::{Scene, root},
};

/// Where Envoy's client listens in its own pod.
const LISTEN: u16 = 11000;

#[test]
fn envoy_as_a_client_reaches_a_pod_through_our_server() {
    let binary = ensure_envoy(&root()).unwrap();
    let mut scene = Scene::start().unwrap();
    let innocent = Innocent::start(&scene.client, &scene.server).unwrap();
    let credentials = scene.credentials("outside", "envoy").unwrap();
    let mut listeners = Vec::new();
    for port in [ECHO, SINK, SOURCE] {
        let listen = scene.outside.at(LISTEN + (port - ECHO));
        let client = envoy::Client {
            listen,
            peer: scene.door(),
            target: scene.server.at(port),
            credentials: &credentials,
        };
        let mut process = scene.envoy(&binary, &format!("envoy-{port}"), &client.configuration()).unwrap();
        let reachable = || scene.outside.netns().connect(listen, Duration::from_millis(200)).ok();
        process.wait_until(Duration::from_secs(15), "Envoy to listen", reachable).unwrap();
        listeners.push(process);
    }
    let before = scene.opened("b", "destination", "mutual_tls").unwrap();
    carries_everything(|port| {
        scene.outside.netns().connect(scene.outside.at(LISTEN + (port - ECHO)), Duration::from_secs(5))
    })
    .unwrap();
    let after = scene.opened("b", "destination", "mutual_tls").unwrap();
    assert!(after >= before + 3.0, "our ztunnel counted {before} and then {after} connections");
    let log = listeners[0].log();
    assert!(
        log.contains("peer=spiffe://cluster.local/ns/shop/sa/server") && log.contains("tls=TLSv1.3"),
        "{log}"
    );
    innocent.finish().unwrap();
    scene.all_alive().unwrap();
}
