//! Peers that did not answer: for how long they are passed over, who tries them again, and what is forgotten.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    time::{Duration, Instant},
};

use mesh::{
    Absent, GatewayAddress, Lost, NetworkAddress, Outbound, Plan, PortMapping, Service, ServiceKey, Snapshot,
    Standing, Tunnel, Workload,
};

const PEER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));

fn seconds(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds)
}

#[test]
fn a_peer_is_passed_over_for_a_growing_time() {
    let (mut absent, mut now) = (Absent::default(), Instant::now());
    assert_eq!(absent.standing(PEER, now), Standing::Present);
    for (random, waits) in
        [(0, [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]), (u32::MAX, [1.25, 2.5, 5.0, 10.0, 20.0, 37.5, 37.5])]
    {
        for (failures, wait) in waits.into_iter().enumerate() {
            let wait = seconds(wait);
            let told = if failures == 0 { Lost::Marked { wait } } else { Lost::Again { wait } };
            assert_eq!(absent.lost(PEER, now, random), told);
            let late = now + wait - seconds(0.001);
            assert_eq!((absent.standing(PEER, now), absent.standing(PEER, late)), {
                (Standing::Absent, Standing::Absent)
            });
            now += wait;
            assert_eq!(absent.standing(PEER, now), Standing::Due);
        }
        assert!(absent.answered(PEER, now).is_some());
        assert_eq!(absent.standing(PEER, now), Standing::Present, "an answer takes all of it away");
    }
}

#[test]
fn what_was_on_its_way_together_fails_once() {
    let (mut absent, now) = (Absent::default(), Instant::now());
    absent.lost(PEER, now, 0);
    for _ in 0..100 {
        assert_eq!(absent.lost(PEER, now + seconds(0.5), 0), Lost::Known);
    }
    assert_eq!(absent.standing(PEER, now + seconds(1.0)), Standing::Due);
    assert_eq!(absent.lost(PEER, now + seconds(1.0), 0), Lost::Again { wait: seconds(2.0) });
}

#[test]
fn one_tries_while_the_others_pass_by() {
    let (mut absent, begin) = (Absent::default(), Instant::now());
    let at = |time| begin + seconds(time);
    absent.lost(PEER, begin, 0);
    absent.try_it(PEER, at(0.9));
    assert_eq!(absent.standing(PEER, at(1.0)), Standing::Due, "it was not due yet");
    absent.try_it(PEER, at(1.0));
    assert_eq!(absent.standing(PEER, at(1.0)), Standing::Absent);
    assert_eq!(absent.lost(PEER, at(1.2), 0), Lost::Again { wait: seconds(2.0) });
    assert_eq!(absent.lost(PEER, at(1.3), 0), Lost::Known, "what else was tried");
    assert_eq!(absent.standing(PEER, at(3.2)), Standing::Due);
    absent.try_it(PEER, at(3.2));
    assert_eq!(absent.standing(PEER, at(5.2)), Standing::Due, "who tried it has said nothing");
    assert_eq!(absent.answered(PEER, at(6.0)), Some(seconds(6.0)));
    assert_eq!(absent.answered(PEER, at(6.0)), None);
}

#[test]
fn what_nobody_tries_is_forgotten() {
    let (mut absent, begin) = (Absent::default(), Instant::now());
    absent.lost(PEER, begin, 0);
    assert_eq!(absent.standing(PEER, begin + seconds(299.0)), Standing::Due);
    assert_eq!(absent.standing(PEER, begin + seconds(300.0)), Standing::Present);
    assert_eq!((absent.sweep(begin + seconds(299.0)), absent.sweep(begin + seconds(300.0))), (1, 0));
}

