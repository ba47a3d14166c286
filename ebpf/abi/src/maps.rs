//! The maps: their names, and the layouts of what is in them.
//!
//! Values are exchanged with user space as arrays of words (`to_words`, `from_words`), so that neither
//! side needs to trust the other's padding: there is none, and the asserts below say so.

use crate::address::{Address, Port, split};
use core::net::SocketAddr;

/// Shared by all pods: a word with [`OWN_MARK`] on each socket of ztunnel. Kernel type `sk_storage` with
/// `BPF_F_CLONE`: what a marked listener accepts is marked.
pub const OWN: &str = "OWN";
/// Shared by all pods: [`TcpStats`] on each socket with [`OWN_MEASURED`], kept by the `sock_ops` program.
pub const STATS: &str = "STATS";
/// Per pod: one [`Config`].
pub const CONFIG: &str = "CONFIG";
/// Per pod: the listening socket of each [`Slot`]. Kernel type `sockmap`; user space writes a
/// descriptor and reads back a cookie.
pub const SLOTS: &str = "SLOTS";
/// Per pod: [`FlowKey`] of each TCP connection that passes ztunnel by: from before the enrollment, or let
/// pass by a verdict. The value is when it was recorded (nanoseconds since boot).
pub const FLOWS: &str = "FLOWS";
/// Per pod, per CPU: how often each verdict fell, by [`crate::Counter`].
pub const COUNTERS: &str = "COUNTERS";
/// Per pod: [`FlowKey`] → [`ReuseNote`].
pub const REUSE: &str = "REUSE";
/// Shared by all pods: one cgroup id, of the node's kubelet; 0 where it is not known.
pub const KUBELET: &str = "KUBELET";
/// Per pod: [`FlowKey`] of each connection of the kubelet, which passes ztunnel by. The value is when it was
/// opened (nanoseconds since boot).
pub const PROBES: &str = "PROBES";
/// How many connections of the kubelet a pod may have at one time; the longest unused is forgotten first.
pub const PROBE_LIMIT: u32 = 1_024;
/// The bit of [`OWN`] that tells a socket of ztunnel.
pub const OWN_MARK: u32 = 1;
/// The bit of [`OWN`] by which a socket of ztunnel is measured.
pub const OWN_MEASURED: u32 = 2;
/// How many connections may pass a pod's ztunnel by at one time, at least. The loader makes room for more
/// where a pod has more when it is enrolled; the map's table costs 16 bytes for each, used or not.
pub const FLOW_LIMIT: u32 = 4_096;
/// How many SYNs may be on their way from tc to `sk_lookup` at one time.
pub const REUSE_LIMIT: u32 = 256;
/// For how long a [`ReuseNote`] holds. The listener lookup follows within the same softirq, or on
/// another CPU after its backlog; past this, the note is of a SYN that needed no listener.
pub const REUSE_VALID_NS: u64 = 200_000_000;
/// The size of [`COUNTERS`].
pub const COUNTER_SLOTS: u32 = 96;
/// The size of [`SLOTS`].
pub const SLOT_COUNT: u32 = 4;

/// What the programs of a pod do. Zero, which a new map holds, is the harmless one.
#[repr(u32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Everything passes; every TCP flow seen is recorded.
    Learn = 0,
    /// New connections go to ztunnel, or nowhere.
    Enforce = 1,
    /// New connections pass and are recorded; what ztunnel holds is still carried to it.
    Drain = 2,
}

impl Mode {
    /// From the word in the map; what no version of ours wrote counts as the strict mode.
    #[inline(always)]
    pub const fn from_word(word: u32) -> Self {
        match word {
            0 => Self::Learn,
            2 => Self::Drain,
            _ => Self::Enforce,
        }
    }
}

/// The part a listener plays for its pod.
#[repr(u32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Slot {
    /// What the pod dials.
    Outbound = 0,
    /// What others dial of the pod, in plaintext.
    Inbound = 1,
    /// Tunnels to the pod.
    Hbone = 2,
    /// The pod's DNS queries over UDP. Its socket listens to nobody else.
    Dns = 3,
}

