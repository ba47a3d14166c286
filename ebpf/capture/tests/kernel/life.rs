//! Enrollment, adoption, and the end.

use crate::world::{
    BOTH, Family, PATIENCE, UID, World, accept, connect, counted, is_idle, listen, reset, talk, until,
};
use capture::{Error, Mode, Netns, Node, NodeOptions, Pins, Role, Target};
use std::{
    collections::BTreeSet,
    os::fd::{AsFd, AsRawFd},
    path::PathBuf,
    sync::{Arc, Mutex},
};

#[test]
fn what_was_open_before_lives_on_and_what_is_new_is_captured() {
    let world = World::new();
    let (far_server, pod_server) = (listen(&world.far, 8080), listen(&world.pod, 9090));
    // Before anything of ours exists.
    let mut old = Vec::new();
    for family in BOTH {
        let out = connect(&world.pod, World::at_far(family, 8080)).unwrap();
        old.push((out, accept(&far_server).0));
        let into = connect(&world.far, World::at_pod(family, 9090)).unwrap();
        old.push((into, accept(&pod_server).0));
    }
    let pod = world.attach(Mode::Learn);
    assert_eq!(pod.mode(), Mode::Learn);
    // While learning, both ways.
    for family in BOTH {
        let out = connect(&world.pod, World::at_far(family, 8080)).unwrap();
        old.push((out, accept(&far_server).0));
        let into = connect(&world.far, World::at_pod(family, 9090)).unwrap();
        old.push((into, accept(&pod_server).0));
    }
    assert_eq!(pod.inventory().unwrap(), 8);
    pod.set_mode(Mode::Enforce).unwrap();
    for (a, b) in &mut old {
        talk(a, b);
    }
    let ztunnel = world.ztunnel();
    let listener = ztunnel.listen(Role::Outbound);
    let _new = connect(&world.pod, World::at_far(Family::V4, 8080)).unwrap();
    accept(&listener);
    assert!(is_idle(&far_server));
    // Those that ended are forgotten by the next inventory; here all but one pair.
    let kept = old.pop().unwrap();
    old.drain(..).for_each(|(a, b)| {
        reset(a);
        drop(b);
    });
    // Recorded flows are given five seconds without a socket.
    until_long("ended flows are forgotten", || pod.inventory().unwrap() == 1);
    let (mut a, mut b) = kept;
    talk(&mut a, &mut b);
    // And a time limit ends even that one.
    assert_eq!(pod.forget_flows().unwrap(), 1);
    let _inbound = ztunnel.listen(Role::Inbound);
    use std::io::{Read, Write};
    b.write_all(b"x").unwrap();
    assert!(matches!(b.read(&mut [0; 1]), Err(_) | Ok(0)), "the connection still lives");
}

#[test]
fn ports_of_a_recorded_connection_do_not_open_a_way_out() {
    let world = World::new();
    let server = listen(&world.far, 8080);
    let pod = world.attach(Mode::Learn);
    let (from, to) = (World::at_pod(Family::V4, 33_333), World::at_far(Family::V4, 8080));
    let app = crate::world::connect_from(&world.pod, from, to).unwrap();
    let served = accept(&server).0;
    pod.set_mode(Mode::Enforce).unwrap();
    reset(app);
    drop(served);
    let ztunnel = world.ztunnel();
    let listener = ztunnel.listen(Role::Outbound);
    let before = pod.passing_flows().unwrap();
    let (forgotten, _app) =
        counted(&pod, "flow_forgotten", || crate::world::connect_from(&world.pod, from, to).unwrap());
    accept(&listener);
    assert_eq!((forgotten, pod.passing_flows().unwrap()), (1, before - 1));
}

#[test]
fn the_probe_tells_what_holds() {
    let world = World::new();
    let pod = world.attach(Mode::Learn);
    let measured = pod.probe().unwrap();
    assert!(measured.guard, "the guard sees sockets here");
    assert!(!measured.turned && !measured.captured, "nothing is captured yet: {measured:?}");
    let ztunnel = world.ztunnel();
    pod.set_mode(Mode::Enforce).unwrap();
    let measured = pod.probe().unwrap();
    assert!(measured.turned && !measured.captured, "nobody listens: {measured:?}");
    let listener = ztunnel.listen(Role::Outbound);
    let far = crate::sniff::Sniffer::open(&world.far);
    let measured = pod.probe().unwrap();
    assert!(measured.captured && measured.guard, "{measured:?}");
    let (_, _, original) = accept(&listener);
    assert_eq!(original.port(), capture::PROBE_PORT);
    assert!(original.ip() == capture::PROBE_V4 || original.ip() == capture::PROBE_V6);
    let probe = capture::PROBE_V4.octets();
    assert!(!far.frames().iter().any(|frame| frame.windows(4).any(|w| w == probe)), "a probe left the node");
}

