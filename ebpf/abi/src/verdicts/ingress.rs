//! What enters the pod: left to the socket that has it, given to one of ztunnel's listeners, or dropped.

use super::verdicts;
use crate::{Found, Lookups, Mode, Packet};

verdicts! {
    /// The verdict on a packet at ingress of the pod's device.
    Ingress at 2 {
        /// No TCP: passes.
        Other = "ingress_other",
        /// Of a connection that has a socket here, ztunnel's or one from before the enrollment: passes.
        Socket = "ingress_socket",
        /// Opens a connection over the ports of one that is closing or not yet open: passes to that
        /// socket, and is noted, so that `sk_lookup` finds ztunnel's listener and no other.
        Opening = "ingress_opening_noted",
        /// Given to the listener for plaintext.
        ToInbound = "ingress_to_inbound",
        /// Given to the listener for tunnels.
        ToHbone = "ingress_to_hbone",
        /// Completes a handshake that used SYN cookies, or is of no connection: given to the listener,
        /// which knows which.
        ToInboundUnknown = "ingress_to_inbound_unknown",
        /// The same, for the listener for tunnels.
        ToHboneUnknown = "ingress_to_hbone_unknown",
        /// Of a connection that is recorded as passing: passes.
        KnownFlow = "ingress_known_flow",
        /// RST or SYN-ACK of no connection: passes; the kernel answers it.
        Stray = "ingress_stray",
        /// New or unknown, while everything passes: passes and is recorded.
        Learned = "ingress_learned",
        /// RST of no connection, while everything passes: passes.
        PassStray = "ingress_pass_stray",
        /// TCP that cannot be read: dropped. Put together again behind this hook, it would find the
        /// application's listener.
        DropHidden = "ingress_drop_hidden",
        /// TCP that cannot be read, while everything passes: passes.
        PassHidden = "ingress_pass_hidden",
        /// Nobody listens: dropped. (Not a verdict on facts, but its outcome.)
        NoListener = "ingress_no_listener",
        /// The kernel would not give the packet to the listener: dropped.
        NotAssigned = "ingress_not_assigned",
        /// Opens a connection of the node's kubelet, a health probe: passes to the application, and is
        /// recorded. Nobody but the node's own kernel can say that the kubelet sent it.
        Kubelet = "ingress_kubelet",
    }
}

verdicts! {
    /// What `sk_lookup` did with a SYN that was noted at `lo` or at the pod's device.
    Reuse at 4 {
        /// It went to ztunnel's listener.
        Redirected = "reuse_redirected",
        /// Nobody listens: dropped.
        NoListener = "reuse_no_listener",
    }
}

impl Ingress {
    /// Whether the connection is recorded as one that passes ztunnel by.
    #[inline(always)]
    pub const fn records(self) -> bool {
        matches!(self, Self::Learned)
    }
}

/// What is known of a packet at ingress without looking anything up.
#[derive(Debug, Clone, Copy)]
pub struct IngressFacts {
    /// The pod's mode.
    pub mode: Mode,
    /// What it is.
    pub packet: Packet,
    /// Whether it goes to [`crate::HBONE_PORT`].
    pub hbone: bool,
    /// Outside [`Mode::Enforce`]: whether the listener that would be asked is there. What has none
    /// passes then, and is dropped when enforced.
    pub listener: bool,
}

