//! What others dial of the pod.

use crate::world::{
    BOTH, PATIENCE, World, accept, connect, connect_from, counted, is_idle, listen, sysctl, talk, try_connect,
};
use capture::{Mode, Role};
use std::{
    io::{ErrorKind, Read},
    time::Duration,
};

const SHORT: Duration = Duration::from_millis(300);
const HBONE: u16 = 15_008;

#[test]
fn a_connection_is_captured_and_carried_on_over_lo() {
    let world = World::new();
    let pod = world.attach(Mode::Enforce);
    let ztunnel = world.ztunnel();
    let inbound = ztunnel.listen(Role::Inbound);
    let app = listen(&world.pod, 8080);
    for family in BOTH {
        let to = World::at_pod(family, 8080);
        let mut caller = connect(&world.far, to).unwrap();
        let (mut front, peer, original) = accept(&inbound);
        assert_eq!((peer, original), (caller.local_addr().unwrap(), to));
        assert!(is_idle(&app), "the application heard of it before ztunnel decided");
        // The onward leg: the caller's address, another port, over lo, untouched by the programs.
        let mut from = peer;
        from.set_port(61_000);
        let (turned, mut back) = counted(&pod, "egress_turn_held", || {
            let (to_listener, back) = counted(&pod, "loopback_listener", || ztunnel.onward(from, original));
            assert_eq!(to_listener, 0);
            back.unwrap()
        });
        assert!(turned > 0, "the application's answers to the caller come back to ztunnel");
        let (mut served, seen, _) = accept(&app);
        assert_eq!(seen.ip(), peer.ip(), "the application sees the caller's address");
        talk(&mut caller, &mut front);
        talk(&mut back, &mut served);
        assert_eq!(pod.captured_connections().unwrap(), 1);
        drop((front, back, caller, served));
    }
}

#[test]
fn tunnels_have_a_listener_of_their_own() {
    let world = World::new();
    let _pod = world.attach(Mode::Enforce);
    let ztunnel = world.ztunnel();
    let (inbound, hbone) = (ztunnel.listen(Role::Inbound), ztunnel.listen(Role::Hbone));
    for family in BOTH {
        let to = World::at_pod(family, HBONE);
        let mut caller = connect(&world.far, to).unwrap();
        let (mut ours, _, original) = accept(&hbone);
        assert_eq!(original, to);
        talk(&mut caller, &mut ours);
    }
    assert!(is_idle(&inbound));
}

#[test]
fn with_no_listener_the_application_is_not_reached() {
    let world = World::new();
    let pod = world.attach(Mode::Enforce);
    let app = listen(&world.pod, 8080);
    for family in BOTH {
        let to = World::at_pod(family, 8080);
        let (dropped, refused) = counted(&pod, "ingress_no_listener", || try_connect(&world.far, to, SHORT));
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::TimedOut);
        assert!(dropped > 0, "{family:?}: {}", crate::world::told(&pod));
    }
    assert!(is_idle(&app));
}

#[test]
fn a_handshake_by_syn_cookies_is_completed_by_ztunnel() {
    let world = World::new();
    let pod = world.attach(Mode::Enforce);
    world.pod.enter(|| sysctl("ipv4/tcp_syncookies", "2")).unwrap();
    let ztunnel = world.ztunnel();
    let inbound = ztunnel.listen(Role::Inbound);
    let app = listen(&world.pod, 8080);
    for family in BOTH {
        for _ in 0..5 {
            let to = World::at_pod(family, 8080);
            let (unknown, mut pair) = counted(&pod, "ingress_to_inbound_unknown", || {
                let caller = connect(&world.far, to).unwrap();
                (caller, accept(&inbound))
            });
            let (caller, (ours, _, original)) = &mut pair;
            assert_eq!(*original, to);
            assert!(unknown > 0, "the ACK matched a socket: no cookie was used");
            talk(caller, ours);
        }
    }
    assert!(is_idle(&app));
}

/// ztunnel closes first, and the caller takes the same ports again. The kernel, given that SYN for the
/// TIME_WAIT socket, would look a listener up by itself and find the application's.
#[test]
fn ports_in_time_wait_are_taken_again_and_do_not_reach_the_application() {
    let world = World::new();
    let pod = world.attach(Mode::Enforce);
    let ztunnel = world.ztunnel();
    let inbound = ztunnel.listen(Role::Inbound);
    let app = listen(&world.pod, 8080);
    for family in BOTH {
        let (from, to) = (World::at_far(family, 33_333), World::at_pod(family, 8080));
        for round in 0..3 {
            let (redirected, mut pair) = counted(&pod, "reuse_redirected", || {
                let caller = connect_from(&world.far, from, to).unwrap();
                (caller, accept(&inbound))
            });
            assert_eq!(redirected > 0, round > 0, "{family:?}, round {round}: {redirected}");
            let (caller, (ours, ..)) = &mut pair;
            talk(caller, ours);
            ours.shutdown(std::net::Shutdown::Write).unwrap();
            assert_eq!(caller.read(&mut [0; 1]).unwrap(), 0);
            drop(pair);
        }
    }
    assert!(is_idle(&app));
}

/// ztunnel dies between SYN and ACK: the orphaned request must not lead the caller's next SYN to the
/// application.
#[test]
fn a_request_whose_listener_died_does_not_reach_the_application() {
    let world = World::new();
    let pod = world.attach(Mode::Enforce);
    let ztunnel = world.ztunnel();
    let app = listen(&world.pod, 8080);
    for family in BOTH {
        let inbound = ztunnel.listen(Role::Inbound);
        let to = World::at_pod(family, 8080);
        // The caller never hears the SYN-ACK, so it keeps sending its SYN.
        let caller = crate::packets::RawCaller::new(&world, family, to);
        caller.send_syn();
        crate::world::until("the request is there", || {
            world.pod.enter(|| capture::sockdiag::exists(to, caller.from())).unwrap().unwrap()
        });
        drop(inbound);
        let (noted, ()) = counted(&pod, "ingress_opening_noted", || caller.send_syn());
        assert!(noted > 0, "the request was gone already");
        // The request's end leads to a listener lookup, and that to nobody.
        std::thread::sleep(Duration::from_millis(50));
        assert!(is_idle(&app), "{family:?}: the application accepted");
        let reached = world.pod.enter(capture::sockdiag::list).unwrap().unwrap();
        let half_open = reached.iter().filter(|socket| socket.remote == caller.from() && socket.state == 3);
        assert_eq!(half_open.count(), 0, "{family:?}: the application's listener answered");
    }
    assert!(pod.counters().unwrap().get("reuse_no_listener") > 0);
}

/// A packet for a connection that nobody knows: the caller learns so.
#[test]
fn a_connection_that_ztunnel_lost_is_reset() {
    let world = World::new();
    let pod = world.attach(Mode::Enforce);
    let ztunnel = world.ztunnel();
    let _inbound = ztunnel.listen(Role::Inbound);
    for family in BOTH {
        let caller = crate::packets::RawCaller::new(&world, family, World::at_pod(family, 8080));
        let (unknown, ()) = counted(&pod, "ingress_to_inbound_unknown", || caller.send_ack(b"late data"));
        assert!(unknown > 0, "{family:?}: {}", crate::world::told(&pod));
        assert!(caller.hears_reset(PATIENCE), "{family:?}: no RST came back");
    }
}
