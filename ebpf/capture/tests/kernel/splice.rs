//! Splicing two applications of one node.

use crate::{
    relay::{FLAVOURS, Flavour, Mesh, Relay},
    world::{PATIENCE, accept, connect, connect_from, listen, reset, until},
};
use capture::{AppSocket, Mode, Splices, splice};
use std::{
    io::{self, Read, Write},
    net::{Shutdown, TcpStream},
    os::fd::{AsFd, OwnedFd},
    process::{Command, Stdio},
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

const MIB: u64 = 1 << 20;

#[test]
fn the_self_test_passes_here() {
    let cgroup = splice::cgroup_root().expect("cgroup2 is mounted somewhere");
    // The quickest of three: other tests run beside it.
    let took = (0..3).map(|_| {
        let start = Instant::now();
        let report = splice::self_test(&cgroup).unwrap();
        println!("{report:?} in {:?}", start.elapsed());
        assert!(report.is_good(), "{report:?}");
        start.elapsed()
    });
    let took = took.min().unwrap();
    assert!(took.as_millis() < 1_000, "{took:?}");
}

/// Numbers that look random, the same for the same seed (xorshift).
#[derive(Clone)]
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn one_in(&mut self, chances: u64) -> bool {
        self.below(chances) == 0
    }

    /// 1 byte to 256 KiB, small and large ones alike.
    fn size(&mut self) -> usize {
        let top = 1 << self.below(19);
        1 + self.below(top) as usize
    }

    fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            let word = self.next().to_ne_bytes();
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
    }
}

/// A stream of bytes that both ends know: each message begins a new piece of it.
const PIECE: usize = 8;

/// Writes `total` bytes in pieces of random sizes, and ends the direction.
fn write_random(mut socket: TcpStream, seed: u64, total: u64) {
    let (mut content, mut random) = (Random::new(seed), Random::new(!seed));
    let mut left = total;
    let mut bytes = vec![0; 1 << 18];
    while left > 0 {
        let size = (random.size() as u64).next_multiple_of(PIECE as u64).min(left) as usize;
        content.fill(&mut bytes[..size]);
        let mut at = 0;
        while at < size {
            // In parts that know nothing of pieces.
            let part = if random.one_in(4) { random.size().min(size - at) } else { size - at };
            socket.write_all(&bytes[at..at + part]).unwrap();
            at += part;
        }
        left -= size as u64;
        // Long enough, now and then, for the relay to see everything consumed.
        if random.one_in(16) {
            thread::sleep(Duration::from_micros(random.below(3_000)));
        }
    }
    socket.shutdown(Shutdown::Write).unwrap();
}

/// How often a blocking `recv` said that there is nothing, before its time.
static EARLY: AtomicU64 = AtomicU64::new(0);

/// Reads until the end, and compares every byte.
fn read_random(mut socket: TcpStream, seed: u64, total: u64) {
    let (mut content, mut random) = (Random::new(seed), Random::new(seed ^ 0x5555));
    let mut want = vec![0; 1 << 18];
    let (mut filled, mut at) = (0, 0);
    let mut read = 0_u64;
    let mut bytes = vec![0; 1 << 18];
    loop {
        let room = if random.one_in(4) { random.size() } else { bytes.len() };
        let start = Instant::now();
        let length = match socket.read(&mut bytes[..room]) {
            Ok(length) => length,
            // docs/splice.md: a blocking reader that is woken for another reason is told EAGAIN.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && start.elapsed() < PATIENCE => {
                EARLY.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            Err(error) => panic!("after {read} of {total} bytes: {error}"),
        };
        if length == 0 {
            break;
        }
        let mut got = &bytes[..length];
        while !got.is_empty() {
            if at == filled {
                content.fill(&mut want);
                (filled, at) = (want.len(), 0);
            }
            let part = got.len().min(filled - at);
            assert!(got[..part] == want[at..at + part], "other bytes after {read}");
            read += part as u64;
            at += part;
            got = &got[part..];
        }
        if random.one_in(32) {
            thread::sleep(Duration::from_micros(random.below(2_000)));
        }
    }
    assert_eq!(read, total, "bytes before the end of the stream");
}

/// Copies until both directions have ended, granting and revoking as it likes.
fn relay_random(relay: &mut Relay<'_>, splices: &Splices, seed: u64) -> u64 {
    let mut random = Random::new(seed);
    let end = Instant::now() + Duration::from_secs(60);
    let mut grants = 0;
    while !(relay.ways[0].done && relay.ways[1].done) {
        assert!(Instant::now() < end, "stuck: {:?}", relay.ways.each_ref().map(|way| way.carried));
        let mut moved = false;
        for way in 0..2 {
            moved |= relay.carry(way).unwrap();
            if random.one_in(2) {
                let more = [0, 10, 65_536, MIB, MIB][random.below(5) as usize];
                grants += u64::from(relay.grant(way, more));
            }
            if random.one_in(500) {
                splices.revoke(&relay.apps[way]);
            }
        }
        if !moved {
            thread::sleep(Duration::from_micros(50));
        }
    }
    grants
}

