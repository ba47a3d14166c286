//! What the kernel knows of ztunnel's connections: round-trip time, retransmits, delivery rate. It is kept
//! on the socket itself, so it needs no key and goes with the socket.

use crate::{maps::STATS, socket};
use aya_ebpf::{
    bindings::{
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB, BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_RTT_CB,
        BPF_SOCK_OPS_RTT_CB_FLAG, BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_STATE_CB_FLAG, bpf_sock,
    },
    macros::sock_ops,
    programs::SockOpsContext,
};

/// `sock_ops` of the cgroup that ztunnel runs in. Always answers 1, which changes nothing.
#[sock_ops]
pub fn own_stats(ctx: SockOpsContext) -> u32 {
    // SAFETY: a field of the context.
    let sock = unsafe { (*ctx.ops).__bindgen_anon_2.sk };
    if sock.is_null() {
        return 1;
    }
    match ctx.op() {
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB | BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB
            if socket::is_measured(sock) =>
        {
            let wanted = BPF_SOCK_OPS_RTT_CB_FLAG | BPF_SOCK_OPS_STATE_CB_FLAG;
            let _ = ctx.set_cb_flags(wanted as i32);
            keep(&ctx, sock);
        }
        // Asked for above, so only of such sockets: once per round trip, and when the state changes.
        BPF_SOCK_OPS_RTT_CB | BPF_SOCK_OPS_STATE_CB => keep(&ctx, sock),
        _ => {}
    }
    1
}

#[inline(always)]
fn keep(ctx: &SockOpsContext, sock: *mut bpf_sock) {
    let stats = STATS.get_or_create(sock);
    if stats.is_null() {
        return;
    }
    // SAFETY: fields of the context, and a value of the map.
    unsafe {
        let ops = &*ctx.ops;
        // The kernel keeps eight times the value.
        (*stats).srtt_us = ops.srtt_us >> 3;
        (*stats).retransmits = ops.total_retrans;
        if ops.rate_interval_us != 0 {
            (*stats).rate_bytes = u64::from(ops.rate_delivered) * u64::from(ops.mss_cache);
            (*stats).rate_interval_us = ops.rate_interval_us;
        }
    }
}
