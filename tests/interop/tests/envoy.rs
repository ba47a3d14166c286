//! Envoy as a foreign HBONE client of our server, and as a foreign server of our client.

use std::{
    io::{Read, Write},
    path::Path,
    time::Duration,
};

use bed::Pod;
use interop::{
    apps::{ECHO, Innocent, SINK, SOURCE, carries_everything, serve_all},
    ensure_envoy, envoy,
    pki::Credentials,
    scene::{HBONE, Scene, foreign_pod, root},
};

#[test]
fn envoy_as_a_client_reaches_a_pod_through_our_server() {
    let binary = ensure_envoy(&root()).unwrap();
    let mut scene = Scene::start().unwrap();
    let innocent = Innocent::start(&scene.client, &scene.server).unwrap();
    let credentials = scene.credentials("outside", "envoy").unwrap();
    let mut running = Vec::new();
    for port in [ECHO, SINK, SOURCE] {
        let listen = scene.outside.at(port);
        let target = scene.server.at(port);
        let configuration =
            envoy::Client { listen, peer: scene.door(), target, credentials: &credentials }.configuration();
        running.push(
            scene.envoy(&scene.outside, &binary, &format!("envoy-{port}"), &configuration, listen).unwrap(),
        );
    }
    let before = scene.opened("b", "destination", "mutual_tls").unwrap();
    carries_everything(|port| scene.outside.netns().connect(scene.outside.at(port), Duration::from_secs(5)))
        .unwrap();
    let after = scene.opened("b", "destination", "mutual_tls").unwrap();
    assert!(after >= before + 3.0, "our ztunnel counted {before} and then {after} connections");
    let log = running[0].log();
    assert!(
        log.contains("peer=spiffe://cluster.local/ns/shop/sa/server") && log.contains("tls=TLSv1.3"),
        "{log}"
    );
    innocent.finish().unwrap();
    scene.all_alive().unwrap();
}

#[test]
fn our_client_reaches_a_pod_through_envoy_and_no_impostor() {
    let binary = ensure_envoy(&root()).unwrap();
    let (mut scene, pods) = Scene::with(|world| {
        let [honest, impostor, rogue] = ["honest", "impostor", "rogue"].map(|name| foreign_pod(world, name));
        Ok([honest?, impostor?, rogue?])
    })
    .unwrap();
    let [honest, impostor, rogue] = &pods;
    let start = |pod: &Pod, credentials: &Credentials| {
        serve_all(pod).unwrap();
        serve(&scene, pod, &binary, credentials)
    };
    let running = start(honest, &scene.credentials("outside", "honest").unwrap());
    let _impostor = start(impostor, &scene.credentials("outside", "somebody-else").unwrap());
    let _rogue = start(rogue, &scene.rogue("outside", "rogue").unwrap());
    let innocent = Innocent::start(&scene.client, &scene.server).unwrap();

    carries_everything(|port| scene.client.netns().connect(honest.at(port), Duration::from_secs(5))).unwrap();
    // Only now: bulk would make the sniffer drop, and with drops it proves nothing.
    let sniffer = scene.world.sniff(&[("secret", SECRET)]).unwrap();
    assert_eq!(whisper(&scene.client, honest), SECRET);
    let log = running.log();
    for part in [
        format!("method=CONNECT authority={}", honest.at(ECHO)),
        "path=- scheme=".to_owned(),
        "code=200".to_owned(),
        "peer=spiffe://cluster.local/ns/shop/sa/client".to_owned(),
        "tls=TLSv1.3".to_owned(),
        "sni=-".to_owned(),
        "k8s.namespace.name=shop".to_owned(),
        format!("forwarded=for=\"{}:", scene.client.v4()),
    ] {
        assert!(log.contains(&part), "Envoy's log lacks {part}:\n{log}");
    }
    // A server that is not who it should be gets nothing, neither in a tunnel nor in the clear.
    assert_eq!(whisper(&scene.client, impostor), b"");
    assert_eq!(whisper(&scene.client, rogue), b"");
    innocent.finish().unwrap();
    let seen = sniffer.stop().unwrap();
    seen.complete().unwrap();
    assert!(seen.showed("secret").is_empty(), "the secret was on the wire: {:?}", seen.showed("secret"));
    assert!(seen.tls_hellos > 0, "the sniffer saw no tunnel at all");
    scene.all_alive().unwrap();
}

const SECRET: &[u8] = b"the secret that no wire may show: 7f3b";

/// Says the secret to the echo server of a pod and gives what comes back before the connection ends.
fn whisper(client: &Pod, server: &Pod) -> Vec<u8> {
    let mut heard = Vec::new();
    let Ok(mut stream) = client.netns().connect(server.at(ECHO), Duration::from_secs(5)) else {
        return heard;
    };
    stream.set_read_timeout(Some(Duration::from_secs(15))).unwrap();
    if stream.write_all(SECRET).is_err() || stream.shutdown(std::net::Shutdown::Write).is_err() {
        return heard;
    }
    // A reset ends it as well as a FIN does; a connection that just hangs is neither.
    if let Err(error) = stream.read_to_end(&mut heard) {
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}");
    }
    heard
}

/// Envoy at port 15008 of a pod.
fn serve(scene: &Scene, pod: &Pod, binary: &Path, credentials: &Credentials) -> bed::Process {
    let listen = pod.at(HBONE);
    let configuration = envoy::Server { listen, credentials }.configuration();
    scene.envoy(pod, binary, &format!("envoy-{}", pod.spec().name), &configuration, listen).unwrap()
}