#[test]
fn a_flood_of_peers_has_a_bound_and_the_newest_are_known() {
    let (mut absent, begin) = (Absent::default(), Instant::now());
    let peer = |number: u32| IpAddr::from(std::net::Ipv4Addr::from(0x0a00_0000 + number));
    for number in 0..20_000 {
        let now = begin + Duration::from_millis(number.into());
        assert!(matches!(absent.lost(peer(number), now, 0), Lost::Marked { .. }), "{number}");
        assert!(absent.len() <= Absent::MOST, "{number}");
        assert_eq!(absent.standing(peer(number), now), Standing::Absent, "{number}");
    }
    let now = begin + seconds(20.0);
    assert_eq!(absent.standing(peer(0), now), Standing::Present);
    assert_ne!(absent.standing(peer(19_000), now), Standing::Present);
}

/// A service of so many pods, behind a waypoint of as many, or not.
fn snapshot(count: u8, is_behind: bool) -> Snapshot {
    let key = |name: &str| ServiceKey { namespace: "app".into(), hostname: name.into() };
    let mut web = Service::named(key("web"), "web");
    web.addresses = vec![NetworkAddress { network: "".into(), address: [10, 96, 0, 1].into() }];
    web.ports = vec![PortMapping { service_port: 80, target_port: 8080 }];
    web.waypoint = is_behind.then(|| GatewayAddress::Host { service: key("waypoint"), hbone_port: 15008 });
    let mut editor = Snapshot::default().edit();
    editor.mark_addresses_complete();
    editor.mark_policies_complete();
    editor.put_service(web);
    editor.put_service(Service::named(key("waypoint"), "waypoint"));
    for number in 0..count {
        for (network, name) in [(0, "web"), (1, "waypoint")] {
            let mut pod = Workload::named(format!("c//Pod/app/{name}-{number}"), "app", name);
            // Of one that has both, the address that would be dialled counts.
            pod.addresses = vec!["fd00::1".parse().unwrap(), [10, network, 0, number].into()];
            pod.tunnel = Tunnel::Hbone;
            pod.services = [(key(name), Vec::new())].into();
            editor.put_workload(pod);
        }
    }
    editor.finish()
}

/// How often each peer is chosen, by the last number of its address.
fn chosen(snapshot: &Snapshot, avoided: impl Fn(u8) -> bool) -> BTreeMap<u8, u32> {
    let source = Workload::named("c//Pod/app/client", "app", "client");
    let number = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => ip.octets()[3],
        IpAddr::V6(_) => panic!("another address"),
    };
    let avoided = |ip: IpAddr| avoided(number(ip));
    let mut counts = BTreeMap::new();
    for seed in 0..10_000 {
        let destination = ([10, 96, 0, 1], 80).into();
        let outbound = Outbound { source: &source, destination, seed, avoided: Some(&avoided) };
        let ip = match snapshot.plan("", &outbound).unwrap() {
            Plan::Hbone { peer, .. } => peer.ip(),
            Plan::Waypoint { target, .. } => target.address.ip(),
            other => panic!("{other:?}"),
        };
        *counts.entry(number(ip)).or_default() += 1;
    }
    counts
}

#[test]
fn who_is_avoided_is_chosen_only_where_all_are() {
    for is_behind in [false, true] {
        for (count, avoided, left) in [
            (2, &[0][..], &[1][..]),
            (3, &[1], &[0, 2]),
            (10, &[0, 1, 2, 3, 4, 5, 6, 7, 8], &[9]),
            (10, &[3, 4], &[0, 1, 2, 5, 6, 7, 8, 9]),
            (1, &[0], &[0]),
            (3, &[0, 1, 2], &[0, 1, 2]),
            (3, &[], &[0, 1, 2]),
        ] {
            let counts = chosen(&snapshot(count, is_behind), |number| avoided.contains(&number));
            assert_eq!(counts.keys().copied().collect::<Vec<_>>(), left, "{count} but {avoided:?}");
            // Nobody is everybody's: each has its share, and at most half as much again.
            let share = 10_000 / left.len() as u32;
            let even = |count: &u32| (share * 4 / 5..=share * 3 / 2).contains(count);
            assert!(counts.values().all(even), "{count} but {avoided:?}: {counts:?}");
        }
    }
}
