//! Capture on the real kernel: pods are network namespaces made for one test each, with a bpffs of their
//! own in a mount namespace of their own, so that nothing outlives its test. Needs root.

#[path = "../../src/netlink.rs"]
#[allow(dead_code, reason = "shared with the crate, which uses all of it")]
mod netlink;

mod dns;
mod evasion;
mod foreign;
mod inbound;
mod kubelet;
mod life;
mod outbound;
mod packets;
mod relay;
mod sniff;
mod splice;
mod stats;
mod world;