/// Judges a packet that enters the pod.
#[inline(always)]
pub fn ingress(facts: &IngressFacts, lookups: &mut impl Lookups) -> Ingress {
    let enforced = matches!(facts.mode, Mode::Enforce);
    let segment = match facts.packet {
        Packet::Other | Packet::Query => return Ingress::Other,
        Packet::Hidden if enforced => return Ingress::DropHidden,
        Packet::Hidden => return Ingress::PassHidden,
        Packet::Tcp(segment) => segment,
    };
    let opens = segment.flags.opens();
    // Tunnels end at ztunnel in every mode: a peer may hold one, or open one, until it was told otherwise.
    let captured = enforced || facts.hbone && facts.listener;
    match lookups.socket() {
        Found::Own => return Ingress::Socket,
        Found::Live if enforced => return Ingress::Socket,
        Found::Live => return if lookups.known_flow() { Ingress::KnownFlow } else { Ingress::Learned },
        Found::Handshake | Found::TimeWait if opens && captured => {
            return if !facts.hbone && lookups.is_of_kubelet() { Ingress::Kubelet } else { Ingress::Opening };
        }
        Found::Handshake | Found::TimeWait if opens => return Ingress::Learned,
        Found::Handshake | Found::TimeWait => return Ingress::Socket,
        Found::None => {}
    }
    if opens {
        return match (captured, facts.hbone) {
            (true, true) => Ingress::ToHbone,
            (true, false) if lookups.is_of_kubelet() => Ingress::Kubelet,
            (true, false) => Ingress::ToInbound,
            (false, _) => Ingress::Learned,
        };
    }
    if lookups.known_flow() {
        return Ingress::KnownFlow;
    }
    if segment.flags.resets() || segment.flags.answers() {
        return match (enforced, segment.flags.resets()) {
            (true, _) => Ingress::Stray,
            (false, true) => Ingress::PassStray,
            (false, false) => Ingress::Learned,
        };
    }
    // While everything passes, a handshake that began with a cookie of ztunnel's may still end here: the
    // SYN of one with the application's would have been recorded.
    match (enforced || facts.listener, facts.hbone) {
        (true, true) => Ingress::ToHboneUnknown,
        (true, false) => Ingress::ToInboundUnknown,
        (false, _) => Ingress::Learned,
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    fn facts(packet: Packet) -> IngressFacts {
        IngressFacts { mode: Mode::Enforce, packet, hbone: false, listener: true }
    }

    fn lenient(mode: Mode, packet: Packet) -> IngressFacts {
        IngressFacts { mode, ..facts(packet) }
    }

    const LENIENT: [Mode; 2] = [Mode::Learn, Mode::Drain];

    #[test]
    fn a_new_connection_goes_to_the_listener_for_its_port() {
        for packet in [bare(SYN), loaded(SYN)] {
            assert_eq!(ingress(&facts(packet), &mut World::empty()), Ingress::ToInbound);
            // An old record lets no new connection pass.
            assert_eq!(ingress(&facts(packet), &mut World::known()), Ingress::ToInbound);
            let tunnel = IngressFacts { hbone: true, ..facts(packet) };
            assert_eq!(ingress(&tunnel, &mut World::empty()), Ingress::ToHbone);
        }
    }

    #[test]
    fn a_probe_of_the_kubelet_passes_to_the_application_and_nothing_else_of_it_does() {
        for found in [Found::None, Found::TimeWait, Found::Handshake] {
            let mut world = World { socket: found, kubelet: true, ..World::empty() };
            assert_eq!(ingress(&facts(bare(SYN)), &mut world), Ingress::Kubelet);
            let tunnel = IngressFacts { hbone: true, ..facts(bare(SYN)) };
            assert_ne!(ingress(&tunnel, &mut world), Ingress::Kubelet, "a tunnel is a tunnel");
            assert_ne!(ingress(&facts(bare(ACK)), &mut world), Ingress::Kubelet, "no opening");
        }
    }

    #[test]
    fn a_connection_with_a_socket_is_left_to_it() {
        for found in [Found::Live, Found::Own] {
            for packet in [bare(SYN), bare(SYN_ACK), loaded(PSH_ACK), bare(FIN_ACK), bare(RST)] {
                assert_eq!(ingress(&facts(packet), &mut World::with(found)), Ingress::Socket);
            }
        }
        for found in [Found::Handshake, Found::TimeWait] {
            assert_eq!(ingress(&facts(bare(ACK)), &mut World::with(found)), Ingress::Socket);
        }
    }

    /// The kernel, given a SYN for a TIME_WAIT socket or for a request whose listener is gone, looks for
    /// a listener itself, and would find the application's.
    #[test]
    fn an_opening_over_old_ports_never_reaches_a_listener_of_the_pod() {
        for found in [Found::Handshake, Found::TimeWait] {
            assert_eq!(ingress(&facts(bare(SYN)), &mut World::with(found)), Ingress::Opening);
            let tunnel = IngressFacts { hbone: true, ..lenient(Mode::Drain, bare(SYN)) };
            assert_eq!(ingress(&tunnel, &mut World::with(found)), Ingress::Opening);
            for mode in LENIENT {
                assert_eq!(ingress(&lenient(mode, bare(SYN)), &mut World::with(found)), Ingress::Learned);
            }
        }
    }

    #[test]
    fn an_unknown_segment_is_for_the_listener_to_judge() {
        for packet in [bare(ACK), loaded(PSH_ACK), bare(FIN_ACK), bare(0)] {
            assert_eq!(ingress(&facts(packet), &mut World::empty()), Ingress::ToInboundUnknown);
            let tunnel = IngressFacts { hbone: true, ..facts(packet) };
            assert_eq!(ingress(&tunnel, &mut World::empty()), Ingress::ToHboneUnknown);
            assert_eq!(ingress(&facts(packet), &mut World::known()), Ingress::KnownFlow);
        }
        for packet in [bare(RST), bare(RST_ACK), bare(SYN_ACK), loaded(SYN_ACK)] {
            assert_eq!(ingress(&facts(packet), &mut World::empty()), Ingress::Stray);
        }
    }

    #[test]
    fn what_cannot_be_read_is_dropped_only_when_enforced() {
        assert_eq!(ingress(&facts(Packet::Hidden), &mut Unasked), Ingress::DropHidden);
        assert_eq!(ingress(&facts(Packet::Other), &mut Unasked), Ingress::Other);
        assert_eq!(ingress(&facts(Packet::Query), &mut Unasked), Ingress::Other, "the pod may be a resolver");
        for mode in LENIENT {
            assert_eq!(ingress(&lenient(mode, Packet::Hidden), &mut Unasked), Ingress::PassHidden);
        }
    }

    #[test]
    fn outside_enforcement_new_connections_pass_and_tunnels_end_at_ztunnel() {
        for mode in LENIENT {
            assert_eq!(ingress(&lenient(mode, bare(SYN)), &mut World::empty()), Ingress::Learned);
            let tunnel = IngressFacts { hbone: true, ..lenient(mode, bare(SYN)) };
            assert_eq!(ingress(&tunnel, &mut World::empty()), Ingress::ToHbone);
            let nobody = IngressFacts { listener: false, ..tunnel };
            assert_eq!(ingress(&nobody, &mut World::empty()), Ingress::Learned);
        }
    }

    #[test]
    fn outside_enforcement_only_ztunnels_sockets_are_not_recorded() {
        for mode in LENIENT {
            let data = lenient(mode, loaded(PSH_ACK));
            assert_eq!(ingress(&data, &mut World::with(Found::Live)), Ingress::Learned);
            assert_eq!(ingress(&data, &mut World::with(Found::Own)), Ingress::Socket);
            let known = World { socket: Found::Live, ..World::known() };
            assert_eq!(ingress(&data, &mut { known }), Ingress::KnownFlow);
            assert_eq!(ingress(&lenient(mode, bare(RST)), &mut World::empty()), Ingress::PassStray);
        }
    }

    #[test]
    fn a_cookie_of_ztunnels_is_honoured_while_draining() {
        for mode in LENIENT {
            let ack = lenient(mode, bare(ACK));
            assert_eq!(ingress(&ack, &mut World::empty()), Ingress::ToInboundUnknown);
            assert_eq!(ingress(&ack, &mut World::known()), Ingress::KnownFlow);
            let nobody = IngressFacts { listener: false, ..ack };
            assert_eq!(ingress(&nobody, &mut World::empty()), Ingress::Learned);
        }
    }
}
