//! What the pod dials.

use crate::{
    sniff::Sniffer,
    world::{
        BOTH, PATIENCE, World, accept, connect, connect_from, counted, is_idle, listen, reset, sysctl, talk,
        try_connect, until, within_patience,
    },
};
use capture::{Mode, Role};
use socket2::{Domain, Socket, Type};
use std::{
    io::{ErrorKind, Read, Write},
    net::TcpListener,
    os::fd::AsFd,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    time::{Duration, Instant},
};

const SECRET: &[u8] = b"nobody may see this in plaintext";
const SHORT: Duration = Duration::from_millis(300);

#[test]
fn a_connection_is_captured_with_the_addresses_it_had() {
    let world = World::new();
    let pod = world.attach(Mode::Enforce);
    let ztunnel = world.ztunnel();
    let listener = ztunnel.listen(Role::Outbound);
    let wire = Sniffer::open(&world.node);
    for family in BOTH {
        let to = World::at_far(family, 8080);
        let mut app = connect(&world.pod, to).unwrap();
        let (mut ours, peer, original) = accept(&listener);
        assert_eq!(original, to, "getsockname is the original destination");
        assert_eq!(peer, app.local_addr().unwrap(), "getpeername is the application");
        assert_eq!(app.peer_addr().unwrap(), to, "the application sees whom it dialled");
        app.write_all(SECRET).unwrap();
        let mut heard = vec![0; SECRET.len()];
        ours.read_exact(&mut heard).unwrap();
        talk(&mut app, &mut ours);
        // Half-close, then the end.
        app.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(ours.read(&mut [0; 8]).unwrap(), 0);
        ours.write_all(b"late").unwrap();
        app.read_exact(&mut [0; 4]).unwrap();
        drop(ours);
        assert_eq!(app.read(&mut [0; 8]).unwrap(), 0);
    }
    assert!(!wire.hears(SECRET, SHORT), "payload left the pod");
    assert_eq!(pod.counters().unwrap().get("guard_leak_prevented"), 0);
}

#[test]
fn bulk_is_carried_byte_by_byte() {
    let world = World::new();
    let _pod = world.attach(Mode::Enforce);
    let ztunnel = world.ztunnel();
    let listener = ztunnel.listen(Role::Outbound);
    for family in BOTH {
        let mut app = connect(&world.pod, World::at_far(family, 9000)).unwrap();
        let (mut ours, ..) = accept(&listener);
        let sent: Vec<u8> = (0..16_u32 << 20).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let writing = sent.clone();
        let writer = std::thread::spawn(move || app.write_all(&writing));
        let mut heard = Vec::new();
        ours.read_to_end(&mut heard).unwrap();
        writer.join().unwrap().unwrap();
        assert!(heard == sent, "{family:?}: {} of {} bytes, or other bytes", heard.len(), sent.len());
    }
}

#[test]
fn ztunnels_own_connections_pass_and_so_do_their_children() {
    let world = World::new();
    let pod = world.attach(Mode::Enforce);
    let ztunnel = world.ztunnel();
    let listener = ztunnel.listen(Role::Outbound);
    let server = listen(&world.far, 8080);
    for family in BOTH {
        let to = World::at_far(family, 8080);
        let (passed, mut pair) = counted(&pod, "egress_own", || {
            let ours = ztunnel.connect(to).unwrap();
            (ours, accept(&server).0)
        });
        assert!(passed > 0);
        let (ours, theirs) = &mut pair;
        talk(ours, theirs);
        // What a marked listener accepts is marked, with no call of ours.
        let app = connect(&world.pod, to).unwrap();
        let (child, ..) = accept(&listener);
        assert!(ztunnel.pins.is_own(child.as_fd()));
        assert!(!ztunnel.pins.is_own(app.as_fd()));
    }
    assert!(is_idle(&listener));
    assert_eq!(pod.counters().unwrap().get("guard_leak_prevented"), 0);
    assert!(pod.counters().unwrap().get("guard_own") > 0, "the guard sees the mark");
}

#[test]
fn with_no_listener_nothing_leaves() {
    let world = World::new();
    let pod = world.attach(Mode::Enforce);
    let _server = listen(&world.far, 8080);
    let wire = Sniffer::open(&world.node);
    for family in BOTH {
        let to = World::at_far(family, 8080);
        let (dropped, refused) = counted(&pod, "loopback_no_listener", || try_connect(&world.pod, to, SHORT));
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::TimedOut);
        assert!(dropped > 0);
    }
    let tcp = wire.frames().into_iter().filter(|frame| frame.len() > 23 && frame[23] == 6 && frame[12] == 8);
    assert_eq!(tcp.count(), 0, "a segment left the pod");
    assert_eq!(pod.counters().unwrap().get("guard_leak_prevented"), 0, "the guard had nothing to do");
}