#[test]
fn every_byte_arrives_once_and_in_order() {
    const EACH: u64 = 16 * MIB;
    let mesh = Mesh::new();
    let mut total = (0, 0, 0);
    let start = Instant::now();
    for round in 0..3_u64 {
        thread::scope(|scope| {
            let relays: Vec<_> = FLAVOURS
                .into_iter()
                .zip(1..)
                .map(|(flavour, number)| {
                    let (a, b, mut relay) = mesh.pair(flavour);
                    let seed = round * 100 + number;
                    // The directions end at different times.
                    let sizes = [EACH, EACH / (number * 2 - 1)];
                    for (way, (from, to)) in [(&a, &b), (&b, &a)].into_iter().enumerate() {
                        let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                        let (seed, size) = (seed * 2 + way as u64, sizes[way]);
                        scope.spawn(move || write_random(from, seed, size));
                        scope.spawn(move || read_random(to, seed, size));
                    }
                    let splices = &mesh.splices;
                    scope.spawn(move || {
                        let grants = relay_random(&mut relay, splices, seed);
                        let straight = relay.redirected(0) + relay.redirected(1);
                        let carried = relay.ways[0].carried + relay.ways[1].carried;
                        assert_eq!(straight + carried, sizes[0] + sizes[1], "{flavour:?}: a byte is missing");
                        for app in &relay.apps {
                            splices.release(app);
                        }
                        (grants, straight, carried)
                    })
                })
                .collect();
            for relay in relays {
                let (grants, straight, carried) = relay.join().unwrap();
                total = (total.0 + grants, total.1 + straight, total.2 + carried);
            }
        });
    }
    let early = EARLY.load(Ordering::Relaxed);
    println!("(grants, straight, by TCP) {total:?} in {:?}; told EAGAIN early {early}", start.elapsed());
    assert!(total.0 > 100 && total.1 > 10 * MIB && total.2 > 10 * MIB, "one way was hardly used: {total:?}");
}

#[test]
fn a_reader_that_never_reads_costs_no_more_than_was_granted() {
    let mesh = Mesh::new();
    for flavour in FLAVOURS {
        let (mut a, _b, mut relay) = mesh.pair(flavour);
        relay.splice(0, MIB);
        a.set_nonblocking(true).unwrap();
        let block = vec![1; 60_000];
        let mut stuck = 0;
        while stuck < 20 {
            match a.write(&block) {
                Ok(_) => stuck = 0,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    stuck += 1;
                    thread::sleep(Duration::from_millis(1));
                }
                Err(error) => panic!("{error}"),
            }
            relay.carry(0).unwrap();
            let waits = u64::from(relay.unread(1));
            // What comes by TCP is bounded by the receive buffer.
            assert!(waits <= MIB + 7 * MIB, "{flavour:?}: {waits} bytes wait");
            assert!(relay.redirected(0) <= MIB);
        }
        assert!(relay.redirected(0) > MIB - 60_000, "what was granted was used");
    }
}

