//! The maps. Names and layouts are `abi`'s; here is only how each is stored.
//!
//! The socket maps are declared by hand, since aya's types fix what we need otherwise: the storage's flags
//! (`BPF_F_CLONE`), and eight bytes for a slot's value, without which user space cannot read a cookie.

use abi::{Config, FlowKey, Grant, ReuseNote, SpliceKey, SpliceState, TcpStats};
use aya_ebpf::{
    bindings::{
        BPF_F_CLONE, BPF_F_NO_PREALLOC, BPF_F_RDONLY_PROG, BPF_SK_STORAGE_GET_F_CREATE, bpf_map_type,
        bpf_sock,
    },
    helpers::generated::{bpf_map_lookup_elem, bpf_map_update_elem, bpf_sk_storage_get},
    macros::{btf_map, map},
    maps::{Array, HashMap, LruHashMap, PerCpuArray, SockHash},
};
use core::{ffi::c_void, ptr};

#[map]
pub static CONFIG: Array<Config> = Array::with_max_entries(1, BPF_F_RDONLY_PROG);

#[map]
pub static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(abi::COUNTER_SLOTS, 0);

/// Allocated as it fills: most pods record few connections.
#[map]
pub static FLOWS: HashMap<FlowKey, u64> = HashMap::with_max_entries(abi::FLOW_LIMIT, BPF_F_NO_PREALLOC);

#[map]
pub static KUBELET: Array<u64> = Array::with_max_entries(1, BPF_F_RDONLY_PROG);

#[map]
pub static PROBES: LruHashMap<FlowKey, u64> = LruHashMap::with_max_entries(abi::PROBE_LIMIT, 0);

/// A note that no lookup consumes (the SYN was answered without one) is pushed out by newer ones.
#[map]
pub static REUSE: LruHashMap<FlowKey, ReuseNote> = LruHashMap::with_max_entries(abi::REUSE_LIMIT, 0);

#[btf_map]
pub static OWN: SocketStorage<u32, { (BPF_F_NO_PREALLOC | BPF_F_CLONE) as usize }> = SocketStorage::new();

#[btf_map]
pub static STATS: SocketStorage<TcpStats, { BPF_F_NO_PREALLOC as usize }> = SocketStorage::new();

#[btf_map]
pub static SLOTS: SocketSlots<{ abi::SLOT_COUNT as usize }> = SocketSlots::new();

#[map]
pub static SPLICE_SOCKETS: SockHash<SpliceKey> = SockHash::with_max_entries(abi::SPLICE_LIMIT, 0);

#[map]
pub static SPLICE_PODS: HashMap<u64, u32> =
    HashMap::with_max_entries(abi::SPLICE_POD_LIMIT, BPF_F_NO_PREALLOC);

/// An expectation that is not met (ztunnel died) is pushed out by newer ones.
#[map]
pub static SPLICE_EXPECTED: LruHashMap<SpliceKey, u32> =
    LruHashMap::with_max_entries(abi::SPLICE_EXPECTED_LIMIT, 0);

#[map]
pub static SPLICE_GRANTS: HashMap<SpliceKey, Grant> =
    HashMap::with_max_entries(abi::SPLICE_LIMIT, BPF_F_NO_PREALLOC);

#[map]
pub static SPLICE_INSTANCES: LruHashMap<SpliceKey, u32> = LruHashMap::with_max_entries(abi::SPLICE_LIMIT, 0);

/// One that a killed ztunnel left goes with the next socket at its place.
#[map]
pub static SPLICE_TALLY: HashMap<SpliceKey, [u64; 2]> =
    HashMap::with_max_entries(abi::SPLICE_LIMIT, BPF_F_NO_PREALLOC);

#[btf_map]
pub static SPLICE_STATE: SocketStorage<SpliceState, { BPF_F_NO_PREALLOC as usize }> = SocketStorage::new();

/// A value on each socket.
#[repr(C)]
pub struct SocketStorage<V: 'static, const FLAGS: usize> {
    r#type: *const [i32; bpf_map_type::BPF_MAP_TYPE_SK_STORAGE as usize],
    key: *const i32,
    value: *const V,
    max_entries: *const [i32; 0],
    map_flags: *const [i32; FLAGS],
}

// SAFETY: the pointers only describe the map to its loader; nothing ever follows them.
unsafe impl<V, const FLAGS: usize> Sync for SocketStorage<V, FLAGS> {}

impl<V, const FLAGS: usize> SocketStorage<V, FLAGS> {
    const fn new() -> Self {
        Self {
            r#type: ptr::null(),
            key: ptr::null(),
            value: ptr::null(),
            max_entries: ptr::null(),
            map_flags: ptr::null(),
        }
    }

    /// The value on a socket, or null: also for a socket that is not full.
    #[inline(always)]
    pub fn get(&self, socket: *mut bpf_sock) -> *mut V {
        self.lookup(socket, 0)
    }

    /// The value on a socket, made of zeros if there was none; null if it cannot be made.
    #[inline(always)]
    pub fn get_or_create(&self, socket: *mut bpf_sock) -> *mut V {
        self.lookup(socket, BPF_SK_STORAGE_GET_F_CREATE as u64)
    }

    #[inline(always)]
    fn lookup(&self, socket: *mut bpf_sock, flags: u64) -> *mut V {
        let map = ptr::from_ref(self).cast_mut().cast::<c_void>();
        // SAFETY: the verifier accepts the call only for this map and a checked socket.
        unsafe { bpf_sk_storage_get(map, socket.cast(), ptr::null_mut(), flags).cast() }
    }
}

/// Listening sockets by number.
#[repr(C)]
pub struct SocketSlots<const SLOTS: usize> {
    r#type: *const [i32; bpf_map_type::BPF_MAP_TYPE_SOCKMAP as usize],
    key: *const u32,
    value: *const u64,
    max_entries: *const [i32; SLOTS],
}

// SAFETY: the pointers only describe the map to its loader; nothing ever follows them.
unsafe impl<const SLOTS: usize> Sync for SocketSlots<SLOTS> {}

impl<const SLOTS: usize> SocketSlots<SLOTS> {
    const fn new() -> Self {
        Self { r#type: ptr::null(), key: ptr::null(), value: ptr::null(), max_entries: ptr::null() }
    }

    /// The socket in a slot, to be released, or null.
    #[inline(always)]
    pub fn get(&self, slot: u32) -> *mut bpf_sock {
        let map = ptr::from_ref(self).cast_mut().cast::<c_void>();
        // SAFETY: the verifier knows that a lookup in a sockmap yields a referenced socket or null.
        unsafe { bpf_map_lookup_elem(map, ptr::from_ref(&slot).cast()).cast() }
    }

    /// Puts a listener into a slot, which holds no reference to it. Should it fail, the slot stays as it is.
    #[inline(always)]
    pub fn put(&self, slot: u32, listener: *mut bpf_sock) {
        let map = ptr::from_ref(self).cast_mut().cast::<c_void>();
        // SAFETY: the verifier knows that an update of a sockmap takes a referenced socket.
        let _ = unsafe { bpf_map_update_elem(map, ptr::from_ref(&slot).cast(), listener.cast(), 0) };
    }
}
