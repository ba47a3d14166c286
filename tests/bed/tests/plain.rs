//! The bed by itself, without a mesh: that its nodes and pods reach each other, that its sniffer sees
//! what they say, and that nothing of it is left afterwards.

use std::{
    fs,
    io::{Read, Write},
    net::SocketAddr,
    time::Duration,
};

use bed::{Pod, PodSpec, World};

const LIMIT: Duration = Duration::from_secs(5);

fn talk(from: &Pod, to: &Pod, at: SocketAddr, words: &[u8]) {
    let listener = to.netns().listen(at).unwrap();
    let mut client = from.netns().connect(at, LIMIT).unwrap();
    let (mut server, peer) = listener.accept().unwrap();
    assert!([from.v4(), from.v6()].contains(&peer.ip()), "the caller's address was changed to {peer}");
    client.write_all(words).unwrap();
    let mut heard = vec![0; words.len()];
    server.read_exact(&mut heard).unwrap();
    assert_eq!(heard, words);
    assert_eq!(from.netns().connections_to(at.port()).unwrap(), 1);
    drop((client, server));
    let closed = || Ok((from.netns().connections_to(at.port())? == 0).then_some(()));
    bed::eventually(LIMIT, "the connection to be over", closed).unwrap();
}

#[test]
fn pods_reach_each_other_and_the_sniffer_sees_it_and_nothing_is_left() {
    let world = World::new(&["a", "b"]).unwrap();
    let id = world.id().to_owned();
    let client = world.pod(PodSpec::new("shop", "client", "a")).unwrap();
    let near = world.pod(PodSpec::new("shop", "near", "a")).unwrap();
    let far = world.pod(PodSpec::new("shop", "far", "b")).unwrap();
    let sniffer = world.sniff(&[("secret", b"correct horse"), ("other", b"battery staple")]).unwrap();

    talk(&client, &near, near.at(8080), b"said on the node: correct horse");
    assert!(sniffer.so_far().unwrap().showed("secret").is_empty(), "same-node talk was on the wire");
    talk(&client, &far, far.at(8081), b"said over the wire: correct horse");
    talk(&client, &far, far.at6(8082), b"said over the wire: correct horse");

    let seen = sniffer.stop().unwrap();
    seen.complete().unwrap();
    assert_eq!(seen.showed("secret").len(), 2, "{seen:?}");
    assert!(seen.showed("other").is_empty());
    assert_eq!(seen.port(8080).packets, 0);
    assert_eq!((seen.port(8081).opened, seen.port(8082).opened), (1, 1), "each frame is counted once");
    assert!(seen.plaintext > 0 && seen.only_tunnels().is_err());

    let folder = world.folder().to_owned();
    let cgroup = world.node("a").cgroup().to_owned();
    assert!(folder.exists() && cgroup.exists());
    drop(world);
    assert!(!folder.exists() && !cgroup.exists());
    let left = fs::read_dir(bed::netns::FOLDER)
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().into_string().ok());
    assert_eq!(
        left.filter(|name| name.starts_with(&format!("cv{id}-"))).collect::<Vec<_>>(),
        Vec::<String>::new()
    );
    assert!(!fs::read_to_string("/proc/self/mounts").unwrap().contains(folder.to_str().unwrap()));
}

#[test]
fn a_program_runs_in_its_pod_and_its_cgroup_and_dies_with_its_guard() {
    let world = World::new(&["a"]).unwrap();
    let pod = world.pod(PodSpec::new("shop", "client", "a")).unwrap();
    let address = pod.job("ip").args(["-br", "addr", "show", "eth0"]).check().unwrap().stdout;
    assert!(address.contains(&pod.v4().to_string()) && address.contains(&pod.v6().to_string()), "{address}");

    let mut process = pod.job("sh").args(["-c", "echo started; sleep 600 & wait"]).spawn("sleeper").unwrap();
    let pid = process.pid();
    process.wait_for_line(LIMIT, "its first word", |line| line == "started").unwrap();
    let cgroup = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    assert!(cgroup.contains(&format!("cv{}/a", world.id())), "{cgroup}");
    drop(process);
    let procs = fs::read_to_string(world.node("a").cgroup().join("cgroup.procs")).unwrap();
    assert_eq!(procs, "", "the child of the killed program lives on");
}

#[test]
fn a_failed_command_says_what_it_said() {
    let world = World::new(&["a"]).unwrap();
    let pod = world.pod(PodSpec::new("shop", "client", "a")).unwrap();
    let error = pod.job("ls").arg("/nowhere").check().unwrap_err().to_string();
    assert!(error.contains("ls /nowhere") && error.contains("No such file"), "{error}");
    let late = pod.job("sleep").arg("600").limit(Duration::from_millis(50)).run().unwrap_err().to_string();
    assert!(late.contains("did not end"), "{late}");
}

#[test]
fn a_panic_takes_the_world_down_too() {
    let world = World::new(&["a"]).unwrap();
    let folder = world.folder().to_owned();
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
        let _world = world;
        panic!("on purpose");
    }));
    assert!(outcome.is_err());
    assert!(!folder.exists());
}
