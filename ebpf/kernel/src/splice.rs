//! Splicing two applications of one node: which sockets take part, and where their messages go. See
//! [`abi::Grant`].

use crate::{
    maps::{
        SPLICE_EXPECTED, SPLICE_GRANTS, SPLICE_INSTANCES, SPLICE_PODS, SPLICE_SOCKETS, SPLICE_STATE,
        SPLICE_TALLY,
    },
    socket,
};
use abi::{Address, FlowKey, Grant, Port, SpliceKey, SpliceState};
use aya_ebpf::{
    bindings::{
        BPF_ANY, BPF_F_INGRESS, BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB, BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB,
        BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_STATE_CB_FLAG, bpf_sock, bpf_sock_ops,
    },
    helpers::generated::{bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_skc_to_tcp_sock},
    macros::{sk_msg, sock_ops},
    programs::{SkMsgContext, SockOpsContext},
};
use core::ptr;

const SK_PASS: u32 = 1;
const AF_INET: u32 = 2;
const TCP_ESTABLISHED: u32 = 1;
const TCP_CLOSE: u32 = 7;

/// Where `write_seq` lies in the kernel's `struct tcp_sock`; written by the loader.
#[unsafe(no_mangle)]
static SPLICE_WRITE_SEQ: u32 = 0;

/// `sock_ops` of the cgroup that applications and ztunnel run in. Always answers 1, which changes nothing.
#[sock_ops]
pub fn splice_ops(ctx: SockOpsContext) -> u32 {
    // SAFETY: a field of the context.
    let sock = unsafe { (*ctx.ops).__bindgen_anon_2.sk };
    if sock.is_null() {
        return 1;
    }
    match ctx.op() {
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB => established(&ctx, sock, true),
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => established(&ctx, sock, false),
        BPF_SOCK_OPS_STATE_CB if ctx.arg(1) != TCP_ESTABLISHED => left(sock, ctx.arg(1) == TCP_CLOSE),
        _ => {}
    }
    1
}

/// A connection of this node stands.
#[inline(always)]
fn established(ctx: &SockOpsContext, sock: *mut bpf_sock, active: bool) {
    // SAFETY: the context.
    let netns = unsafe { bpf_get_netns_cookie(ctx.ops.cast()) };
    if SPLICE_PODS.get_ptr(netns).is_none() {
        return;
    }
    let flow = connection(ctx.ops);
    if socket::is_own(sock) {
        watch(ctx, sock, SpliceKey::new(netns, turned(&flow)));
        return;
    }
    let place = SpliceKey::new(netns, flow);
    // A connecting socket takes part if its packets are captured, until ztunnel takes it out: later it could
    // not be put in, since a reader that waits in the ordinary way would not see what is redirected. An
    // accepted one does if ztunnel is about to splice it.
    let wanted = if active { abi::may_splice(&flow) } else { SPLICE_EXPECTED.remove(place).is_ok() };
    if !wanted {
        return;
    }
    let Some(base) = write_seq(sock) else { return };
    // SAFETY: fields of the context.
    let (unacked, acked) = unsafe { ((*ctx.ops).snd_una, (*ctx.ops).bytes_acked) };
    // Data that went with the SYN (TCP Fast Open) is in `write_seq` already: it would not count from zero.
    // The SYN itself counts as a byte that was acknowledged.
    if base != unacked || acked > u64::from(active) {
        return;
    }
    let state = SPLICE_STATE.get_or_create(sock);
    if state.is_null() {
        return;
    }
    // SAFETY: the context.
    let key = place.with_cookie(unsafe { bpf_get_socket_cookie(ctx.ops.cast()) });
    // SAFETY: a value of the map, and nobody else's before the socket is in SPLICE_SOCKETS.
    unsafe { state.write(SpliceState { key, charged: 0, base, kind: SpliceState::APP }) };
    // Left by a ztunnel that was killed, for an earlier connection between the same addresses.
    let _ = SPLICE_GRANTS.remove(place);
    let _ = SPLICE_TALLY.remove(place);
    if SPLICE_INSTANCES.insert(place, key.instance, BPF_ANY as u64).is_err() {
        return;
    }
    // SAFETY: the context is that of a callback which may add its socket.
    let ops = unsafe { &mut *ctx.ops };
    // Refused, the socket is an ordinary one.
    let _ = SPLICE_SOCKETS.update(key, ops, BPF_ANY as u64);
    // To clear up when it is closed; the maps would fill up otherwise, and pushing old entries out costs more.
    let _ = ctx.set_cb_flags((ctx.cb_flags() | BPF_SOCK_OPS_STATE_CB_FLAG) as i32);
}

/// Asks to be told when a socket of ztunnel's leaves its state, and notes whose grant goes then.
#[inline(always)]
fn watch(ctx: &SockOpsContext, sock: *mut bpf_sock, key: SpliceKey) {
    // Others on the same socket have asked for what they want.
    let wanted = ctx.cb_flags() | BPF_SOCK_OPS_STATE_CB_FLAG;
    if ctx.set_cb_flags(wanted as i32).is_err() {
        return;
    }
    let state = SPLICE_STATE.get_or_create(sock);
    if !state.is_null() {
        // SAFETY: a value of the map.
        unsafe { state.write(SpliceState { key, charged: 0, base: 0, kind: SpliceState::WATCHED }) };
    }
}