#[test]
fn draining_serves_what_is_held_and_captures_nothing_new() {
    let world = World::new();
    let pod = world.attach(Mode::Enforce);
    let ztunnel = world.ztunnel();
    let (out, hbone) = (ztunnel.listen(Role::Outbound), ztunnel.listen(Role::Hbone));
    let _inbound = ztunnel.listen(Role::Inbound);
    let (far_server, pod_server) = (listen(&world.far, 8080), listen(&world.pod, 9090));
    for family in BOTH {
        let mut held = connect(&world.pod, World::at_far(family, 8080)).unwrap();
        let (mut ours, ..) = accept(&out);
        assert_eq!(pod.captured_connections().unwrap(), 1);
        pod.set_mode(Mode::Drain).unwrap();
        talk(&mut held, &mut ours);
        // New ones pass, both ways, but for tunnels.
        let mut new = connect(&world.pod, World::at_far(family, 8080)).unwrap();
        talk(&mut new, &mut accept(&far_server).0);
        let mut new = connect(&world.far, World::at_pod(family, 9090)).unwrap();
        talk(&mut new, &mut accept(&pod_server).0);
        let mut tunnel = connect(&world.far, World::at_pod(family, 15_008)).unwrap();
        talk(&mut tunnel, &mut accept(&hbone).0);
        assert_eq!(pod.captured_connections().unwrap(), 1);
        talk(&mut held, &mut ours);
        drop((held, ours));
        until("the held one ends", || pod.captured_connections().unwrap() == 0);
        pod.set_mode(Mode::Enforce).unwrap();
    }
}

#[test]
fn what_passed_while_draining_lives_on_when_enrolled_again() {
    let world = World::new();
    let pod = world.attach(Mode::Drain);
    let server = listen(&world.far, 8080);
    let mut app = connect(&world.pod, World::at_far(Family::V6, 8080)).unwrap();
    let mut served = accept(&server).0;
    pod.set_mode(Mode::Learn).unwrap();
    pod.inventory().unwrap();
    pod.set_mode(Mode::Enforce).unwrap();
    talk(&mut app, &mut served);
}

/// ztunnel's own connections out of the pod are no applications': recording one would leave a way out over
/// its ports.
#[test]
fn the_inventory_leaves_ztunnels_connections_out() {
    let world = World::new();
    let pod = world.attach(Mode::Enforce);
    let ztunnel = world.ztunnel();
    let (out, inbound) = (ztunnel.listen(Role::Outbound), ztunnel.listen(Role::Inbound));
    let server = listen(&world.far, 8080);
    let mut open = Vec::new();
    for family in BOTH {
        open.push(connect(&world.pod, World::at_far(family, 8080)).unwrap());
        open.push(accept(&out).0);
        open.push(ztunnel.connect(World::at_far(family, 8080)).unwrap());
        open.push(accept(&server).0);
        open.push(connect(&world.far, World::at_pod(family, 9090)).unwrap());
        open.push(accept(&inbound).0);
    }
    for mode in [Mode::Drain, Mode::Learn] {
        pod.set_mode(mode).unwrap();
        for pair in open.chunks_mut(2) {
            let [a, b] = pair else { unreachable!("pairs") };
            talk(a, b);
        }
        assert_eq!(pod.inventory().unwrap(), 0, "{mode:?}");
    }
}

#[test]
fn capture_outlives_the_agent_and_is_adopted() {
    let world = World::new();
    drop(world.attach(Mode::Enforce));
    let ztunnel = world.ztunnel();
    let listener = ztunnel.listen(Role::Outbound);
    let mut app = connect(&world.pod, World::at_far(Family::V4, 8080)).unwrap();
    let (mut ours, ..) = accept(&listener);
    // The same programs are left as they are; others, here those with the log, take their place.
    for kernel_log in [false, true, false] {
        let node = Node::open(NodeOptions { kernel_log, ..world.options() }).unwrap();
        assert_eq!(node.pinned().unwrap(), [UID]);
        let pod = node.attach(&world.target()).unwrap();
        assert_eq!(pod.mode(), Mode::Enforce, "an adopted pod keeps its mode");
        talk(&mut app, &mut ours);
        let (turned, _second) = counted(&pod, "egress_turn_syn", || {
            connect(&world.pod, World::at_far(Family::V6, 8080)).unwrap()
        });
        assert_eq!(turned, 1, "the programs were replaced, not stacked");
        accept(&listener);
    }
}

