//! What leaves the pod's link on the host's side, out of the pod's reach: the proof that nothing leaks.
//!
//! A process with NET_RAW skips egress (PACKET_QDISC_BYPASS), one with NET_ADMIN may have taken something
//! apart in the pod. What arrives here nevertheless is told by the socket still attached to it.

use super::verdicts;
use crate::{Address, Mode, Packet, Port, Sender, is_probe};

verdicts! {
    /// The verdict on a packet at ingress of the host's end of the pod's link.
    Guard at 3 {
        /// ztunnel's own: passes.
        Own = "guard_own",
        /// No TCP: passes.
        Other = "guard_other",
        /// To the link or the host itself: passes.
        LocalScope = "guard_local_scope",
        /// Of a connection that is recorded as passing: passes.
        KnownFlow = "guard_known_flow",
        /// SYN-ACK, RST or ACK without payload: passes.
        Bare = "guard_bare",
        /// While everything passes: passes.
        Passed = "guard_passed",
        /// The guard is off, since here it cannot tell ztunnel's packets from others: passes.
        Blind = "guard_blind",
        /// A probe from ztunnel's kind of socket, whose mark is visible here: dropped, it has arrived.
        ProbeSeen = "guard_probe_seen",
        /// A probe without that mark, or one whose mark is not visible here: dropped, it has arrived.
        ProbeUnmarked = "guard_probe_unmarked",
        /// TCP that is not ztunnel's: dropped.
        LeakPrevented = "guard_leak_prevented",
        /// TCP that cannot be read, and is not ztunnel's: dropped.
        DropHidden = "guard_drop_hidden",
    }
}

impl Guard {
    /// Whether the packet ends here.
    #[inline(always)]
    pub const fn drops(self) -> bool {
        matches!(self, Self::ProbeSeen | Self::ProbeUnmarked | Self::LeakPrevented | Self::DropHidden)
    }
}

/// What is known of a packet at the guard without looking anything up.
#[derive(Debug, Clone, Copy)]
pub struct GuardFacts {
    /// The pod's mode.
    pub mode: Mode,
    /// Whether the guard drops at all.
    pub on: bool,
    /// Who sent it.
    pub sender: Sender,
    /// What it is.
    pub packet: Packet,
    /// Where it goes.
    pub destination: Address,
    /// The port it goes to.
    pub port: Port,
}

/// Judges a packet that has left the pod. Sockets are not asked for: those of this namespace are not the
/// pod's.
#[inline(always)]
pub fn guard(facts: &GuardFacts, known_flow: impl FnOnce() -> bool) -> Guard {
    let own = matches!(facts.sender, Sender::Own);
    let segment = match facts.packet {
        Packet::Other | Packet::Query => return Guard::Other,
        _ if is_probe(&facts.destination, facts.port) => {
            return if own { Guard::ProbeSeen } else { Guard::ProbeUnmarked };
        }
        _ if own => return Guard::Own,
        _ if !matches!(facts.mode, Mode::Enforce) => return Guard::Passed,
        _ if facts.destination.is_local_scope() => return Guard::LocalScope,
        _ if !facts.on => return Guard::Blind,
        Packet::Hidden => return Guard::DropHidden,
        Packet::Tcp(segment) => segment,
    };
    let flags = segment.flags;
    if segment.bare && (flags.answers() || flags.resets() || flags.only_acks()) {
        return Guard::Bare;
    }
    // A record lets what is established pass, never a new connection.
    if !flags.opens() && known_flow() {
        return Guard::KnownFlow;
    }
    Guard::LeakPrevented
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;
    use crate::PROBE_PORT;

    fn facts(packet: Packet) -> GuardFacts {
        GuardFacts {
            mode: Mode::Enforce,
            on: true,
            sender: Sender::App,
            packet,
            destination: to("10.0.0.1"),
            port: Port::new(80),
        }
    }

    fn unasked() -> bool {
        panic!("looked a flow up for nothing")
    }

    #[test]
    fn only_ztunnels_and_recorded_payload_leaves() {
        for sender in [Sender::App, Sender::Unknown, Sender::NoStream, Sender::Mini] {
            for packet in
                [bare(SYN), loaded(PSH_ACK), loaded(ACK), bare(FIN_ACK), loaded(SYN_ACK), loaded(RST)]
            {
                let facts = GuardFacts { sender, ..facts(packet) };
                assert_eq!(guard(&facts, || false), Guard::LeakPrevented);
                assert!(Guard::LeakPrevented.drops());
            }
        }
        assert_eq!(guard(&facts(loaded(PSH_ACK)), || true), Guard::KnownFlow);
        assert_eq!(guard(&facts(bare(SYN)), || true), Guard::LeakPrevented);
        let own = GuardFacts { sender: Sender::Own, ..facts(loaded(PSH_ACK)) };
        assert_eq!(guard(&own, unasked), Guard::Own);
    }

    #[test]
    fn what_carries_nothing_and_opens_nothing_passes() {
        for flags in [ACK, RST, RST_ACK, SYN_ACK] {
            assert_eq!(guard(&facts(bare(flags)), unasked), Guard::Bare);
        }
    }

    #[test]
    fn what_cannot_be_read_is_dropped_unless_it_is_ztunnels() {
        assert_eq!(guard(&facts(Packet::Hidden), unasked), Guard::DropHidden);
        let own = GuardFacts { sender: Sender::Own, ..facts(Packet::Hidden) };
        assert_eq!(guard(&own, unasked), Guard::Own);
        assert_eq!(guard(&facts(Packet::Other), unasked), Guard::Other);
        assert_eq!(guard(&facts(Packet::Query), unasked), Guard::Other);
    }

    #[test]
    fn a_probe_never_leaves_the_node() {
        for mode in [Mode::Learn, Mode::Enforce, Mode::Drain] {
            for on in [true, false] {
                let probe = GuardFacts {
                    mode,
                    on,
                    destination: to(PROBE),
                    port: Port::new(PROBE_PORT),
                    ..facts(bare(SYN))
                };
                assert_eq!(guard(&probe, unasked), Guard::ProbeUnmarked);
                let own = GuardFacts { sender: Sender::Own, ..probe };
                assert_eq!(guard(&own, unasked), Guard::ProbeSeen);
            }
        }
        assert!(Guard::ProbeSeen.drops() && Guard::ProbeUnmarked.drops());
    }

    #[test]
    fn it_stands_aside_when_told_so() {
        for mode in [Mode::Learn, Mode::Drain] {
            let facts = GuardFacts { mode, ..facts(loaded(PSH_ACK)) };
            assert_eq!(guard(&facts, unasked), Guard::Passed);
        }
        let off = GuardFacts { on: false, ..facts(bare(SYN)) };
        assert_eq!(guard(&off, unasked), Guard::Blind);
        let link = GuardFacts { destination: to("169.254.169.254"), ..facts(bare(SYN)) };
        assert_eq!(guard(&link, unasked), Guard::LocalScope);
    }
}