/// How a pod's programs are set.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Config {
    /// A [`Mode`].
    pub mode: u32,
    /// 1 if the guard drops; 0 where it was measured that it cannot tell ztunnel's packets from others.
    pub guard: u32,
    /// The inode of the network namespace that the pins belong to. The programs do not read it.
    pub netns: u64,
    /// Which build of the programs is attached. The programs do not read it.
    pub build: u64,
    /// What `accept_local` of `lo` was before. The programs do not read it.
    pub accept_local: u32,
    /// 1 if the pod's ztunnel is a foreign one, see [`crate::FOREIGN_MARK`]; whatever else, it is ours.
    pub foreign: u32,
}

impl Config {
    /// Whether the pod's ztunnel is known by its fixed ports and its mark.
    #[inline(always)]
    pub const fn is_foreign(&self) -> bool {
        self.foreign == 1
    }

    /// As user space writes it into the map.
    pub fn to_words(&self) -> [u64; 4] {
        [join(self.mode, self.guard), self.netns, self.build, join(self.accept_local, self.foreign)]
    }

    /// As user space reads it from the map.
    pub fn from_words([first, netns, build, last]: [u64; 4]) -> Self {
        let ((mode, guard), (accept_local, foreign)) = (split_word(first), split_word(last));
        Self { mode, guard, netns, build, accept_local, foreign }
    }
}

/// Two words as they lie in memory, the first at the lower address.
#[inline(always)]
pub(crate) fn join(first: u32, second: u32) -> u64 {
    let ([a, b, c, d], [e, f, g, h]) = (first.to_ne_bytes(), second.to_ne_bytes());
    u64::from_ne_bytes([a, b, c, d, e, f, g, h])
}

#[inline(always)]
pub(crate) fn split_word(word: u64) -> (u32, u32) {
    let [a, b, c, d, e, f, g, h] = word.to_ne_bytes();
    (u32::from_ne_bytes([a, b, c, d]), u32::from_ne_bytes([e, f, g, h]))
}

/// One TCP connection, as the pod sees it.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FlowKey {
    /// The pod's end.
    pub local: Address,
    /// The other end.
    pub remote: Address,
    /// The pod's end.
    pub local_port: Port,
    /// The other end.
    pub remote_port: Port,
}

impl FlowKey {
    /// The connection between these two ends.
    pub fn new(local: SocketAddr, remote: SocketAddr) -> Self {
        let ((local, local_port), (remote, remote_port)) = (split(local), split(remote));
        Self { local, remote, local_port, remote_port }
    }

    /// As user space writes it into a map.
    #[inline(always)]
    pub fn to_words(&self) -> [u32; 9] {
        let mut words = [0; 9];
        words[..4].copy_from_slice(&self.local.0);
        words[4..8].copy_from_slice(&self.remote.0);
        let (a, b) = (self.local_port.to_be().to_ne_bytes(), self.remote_port.to_be().to_ne_bytes());
        words[8] = u32::from_ne_bytes([a[0], a[1], b[0], b[1]]);
        words
    }

    /// As user space reads it from a map.
    #[inline(always)]
    pub fn from_words(words: [u32; 9]) -> Self {
        let [a, b, c, d, e, f, g, h, ports] = words;
        let ports = ports.to_ne_bytes();
        Self {
            local: Address([a, b, c, d]),
            remote: Address([e, f, g, h]),
            local_port: Port::from_be(u16::from_ne_bytes([ports[0], ports[1]])),
            remote_port: Port::from_be(u16::from_ne_bytes([ports[2], ports[3]])),
        }
    }
}

/// A SYN on its way to a listener lookup that must end at ztunnel's listener.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReuseNote {
    /// When tc saw the SYN (nanoseconds since boot).
    pub at: u64,
    /// A [`Slot`].
    pub slot: u32,
    /// Zero: a map's value must have no padding.
    pub zero: u32,
}

