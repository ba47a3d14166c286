//! What leaves the pod: turned round to ztunnel, passed on, or dropped.

use super::verdicts;
use crate::{Address, Found, Lookups, Mode, Packet, Port, Sender, is_probe};

verdicts! {
    /// The verdict on a packet at egress of the pod's device.
    Egress at 0 {
        /// ztunnel's own: passes.
        Own = "egress_own",
        /// No TCP: passes.
        Other = "egress_other",
        /// To the link or the host itself (loopback, link-local, multicast): passes.
        LocalScope = "egress_local_scope",
        /// New or unknown, while everything passes: passes and is recorded.
        Learned = "egress_learned",
        /// Of a connection that is recorded as passing: passes.
        KnownFlow = "egress_known_flow",
        /// SYN-ACK without payload, of no connection ztunnel poses in: passes. ztunnel's listeners send
        /// theirs from request sockets, which carry no mark.
        SynAck = "egress_syn_ack",
        /// RST without payload, or an ACK without payload that no application's socket sent (TIME_WAIT,
        /// the kernel's own): passes.
        Stray = "egress_stray",
        /// Opens a connection: turned round.
        TurnSyn = "egress_turn_syn",
        /// Opens a connection of a capture probe: turned round.
        TurnProbe = "egress_turn_probe",
        /// Of a connection whose other end ztunnel poses as: turned round.
        TurnHeld = "egress_turn_held",
        /// Of a connection that nobody knows: turned round. ztunnel's listener completes a handshake that
        /// used SYN cookies, and resets the rest towards the application.
        TurnUnknown = "egress_turn_unknown",
        /// TCP that cannot be read, and is not ztunnel's: dropped.
        DropHidden = "egress_drop_hidden",
        /// TCP that cannot be read, while everything passes: passes.
        PassHidden = "egress_pass_hidden",
        /// A DNS query that somebody answers here: turned round.
        TurnQuery = "egress_dns",
    }
}

impl Egress {
    /// Whether the packet is redirected to `lo`.
    #[inline(always)]
    pub const fn turns(self) -> bool {
        matches!(self, Self::TurnSyn | Self::TurnProbe | Self::TurnHeld | Self::TurnUnknown | Self::TurnQuery)
    }

    /// Whether a new connection begins whose record, left from an older one, no longer holds.
    #[inline(always)]
    pub const fn forgets(self) -> bool {
        matches!(self, Self::TurnSyn | Self::TurnProbe)
    }
}

/// What is known of a packet at egress without looking anything up. Of where it goes, only the verdict that hangs
/// on it asks more: each answer known beforehand would double the paths that the verifier walks for every pod.
#[derive(Debug, Clone, Copy)]
pub struct EgressFacts {
    /// The pod's mode.
    pub mode: Mode,
    /// Who sent it.
    pub sender: Sender,
    /// What it is.
    pub packet: Packet,
    /// Where it goes.
    pub destination: Address,
    /// The port it goes to.
    pub port: Port,
}

