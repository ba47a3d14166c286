//! A ztunnel that knows nothing of slots and socket storage: fixed ports, and a mark that can be forged.

use crate::world::{
    BOTH, Family, PATIENCE, World, accept, connect, connect_from, counted, is_idle, listen, talk, told,
    try_connect, within_patience,
};
use capture::{Mode, Netns, Node, NodeOptions, Pod, Role};
use socket2::{Domain, Socket, Type};
use std::{
    io::Read,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    time::Duration,
};

const MARK: u32 = 0x539;
const PORTS: [u16; 3] = [15_001, 15_006, 15_008];
const ROLES: [Role; 3] = [Role::Outbound, Role::Inbound, Role::Hbone];
const SHORT: Duration = Duration::from_millis(300);

fn attach(world: &World, foreign: bool) -> Pod {
    let node = Node::open(NodeOptions { foreign, ..world.options() }).unwrap();
    let pod = node.attach(&world.target()).unwrap();
    pod.set_mode(Mode::Enforce).unwrap();
    pod
}

/// A listener as a foreign ztunnel makes it.
fn marked(netns: &Netns, at: IpAddr, port: u16, mark: u32) -> TcpListener {
    let at = SocketAddr::new(at, port);
    let socket = netns.enter(|| Socket::new(Domain::for_address(at), Type::STREAM, None)).unwrap().unwrap();
    socket.set_reuse_address(true).unwrap();
    match at {
        SocketAddr::V4(_) => socket.set_ip_transparent_v4(true).unwrap(),
        SocketAddr::V6(_) => {
            socket.set_only_v6(false).unwrap();
            socket.set_ip_transparent_v6(true).unwrap();
        }
    }
    socket.set_mark(mark).unwrap();
    socket.bind(&at.into()).unwrap();
    socket.listen(1024).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.into()
}

fn dual(netns: &Netns, port: u16) -> TcpListener {
    marked(netns, Ipv6Addr::UNSPECIFIED.into(), port, MARK)
}

#[test]
fn listeners_are_found_by_port_and_mark_and_its_own_connections_pass() {
    let world = World::new();
    let pod = attach(&world, true);
    let [out, inbound, hbone] = PORTS.map(|port| dual(&world.pod, port));
    let (app, server) = (listen(&world.pod, 8080), listen(&world.far, 8080));
    let mut open = Vec::new();
    for family in BOTH {
        let to = World::at_far(family, 8080);
        let mut caller = connect(&world.pod, to).unwrap();
        let (mut ours, _, original) = accept(&out);
        assert_eq!(original, to);
        talk(&mut caller, &mut ours);
        open.extend([caller, ours]);
        for (port, listener) in [(8080, &inbound), (15_008, &hbone)] {
            let mut caller = connect(&world.far, World::at_pod(family, port)).unwrap();
            let (mut ours, _, original) = accept(listener);
            assert_eq!(original, World::at_pod(family, port));
            talk(&mut caller, &mut ours);
            open.extend([caller, ours]);
        }
        let own =
            world.pod.enter(|| Socket::new(Domain::for_address(to), Type::STREAM, None)).unwrap().unwrap();
        own.set_mark(MARK).unwrap();
        let (passed, ()) = counted(&pod, "guard_own", || own.connect_timeout(&to.into(), PATIENCE).unwrap());
        assert!(passed > 0, "{}", told(&pod));
        let mut own = within_patience(own.into());
        let mut far = accept(&server).0;
        talk(&mut own, &mut far);
        open.extend([own, far]);
    }
    assert!(is_idle(&app));
    // One captured by each family's outbound connection.
    assert_eq!(pod.captured_connections().unwrap(), 2);
    let slots = world.ztunnel().slots;
    assert!(ROLES.iter().all(|role| slots.holder(*role).is_some()), "the listeners are kept in the slots");
    // Nothing of all that is a connection from before.
    for mode in [Mode::Drain, Mode::Learn] {
        pod.set_mode(mode).unwrap();
        open.chunks_mut(2).for_each(|pair| {
            let [a, b] = pair else { unreachable!("pairs") };
            talk(a, b);
        });
        assert_eq!(pod.inventory().unwrap(), 0, "{mode:?}");
    }
    drop((out, inbound, hbone));
    assert!(ROLES.iter().all(|role| slots.holder(*role).is_none()), "and leave them when they close");
}

#[test]
fn without_the_option_or_without_the_mark_nobody_is_a_ztunnel() {
    for (foreign, mark) in [(false, MARK), (true, 0), (true, MARK + 1)] {
        let world = World::new();
        let pod = attach(&world, foreign);
        let listeners = PORTS.map(|port| marked(&world.pod, Ipv6Addr::UNSPECIFIED.into(), port, mark));
        let server = listen(&world.far, 8080);
        for family in BOTH {
            let to = World::at_far(family, 8080);
            assert!(try_connect(&world.pod, to, SHORT).is_err());
            assert!(try_connect(&world.far, World::at_pod(family, 8080), SHORT).is_err());
            assert!(try_connect(&world.far, World::at_pod(family, 15_008), SHORT).is_err());
            let own = world.pod.enter(|| Socket::new(Domain::for_address(to), Type::STREAM, None)).unwrap();
            let own = own.unwrap();
            own.set_mark(mark).unwrap();
            assert!(own.connect_timeout(&to.into(), SHORT).is_err());
        }
        assert!(is_idle(&server) && listeners.iter().all(is_idle), "{foreign} {mark:#x}: {}", told(&pod));
    }
}

/// `sk_lookup` looks into the slot alone: after a restart the note of tc must have filled it.
#[test]
fn ports_in_time_wait_are_taken_again_after_a_restart() {
    let world = World::new();
    let pod = attach(&world, true);
    let own_server = listen(&world.pod, 8080);
    for family in BOTH {
        let (from, to) = (World::at_pod(family, 33_333), World::at_far(family, 8080));
        for round in 0..3 {
            let listener = dual(&world.pod, 15_001);
            let (redirected, mut pair) = counted(&pod, "reuse_redirected", || {
                let app = connect_from(&world.pod, from, to).unwrap();
                (app, accept(&listener))
            });
            assert_eq!(redirected > 0, round > 0, "{family:?}, round {round}: {}", told(&pod));
            let (app, (ours, ..)) = &mut pair;
            talk(app, ours);
            ours.shutdown(std::net::Shutdown::Write).unwrap();
            assert_eq!(app.read(&mut [0; 1]).unwrap(), 0);
        }
    }
    assert!(is_idle(&own_server));
}

#[test]
fn a_listener_of_ipv4_alone_gets_no_ipv6() {
    let world = World::new();
    let _pod = attach(&world, true);
    let out = marked(&world.pod, Ipv4Addr::UNSPECIFIED.into(), 15_001, MARK);
    let mut caller = connect(&world.pod, World::at_far(Family::V4, 8080)).unwrap();
    let (mut ours, ..) = accept(&out);
    talk(&mut caller, &mut ours);
    assert!(try_connect(&world.pod, World::at_far(Family::V6, 8080), SHORT).is_err());
    assert_eq!(world.ztunnel().slots.holder(Role::Outbound), None, "it is kept out of the slot");
}

#[test]
fn an_adopted_pod_follows_the_agent_that_adopts_it() {
    let world = World::new();
    attach(&world, false);
    let out = dual(&world.pod, 15_001);
    let to = World::at_far(Family::V4, 8080);
    assert!(try_connect(&world.pod, to, SHORT).is_err());
    attach(&world, true);
    let _caller = connect(&world.pod, to).unwrap();
    accept(&out);
}