/// What the kernel measured of one TCP connection of ztunnel.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TcpStats {
    /// Bytes delivered in [`Self::rate_interval_us`], for the latest delivery rate.
    pub rate_bytes: u64,
    /// The time of the latest delivery rate, in microseconds; 0 before the first.
    pub rate_interval_us: u32,
    /// The smoothed round-trip time, in microseconds; 0 before the first.
    pub srtt_us: u32,
    /// Segments sent again since the connection began.
    pub retransmits: u32,
    /// Zero: a map's value must have no padding.
    pub zero: u32,
}

impl TcpStats {
    /// As user space reads it from a map.
    pub fn from_words([rate_bytes, middle, last]: [u64; 3]) -> Self {
        let ((rate_interval_us, srtt_us), (retransmits, zero)) = (split_word(middle), split_word(last));
        Self { rate_bytes, rate_interval_us, srtt_us, retransmits, zero }
    }
}

const _: () = {
    use core::mem::offset_of;
    assert!(size_of::<Config>() == 32 && offset_of!(Config, guard) == 4);
    assert!(offset_of!(Config, netns) == 8 && offset_of!(Config, build) == 16);
    assert!(offset_of!(Config, accept_local) == 24 && offset_of!(Config, foreign) == 28);
    assert!(size_of::<FlowKey>() == 36 && align_of::<FlowKey>() == 4);
    assert!(offset_of!(FlowKey, remote) == 16);
    assert!(offset_of!(FlowKey, local_port) == 32 && offset_of!(FlowKey, remote_port) == 34);
    assert!(size_of::<ReuseNote>() == 16 && offset_of!(ReuseNote, slot) == 8);
    assert!(size_of::<TcpStats>() == 24 && align_of::<TcpStats>() == 8);
    assert!(offset_of!(TcpStats, rate_interval_us) == 8 && offset_of!(TcpStats, srtt_us) == 12);
    assert!(offset_of!(TcpStats, retransmits) == 16 && offset_of!(TcpStats, zero) == 20);
};

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;

    #[test]
    fn a_flow_survives_the_border() {
        for (local, remote) in [("10.0.0.1:80", "10.0.0.2:49152"), ("[2001:db8::1]:443", "[fe80::9]:65535")] {
            let key = FlowKey::new(local.parse().unwrap(), remote.parse().unwrap());
            assert_eq!(FlowKey::from_words(key.to_words()), key);
            assert_eq!(key.to_words()[8].to_ne_bytes()[..2], key.local_port.get().to_be_bytes());
        }
    }

    #[test]
    fn words_are_the_bytes_of_the_structure() {
        let config =
            Config { mode: 2, guard: 1, netns: 0x1234_5678_9abc, build: 9, accept_local: 7, foreign: 1 };
        assert_eq!(Config::from_words(config.to_words()), config);
        let bytes: std::vec::Vec<u8> = config.to_words().iter().flat_map(|word| word.to_ne_bytes()).collect();
        assert_eq!(bytes[..4], 2_u32.to_ne_bytes());
        assert_eq!(bytes[4..8], 1_u32.to_ne_bytes());
        assert_eq!(bytes[24..28], 7_u32.to_ne_bytes());
        assert_eq!(bytes[28..], 1_u32.to_ne_bytes());
    }

    #[test]
    fn statistics_are_read_as_the_kernel_wrote_them() {
        let mut bytes = std::vec::Vec::from(5_u64.to_ne_bytes());
        for field in [1000_u32, 250, 3, 0] {
            bytes.extend(field.to_ne_bytes());
        }
        let words: std::vec::Vec<u64> =
            bytes.chunks(8).map(|chunk| u64::from_ne_bytes(chunk.try_into().unwrap())).collect();
        let stats = TcpStats::from_words(words.try_into().unwrap());
        let want = TcpStats { rate_bytes: 5, rate_interval_us: 1000, srtt_us: 250, retransmits: 3, zero: 0 };
        assert_eq!(stats, want);
    }

    #[test]
    fn an_unknown_mode_is_the_strict_one() {
        assert_eq!(Mode::from_word(Mode::Drain as u32), Mode::Drain);
        assert_eq!(Mode::from_word(0), Mode::Learn);
        assert_eq!(Mode::from_word(77), Mode::Enforce);
    }
}