/// The part of another process, run by the test below.
#[test]
#[ignore = "runs within another test, which gives it its world"]
fn adopter() {
    let path = |name: &str| PathBuf::from(std::env::var_os(name).expect("the test below sets it"));
    let pins = path("CV_PINS");
    let (netns, node_netns) = (Netns::open(&path("CV_POD")).unwrap(), Netns::open(&path("CV_NODE")).unwrap());
    let node = Node::open(NodeOptions { pins, cgroup: None, kernel_log: false, foreign: false }).unwrap();
    let target = Target { uid: UID, netns: &netns, node_netns: &node_netns };
    let pod = node.attach(&target).unwrap();
    assert_eq!(pod.mode(), Mode::Enforce);
    assert!(pod.probe().unwrap().captured);
}

#[test]
fn another_process_adopts_and_leaves() {
    let world = World::new();
    let pod = world.attach(Mode::Enforce);
    let ztunnel = world.ztunnel();
    let listener = ztunnel.listen(Role::Outbound);
    let of = |netns: &Netns| format!("/proc/{}/fd/{}", std::process::id(), netns.as_fd().as_raw_fd());
    let adopter = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "life::adopter", "--nocapture"])
        .env("CV_PINS", &world.pins)
        .env("CV_POD", of(&world.pod))
        .env("CV_NODE", of(&world.node))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&adopter.stdout).into_owned();
    assert!(adopter.status.success() && said.contains("1 passed"), "{said}");
    let (_, _, probed) = accept(&listener);
    assert_eq!(probed.port(), capture::PROBE_PORT);
    let (_turned, _app) =
        counted(&pod, "egress_turn_syn", || connect(&world.pod, World::at_far(Family::V4, 8080)).unwrap());
    accept(&listener);
}

#[test]
fn detaching_leaves_nothing() {
    let world = World::new();
    let before = traces(&world.pod);
    let pod = world.attach(Mode::Enforce);
    assert_ne!(traces(&world.pod), before);
    let server = listen(&world.far, 8080);
    pod.detach().unwrap();
    let after = traces(&world.pod);
    assert_eq!(after.symmetric_difference(&before).next(), None);
    let node = Node::open(world.options()).unwrap();
    assert_eq!(node.pinned().unwrap(), [""; 0]);
    assert!(matches!(Pins::open(&world.pins).unwrap().pod(UID), Err(Error::NoPin { .. })));
    for family in BOTH {
        let mut app = connect(&world.pod, World::at_far(family, 8080)).unwrap();
        talk(&mut app, &mut accept(&server).0);
    }
}

/// A namespace that is gone: its pins are found, its links adopt nothing, and a new one takes the id over.
#[test]
fn pins_outlive_a_pod_and_do_no_harm() {
    let mut world = World::new();
    drop(world.attach(Mode::Enforce));
    let fresh = World::new_namespaces();
    let old = std::mem::replace(&mut world.pod, fresh.pod);
    world.node = fresh.node;
    world.far = fresh.far;
    drop(old);
    let node = Node::open(world.options()).unwrap();
    assert_eq!(node.pinned().unwrap(), [UID]);
    let pod = node.attach(&world.target()).unwrap();
    assert_eq!(pod.mode(), Mode::Learn, "another namespace is another pod");
    pod.set_mode(Mode::Enforce).unwrap();
    let listener = world.ztunnel().listen(Role::Outbound);
    let _app = connect(&world.pod, World::at_far(Family::V4, 8080)).unwrap();
    accept(&listener);
    node.discard(UID).unwrap();
    assert_eq!(node.pinned().unwrap(), [""; 0]);
    node.discard(UID).unwrap();
}

#[test]
fn lo_loses_its_ipv6_and_is_repaired() {
    let world = World::new();
    let pod = world.attach(Mode::Enforce);
    let ztunnel = world.ztunnel();
    let listener = ztunnel.listen(Role::Outbound);
    for value in ["1", "0"] {
        world.pod.enter(|| crate::world::sysctl("ipv6/conf/lo/disable_ipv6", value)).unwrap();
    }
    pod.repair().unwrap();
    let to = World::at_far(Family::V6, 8080);
    let _app = connect(&world.pod, to).unwrap();
    assert_eq!(accept(&listener).2, to);
}

