//! The programs' log: one line per verdict, for debugging. The loader switches it off unless asked for, by
//! aya's `AYA_LOG_LEVEL`, which is read-only once loaded: the verifier then removes what it switches off.

use crate::packet::Frame;
use abi::Counter;
use aya_ebpf::programs::TcContext;
use aya_log_ebpf::info;

/// Logs a verdict by its counter's number, and the packet it fell on.
#[inline(always)]
pub fn verdict(ctx: &TcContext, counter: Counter, frame: &Frame) {
    // SAFETY: sixteen bytes, whatever their grouping.
    let (from, to): ([u8; 16], [u8; 16]) =
        unsafe { (core::mem::transmute(frame.source.0), core::mem::transmute(frame.destination.0)) };
    info!(
        ctx,
        "verdict {}: {:i} port {} to {:i} port {}, {} bytes",
        counter.0,
        from,
        frame.source_port.get(),
        to,
        frame.destination_port.get(),
        ctx.len()
    );
}
