//! DNS queries of the pod over UDP.

use crate::world::{BOTH, Family, PATIENCE, World, Ztunnel, counted, told, until};
use capture::{Mode, Role, socket_cookie};
use socket2::{Domain, Socket, Type};
use std::{
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket},
    os::fd::AsFd,
    time::Duration,
};

const QUERY: &[u8] = b"whatever an app asks";
const ANSWER: &[u8] = b"whatever it is told";
const SHORT: Duration = Duration::from_millis(300);

/// An application's socket that talks to `to` alone.
fn app(world: &World, to: SocketAddr) -> UdpSocket {
    let socket = world.pod.enter(|| datagrams(Domain::for_address(to))).unwrap().unwrap();
    socket.connect(to).unwrap();
    socket
}

fn datagrams(domain: Domain) -> io::Result<UdpSocket> {
    let socket = Socket::new(domain, Type::DGRAM, None)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket.into())
}

/// A resolver far away, which answers `n` queries.
fn resolver(world: &World, family: Family, port: u16) -> UdpSocket {
    let at = World::at_far(family, port);
    let socket = world.far.enter(|| UdpSocket::bind(at)).unwrap().unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// ztunnel's socket for queries, in its slot.
fn listen(world: &World, ztunnel: &Ztunnel<'_>) -> UdpSocket {
    let socket = world.pod.enter(|| Socket::new(Domain::IPV6, Type::DGRAM, None)).unwrap().unwrap();
    socket.set_only_v6(false).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    ztunnel.pins.mark_own(socket.as_fd()).unwrap();
    socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)).into()).unwrap();
    ztunnel.slots.set(Role::Dns, socket.as_fd()).unwrap();
    assert_eq!(ztunnel.slots.holder(Role::Dns), Some(socket_cookie(socket.as_fd()).unwrap()));
    socket.into()
}

/// Answers in the place of `resolver`.
fn answer(world: &World, ztunnel: &Ztunnel<'_>, resolver: SocketAddr, client: SocketAddr) {
    let domain = Domain::for_address(resolver);
    let socket = world.pod.enter(|| Socket::new(domain, Type::DGRAM, None)).unwrap().unwrap();
    ztunnel.pins.mark_own(socket.as_fd()).unwrap();
    match resolver {
        SocketAddr::V4(_) => socket.set_ip_transparent_v4(true).unwrap(),
        SocketAddr::V6(_) => socket.set_ip_transparent_v6(true).unwrap(),
    }
    socket.bind(&resolver.into()).unwrap();
    socket.send_to(ANSWER, &client.into()).unwrap();
}

fn hear(socket: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    let mut buffer = vec![0; 65_536];
    let (length, from) = socket.recv_from(&mut buffer).expect("a datagram");
    buffer.truncate(length);
    (buffer, SocketAddr::new(from.ip().to_canonical(), from.port()))
}

fn hears_nothing(socket: &UdpSocket) {
    socket.set_read_timeout(Some(SHORT)).unwrap();
    let heard = socket.recv_from(&mut [0; 64]).map_err(|error| error.kind());
    assert!(matches!(heard, Err(io::ErrorKind::WouldBlock)), "{heard:?}");
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
}

/// Passes by: the resolver hears the app itself.
fn passes(world: &World, family: Family) {
    let resolver = resolver(world, family, 53);
    let app = app(world, World::at_far(family, 53));
    app.send(QUERY).unwrap();
    let (heard, from) = hear(&resolver);
    assert_eq!((heard.as_slice(), from), (QUERY, app.local_addr().unwrap()), "{family:?}");
    resolver.send_to(ANSWER, from).unwrap();
    assert_eq!(hear(&app).0, ANSWER, "{family:?}");
}

#[test]
fn a_query_is_answered_in_the_place_of_whoever_was_asked() {
    let world = World::new();
    let pod = world.attach(Mode::Enforce);
    let ztunnel = world.ztunnel();
    let ours = listen(&world, &ztunnel);
    for family in BOTH {
        let asked = World::at_far(family, 53);
        let theirs = resolver(&world, family, 53);
        let app = app(&world, asked);
        let (turned, ()) = counted(&pod, "egress_dns", || assert_eq!(app.send(QUERY).unwrap(), QUERY.len()));
        assert_eq!(turned, 1, "{}", told(&pod));
        let (heard, client) = hear(&ours);
        assert_eq!((heard.as_slice(), client), (QUERY, app.local_addr().unwrap()), "{family:?}");
        // The app's socket is connected: it hears nobody but the resolver.
        answer(&world, &ztunnel, asked, client);
        assert_eq!(hear(&app), (ANSWER.to_vec(), asked), "{family:?}");
        hears_nothing(&theirs);
    }
    assert_eq!(pod.counters().unwrap().get("loopback_dns"), 2);
    assert_eq!(pod.counters().unwrap().get("loopback_no_listener"), 0);
}

/// A resolver that every node keeps for its own pods.
#[test]
fn a_resolver_on_the_link_is_one_too() {
    let world = World::new();
    let _pod = world.attach(Mode::Enforce);
    let ztunnel = world.ztunnel();
    let ours = listen(&world, &ztunnel);
    let asked: SocketAddr = "169.254.20.10:53".parse().unwrap();
    let app = app(&world, asked);
    app.send(QUERY).unwrap();
    let (_, client) = hear(&ours);
    answer(&world, &ztunnel, asked, client);
    assert_eq!(hear(&app), (ANSWER.to_vec(), asked));
}

