//! A foreign ztunnel: one that knows nothing of our slots and of our mark on sockets. It is told by the ports
//! that it listens on in each pod, and by the packet mark (`SO_MARK`) on its sockets.
//!
//! Unlike ours, this mark can be forged: a process of the pod with NET_ADMIN can set it, and its packets
//! pass then as ztunnel's. So it counts only where [`crate::Config::foreign`] says so.

use crate::{Config, HBONE_PORT, Port, Slot};

/// The packet mark on each socket of a foreign ztunnel.
pub const FOREIGN_MARK: u32 = 0x539;

/// `TCP_LISTEN` of `include/net/tcp_states.h`.
const LISTEN: u32 = 10;

impl Slot {
    /// The port on which a foreign ztunnel listens for what this slot is for; `None` where it does not.
    #[inline(always)]
    pub const fn foreign_port(self) -> Option<Port> {
        match self {
            Self::Outbound => Some(Port::new(15_001)),
            Self::Inbound => Some(Port::new(15_006)),
            Self::Hbone => Some(Port::new(HBONE_PORT)),
            Self::Dns => None,
        }
    }
}

/// Whether a socket found on a foreign ztunnel's port is a listener of it, by the state and the mark of a
/// `bpf_sock`. An application's own listener there has no mark.
#[inline(always)]
pub const fn is_foreign_listener(state: u32, mark: u32) -> bool {
    state == LISTEN && mark == FOREIGN_MARK
}

const _: () = {
    // What a new map holds, and what every agent before wrote there.
    let new = Config { mode: 0, guard: 0, netns: 0, build: 0, accept_local: 0, foreign: 0 };
    assert!(!new.is_foreign());
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_marked_listener_is_a_foreign_ztunnels() {
        assert!(is_foreign_listener(10, 0x539));
        assert!(!is_foreign_listener(10, 0), "an application's listener");
        assert!(!is_foreign_listener(10, crate::TURNED_MARK));
        assert!(!is_foreign_listener(1, 0x539), "a connection");
        assert!(!is_foreign_listener(7, 0x539), "bound, and not listening");
    }

    #[test]
    fn only_the_very_word_makes_it_foreign() {
        let config = Config { mode: 1, guard: 1, netns: 5, build: 6, accept_local: 7, foreign: 1 };
        assert!(Config::from_words(config.to_words()).is_foreign());
        for foreign in [0, 2, u32::MAX] {
            assert!(!Config { foreign, ..config }.is_foreign());
        }
    }

    #[test]
    fn the_ports_are_the_fixed_ones() {
        let ports =
            [Slot::Outbound, Slot::Inbound, Slot::Hbone].map(|slot| slot.foreign_port().map(Port::get));
        assert_eq!(ports, [Some(15_001), Some(15_006), Some(15_008)]);
        assert_eq!(Slot::Dns.foreign_port(), None);
    }
}