/// The leak that capturing SYNs alone leaves.
#[test]
fn an_idle_connection_does_not_leak_after_ztunnel_died() {
    let world = World::new();
    let pod = world.attach(Mode::Enforce);
    world.pod.enter(|| sysctl("ipv4/tcp_fin_timeout", "1")).unwrap();
    let _server = listen(&world.far, 8080);
    for family in BOTH {
        let ztunnel = world.ztunnel();
        let listener = ztunnel.listen(Role::Outbound);
        let mut app = connect(&world.pod, World::at_far(family, 8080)).unwrap();
        let (mut ours, ..) = accept(&listener);
        talk(&mut app, &mut ours);
        // As the kernel closes the sockets of a killed process.
        drop((listener, ours));
        let held = || pod.captured_connections().unwrap();
        until("the orphaned socket expires", || held() == 0);
        let wire = Sniffer::open(&world.node);
        app.write_all(SECRET).unwrap();
        assert!(!wire.hears(SECRET, Duration::from_millis(700)), "{family:?}: plaintext left the pod");
        // Nor when somebody listens again: then the application learns that its connection is gone.
        let listener = ztunnel.listen(Role::Outbound);
        let end = app.read(&mut [0; 8]).and_then(|_| app.read(&mut [0; 8]));
        drop(end);
        until("the application is reset", || (&app).write_all(SECRET).is_err());
        assert!(!wire.hears(SECRET, SHORT));
        assert!(is_idle(&listener));
    }
    let counters = pod.counters().unwrap();
    assert!(counters.get("loopback_no_listener") > 0);
    assert_eq!(counters.get("guard_leak_prevented"), 0);
}

#[test]
fn a_handshake_by_syn_cookies_is_completed() {
    let world = World::new();
    let pod = world.attach(Mode::Enforce);
    world.pod.enter(|| sysctl("ipv4/tcp_syncookies", "2")).unwrap();
    let ztunnel = world.ztunnel();
    let listener = ztunnel.listen(Role::Outbound);
    for family in BOTH {
        for _ in 0..5 {
            let to = World::at_far(family, 8080);
            let (turned, mut pair) = counted(&pod, "egress_turn_unknown", || {
                let app = connect(&world.pod, to).unwrap();
                (app, accept(&listener))
            });
            let (app, (ours, _, original)) = &mut pair;
            assert_eq!(*original, to);
            assert!(turned > 0, "the ACK matched a socket: no cookie was used");
            talk(app, ours);
        }
    }
}

/// ztunnel closes first, and the application takes the same ports again: its SYN meets TIME_WAIT.
#[test]
fn ports_in_time_wait_are_taken_again_at_once() {
    let world = World::new();
    let pod = world.attach(Mode::Enforce);
    let ztunnel = world.ztunnel();
    let listener = ztunnel.listen(Role::Outbound);
    // The application listens on the very port it dials elsewhere: the kernel's own lookup would find that.
    let own_server = listen(&world.pod, 8080);
    for family in BOTH {
        let (from, to) = (World::at_pod(family, 33_333), World::at_far(family, 8080));
        for round in 0..3 {
            let (redirected, mut pair) = counted(&pod, "reuse_redirected", || {
                let app = connect_from(&world.pod, from, to).unwrap();
                (app, accept(&listener))
            });
            let (app, (ours, _, original)) = &mut pair;
            assert_eq!(*original, to);
            assert_eq!(redirected > 0, round > 0, "{family:?}, round {round}: {redirected}");
            talk(app, ours);
            ours.shutdown(std::net::Shutdown::Write).unwrap();
            assert_eq!(app.read(&mut [0; 1]).unwrap(), 0);
            drop(pair);
        }
    }
    assert!(is_idle(&own_server));
}

#[test]
fn a_closed_port_of_its_own_refuses() {
    let world = World::new();
    let pod = world.attach(Mode::Enforce);
    let ztunnel = world.ztunnel();
    let listener = ztunnel.listen(Role::Outbound);
    for family in BOTH {
        let to = World::at_pod(family, 9);
        let (turned, refused) = counted(&pod, "egress_turn_syn", || connect(&world.pod, to));
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::ConnectionRefused);
        assert_eq!(turned, 0);
    }
    assert!(is_idle(&listener));
}

