//! Splicing two applications of one node: the maps, and when a message may go straight to the peer.
//!
//! A captured same-node connection is two TCP connections with ztunnel between them. Spliced, what one
//! application sends is queued at the other one's socket by the `sk_msg` program; the two TCP connections
//! stay, and carry the beginning, whatever is not redirected, and the end. ztunnel grants each direction,
//! and a grant names the number of bytes that must have gone the ordinary way before it: it holds only
//! while the sender has sent exactly that many, so nothing redirected can overtake anything.

use crate::FlowKey;

/// [`SpliceKey`] with its instance → socket of an application. Kernel type `sockhash`; the `sk_msg` program is attached to it.
pub const SPLICE_SOCKETS: &str = "SPLICE_SOCKETS";
/// Cookie of a network namespace (`u64`) → 1: the namespaces whose sockets take part.
pub const SPLICE_PODS: &str = "SPLICE_PODS";
/// [`SpliceKey::place`] → 1: a socket that an application is about to accept from ztunnel, and that takes part.
pub const SPLICE_EXPECTED: &str = "SPLICE_EXPECTED";
/// [`SpliceKey::place`] of the sender → [`Grant`]. Written by ztunnel, removed by either side.
pub const SPLICE_GRANTS: &str = "SPLICE_GRANTS";
/// [`SpliceKey::place`] of the sender → bytes redirected, and what they were charged (two `u64`). Made and
/// removed by ztunnel, added to by the program.
pub const SPLICE_TALLY: &str = "SPLICE_TALLY";
/// [`SpliceState`] on each socket that takes part, and on ztunnel's that face one.
pub const SPLICE_STATE: &str = "SPLICE_STATE";
/// [`SpliceKey`] of a place → [`SpliceKey::instance`] of the socket that was put in last there (`u32`).
pub const SPLICE_INSTANCES: &str = "SPLICE_INSTANCES";
/// The variable of the programs that holds where `write_seq` lies in the kernel's `struct tcp_sock`, in
/// bytes (`u32`).
pub const SPLICE_WRITE_SEQ: &str = "SPLICE_WRITE_SEQ";
/// How many sockets may take part at one time.
pub const SPLICE_LIMIT: u32 = 65_536;
/// How many namespaces may.
pub const SPLICE_POD_LIMIT: u32 = 4_096;
/// How many sockets may be expected at one time; older expectations are forgotten.
pub const SPLICE_EXPECTED_LIMIT: u32 = 4_096;
/// What a redirected message is charged beside its bytes: about what the kernel keeps for each, be it ever so
/// short. Nobody else limits that.
pub const SPLICE_MESSAGE: u64 = 1_024;

/// One end of a connection, as the application sees it: `local` is the application's end.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SpliceKey {
    /// The cookie of the network namespace that the socket is in (`SO_NETNS_COOKIE`).
    pub netns: u64,
    /// The addresses, IPv4 as `::ffff:a.b.c.d` also for sockets of family IPv4.
    pub flow: FlowKey,
    /// Which of the sockets that stand there one after another: a part of its cookie, and never 0, which
    /// stands for the place alone. Without it, what is meant for a connection that has just ended could be
    /// queued at the next one between the same addresses.
    pub instance: u32,
}

impl SpliceKey {
    /// The place of an end of a connection in a namespace.
    #[inline(always)]
    pub const fn new(netns: u64, flow: FlowKey) -> Self {
        Self { netns, flow, instance: 0 }
    }

    /// The socket with this cookie at a place.
    #[inline(always)]
    pub const fn with_cookie(self, cookie: u64) -> Self {
        let part = cookie as u32;
        Self { instance: if part == 0 { 1 } else { part }, ..self }
    }

    /// The place, whichever socket stands there.
    #[inline(always)]
    pub const fn place(self) -> Self {
        Self { instance: 0, ..self }
    }

    /// As user space writes it into a map.
    #[inline(always)]
    pub fn to_words(&self) -> [u64; 6] {
        let [a, b, c, d, e, f, g, h, i] = self.flow.to_words();
        let join = crate::maps::join;
        [self.netns, join(a, b), join(c, d), join(e, f), join(g, h), join(i, self.instance)]
    }

    /// As user space reads it from a map.
    #[inline(always)]
    pub fn from_words([netns, ab, cd, ef, gh, i]: [u64; 6]) -> Self {
        let split = crate::maps::split_word;
        let ((a, b), (c, d), (e, f), (g, h), (i, instance)) =
            (split(ab), split(cd), split(ef), split(gh), split(i));
        Self { netns, flow: FlowKey::from_words([a, b, c, d, e, f, g, h, i]), instance }
    }
}