#[test]
fn ztunnels_own_queries_pass() {
    let world = World::new();
    let pod = world.attach(Mode::Enforce);
    let ztunnel = world.ztunnel();
    let ours = listen(&world, &ztunnel);
    for family in BOTH {
        let theirs = resolver(&world, family, 53);
        let socket = app(&world, World::at_far(family, 53));
        ztunnel.pins.mark_own(socket.as_fd()).unwrap();
        let (turned, ()) =
            counted(&pod, "egress_dns", || assert_eq!(socket.send(QUERY).unwrap(), QUERY.len()));
        assert_eq!((turned, hear(&theirs).0), (0, QUERY.to_vec()));
    }
    hears_nothing(&ours);
}

#[test]
fn with_nobody_to_answer_the_resolver_does() {
    let world = World::new();
    let pod = world.attach(Mode::Enforce);
    let ztunnel = world.ztunnel();
    for family in BOTH {
        passes(&world, family);
        // As the kernel closes the sockets of a killed process.
        drop(listen(&world, &ztunnel));
        until("the slot is empty", || ztunnel.slots.holder(Role::Dns).is_none());
        passes(&world, family);
        // Or somebody stands aside.
        let ours = listen(&world, &ztunnel);
        ztunnel.slots.clear(Role::Dns).unwrap();
        assert_eq!(ztunnel.slots.holder(Role::Dns), None);
        passes(&world, family);
        hears_nothing(&ours);
    }
    assert_eq!(pod.counters().unwrap().get("egress_dns"), 0);
}

#[test]
fn outside_enforcement_and_to_other_ports_datagrams_pass() {
    let world = World::new();
    let pod = world.attach(Mode::Learn);
    let ztunnel = world.ztunnel();
    let ours = listen(&world, &ztunnel);
    for family in BOTH {
        for mode in [Mode::Learn, Mode::Drain] {
            pod.set_mode(mode).unwrap();
            passes(&world, family);
        }
        pod.set_mode(Mode::Enforce).unwrap();
        let other = resolver(&world, family, 5353);
        app(&world, World::at_far(family, 5353)).send(QUERY).unwrap();
        assert_eq!(hear(&other).0, QUERY);
    }
    hears_nothing(&ours);
}

/// What does not fit one packet has its port in the first fragment only.
#[test]
fn fragments_pass() {
    let world = World::new();
    let pod = world.attach(Mode::Enforce);
    let ztunnel = world.ztunnel();
    let ours = listen(&world, &ztunnel);
    let long = vec![7; 9_000];
    for family in BOTH {
        let theirs = resolver(&world, family, 53);
        app(&world, World::at_far(family, 53)).send(&long).unwrap();
        assert_eq!(hear(&theirs).0, long, "{family:?}");
    }
    hears_nothing(&ours);
    assert_eq!(pod.counters().unwrap().get("egress_dns"), 0);
}

#[test]
fn the_next_socket_takes_the_place_of_the_one_before() {
    let world = World::new();
    let _pod = world.attach(Mode::Enforce);
    let ztunnel = world.ztunnel();
    let before = listen(&world, &ztunnel);
    let after = listen(&world, &ztunnel);
    let app = app(&world, World::at_far(Family::V4, 53));
    app.send(QUERY).unwrap();
    assert_eq!(hear(&after).0, QUERY);
    hears_nothing(&before);
    // The one that was replaced ends without an effect on its successor.
    drop(before);
    app.send(QUERY).unwrap();
    assert_eq!(hear(&after).0, QUERY);
}

/// A pod that is a resolver itself is asked by others.
#[test]
fn a_query_to_the_pod_is_the_pods() {
    let world = World::new();
    let _pod = world.attach(Mode::Enforce);
    let ztunnel = world.ztunnel();
    let ours = listen(&world, &ztunnel);
    for family in BOTH {
        let at: IpAddr = World::pod_ip(family);
        let server = world.pod.enter(|| UdpSocket::bind((at, 53))).unwrap().unwrap();
        server.set_read_timeout(Some(PATIENCE)).unwrap();
        let caller = world.far.enter(|| datagrams(Domain::for_address((at, 53).into()))).unwrap().unwrap();
        caller.connect((at, 53)).unwrap();
        caller.send(QUERY).unwrap();
        let (heard, from) = hear(&server);
        assert_eq!(heard, QUERY);
        server.send_to(ANSWER, from).unwrap();
        assert_eq!(hear(&caller).0, ANSWER);
    }
    hears_nothing(&ours);
}

/// One resolver asks another, or answers it.
#[test]
fn what_comes_from_port_53_passes() {
    let world = World::new();
    let _pod = world.attach(Mode::Enforce);
    let ztunnel = world.ztunnel();
    let ours = listen(&world, &ztunnel);
    for family in BOTH {
        let theirs = resolver(&world, family, 53);
        let at = SocketAddr::new(World::pod_ip(family), 53);
        let socket = world.pod.enter(|| UdpSocket::bind(at)).unwrap().unwrap();
        socket.send_to(QUERY, World::at_far(family, 53)).unwrap();
        assert_eq!(hear(&theirs), (QUERY.to_vec(), at));
    }
    hears_nothing(&ours);
}
