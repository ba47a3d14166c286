//! What the kernel programs and user space agree on: the keys and values of the maps, the marks and
//! numbers of the capture, and the verdicts on packets as ordinary functions.
//!
//! No dependency, no allocation, no I/O: the same code is compiled into the kernel programs
//! (`ebpf/kernel`), into their loader (`ebpf/capture`) and into ordinary unit tests.
#![no_std]
#![forbid(unsafe_code)]

mod probe;

pub use probe::{PROBE_PORT, PROBE_V4, PROBE_V6};
