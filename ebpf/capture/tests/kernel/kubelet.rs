//! Health probes: connections of the node's kubelet, told by the cgroup of the socket that sends.

use crate::{
    stats::CGROUP,
    world::{BOTH, World, accept, connect, counted, is_idle, listen, talk, told},
};
use capture::{Mode, Netns, Node, Role, sockdiag::Diag};
use std::{
    io::{Read, Write},
    net::Shutdown,
    sync::PoisonError,
};

/// The cgroup that sockets of this process are made in.
fn own_cgroup(node: &Netns) -> u64 {
    let listener = listen(node, 10_250);
    let listening = node.enter(Diag::open).unwrap().unwrap().listeners().unwrap();
    drop(listener);
    let [ours] = &listening[..] else { panic!("one listener, of both families: {listening:?}") };
    ours.cgroup.expect("a kernel that tells")
}

#[test]
fn probes_of_the_kubelet_reach_the_application_and_calls_of_others_do_not() {
    let _alone = CGROUP.lock().unwrap_or_else(PoisonError::into_inner);
    let world = World::new();
    let pod = world.attach(Mode::Enforce);
    let node = Node::open(world.options()).unwrap();
    let ztunnel = world.ztunnel();
    let inbound = ztunnel.listen(Role::Inbound);
    let app = listen(&world.pod, 8080);
    let kubelet = own_cgroup(&world.node);
    for family in BOTH {
        let to = World::at_pod(family, 8080);
        // Nobody is the kubelet, or somebody else on this node, with the very same address, is.
        for other in [None, Some(kubelet + 1)] {
            node.set_kubelet(other).unwrap();
            let mut caller = connect(&world.node, to).unwrap();
            talk(&mut caller, &mut accept(&inbound).0);
        }
        node.set_kubelet(Some(kubelet)).unwrap();
        let (passed, (mut probe, mut served)) = counted(&pod, "ingress_kubelet", || {
            let probe = connect(&world.node, to).unwrap();
            (probe, accept(&app).0)
        });
        assert_eq!(passed, 1, "{}", told(&pod));
        // What is forwarded has no socket here, whoever sent it.
        let mut forwarded = connect(&world.far, to).unwrap();
        talk(&mut forwarded, &mut accept(&inbound).0);
        assert!(is_idle(&app));

        // The connection lives on by itself, when nobody is the kubelet any more too, and ends in order.
        node.set_kubelet(None).unwrap();
        talk(&mut probe, &mut served);
        let page = vec![7; 300_000];
        let writer = std::thread::spawn(move || {
            served.write_all(&page).unwrap();
            served.shutdown(Shutdown::Write).unwrap();
            let mut rest = Vec::new();
            served.read_to_end(&mut rest).unwrap();
            rest
        });
        let mut got = Vec::new();
        probe.read_to_end(&mut got).unwrap();
        assert_eq!(got.len(), 300_000, "{}", told(&pod));
        probe.write_all(b"bye").unwrap();
        drop(probe);
        assert_eq!(writer.join().unwrap(), b"bye");
    }
    assert!(is_idle(&inbound));
}

#[test]
fn a_probe_needs_no_ztunnel_and_its_ports_may_be_used_again() {
    let _alone = CGROUP.lock().unwrap_or_else(PoisonError::into_inner);
    let world = World::new();
    let _pod = world.attach(Mode::Enforce);
    let node = Node::open(world.options()).unwrap();
    node.set_kubelet(Some(own_cgroup(&world.node))).unwrap();
    let app = listen(&world.pod, 8080);
    for family in BOTH {
        let to = World::at_pod(family, 8080);
        let mut from = None;
        for round in 0..3 {
            // From the second on over TIME_WAIT in the pod, which closes first.
            let mut probe = match from {
                Some(from) => crate::world::connect_from(&world.node, from, to).unwrap(),
                None => connect(&world.node, to).unwrap(),
            };
            let (mut served, ..) = accept(&app);
            talk(&mut probe, &mut served);
            drop(served);
            assert_eq!(probe.read(&mut [0]).unwrap(), 0, "round {round}");
            from = Some(probe.local_addr().unwrap());
        }
    }
}
