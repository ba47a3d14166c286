//! The programs' log: one line per verdict, for debugging. The loader switches it off unless asked for, by
//! aya's `AYA_LOG_LEVEL`, which is read-only once loaded: the verifier then removes what it switches off.

use crate::packet::Frame;
use abi::Counter;
use aya_ebpf::programs::TcContext;
use aya_log_ebpf::info;

/// Logs a verdict by its counter's number, and the packet it fell on.
#[inline(always)]
pub fn verdict(ctx: &TcContext, counter: Counter, frame: &Frame) {
    info!(
        ctx,
        "verdict {}: {:i} port {} to {:i} port {}, {} bytes",
        counter.0,
        frame.source.octets(),
        frame.source_port.get(),
        frame.destination.octets(),
        frame.destination_port.get(),
        ctx.len()
    );
}
