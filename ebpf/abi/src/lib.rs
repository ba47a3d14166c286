//! What the kernel programs and user space agree on: the keys and values of the maps, the marks and
//! numbers of the capture, and the verdicts on packets as ordinary functions.
//!
//! No dependency, no allocation, no I/O: the same code is compiled into the kernel programs
//! (`ebpf/kernel`), into their loader (`ebpf/capture`) and into ordinary unit tests. A layout is stated
//! here once and asserted on every compilation, so on both sides of the border.
//!
//! | hook | verdict |
//! |---|---|
//! | tcx egress of the pod's device | [`egress()`] |
//! | tcx ingress of the pod's `lo` | [`loopback()`] |
//! | tcx ingress of the pod's device | [`ingress()`] |
//! | tcx ingress of the host's end of the link | [`guard()`] |
//! | `sk_lookup` of the pod's namespace | [`Reuse`] |
//! | `sk_msg` of the applications' sockets that may be spliced | [`Grant::allows`] |
#![no_std]
#![forbid(unsafe_code)]

mod address;
mod facts;
mod foreign;
mod maps;
mod probe;
mod splice;
mod verdicts;

pub use address::{Address, Port};
pub use facts::{Found, Lookups, Packet, Segment, Sender, TcpFlags};
pub use foreign::{FOREIGN_MARK, is_foreign_listener};
pub use maps::{
    CONFIG, COUNTER_SLOTS, COUNTERS, Config, FLOW_LIMIT, FLOWS, FlowKey, Mode, OWN, OWN_MARK, OWN_MEASURED,
    REUSE, REUSE_LIMIT, REUSE_VALID_NS, ReuseNote, SLOT_COUNT, SLOTS, STATS, Slot, TcpStats,
};
pub use probe::{PROBE_PORT, PROBE_V4, PROBE_V6, is_probe};
pub use splice::{
    Grant, SPLICE_EXPECTED, SPLICE_EXPECTED_LIMIT, SPLICE_GRANTS, SPLICE_INSTANCES, SPLICE_LIMIT,
    SPLICE_MESSAGE, SPLICE_POD_LIMIT, SPLICE_PODS, SPLICE_SOCKETS, SPLICE_STATE, SPLICE_TALLY,
    SPLICE_WRITE_SEQ, SpliceKey, SpliceState, charge as splice_charge, may_splice,
};
pub use verdicts::{
    Counter, Egress, EgressFacts, Flow, Guard, GuardFacts, Ingress, IngressFacts, Loopback, LoopbackFacts,
    Reuse, counters, egress, guard, ingress, loopback,
};

/// The mark of a packet that egress turned round: it leads to `lo`'s program and to the local route.
///
/// It proves nothing. A pod with NET_ADMIN can set it too, and gains a way into ztunnel, not round it.
pub const TURNED_MARK: u32 = 0x0c01_5e27;
/// The routing table, in the pod's namespace, that holds the local default route for turned packets.
pub const TURNED_TABLE: u32 = 15_027;
/// The priority of the rule that leads marked packets to [`TURNED_TABLE`].
pub const TURNED_RULE_PRIORITY: u32 = 100;
/// The port of tunnels (HBONE), as peers dial it.
pub const HBONE_PORT: u16 = 15_008;