#[test]
fn a_pod_may_listen_on_the_port_it_dials_elsewhere() {
    let world = World::new();
    let _pod = world.attach(Mode::Enforce);
    let ztunnel = world.ztunnel();
    let listener = ztunnel.listen(Role::Outbound);
    let own_server = listen(&world.pod, 8080);
    for family in BOTH {
        let to = World::at_far(family, 8080);
        let mut app = connect(&world.pod, to).unwrap();
        let (mut ours, _, original) = accept(&listener);
        assert_eq!(original, to);
        talk(&mut app, &mut ours);
        // And its own address is still its own.
        let mut within = connect(&world.pod, World::at_pod(family, 8080)).unwrap();
        talk(&mut within, &mut accept(&own_server).0);
    }
    assert!(is_idle(&own_server) && is_idle(&listener));
}

#[test]
fn the_slot_changes_hands_and_old_connections_stay() {
    let world = World::new();
    let _pod = world.attach(Mode::Enforce);
    let (old, new) = (world.ztunnel(), world.ztunnel());
    let first = old.listen(Role::Outbound);
    for family in BOTH {
        old.slots.set(Role::Outbound, first.as_fd()).unwrap();
        let to = World::at_far(family, 8080);
        let mut before = connect(&world.pod, to).unwrap();
        let (mut ours_before, ..) = accept(&first);
        let second = new.listen(Role::Outbound);
        assert_eq!(new.slots.holder(Role::Outbound), Some(capture::socket_cookie(second.as_fd()).unwrap()));
        let mut after = connect(&world.pod, to).unwrap();
        let (mut ours_after, ..) = accept(&second);
        assert!(is_idle(&first));
        talk(&mut before, &mut ours_before);
        talk(&mut after, &mut ours_after);
        // A closed listener leaves its slot by itself.
        drop(second);
        until("the slot empties", || new.slots.holder(Role::Outbound).is_none());
    }
}

/// Two ztunnels, one slot, and an application that never stops dialling: every connection is accepted by
/// one of them, and none is lost.
#[test]
fn takeover_under_load_loses_no_connection() {
    const SWAPS: usize = 10;
    let world = World::new();
    let _pod = world.attach(Mode::Enforce);
    let ztunnel = world.ztunnel();
    let (done, closed) = (AtomicBool::new(false), AtomicBool::new(false));
    let dialled = AtomicUsize::new(0);
    let begun = Instant::now();
    let mut listeners = vec![ztunnel.listen(Role::Outbound)];
    let dial = |family| {
        let mut count = 0;
        while !done.load(Ordering::Relaxed) && begun.elapsed() < 6 * PATIENCE {
            let mut app = connect(&world.pod, World::at_far(family, 8080))?;
            app.read_exact(&mut [0; 1])?;
            reset(app);
            count += 1;
            dialled.fetch_add(1, Ordering::Relaxed);
        }
        Ok::<usize, std::io::Error>(count)
    };
    let serve = |listener: &TcpListener| {
        listener.set_nonblocking(true).unwrap();
        while !closed.load(Ordering::Relaxed) && begun.elapsed() < 8 * PATIENCE {
            match listener.accept() {
                // The caller may have gone already; it has its byte.
                Ok((mut stream, _)) => drop(stream.write_all(b"!")),
                Err(_) => std::thread::sleep(Duration::from_micros(200)),
            }
        }
    };
    for _ in 0..SWAPS {
        listeners.push(ztunnel.unslotted());
    }
    std::thread::scope(|scope| {
        let dialling = BOTH.map(|family| scope.spawn(move || dial(family)));
        for listener in &listeners {
            let before = dialled.load(Ordering::Relaxed);
            ztunnel.slots.set(Role::Outbound, listener.as_fd()).unwrap();
            // The one before is kept open: it holds handshakes that began with it.
            scope.spawn(move || serve(listener));
            until("connections go on", || dialled.load(Ordering::Relaxed) > before + 50);
        }
        done.store(true, Ordering::Relaxed);
        let results = dialling.map(|dialling| dialling.join());
        closed.store(true, Ordering::Relaxed);
        for result in results {
            assert!(result.unwrap().unwrap() > 0);
        }
    });
}

/// `curl --interface eth0`: the socket hears only what comes in by that device, and ztunnel answers over lo.
#[test]
fn a_socket_bound_to_the_device_is_captured_too() {
    let world = World::new();
    let _pod = world.attach(Mode::Enforce);
    let ztunnel = world.ztunnel();
    let listener = ztunnel.listen(Role::Outbound);
    for family in BOTH {
        let to = World::at_far(family, 8080);
        let app =
            world.pod.enter(|| Socket::new(Domain::for_address(to), Type::STREAM, None)).unwrap().unwrap();
        app.bind_device(Some(b"eth0")).unwrap();
        app.connect_timeout(&to.into(), Duration::from_secs(2)).unwrap();
        let (mut ours, ..) = accept(&listener);
        let mut app = within_patience(app.into());
        talk(&mut app, &mut ours);
    }
}
