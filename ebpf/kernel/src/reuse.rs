//! A SYN over the ports of a connection that is in TIME_WAIT, or of a request whose listener is gone: the
//! kernel, given such a packet, looks for a listener itself, and would find the application's. tc noted the
//! SYN; here it is led to ztunnel's listener. Every other lookup passes.

use crate::{
    maps::{REUSE, SLOTS},
    socket,
};
use abi::{Address, FlowKey, Port, Reuse};
use aya_ebpf::{
    EbpfContext as _,
    bindings::{BPF_SK_LOOKUP_F_REPLACE, bpf_sk_lookup},
    helpers::generated::{bpf_ktime_get_ns, bpf_sk_assign},
    macros::sk_lookup,
    programs::SkLookupContext,
};
use core::ptr;

const SK_DROP: u32 = 0;
const SK_PASS: u32 = 1;
const AF_INET: u32 = 2;
const IPPROTO_TCP: u32 = 6;

/// `sk_lookup` of the pod's network namespace.
#[sk_lookup]
pub fn pod_reuse(ctx: SkLookupContext) -> u32 {
    let lookup = ctx.lookup;
    // SAFETY: a field of the context.
    if unsafe { (*lookup).protocol } != IPPROTO_TCP {
        return SK_PASS;
    }
    let flow = &connection(lookup);
    let Some(note) = REUSE.get_ptr(flow) else { return SK_PASS };
    // SAFETY: a value of the map.
    let (at, slot) = unsafe { ((*note).at, (*note).slot) };
    let _ = REUSE.remove(flow);
    // SAFETY: takes no argument.
    if unsafe { bpf_ktime_get_ns() }.wrapping_sub(at) > abi::REUSE_VALID_NS {
        return SK_PASS;
    }
    let listener = SLOTS.get(slot);
    if listener.is_null() {
        socket::count(Reuse::NoListener.counter());
        return SK_DROP;
    }
    // SAFETY: a referenced socket.
    let refused = unsafe { bpf_sk_assign(ctx.as_ptr(), listener.cast(), BPF_SK_LOOKUP_F_REPLACE as u64) };
    socket::release(listener);
    if refused != 0 {
        socket::count(Reuse::NoListener.counter());
        return SK_DROP;
    }
    socket::count(Reuse::Redirected.counter());
    SK_PASS
}

/// The connection that a listener is looked up for.
///
/// Everything is read, whatever the family (the kernel gives zeros for the other one), and volatile: left
/// to choose, the compiler computes which field to read, and the verifier refuses a computed field.
#[inline(always)]
fn connection(lookup: *const bpf_sk_lookup) -> FlowKey {
    // SAFETY: fields of the context, each by its own name.
    let (family, v4, v6, ports) = unsafe {
        let word = |field: *const u32| ptr::read_volatile(field);
        let four = |field: *const [u32; 4]| {
            let first = field.cast::<u32>();
            [word(first), word(first.add(1)), word(first.add(2)), word(first.add(3))]
        };
        (
            word(&raw const (*lookup).family),
            (word(&raw const (*lookup).local_ip4), word(&raw const (*lookup).remote_ip4)),
            (four(&raw const (*lookup).local_ip6), four(&raw const (*lookup).remote_ip6)),
            (word(&raw const (*lookup).local_port), ptr::read_volatile(&raw const (*lookup).remote_port)),
        )
    };
    let (local, remote) = if family == AF_INET {
        (Address::from_v4_be(v4.0), Address::from_v4_be(v4.1))
    } else {
        (Address::from_v6_be(v6.0), Address::from_v6_be(v6.1))
    };
    // The kernel gives one port in host and the other in network order.
    FlowKey { local, remote, local_port: Port::new(ports.0 as u16), remote_port: Port::from_be(ports.1) }
}
