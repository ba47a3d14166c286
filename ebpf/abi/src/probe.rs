//! The addresses a capture probe dials: no real service can have them, so a packet to one of them is
//! always a probe, and the guard never lets it leave the node.

use core::net::{Ipv4Addr, Ipv6Addr};

/// A documentation address (RFC 5737, TEST-NET-1).
pub const PROBE_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// A documentation address (RFC 3849).
pub const PROBE_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
/// The port a capture probe dials.
pub const PROBE_PORT: u16 = 15443;