/// A socket left its state: closed by ztunnel, or by the kernel because ztunnel was killed; reset; or the
/// application closed its side. Or an application's socket is closed for good.
#[inline(always)]
fn left(sock: *mut bpf_sock, closed: bool) {
    let state = SPLICE_STATE.get(sock);
    if state.is_null() {
        return;
    }
    // SAFETY: a value of the map.
    unsafe {
        if (*state).kind == SpliceState::WATCHED {
            let _ = SPLICE_GRANTS.remove((*state).key);
        } else if closed {
            let place = (*state).key.place();
            let _ = SPLICE_GRANTS.remove(place);
            let _ = SPLICE_INSTANCES.remove(place);
        }
    }
}

/// `sk_msg` of the sockets that take part. Always passes: what is not redirected goes by TCP, and a drop
/// would be an error to the application.
#[sk_msg]
pub fn splice_msg(ctx: SkMsgContext) -> u32 {
    // SAFETY: a field of the context, and never null.
    let sock = unsafe { (*ctx.msg).__bindgen_anon_3.sk };
    let state = SPLICE_STATE.get(sock);
    if !state.is_null() {
        redirect(&ctx, sock, state);
    }
    SK_PASS
}

/// Sends a message straight to the peer, if that is granted. The kernel holds the socket's lock, so two
/// messages of one socket are never here at a time.
#[inline(always)]
fn redirect(ctx: &SkMsgContext, sock: *mut bpf_sock, state: *mut SpliceState) {
    // SAFETY: a value of the map.
    let (key, charged, base, kind) =
        unsafe { ((*state).key, (*state).charged, (*state).base, (*state).kind) };
    let place = key.place();
    let Some(grant) = SPLICE_GRANTS.get_ptr(place) else { return };
    // Read once, word by word: the memory may be another grant's a moment later.
    let words = grant.cast::<u64>();
    // SAFETY: a value of the map.
    let word = |at: usize| unsafe { ptr::read_volatile(words.add(at)) };
    let grant =
        Grant::from_words([word(0), word(1), word(2), word(3), word(4), word(5), word(6), word(7), word(8)]);
    let Some(sent) = write_seq(sock) else { return };
    let size = ctx.size();
    if kind != SpliceState::APP || !grant.allows(&key, sent.wrapping_sub(base), charged, size) {
        return;
    }
    // Splicing was switched off, or the pod has left.
    if SPLICE_PODS.get_ptr(key.netns).is_none() {
        return;
    }
    // A peer that has closed is not there any more: then TCP tells.
    if SPLICE_SOCKETS.redirect_msg(ctx, grant.peer, BPF_F_INGRESS as u64) != i64::from(SK_PASS) {
        return;
    }
    let charged = charged + abi::splice_charge(size);
    // SAFETY: a value of the map, which only this program changes, under the socket's lock.
    unsafe { (*state).charged = charged };
    if let Some(tally) = SPLICE_TALLY.get_ptr_mut(place) {
        // SAFETY: a value of the map, which only this program adds to, under the socket's lock. (Were the
        // memory another socket's tally by now, that one's statistics would be off.)
        unsafe {
            (*tally)[0] += u64::from(size);
            (*tally)[1] = charged;
        }
    }
}

/// How far the application has written into its TCP connection: the sequence number after its last byte,
/// be it sent or not.
#[inline(always)]
fn write_seq(sock: *mut bpf_sock) -> Option<u32> {
    // SAFETY: a variable that is read-only once it is loaded.
    let offset = unsafe { ptr::read_volatile(&raw const SPLICE_WRITE_SEQ) };
    // SAFETY: a socket that is not null.
    let tcp = unsafe { bpf_skc_to_tcp_sock(sock.cast()) };
    if tcp.is_null() {
        return None;
    }
    // SAFETY: the verifier knows the structure, and that its field is read.
    Some(unsafe { ptr::read_volatile(tcp.cast::<u8>().add(offset as usize).cast::<u32>()) })
}

/// The same connection from the other end.
#[inline(always)]
fn turned(flow: &FlowKey) -> FlowKey {
    FlowKey {
        local: flow.remote,
        remote: flow.local,
        local_port: flow.remote_port,
        remote_port: flow.local_port,
    }
}

/// The connection of a socket, from its own end.
///
/// Everything is read, whatever the family, and volatile: left to choose, the compiler computes which field
/// to read, and the verifier refuses a computed field.
#[inline(always)]
fn connection(ops: *const bpf_sock_ops) -> FlowKey {
    // SAFETY: fields of the context, each by its own name.
    let (family, v4, v6, local_port, remote_port) = unsafe {
        let word = |field: *const u32| ptr::read_volatile(field);
        let four = |field: *const [u32; 4]| {
            let first = field.cast::<u32>();
            [word(first), word(first.add(1)), word(first.add(2)), word(first.add(3))]
        };
        (
            word(&raw const (*ops).family),
            (word(&raw const (*ops).local_ip4), word(&raw const (*ops).remote_ip4)),
            (four(&raw const (*ops).local_ip6), four(&raw const (*ops).remote_ip6)),
            word(&raw const (*ops).local_port),
            word(&raw const (*ops).remote_port),
        )
    };
    let (local, remote) = if family == AF_INET {
        (Address::from_v4_be(v4.0), Address::from_v4_be(v4.1))
    } else {
        (Address::from_v6_be(v6.0), Address::from_v6_be(v6.1))
    };
    // One port in host order, the other as a word in network order.
    let remote_port = Port::new(u32::from_be(remote_port) as u16);
    FlowKey { local, remote, local_port: Port::new(local_port as u16), remote_port }
}
