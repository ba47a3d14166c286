//! The bed's address plan. Every world has the same one: worlds do not see each other.
//!
//! | what | IPv4 | IPv6 |
//! |---|---|---|
//! | wire, node *n* | `10.10.0.n/24` | `fd10::n/64` |
//! | wire, control | `10.10.0.250` | `fd10::fa` |
//! | pod *p* of node *n* | `10.20.n.p/32` | `fd20:0:0:n::p/128` |
//! | services | `10.96.0.0/16` | `fd96::/112` |

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The gateway every pod sees, on its node's end of the veth pair.
pub const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// The gateway's IPv6 twin.
pub const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// The control plane's place on the wire.
pub fn control() -> [IpAddr; 2] {
    on_wire(250)
}

/// A node's place on the wire.
pub fn node(node: u8) -> [IpAddr; 2] {
    on_wire(node)
}

fn on_wire(host: u8) -> [IpAddr; 2] {
    [Ipv4Addr::new(10, 10, 0, host).into(), Ipv6Addr::new(0xfd10, 0, 0, 0, 0, 0, 0, host.into()).into()]
}

/// A pod's addresses.
pub fn pod(node: u8, pod: u8) -> [IpAddr; 2] {
    [
        Ipv4Addr::new(10, 20, node, pod).into(),
        Ipv6Addr::new(0xfd20, 0, 0, node.into(), 0, 0, 0, pod.into()).into(),
    ]
}

/// A service's virtual addresses; `n` is the service's number, from 1.
pub fn service(n: u8) -> [IpAddr; 2] {
    [Ipv4Addr::new(10, 96, 0, n).into(), Ipv6Addr::new(0xfd96, 0, 0, 0, 0, 0, 0, n.into()).into()]
}

/// The pod subnets of a node, as routes name them.
pub fn pod_subnets(node: u8) -> [String; 2] {
    [format!("10.20.{node}.0/24"), format!("fd20:0:0:{node:x}::/64")]
}
