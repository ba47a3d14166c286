//! Asks the kernel what the verdicts want to know of sockets and connections, and carries out what they
//! decide about them.

use crate::{
    foreign,
    maps::{CONFIG, COUNTERS, FLOWS, KUBELET, OWN, PROBES, REUSE, SLOTS},
    packet::Frame,
};
use abi::{Config, Counter, Flow, FlowKey, Found, Lookups, Mode, ReuseNote, Sender, Slot};
use aya_ebpf::{
    EbpfContext as _,
    bindings::{BPF_F_CURRENT_NETNS, BPF_NOEXIST, bpf_sock},
    helpers::generated::{
        bpf_ktime_get_ns, bpf_sk_assign, bpf_sk_fullsock, bpf_sk_release, bpf_skb_cgroup_id,
        bpf_skc_lookup_tcp,
    },
    programs::TcContext,
};
use core::ptr;

/// Passes the packet to the next program of the hook: `TCX_NEXT`. `TC_ACT_OK` would end the chain and hide
/// what other people attach there.
pub const NEXT: i32 = -1;
/// Drops the packet: `TCX_DROP`.
pub const DROP: i32 = 2;

const SOCK_STREAM: u32 = 1;
const IPPROTO_TCP: u32 = 6;

/// Counts a verdict.
#[inline(always)]
pub fn count(counter: Counter) {
    if let Some(count) = COUNTERS.get_ptr_mut(counter.0) {
        // SAFETY: the pointer is to this CPU's value of the map.
        unsafe { *count += 1 };
    }
}

/// How the pod is set.
#[derive(Clone, Copy)]
pub struct Settings {
    pub mode: Mode,
    /// Whether the guard drops.
    pub guard: bool,
    /// Whether ztunnel is known by its ports and its mark too.
    pub foreign: bool,
}

/// How the pod is set; strict, should the map ever be unreadable.
#[inline(always)]
pub fn config() -> Settings {
    match CONFIG.get(0) {
        Some(config @ Config { mode, guard, .. }) => {
            Settings { mode: Mode::from_word(*mode), guard: *guard != 0, foreign: config.is_foreign() }
        }
        None => Settings { mode: Mode::Enforce, guard: true, foreign: false },
    }
}

/// Whether the socket is our ztunnel's.
#[inline(always)]
pub fn is_own(socket: *mut bpf_sock) -> bool {
    has_bit(socket, abi::OWN_MARK)
}

/// Whether the socket is our ztunnel's and it wants to know how the connection does.
#[inline(always)]
pub fn is_measured(socket: *mut bpf_sock) -> bool {
    has_bit(socket, abi::OWN_MEASURED)
}

#[inline(always)]
fn has_bit(socket: *mut bpf_sock, bit: u32) -> bool {
    let mark = OWN.get(socket);
    // SAFETY: not null, and then a value of the map.
    !mark.is_null() && unsafe { *mark } & bit != 0
}

/// Whether a full socket is one of TCP.
///
/// # Safety
/// It must be a full socket that is not null.
#[inline(always)]
pub unsafe fn is_tcp(full: *mut bpf_sock) -> bool {
    // SAFETY: a full socket.
    let (kind, protocol) = unsafe { ((*full).type_, (*full).protocol) };
    kind == SOCK_STREAM && protocol == IPPROTO_TCP
}

/// Who sent the packet; `foreign`: see [`Settings::foreign`].
#[inline(always)]
pub fn sender(ctx: &TcContext, foreign: bool) -> Sender {
    // SAFETY: a field of the context, whose access the verifier checks.
    let socket = unsafe { (*ctx.skb.skb).__bindgen_anon_2.sk };
    if socket.is_null() {
        return Sender::Unknown;
    }
    if is_own(socket) {
        return Sender::Own;
    }
    // SAFETY: a socket that is not null.
    let full = unsafe { bpf_sk_fullsock(socket) };
    if full.is_null() {
        return Sender::Mini;
    }
    // SAFETY: a full socket.
    if !unsafe { is_tcp(full) } {
        return Sender::NoStream;
    }
    // SAFETY: a full socket.
    if foreign && unsafe { (*full).mark } == abi::FOREIGN_MARK {
        return Sender::Own;
    }
    Sender::App
}

/// The socket that would receive the packet, to be released; null instead of a listener.
#[inline(always)]
pub fn receiver(ctx: &TcContext, frame: &Frame) -> (*mut bpf_sock, Found) {
    let (mut tuple, size) = frame.tuple();
    let none = (ptr::null_mut(), Found::None);
    // Both sizes are constants in their branches: the verifier wants to see that.
    let socket = if size == 36 {
        // SAFETY: the tuple is as large as said.
        unsafe { bpf_skc_lookup_tcp(ctx.as_ptr(), &mut tuple, 36, BPF_F_CURRENT_NETNS as u64, 0) }
    } else {
        // SAFETY: the tuple is as large as said.
        unsafe { bpf_skc_lookup_tcp(ctx.as_ptr(), &mut tuple, 12, BPF_F_CURRENT_NETNS as u64, 0) }
    };
    if socket.is_null() {
        return none;
    }
    // SAFETY: a socket that is not null, held until it is released.
    let found = Found::from_state(unsafe { (*socket).state });
    if matches!(found, Found::None) {
        release(socket);
        return none;
    }
    (socket, found)
}

