//! What has left the pod, seen from the host. See [`abi::guard()`].

use crate::{
    log,
    packet::Frame,
    socket::{self, DROP, NEXT, Settings},
};
use abi::GuardFacts;
use aya_ebpf::{macros::classifier, programs::TcContext};

/// tcx ingress of the host's end of the pod's link.
#[classifier]
pub fn pod_guard(ctx: TcContext) -> i32 {
    let frame = Frame::read(&ctx);
    let Settings { mode, guard: on, foreign } = socket::config();
    let facts = GuardFacts {
        mode,
        on,
        sender: socket::sender(&ctx, foreign),
        packet: frame.packet(),
        destination: frame.destination,
        port: frame.destination_port,
    };
    let flow = &frame.outgoing();
    let verdict = abi::guard(&facts, || socket::is_known(flow));
    socket::count(verdict.counter());
    log::verdict(&ctx, verdict.counter(), &frame);
    if verdict.drops() { DROP } else { NEXT }
}
