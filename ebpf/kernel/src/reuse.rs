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
    bindings::BPF_SK_LOOKUP_F_REPLACE,
    helpers::generated::{bpf_ktime_get_ns, bpf_sk_assign},
    macros::sk_lookup,
    programs::SkLookupContext,
};

const SK_DROP: u32 = 0;
const SK_PASS: u32 = 1;
const AF_INET: u32 = 2;
const IPPROTO_TCP: u32 = 6;

/// `sk_lookup` of the pod's network namespace.
#[sk_lookup]
pub fn pod_reuse(ctx: SkLookupContext) -> u32 {
    // SAFETY: the context, whose fields the verifier checks one by one.
    let lookup = unsafe { &*ctx.lookup };
    if lookup.protocol != IPPROTO_TCP {
        return SK_PASS;
    }
    let (local, remote) = if lookup.family == AF_INET {
        (Address::from_v4_be(lookup.local_ip4), Address::from_v4_be(lookup.remote_ip4))
    } else {
        (Address::from_v6_be(lookup.local_ip6), Address::from_v6_be(lookup.remote_ip6))
    };
    let flow = FlowKey {
        local,
        remote,
        // The kernel gives one in host and the other in network order.
        local_port: Port::new(lookup.local_port as u16),
        remote_port: Port::from_be(lookup.remote_port),
    };
    let Some(note) = REUSE.get_ptr(&flow) else { return SK_PASS };
    // SAFETY: a value of the map.
    let (at, slot) = unsafe { ((*note).at, (*note).slot) };
    let _ = REUSE.remove(&flow);
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
