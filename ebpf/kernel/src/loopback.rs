//! What was turned round arrives at `lo`. See [`abi::loopback()`].

use crate::{
    log,
    packet::Frame,
    socket::{self, DROP, Handed, NEXT},
};
use abi::{Found, Lookups, Loopback, LoopbackFacts, Slot};
use aya_ebpf::{
    EbpfContext as _, bindings::bpf_sock, helpers::generated::bpf_skb_change_type, macros::classifier,
    programs::TcContext,
};
use core::ptr;

/// A packet for this host. A turned packet bears the gateway's hardware address, and would be dropped as
/// somebody else's.
const PACKET_HOST: u32 = 0;

/// tcx ingress of the pod's `lo`.
#[classifier]
pub fn pod_loopback(ctx: TcContext) -> i32 {
    // SAFETY: a field of the context.
    let turned = unsafe { (*ctx.skb.skb).mark } == abi::TURNED_MARK;
    if !turned {
        return NEXT;
    }
    let frame = Frame::read(&ctx);
    let facts = LoopbackFacts { turned, packet: frame.packet() };
    let mut holder = Holder { ctx: &ctx, frame: &frame, socket: ptr::null_mut() };
    let verdict = abi::loopback(&facts, &mut holder);
    let socket = holder.socket;
    if matches!(verdict, Loopback::HeldOpening) {
        socket::note(&ctx, &frame.incoming(), Slot::Outbound, frame.v6);
    }
    let outcome = if !socket.is_null() {
        if socket::assign(&ctx, socket) { verdict } else { Loopback::NotAssigned }
    } else if matches!(verdict, Loopback::Listener | Loopback::Query) {
        // Both are constants in their branches: one lookup each.
        let handed = if matches!(verdict, Loopback::Query) {
            socket::hand_to(&ctx, Slot::Dns, frame.v6)
        } else {
            socket::hand_to(&ctx, Slot::Outbound, frame.v6)
        };
        match handed {
            Handed::Assigned => verdict,
            Handed::Refused => Loopback::NotAssigned,
            Handed::NoListener => Loopback::NoListener,
        }
    } else {
        verdict
    };
    socket::count(outcome.counter());
    log::verdict(&ctx, outcome.counter(), &frame);
    match outcome {
        Loopback::Held | Loopback::HeldOpening | Loopback::Listener | Loopback::Query => {
            // SAFETY: this packet.
            unsafe { bpf_skb_change_type(ctx.as_ptr().cast(), PACKET_HOST) };
            NEXT
        }
        Loopback::NotOurs => NEXT,
        Loopback::NoListener | Loopback::NotAssigned | Loopback::Forged => DROP,
    }
}

/// Looks the socket up and keeps it, for the packet to be given to.
struct Holder<'a> {
    ctx: &'a TcContext,
    frame: &'a Frame,
    socket: *mut bpf_sock,
}

impl Lookups for Holder<'_> {
    #[inline(always)]
    fn socket(&mut self) -> Found {
        let (socket, found) = socket::receiver(self.ctx, self.frame);
        self.socket = socket;
        found
    }

    #[inline(always)]
    fn known_flow(&mut self) -> bool {
        false
    }

    #[inline(always)]
    fn is_of_kubelet(&mut self) -> bool {
        false
    }

    #[inline(always)]
    fn is_dns_answered(&mut self) -> bool {
        false
    }
}