/// Gives back a socket that a lookup returned.
#[inline(always)]
pub fn release(socket: *mut bpf_sock) {
    // SAFETY: the verifier sees to it that each is released once.
    unsafe { bpf_sk_release(socket.cast()) };
}

/// Gives the packet to the socket, and the socket back. Whether the kernel took it.
#[inline(always)]
pub fn assign(ctx: &TcContext, socket: *mut bpf_sock) -> bool {
    // SAFETY: a referenced socket; the packet takes a reference of its own.
    let refused = unsafe { bpf_sk_assign(ctx.as_ptr(), socket.cast(), 0) };
    release(socket);
    refused == 0
}

/// What became of a packet for one of the listeners.
pub enum Handed {
    Assigned,
    Refused,
    NoListener,
}

/// The listener of a slot, to be released, or null. Only for an empty slot it matters whose ztunnel the
/// pod has; `v6` is the packet's family.
#[inline(always)]
fn listener(ctx: &TcContext, slot: Slot, v6: bool) -> *mut bpf_sock {
    let held = SLOTS.get(slot as u32);
    if held.is_null() && config().foreign {
        return foreign::listener(ctx, slot, v6);
    }
    held
}

/// Gives the packet to the listener of a slot.
#[inline(always)]
pub fn hand_to(ctx: &TcContext, slot: Slot, v6: bool) -> Handed {
    let listener = listener(ctx, slot, v6);
    if listener.is_null() {
        return Handed::NoListener;
    }
    if assign(ctx, listener) { Handed::Assigned } else { Handed::Refused }
}

/// Whether somebody listens for a slot.
#[inline(always)]
pub fn is_held(ctx: &TcContext, slot: Slot, v6: bool) -> bool {
    let listener = listener(ctx, slot, v6);
    if listener.is_null() {
        return false;
    }
    release(listener);
    true
}

/// Records a connection as one that passes ztunnel by.
#[inline(always)]
pub fn record(key: &FlowKey) {
    // SAFETY: takes no argument.
    let now = &unsafe { bpf_ktime_get_ns() };
    match FLOWS.insert(key, now, BPF_NOEXIST as u64) {
        Ok(()) => count(Flow::Recorded.counter()),
        // EEXIST: another CPU was quicker.
        Err(-17) => {}
        Err(_) => count(Flow::Full.counter()),
    }
}

/// Records a connection of the kubelet.
#[inline(always)]
pub fn record_probe(key: &FlowKey) {
    // SAFETY: takes no argument.
    let now = &unsafe { bpf_ktime_get_ns() };
    // Should it fail, the application's answer is reset, and the kubelet tries again.
    let _ = PROBES.insert(key, now, 0);
}

/// Whether a connection is recorded as one that passes ztunnel by.
#[inline(always)]
pub fn is_known(key: &FlowKey) -> bool {
    FLOWS.get_ptr(key).is_some() || PROBES.get_ptr(key).is_some()
}

/// Removes a connection's record, if there is one.
#[inline(always)]
pub fn forget(key: &FlowKey) {
    if FLOWS.remove(key).is_ok() {
        count(Flow::Forgotten.counter());
    }
    let _ = PROBES.remove(key);
}

/// Tells the `sk_lookup` program where a SYN belongs. It looks into the slot only, so a foreign listener is
/// put there.
#[inline(always)]
pub fn note(ctx: &TcContext, key: &FlowKey, slot: Slot, v6: bool) {
    if config().foreign {
        is_held(ctx, slot, v6);
    }
    // SAFETY: takes no argument.
    let note = &ReuseNote { at: unsafe { bpf_ktime_get_ns() }, slot: slot as u32, zero: 0 };
    // Should it fail, the SYN's sender tries again.
    let _ = REUSE.insert(key, note, 0);
}

/// What a verdict may ask about one packet.
pub struct Kernel<'a> {
    pub ctx: &'a TcContext,
    pub frame: &'a Frame,
    pub flow: &'a FlowKey,
    /// Whether ztunnel's connections are to be told apart.
    pub tell_own: bool,
    /// See [`Settings::foreign`].
    pub foreign: bool,
}

impl Lookups for Kernel<'_> {
    #[inline(always)]
    fn socket(&mut self) -> Found {
        let (socket, found) = receiver(self.ctx, self.frame);
        if socket.is_null() {
            return Found::None;
        }
        let own = self.tell_own && (is_own(socket) || self.foreign && foreign::is_own(socket));
        release(socket);
        if own { Found::Own } else { found }
    }

    #[inline(always)]
    fn known_flow(&mut self) -> bool {
        is_known(self.flow)
    }

    #[inline(always)]
    fn is_of_kubelet(&mut self) -> bool {
        match KUBELET.get(0) {
            // SAFETY: asks about the packet that the program was called for.
            Some(&kubelet) if kubelet != 0 => unsafe { bpf_skb_cgroup_id(self.ctx.skb.skb) == kubelet },
            _ => false,
        }
    }

    #[inline(always)]
    fn is_dns_answered(&mut self) -> bool {
        is_held(self.ctx, Slot::Dns, self.frame.v6)
    }
}