/// ztunnel's leave to redirect what one socket sends.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grant {
    /// The socket at which it is queued.
    pub peer: SpliceKey,
    /// How many bytes the sender has sent by TCP, all of them consumed by the peer.
    pub carried: u64,
    /// What may have been charged for redirected messages, over the whole life of the sender: their bytes, and
    /// [`SPLICE_MESSAGE`] for each.
    pub limit: u64,
    /// [`Grant::new`] computes it. The kernel may use the memory of a replaced value for another key while
    /// a program still reads it; such a reading does not match.
    pub seal: u64,
}

impl Grant {
    /// The leave for `from`.
    pub fn new(from: &SpliceKey, peer: SpliceKey, carried: u64, limit: u64) -> Self {
        let seal = seal(from, &peer, carried, limit);
        Self { peer, carried, limit, seal }
    }

    /// As user space writes it into a map.
    pub fn to_words(&self) -> [u64; 9] {
        let [a, b, c, d, e, f] = self.peer.to_words();
        [a, b, c, d, e, f, self.carried, self.limit, self.seal]
    }

    /// As it is read from a map.
    #[inline(always)]
    pub fn from_words([a, b, c, d, e, f, carried, limit, seal]: [u64; 9]) -> Self {
        Self { peer: SpliceKey::from_words([a, b, c, d, e, f]), carried, limit, seal }
    }

    /// Whether a message of `size` bytes of `from` may be redirected: `sent` is how many bytes that socket
    /// has put into its TCP connection (modulo 2³²: ztunnel takes a grant back long before so many more have
    /// gone by TCP), `charged` what was charged so far.
    #[inline(always)]
    pub fn allows(&self, from: &SpliceKey, sent: u32, charged: u64, size: u32) -> bool {
        self.carried as u32 == sent
            && charged.saturating_add(charge(size)) <= self.limit
            && self.seal == seal(from, &self.peer, self.carried, self.limit)
    }
}

/// What a message of `size` bytes is charged.
#[inline(always)]
pub const fn charge(size: u32) -> u64 {
    size as u64 + SPLICE_MESSAGE
}

#[inline(always)]
fn seal(from: &SpliceKey, peer: &SpliceKey, carried: u64, limit: u64) -> u64 {
    let mix = |sum: u64, word: u64| {
        let sum = (sum ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        sum ^ (sum >> 32)
    };
    let [a, b, c, d, e, f] = from.to_words();
    let [g, h, i, j, k, l] = peer.to_words();
    let sum = mix(mix(mix(mix(mix(mix(1, a), b), c), d), e), f);
    let sum = mix(mix(mix(mix(mix(mix(sum, g), h), i), j), k), l);
    mix(mix(sum, carried), limit)
}

/// Whether a connection that an application of an enrolled pod has made can be one of those that ztunnel
/// holds: what the pod says to itself and to its link never leaves it.
#[inline(always)]
pub fn may_splice(flow: &FlowKey) -> bool {
    !flow.remote.is_local_scope() && flow.remote != flow.local
}

/// What is kept on a socket.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpliceState {
    /// On a socket of an application, its own key; on one of ztunnel's, the place of the socket it faces.
    pub key: SpliceKey,
    /// What was charged for redirected messages. One that the kernel could not queue at once is charged again.
    pub charged: u64,
    /// `write_seq` before the first byte.
    pub base: u32,
    /// [`SpliceState::APP`] or [`SpliceState::WATCHED`].
    pub kind: u32,
}

impl SpliceState {
    /// A socket of an application.
    pub const APP: u32 = 1;
    /// A socket of ztunnel: when it leaves `TCP_ESTABLISHED`, the grant of the one that it faces goes.
    pub const WATCHED: u32 = 2;
    /// Its size in words of eight bytes.
    pub const WORDS: usize = size_of::<Self>() / 8;

    /// As user space reads it from a map.
    pub fn from_words([a, b, c, d, e, f, charged, last]: [u64; 8]) -> Self {
        let (base, kind) = crate::maps::split_word(last);
        Self { key: SpliceKey::from_words([a, b, c, d, e, f]), charged, base, kind }
    }
}

