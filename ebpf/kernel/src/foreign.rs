//! Finds the listeners of a foreign ztunnel by their ports. See [`abi::FOREIGN_MARK`].

use crate::{maps::SLOTS, socket};
use abi::Slot;
use aya_ebpf::{
    EbpfContext as _,
    bindings::{BPF_F_CURRENT_NETNS, bpf_sock, bpf_sock_tuple},
    helpers::generated::{bpf_sk_fullsock, bpf_sk_lookup_tcp},
    programs::TcContext,
};
use core::{mem, ptr};

const AF_INET6: u32 = 10;

/// The listener for packets of a family, to be released, or null.
///
/// One for both families is put into the slot: the next packet finds it there, and so does `sk_lookup`,
/// which cannot look for sockets. It leaves the slot when it is closed.
#[inline(always)]
pub fn listener(ctx: &TcContext, slot: Slot, v6: bool) -> *mut bpf_sock {
    let Some(port) = slot.foreign_port() else { return ptr::null_mut() };
    // From nowhere to any address: no connection matches, and no listener on one address is preferred.
    // SAFETY: plain integers, for which zero is a value.
    let mut tuple: bpf_sock_tuple = unsafe { mem::zeroed() };
    let here = BPF_F_CURRENT_NETNS as u64;
    // Both sizes are constants in their branches: the verifier wants to see that.
    let found = if v6 {
        tuple.__bindgen_anon_1.ipv6.dport = port.to_be();
        // SAFETY: the tuple is as large as said.
        unsafe { bpf_sk_lookup_tcp(ctx.as_ptr(), &mut tuple, 36, here, 0) }
    } else {
        tuple.__bindgen_anon_1.ipv4.dport = port.to_be();
        // SAFETY: the tuple is as large as said.
        unsafe { bpf_sk_lookup_tcp(ctx.as_ptr(), &mut tuple, 12, here, 0) }
    };
    if found.is_null() {
        return found;
    }
    // SAFETY: fields of a referenced full socket.
    let (state, mark, family) = unsafe { ((*found).state, (*found).mark, (*found).family) };
    if !abi::is_foreign_listener(state, mark) {
        socket::release(found);
        return ptr::null_mut();
    }
    // One of IPv4 alone must not be found for IPv6.
    if family == AF_INET6 {
        SLOTS.put(slot as u32, found);
    }
    found
}

/// Whether the socket is a foreign ztunnel's: a TCP socket with its mark.
#[inline(always)]
pub fn is_own(socket: *mut bpf_sock) -> bool {
    // SAFETY: a socket that is not null.
    let full = unsafe { bpf_sk_fullsock(socket) };
    // SAFETY: a full socket.
    !full.is_null() && unsafe { socket::is_tcp(full) && (*full).mark == abi::FOREIGN_MARK }
}
