//! What leaves the pod. See [`abi::egress()`].

use crate::{
    log,
    packet::Frame,
    socket::{self, DROP, Kernel, NEXT, Settings},
};
use abi::{Egress, EgressFacts};
use aya_ebpf::{
    bindings::BPF_F_INGRESS, helpers::generated::bpf_redirect, macros::classifier, programs::TcContext,
};

/// The interface number of `lo`, the same in every network namespace.
const LO: u32 = 1;

/// tcx egress of the pod's device.
#[classifier]
pub fn pod_egress(ctx: TcContext) -> i32 {
    let frame = Frame::read(&ctx);
    let Settings { mode, foreign, .. } = socket::config();
    let facts = EgressFacts {
        mode,
        sender: socket::sender(&ctx, foreign),
        packet: frame.packet(),
        destination: frame.destination,
        port: frame.destination_port,
    };
    let flow = frame.outgoing();
    let mut kernel = Kernel { ctx: &ctx, frame: &frame, flow: &flow, tell_own: false, foreign };
    let verdict = abi::egress(&facts, &mut kernel);
    socket::count(verdict.counter());
    log::verdict(&ctx, verdict.counter(), &frame);
    if verdict.forgets() {
        socket::forget(&flow);
    }
    if verdict.turns() {
        ctx.skb.set_mark(abi::TURNED_MARK);
        // SAFETY: redirects this packet, when the program has returned.
        return unsafe { bpf_redirect(LO, BPF_F_INGRESS as u64) } as i32;
    }
    match verdict {
        Egress::DropHidden => DROP,
        Egress::Learned => {
            socket::record(&flow);
            NEXT
        }
        _ => NEXT,
    }
}