/// A device with no other end on the node: captured all the same, but nothing stands behind it.
#[test]
fn without_a_host_end_there_is_no_guard() {
    let world = World::new();
    let node = Node::open(world.options()).unwrap();
    let pod = node.attach(&Target { node_netns: &world.far, ..world.target() }).unwrap();
    pod.set_mode(Mode::Enforce).unwrap();
    let _listener = world.ztunnel().listen(Role::Outbound);
    let measured = pod.probe().unwrap();
    assert!(measured.captured && !measured.guard, "{measured:?}");
}

#[test]
fn a_namespace_without_a_device_is_refused() {
    let world = World::new();
    let empty = crate::world::new_netns();
    let node = Node::open(world.options()).unwrap();
    let refused = node.attach(&Target { netns: &empty, ..world.target() }).unwrap_err();
    assert!(matches!(refused, Error::Unsupported { .. }), "{refused}");
    assert_eq!(node.pinned().unwrap(), [""; 0], "a failure leaves pins");
}

/// The log is off elsewhere in these tests: here the verifier sees the other half of the programs.
#[test]
fn the_kernel_log_tells_each_verdict() {
    let heard = Heard::default();
    tracing::subscriber::set_global_default(heard.clone()).unwrap();
    let world = World::new();
    let node = Node::open(NodeOptions { kernel_log: true, ..world.options() }).unwrap();
    let pod = node.attach(&world.target()).unwrap();
    pod.set_mode(Mode::Enforce).unwrap();
    let listener = world.ztunnel().listen(Role::Outbound);
    let _app = connect(&world.pod, World::at_far(Family::V6, 8080)).unwrap();
    accept(&listener);
    until("the verdict is told", || {
        let lines = heard.0.lock().unwrap();
        lines.iter().any(|line| line.contains("egress_turn_syn") && line.contains("fd78::2 port 8080"))
    });
    assert!(heard.0.lock().unwrap().iter().all(|line| line.contains(UID)));
}

/// Keeps what the kernel programs say.
#[derive(Clone, Default)]
struct Heard(Arc<Mutex<Vec<String>>>);

impl tracing::Subscriber for Heard {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.target() == "culvert::kernel"
    }
    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }
    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
    fn event(&self, event: &tracing::Event<'_>) {
        struct Fields(String);
        impl tracing::field::Visit for Fields {
            fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
                self.0.push_str(&format!("{field}={value:?} "));
            }
        }
        let mut fields = Fields(String::new());
        event.record(&mut fields);
        self.0.lock().unwrap().push(fields.0);
    }
}

/// Rules and routes of both families, and lo's leave, as text.
fn traces(netns: &Netns) -> BTreeSet<String> {
    use crate::netlink::Netlink;
    use netlink_packet_route::{RouteNetlinkMessage, route::RouteMessage, rule::RuleMessage};
    let look = || {
        let netlink = Netlink::open().unwrap();
        let mut text = BTreeSet::new();
        text.insert(std::fs::read_to_string("/proc/sys/net/ipv4/conf/lo/accept_local").unwrap());
        for answer in netlink.dump(RouteNetlinkMessage::GetRule(RuleMessage::default())).unwrap() {
            text.insert(format!("{answer:?}"));
        }
        for answer in netlink.dump(RouteNetlinkMessage::GetRoute(RouteMessage::default())).unwrap() {
            let RouteNetlinkMessage::NewRoute(route) = answer else { continue };
            text.insert(format!("{:?}", route.header));
        }
        text
    };
    netns.enter(look).unwrap()
}

fn until_long(what: &str, holds: impl Fn() -> bool) {
    let end = std::time::Instant::now() + 3 * PATIENCE;
    while !holds() {
        assert!(std::time::Instant::now() < end, "not in time: {what}");
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
}

/// Every pod's programs are verified anew when it is enrolled, at about a microsecond an instruction: so this is
/// what the enrollment of a full node costs.
#[test]
fn the_verifier_has_little_to_do_for_a_pod() {
    let world = World::new();
    let _pod = world.attach(Mode::Enforce);
    let mut seen = 0;
    for program in aya::programs::loaded_programs() {
        let program = program.unwrap();
        let (Some(name), Some(walked)) = (program.name_as_str(), program.verified_instruction_count()) else {
            continue;
        };
        if name.starts_with("pod_") {
            seen += 1;
            assert!(walked < 100_000, "the verifier walks {walked} instructions of {name}");
        }
    }
    assert!(seen >= 5, "only {seen} programs of pods are loaded");
}