#[test]
fn a_killed_relay_leaves_no_grant() {
    let mesh = Mesh::new();
    let (mut a, mut b, mut relay) = mesh.pair(Flavour::V4);
    relay.splice(0, MIB);
    relay.splice(1, MIB);
    a.write_all(b"straight").unwrap();
    assert_eq!(relay.redirected(0), 8);
    let Relay { apps, sockets, .. } = relay;
    // Another process has the relay's sockets, and nobody else.
    let [front, onward] = sockets.map(|socket| Stdio::from(OwnedFd::from(socket)));
    let mut holder = Command::new("sleep").arg("60").stdin(front).stdout(onward).spawn().unwrap();
    thread::sleep(Duration::from_millis(20));
    assert!(apps.iter().all(|app| mesh.splices.is_granted(app)));
    holder.kill().unwrap();
    holder.wait().unwrap();
    until("the grants are gone", || apps.iter().all(|app| !mesh.splices.is_granted(app)));
    // Nothing can be sent past the mesh any more.
    let mut read = Vec::new();
    b.read_to_end(&mut read).unwrap();
    assert_eq!(read, b"straight");
    let end = Instant::now() + PATIENCE;
    while a.write(b"late").is_ok() {
        assert!(Instant::now() < end, "still sending");
        thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(mesh.splices.redirected(&apps[0]), 8);
}

/// A second connection between the very same addresses, while the grant of the first one's peer stands.
#[test]
fn a_later_connection_between_the_same_addresses_gets_nothing_of_an_earlier_one() {
    let mesh = Mesh::new();
    let (a, mut b, mut relay) = mesh.pair(Flavour::V4);
    let (from, to) = relay.ends[0];
    relay.splice(1, MIB);
    // The application resets its end. The relay, slow to notice, leaves the grant of the other one.
    reset(a);
    let later = connect_from(&mesh.world.pod, from, to).unwrap();
    let (_front, caller, _) = mesh.accept();
    assert_eq!(caller, from);
    assert!(mesh.splices.takes_part(later.as_fd()));
    assert!(mesh.splices.is_granted(&relay.apps[1]));
    b.write_all(b"for the first").unwrap();
    assert_eq!(relay.redirected(1), 0);
    later.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    assert!((&later).read(&mut [0; 16]).is_err(), "bytes of another connection");
    // The relay's own socket is gone: the later one cannot be met by it.
    let place = AppSocket::new(mesh.world.pod.cookie().unwrap(), from, to);
    assert!(mesh.splices.meet(&place, relay.sockets[0].as_fd()).is_none());
}

#[test]
fn switching_off_loses_nothing_and_switching_on_again_adopts() {
    let mesh = Mesh::new();
    let cgroup = splice::cgroup_root().unwrap();
    let (mut a, mut b, mut relay) = mesh.pair(Flavour::V6);
    relay.splice(0, MIB);
    a.write_all(b"one, ").unwrap();
    assert_eq!(relay.redirected(0), 5);
    // An agent that starts with it on: what is spliced stays so.
    mesh.node.splice_on(&cgroup).unwrap();
    a.write_all(b"two, ").unwrap();
    assert_eq!(relay.redirected(0), 5, "no pod takes part before it is attached again");
    let _pods = Mesh::attach(&mesh.world, &mesh.node);
    let mut read = [0; 10];
    while relay.ways[0].carried < 5 {
        relay.carry(0).unwrap();
    }
    b.read_exact(&mut read).unwrap();
    assert_eq!(&read, b"one, two, ");
    relay.splice(0, MIB);
    a.write_all(b"three, ").unwrap();
    assert_eq!(relay.redirected(0), 12);
    // One that starts with it off, while bytes wait that were redirected.
    mesh.node.splice_off().unwrap();
    mesh.node.splice_off().unwrap();
    assert!(Splices::open(&mesh.world.pins).unwrap().is_none());
    assert!(!mesh.splices.is_granted(&relay.apps[0]));
    // A ztunnel that still has the maps grants nothing.
    mesh.splices.grant(&relay.apps[0], &relay.apps[1], relay.ways[0].carried, 8 * MIB).unwrap();
    a.write_all(b"four").unwrap();
    assert_eq!(relay.redirected(0), 12);
    while relay.ways[0].carried < 9 {
        relay.carry(0).unwrap();
    }
    let mut read = [0; 11];
    b.read_exact(&mut read).unwrap();
    assert_eq!(&read, b"three, four");
    drop((a, b, relay));
    // And on again, from nothing.
    mesh.node.splice_on(&cgroup).unwrap();
    assert!(Splices::open(&mesh.world.pins).unwrap().is_some());
}

#[test]
fn sockets_that_are_not_to_be_spliced_are_left_alone() {
    let mesh = Mesh::new();
    let (mut a, mut b, mut relay) = mesh.pair(Flavour::V4);
    // Somebody waits in the way that is about to change.
    let mut reader = a.try_clone().unwrap();
    let reading = thread::spawn(move || {
        let mut read = [0; 4];
        reader.read_exact(&mut read).map(|()| read)
    });
    thread::sleep(Duration::from_millis(5));
    for app in &relay.apps {
        mesh.splices.release(app);
        mesh.splices.release(app);
    }
    b.write_all(b"back").unwrap();
    while relay.ways[1].carried < 4 {
        relay.carry(1).unwrap();
    }
    assert_eq!(&reading.join().unwrap().unwrap(), b"back");
    // Nobody is in the map any more: a grant changes nothing.
    mesh.splices.grant(&relay.apps[0], &relay.apps[1], 0, MIB).unwrap();
    a.write_all(b"by TCP").unwrap();
    while relay.ways[0].carried < 6 {
        relay.carry(0).unwrap();
    }
    let mut read = [0; 6];
    b.read_exact(&mut read).unwrap();
    assert_eq!((&read, relay.redirected(0)), (b"by TCP", 0));
    reset(a);
}

#[test]
fn a_pod_takes_part_only_while_all_it_dials_is_captured() {
    let mesh = Mesh::new();
    let (mut a, b, relay) = mesh.pair(Flavour::V4);
    assert!(relay.grant(0, MIB));
    a.write_all(b"straight").unwrap();
    assert_eq!(relay.redirected(0), 8);
    // A pod that leaves the mesh: what it sends is not redirected any more.
    mesh.pods[0].set_mode(Mode::Drain).unwrap();
    a.write_all(b"by TCP").unwrap();
    assert_eq!(relay.redirected(0), 8);
    mesh.pods[0].set_mode(Mode::Enforce).unwrap();
    assert!(mesh.splices.takes_part(a.as_fd()) && mesh.splices.takes_part(b.as_fd()));
    // What a pod says to itself stays an ordinary connection.
    let listener = listen(&mesh.world.pod, 7_000);
    for to in ["127.0.0.1:7000", "10.77.0.2:7000", "[::1]:7000", "[fd77::2]:7000"] {
        let own = connect(&mesh.world.pod, to.parse().unwrap()).unwrap();
        let (accepted, ..) = accept(&listener);
        assert!(!mesh.splices.takes_part(own.as_fd()) && !mesh.splices.takes_part(accepted.as_fd()), "{to}");
    }
}
