//! The addresses a capture probe dials: no real service can have them, so a packet to one of them is
//! always a probe, and the guard never lets it leave the node.

use crate::{Address, Port};
use core::net::{Ipv4Addr, Ipv6Addr};

/// A documentation address (RFC 5737, TEST-NET-1).
pub const PROBE_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// A documentation address (RFC 3849).
pub const PROBE_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
/// The port a capture probe dials.
pub const PROBE_PORT: u16 = 15443;

/// Whether a connection to this address and port is a capture probe.
#[inline(always)]
pub const fn is_probe(address: &Address, port: Port) -> bool {
    if port.get() != PROBE_PORT {
        return false;
    }
    let [a, b, c, d] = address.0;
    if address.is_v4() {
        return d == PROBE_V4.to_bits().to_be();
    }
    let bits = PROBE_V6.to_bits();
    a == ((bits >> 96) as u32).to_be()
        && b == ((bits >> 64) as u32).to_be()
        && c == ((bits >> 32) as u32).to_be()
        && d == (bits as u32).to_be()
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::net::IpAddr;

    #[test]
    fn only_the_probe_is_a_probe() {
        let probe = Port::new(PROBE_PORT);
        assert!(is_probe(&IpAddr::V4(PROBE_V4).into(), probe));
        assert!(is_probe(&IpAddr::V6(PROBE_V6).into(), probe));
        assert!(!is_probe(&IpAddr::V4(PROBE_V4).into(), Port::new(443)));
        assert!(!is_probe(&IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2)).into(), probe));
        assert!(!is_probe(&IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2)).into(), probe));
    }
}