const _: () = {
    use core::mem::offset_of;
    assert!(size_of::<SpliceKey>() == 48 && align_of::<SpliceKey>() == 8);
    assert!(offset_of!(SpliceKey, flow) == 8 && offset_of!(SpliceKey, instance) == 44);
    assert!(size_of::<Grant>() == 72 && offset_of!(Grant, carried) == 48);
    assert!(offset_of!(Grant, limit) == 56 && offset_of!(Grant, seal) == 64);
    assert!(size_of::<SpliceState>() == 64 && offset_of!(SpliceState, charged) == 48);
    assert!(offset_of!(SpliceState, base) == 56 && offset_of!(SpliceState, kind) == 60);
};

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::vec::Vec;

    fn key(netns: u64, local: &str, remote: &str) -> SpliceKey {
        SpliceKey::new(netns, FlowKey::new(local.parse().unwrap(), remote.parse().unwrap()))
    }

    #[test]
    fn a_key_survives_the_border_and_its_words_are_its_bytes() {
        for key in [key(7, "10.0.0.1:80", "10.0.0.2:49152"), key(u64::MAX, "[fd00::1]:1", "[fd00::2]:2")] {
            let words = key.to_words();
            assert_eq!(SpliceKey::from_words(words), key);
            let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
            assert_eq!(bytes[..8], key.netns.to_ne_bytes());
            assert_eq!(bytes[8..24], key.flow.local.octets());
            assert_eq!(bytes[24..40], key.flow.remote.octets());
            assert_eq!(bytes[40..42], key.flow.local_port.get().to_be_bytes());
            assert_eq!(bytes[42..44], key.flow.remote_port.get().to_be_bytes());
            assert_eq!(bytes[44..], [0; 4]);
            let socket = key.with_cookie(0x1_0000_0007);
            assert_eq!(SpliceKey::from_words(socket.to_words()), socket);
            assert_eq!((socket.instance, socket.place()), (7, key));
            assert_ne!(key.with_cookie(1 << 32), key, "a socket is never taken for its place");
        }
    }

    #[test]
    fn a_mapped_address_makes_the_same_key() {
        assert_eq!(
            key(1, "10.0.0.1:80", "10.0.0.2:9"),
            key(1, "[::ffff:10.0.0.1]:80", "[::ffff:10.0.0.2]:9")
        );
    }

    #[test]
    fn a_grant_holds_for_its_sender_at_its_place_up_to_its_limit() {
        let (a, b) = (key(1, "10.0.0.1:80", "10.0.0.2:9"), key(2, "10.0.0.2:90", "10.0.0.1:8"));
        let limit = 1_000 + SPLICE_MESSAGE;
        let grant = Grant::from_words(Grant::new(&a, b, (1 << 32) + 100, limit).to_words());
        assert!(grant.allows(&a, 100, 0, 1_000));
        assert!(grant.allows(&a, 100, 999, 1));
        assert!(!grant.allows(&a, 100, 999, 2), "over the limit");
        assert!(!grant.allows(&a, 100, 2_000, 1), "a message is charged for itself");
        assert!(!grant.allows(&a, 100, u64::MAX, 2), "far over the limit");
        assert!(!grant.allows(&a, 101, 0, 1), "a byte is on its way by TCP");
        assert!(!grant.allows(&b, 100, 0, 1), "another sender");
        assert!(!grant.allows(&a.with_cookie(9), 100, 0, 1), "a later socket at the same place");
    }

    #[test]
    fn what_stays_in_the_pod_is_left_alone() {
        let may = |local: &str, remote: &str| may_splice(&key(1, local, remote).flow);
        assert!(may("10.0.0.1:9", "10.96.0.1:80") && may("[fd00::1]:9", "[fd00::2]:80"));
        assert!(!may("127.0.0.1:9", "127.0.0.1:80") && !may("[::1]:9", "[::1]:80"));
        assert!(!may("10.0.0.1:9", "10.0.0.1:80") && !may("10.0.0.1:9", "169.254.169.254:80"));
    }

    #[test]
    fn a_torn_grant_holds_for_nobody() {
        let (a, b) = (key(1, "10.0.0.1:80", "10.0.0.2:9"), key(2, "10.0.0.2:90", "10.0.0.1:8"));
        let (c, d) = (key(1, "10.0.0.1:81", "10.0.0.3:9"), key(3, "10.0.0.3:90", "10.0.0.1:9"));
        let (one, other) = (Grant::new(&a, b, 5, 7_000).to_words(), Grant::new(&c, d, 5, 7_000).to_words());
        for torn in 1..one.len() {
            let mut words = one;
            words[torn..].copy_from_slice(&other[torn..]);
            assert_eq!(Grant::from_words(words).allows(&a, 5, 0, 1), words == one, "torn at {torn}");
            assert!(!Grant::from_words(words).allows(&c, 5, 0, 1), "torn at {torn}");
        }
    }
}
