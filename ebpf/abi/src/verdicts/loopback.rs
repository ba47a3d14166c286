//! What was turned round, at `lo`: given to ztunnel's socket, or to its listener, or to nobody.

use super::verdicts;
use crate::{Found, Lookups, Packet};

verdicts! {
    /// The verdict on a packet at ingress of `lo`.
    Loopback at 1 {
        /// Not turned round: the pod's own loopback traffic, and ztunnel's onward legs. Passes untouched.
        NotOurs = "loopback_not_ours",
        /// Given to the socket that holds the connection.
        Held = "loopback_held",
        /// Opens a connection over the ports of one that is closing or not yet open: given to that
        /// socket, and noted, so that `sk_lookup` finds ztunnel's listener and no other.
        HeldOpening = "loopback_held_opening",
        /// Given to ztunnel's listener.
        Listener = "loopback_listener",
        /// Nobody listens: dropped. (Not a verdict on facts, but its outcome.)
        NoListener = "loopback_no_listener",
        /// The kernel would not give the packet to the socket: dropped.
        NotAssigned = "loopback_not_assigned",
        /// Bears the mark of a turned packet and is none that is ever turned: dropped. Someone in the
        /// pod sets our mark.
        Forged = "loopback_forged",
        /// A DNS query: given to the socket that answers them.
        Query = "loopback_dns",
    }
}

/// What is known of a packet at `lo` without looking anything up.
#[derive(Debug, Clone, Copy)]
pub struct LoopbackFacts {
    /// Whether it bears the mark of a turned packet.
    pub turned: bool,
    /// What it is.
    pub packet: Packet,
}

/// Judges a packet that arrives at `lo`. A listener that a lookup finds is one of the pod's own and says
/// nothing: a turned packet goes elsewhere.
#[inline(always)]
pub fn loopback(facts: &LoopbackFacts, lookups: &mut impl Lookups) -> Loopback {
    if !facts.turned {
        return Loopback::NotOurs;
    }
    let segment = match facts.packet {
        Packet::Tcp(segment) => segment,
        Packet::Query => return Loopback::Query,
        Packet::Other | Packet::Hidden => return Loopback::Forged,
    };
    match lookups.socket() {
        Found::None => Loopback::Listener,
        Found::Handshake | Found::TimeWait if segment.flags.opens() => Loopback::HeldOpening,
        Found::Handshake | Found::TimeWait | Found::Live | Found::Own => Loopback::Held,
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    fn turned(packet: Packet) -> LoopbackFacts {
        LoopbackFacts { turned: true, packet }
    }

    #[test]
    fn what_was_not_turned_is_left_alone() {
        for packet in [bare(SYN), loaded(PSH_ACK), Packet::Query, Packet::Other, Packet::Hidden] {
            let facts = LoopbackFacts { turned: false, packet };
            assert_eq!(loopback(&facts, &mut Unasked), Loopback::NotOurs);
        }
    }

    #[test]
    fn a_connection_finds_its_socket_and_everything_else_the_listener() {
        for flags in [SYN, ACK, PSH_ACK, FIN_ACK] {
            assert_eq!(loopback(&turned(bare(flags)), &mut World::empty()), Loopback::Listener);
            for found in [Found::Live, Found::Own] {
                assert_eq!(loopback(&turned(bare(flags)), &mut World::with(found)), Loopback::Held);
            }
        }
    }

    #[test]
    fn an_opening_over_old_ports_never_reaches_a_listener_of_the_pod() {
        for found in [Found::TimeWait, Found::Handshake] {
            assert_eq!(loopback(&turned(bare(SYN)), &mut World::with(found)), Loopback::HeldOpening);
            assert_eq!(loopback(&turned(bare(ACK)), &mut World::with(found)), Loopback::Held);
        }
    }

    #[test]
    fn a_query_asks_for_no_connection() {
        assert_eq!(loopback(&turned(Packet::Query), &mut Unasked), Loopback::Query);
    }

    #[test]
    fn a_forged_mark_leads_nowhere() {
        assert_eq!(loopback(&turned(Packet::Other), &mut Unasked), Loopback::Forged);
        assert_eq!(loopback(&turned(Packet::Hidden), &mut Unasked), Loopback::Forged);
    }
}
