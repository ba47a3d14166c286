//! What enters the pod. See [`abi::ingress()`].

use crate::{
    log,
    packet::Frame,
    socket::{self, DROP, Handed, Kernel, NEXT, Settings},
};
use abi::{Ingress, IngressFacts, Mode, Slot};
use aya_ebpf::{macros::classifier, programs::TcContext};

/// tcx ingress of the pod's device.
#[classifier]
pub fn pod_ingress(ctx: TcContext) -> i32 {
    let frame = Frame::read(&ctx);
    let Settings { mode, foreign, .. } = socket::config();
    let enforced = matches!(mode, Mode::Enforce);
    let hbone = frame.destination_port.get() == abi::HBONE_PORT;
    let slot = if hbone { Slot::Hbone } else { Slot::Inbound };
    let listener = !enforced && socket::is_held(&ctx, slot, frame.v6);
    let facts = IngressFacts { mode, packet: frame.packet(), hbone, listener };
    let flow = frame.incoming();
    let mut kernel = Kernel { ctx: &ctx, frame: &frame, flow: &flow, tell_own: !enforced, foreign };
    let verdict = abi::ingress(&facts, &mut kernel);
    let outcome = carry_out(&ctx, verdict, &flow, (slot, frame.v6));
    socket::count(outcome.counter());
    log::verdict(&ctx, outcome.counter(), &frame);
    match outcome {
        Ingress::DropHidden | Ingress::NoListener | Ingress::NotAssigned => DROP,
        _ => NEXT,
    }
}

#[inline(always)]
fn carry_out(ctx: &TcContext, verdict: Ingress, flow: &abi::FlowKey, (slot, v6): (Slot, bool)) -> Ingress {
    match verdict {
        Ingress::ToInbound | Ingress::ToHbone => socket::forget(flow),
        Ingress::ToInboundUnknown | Ingress::ToHboneUnknown => {}
        Ingress::Opening => {
            socket::forget(flow);
            socket::note(ctx, flow, slot, v6);
            return verdict;
        }
        Ingress::Learned => {
            socket::record(flow);
            return verdict;
        }
        Ingress::Kubelet => {
            socket::record_probe(flow);
            return verdict;
        }
        _ => return verdict,
    }
    match socket::hand_to(ctx, slot, v6) {
        Handed::Assigned => verdict,
        Handed::Refused => Ingress::NotAssigned,
        Handed::NoListener => Ingress::NoListener,
    }
}
