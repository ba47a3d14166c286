//! Culvert's kernel programs: they steer a pod's TCP into ztunnel and hold no policy.
//!
//! One thin file per hook: it gathers the facts, asks `abi` for the verdict, and carries it out.
//!
//! | file | hook |
//! |---|---|
//! | `egress` | tcx egress of the pod's device |
//! | `loopback` | tcx ingress of the pod's `lo` |
//! | `ingress` | tcx ingress of the pod's device |
//! | `guard` | tcx ingress of the host's end of the pod's link |
//! | `reuse` | `sk_lookup` of the pod's namespace |
//! | `stats` | `sock_ops` of ztunnel's cgroup |
//! | `splice` | `sock_ops` of the cgroup of applications and ztunnel; `sk_msg` of sockets that are spliced |
//!
//! The object is loaded once per pod, so that its maps are the pod's and no packet asks whose it is; only
//! the marks on ztunnel's sockets are shared. There is no NAT, no conntrack, and no address is changed.
#![no_std]
#![no_main]

mod egress;
mod foreign;
mod guard;
mod ingress;
mod log;
mod loopback;
mod maps;
mod packet;
mod reuse;
mod socket;
mod splice;
mod stats;

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // Never reached: the verifier refuses a program that could get here.
    loop {}
}

/// The helpers used are open to programs under a licence compatible with the GPL.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