/// Judges a packet that leaves the pod.
#[inline(always)]
pub fn egress(facts: &EgressFacts, lookups: &mut impl Lookups) -> Egress {
    if matches!(facts.sender, Sender::Own) {
        return Egress::Own;
    }
    let enforced = matches!(facts.mode, Mode::Enforce);
    let segment = match facts.packet {
        Packet::Other => return Egress::Other,
        // With nobody to answer, or while everything passes, the resolver that was asked is as good as ever.
        Packet::Query if enforced && facts.destination.may_resolve() && lookups.is_dns_answered() => {
            return Egress::TurnQuery;
        }
        Packet::Query => return Egress::Other,
        _ if facts.destination.is_local_scope() => return Egress::LocalScope,
        Packet::Hidden if enforced => return Egress::DropHidden,
        Packet::Hidden => return Egress::PassHidden,
        Packet::Tcp(segment) => segment,
    };
    if enforced && segment.flags.opens() {
        return if is_probe(&facts.destination, facts.port) { Egress::TurnProbe } else { Egress::TurnSyn };
    }
    let mirror = lookups.socket();
    if matches!(mirror, Found::Live | Found::Own | Found::Handshake) {
        return Egress::TurnHeld;
    }
    if lookups.known_flow() {
        return Egress::KnownFlow;
    }
    if matches!(mirror, Found::TimeWait) && !segment.flags.opens() {
        return Egress::TurnHeld;
    }
    if !enforced {
        return Egress::Learned;
    }
    if segment.bare {
        if segment.flags.answers() {
            return Egress::SynAck;
        }
        let from_app = matches!(facts.sender, Sender::App);
        if segment.flags.resets() || segment.flags.only_acks() && !from_app {
            return Egress::Stray;
        }
    }
    Egress::TurnUnknown
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;
    use crate::PROBE_PORT;

    fn facts(packet: Packet) -> EgressFacts {
        EgressFacts {
            mode: Mode::Enforce,
            sender: Sender::App,
            packet,
            destination: to("10.0.0.1"),
            port: Port::new(80),
        }
    }

    fn in_mode(mode: Mode, packet: Packet) -> EgressFacts {
        EgressFacts { mode, ..facts(packet) }
    }

    #[test]
    fn ztunnels_own_packets_pass_at_no_cost_in_every_mode() {
        for mode in [Mode::Learn, Mode::Enforce, Mode::Drain] {
            for packet in [bare(SYN), loaded(PSH_ACK), Packet::Hidden, Packet::Other] {
                let facts = EgressFacts { sender: Sender::Own, ..in_mode(mode, packet) };
                assert_eq!(egress(&facts, &mut Unasked), Egress::Own);
            }
        }
    }

    #[test]
    fn a_new_connection_is_turned_round_whoever_opens_it() {
        for sender in [Sender::App, Sender::Unknown, Sender::NoStream, Sender::Mini] {
            for packet in [bare(SYN), loaded(SYN), bare(SYN | 0x01)] {
                let facts = EgressFacts { sender, ..facts(packet) };
                assert_eq!(egress(&facts, &mut Unasked), Egress::TurnSyn);
            }
        }
        let probe = EgressFacts { destination: to(PROBE), port: Port::new(PROBE_PORT), ..facts(bare(SYN)) };
        assert_eq!(egress(&probe, &mut Unasked), Egress::TurnProbe);
    }

    #[test]
    fn what_ztunnel_holds_is_turned_round_in_every_mode() {
        for mode in [Mode::Learn, Mode::Enforce, Mode::Drain] {
            for socket in [Found::Live, Found::Own, Found::Handshake, Found::TimeWait] {
                for packet in [bare(ACK), loaded(PSH_ACK), bare(FIN_ACK), bare(RST)] {
                    let verdict = egress(&in_mode(mode, packet), &mut World::with(socket));
                    assert_eq!(verdict, Egress::TurnHeld);
                }
            }
        }
    }

    #[test]
    fn a_connection_from_before_the_enrollment_lives_on() {
        for packet in [bare(ACK), loaded(PSH_ACK), bare(FIN_ACK), bare(RST), bare(SYN_ACK)] {
            assert_eq!(egress(&facts(packet), &mut World::known()), Egress::KnownFlow);
        }
        // But its record does not let a new one of the same ports pass.
        assert_eq!(egress(&facts(bare(SYN)), &mut World::known()), Egress::TurnSyn);
        assert!(Egress::TurnSyn.forgets());
    }

    /// The leak that capturing SYNs alone leaves: ztunnel dies, its orphaned sockets expire, and an idle
    /// application writes.
    #[test]
    fn no_payload_of_an_unknown_connection_leaves() {
        for sender in [Sender::App, Sender::Unknown, Sender::NoStream, Sender::Mini] {
            for flags in [ACK, PSH_ACK, FIN_ACK, RST, RST_ACK, SYN_ACK, 0, 0x08, 0x20, 0xff, 0x01] {
                let facts = EgressFacts { sender, ..facts(loaded(flags)) };
                assert_eq!(egress(&facts, &mut World::empty()), Egress::TurnUnknown, "{flags:#x}");
            }
        }
    }

    #[test]
    fn an_ack_that_completes_a_cookie_handshake_reaches_the_listener() {
        assert_eq!(egress(&facts(bare(ACK)), &mut World::empty()), Egress::TurnUnknown);
        for sender in [Sender::Mini, Sender::Unknown, Sender::NoStream] {
            let facts = EgressFacts { sender, ..facts(bare(ACK)) };
            assert_eq!(egress(&facts, &mut World::empty()), Egress::Stray);
        }
    }

    #[test]
    fn bare_answers_and_resets_pass() {
        assert_eq!(egress(&facts(bare(SYN_ACK)), &mut World::empty()), Egress::SynAck);
        assert_eq!(egress(&facts(bare(RST)), &mut World::empty()), Egress::Stray);
        assert_eq!(egress(&facts(bare(RST_ACK)), &mut World::empty()), Egress::Stray);
        assert_eq!(egress(&facts(bare(FIN_ACK)), &mut World::empty()), Egress::TurnUnknown);
    }

    #[test]
    fn what_cannot_be_read_is_dropped_only_when_enforced() {
        assert_eq!(egress(&facts(Packet::Hidden), &mut Unasked), Egress::DropHidden);
        for mode in [Mode::Learn, Mode::Drain] {
            assert_eq!(egress(&in_mode(mode, Packet::Hidden), &mut Unasked), Egress::PassHidden);
        }
        assert_eq!(egress(&facts(Packet::Other), &mut Unasked), Egress::Other);
    }

    #[test]
    fn a_query_is_turned_round_where_somebody_answers_and_passes_everywhere_else() {
        let mut answered = World { dns: true, ..World::empty() };
        for sender in [Sender::App, Sender::Unknown, Sender::NoStream, Sender::Mini] {
            let facts = EgressFacts { sender, ..facts(Packet::Query) };
            assert_eq!(egress(&facts, &mut answered), Egress::TurnQuery);
            assert_eq!(egress(&facts, &mut World::empty()), Egress::Other);
        }
        assert!(Egress::TurnQuery.turns() && !Egress::TurnQuery.forgets());
        for mode in [Mode::Learn, Mode::Drain] {
            assert_eq!(egress(&in_mode(mode, Packet::Query), &mut Unasked), Egress::Other);
        }
        let own = EgressFacts { sender: Sender::Own, ..facts(Packet::Query) };
        assert_eq!(egress(&own, &mut Unasked), Egress::Own);
        let loopback = EgressFacts { destination: to("127.0.0.53"), ..facts(Packet::Query) };
        assert_eq!(egress(&loopback, &mut Unasked), Egress::Other);
        // A resolver of the link's is asked like any other.
        let node_local = EgressFacts { destination: to("169.254.20.10"), ..facts(Packet::Query) };
        assert_eq!(egress(&node_local, &mut answered), Egress::TurnQuery);
    }

    #[test]
    fn the_link_and_the_host_are_none_of_ours() {
        for packet in [bare(SYN), loaded(PSH_ACK), Packet::Hidden] {
            let facts = EgressFacts { destination: to("169.254.169.254"), ..facts(packet) };
            assert_eq!(egress(&facts, &mut Unasked), Egress::LocalScope);
        }
    }

    #[test]
    fn outside_enforcement_new_connections_pass_and_are_recorded() {
        for mode in [Mode::Learn, Mode::Drain] {
            for packet in [bare(SYN), bare(SYN_ACK), loaded(PSH_ACK), bare(ACK)] {
                assert_eq!(egress(&in_mode(mode, packet), &mut World::empty()), Egress::Learned);
            }
            // A new connection over the ports of one that ztunnel held until just now.
            let mut reused = World::with(Found::TimeWait);
            assert_eq!(egress(&in_mode(mode, bare(SYN)), &mut reused), Egress::Learned);
            let mut reused = World { socket: Found::TimeWait, ..World::known() };
            assert_eq!(egress(&in_mode(mode, loaded(PSH_ACK)), &mut reused), Egress::KnownFlow);
        }
    }
}
