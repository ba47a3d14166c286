//! Drives a spliced pair through what has gone wrong with socket maps before, on the running kernel.

use super::MESSAGE;
use super::rig::{Failure, Outcome, PATIENCE, Pair, Rig, Way, demand};
use crate::{Error, sys};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
};
use socket2::SockRef;
use std::{
    fs,
    io::{self, Read as _, Write as _},
    mem::MaybeUninit,
    net::Shutdown,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

/// What the running kernel does.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// The cases that failed, each with what was seen: splicing must stay off.
    pub failures: Vec<String>,
    /// What an application may notice, by name; `docs/splice.md` has them all.
    pub limits: Vec<&'static str>,
}

impl Report {
    /// Whether splicing may be switched on.
    pub fn is_good(&self) -> bool {
        self.failures.is_empty()
    }
}

type Case = (&'static str, fn(&mut Rig) -> Outcome);

/// Each by a name that an operator can look up.
const CASES: [Case; 14] = [
    ("in order, IPv4", |rig| in_order(rig, false)),
    ("in order, IPv6", |rig| in_order(rig, true)),
    ("a grant that came too late", too_late),
    ("a reader that waits", waiting_reader),
    ("poll and epoll", readiness),
    ("peek", peek),
    ("what is unread", unread),
    ("half-close", half_close),
    ("the limit", limit),
    ("a write that was cut short", cut_short),
    ("nothing after the end", after_the_end),
    ("the relay is gone", relay_gone),
    ("the peer is gone", peer_gone),
    ("a listener of MPTCP", mptcp_listener),
];

type Limit = (&'static str, fn(&mut Rig) -> Outcome<bool>);

/// What is to be told, and whether all is as without splicing.
const LIMITS: [Limit; 4] = [
    ("FIONREAD does not count redirected bytes", fionread),
    ("MSG_WAITALL returns early", wait_all),
    ("a blocking recv may say EAGAIN", early_eagain),
    ("splice(2) does not see redirected bytes", splice_to_pipe),
];

/// Where cgroup2 is mounted, by `/proc/self/mounts`: on hybrid machines beside the older hierarchies.
pub fn cgroup_root() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    let mut mounts = mounts.lines().map(|line| line.split(' '));
    mounts.find_map(|mut fields| {
        let (_, at, kind) = (fields.next()?, fields.next()?, fields.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(at))
    })
}

/// Tries splicing on the running kernel: in a network namespace made for that, with programs and maps of
/// its own, in less than a second. The cgroup2 directory must hold this process.
///
/// # Errors
/// When there is nothing to try: the programs cannot be loaded or attached. Then splicing must stay off too.
pub fn self_test(cgroup: &Path) -> Result<Report, Error> {
    let mut rig = Rig::open(cgroup)?;
    let mut report = Report::default();
    for (name, case) in CASES {
        if let Err(failure) = case(&mut rig) {
            report.failures.push(format!("{name}: {failure}"));
        }
    }
    for (name, limit) in LIMITS {
        match limit(&mut rig) {
            Ok(true) => {}
            Ok(false) => report.limits.push(name),
            Err(failure) => report.failures.push(format!("{name}: {failure}")),
        }
    }
    Ok(report)
}

/// A pair that has carried a few bytes each way, and was granted each way.
fn spliced(rig: &mut Rig) -> Outcome<Pair> {
    let mut pair = rig.pair(false)?;
    for way in [Way::Forth, Way::Back] {
        pair.send(rig, way, b"by TCP", 0)?;
        pair.carry_to(way, 6)?;
        pair.expect(way, b"by TCP")?;
        pair.grant(rig, way, 1 << 20)?;
    }
    Ok(pair)
}

fn in_order(rig: &mut Rig, v6: bool) -> Outcome {
    let mut pair = rig.pair(v6)?;
    for way in [Way::Forth, Way::Back, Way::Forth] {
        let carried = pair.carried[way as usize];
        rig.splices.revoke(pair.sockets(way).0);
        pair.send(rig, way, b"first, by TCP, ", 0)?;
        pair.carry_to(way, carried + 15)?;
        pair.expect(way, b"first, by TCP, ")?;
        pair.grant(rig, way, 1 << 20)?;
        pair.send(rig, way, b"then straight, ", 15)?;
        pair.send(rig, way, b"and again, ", 11)?;
        rig.splices.revoke(pair.sockets(way).0);
        pair.send(rig, way, b"and by TCP", 0)?;
        // At once by its peer, in the order in which it was sent.
        pair.carry_to(way, carried + 25)?;
        pair.expect(way, b"then straight, and again, and by TCP")?;
    }
    Ok(())
}

/// Bytes that are on their way by TCP when the grant comes are not overtaken.
fn too_late(rig: &mut Rig) -> Outcome {
    let mut pair = rig.pair(false)?;
    rig.splices.grant(&pair.a_socket, &pair.b_socket, 0, 1 << 20)?;
    pair.send(rig, Way::Forth, b"straight, ", 10)?;
    rig.splices.revoke(&pair.a_socket);
    pair.send(rig, Way::Forth, b"by TCP, ", 0)?;
    rig.splices.grant(&pair.a_socket, &pair.b_socket, 0, 1 << 20)?;
    pair.send(rig, Way::Forth, b"by TCP again", 0)?;
    pair.carry_to(Way::Forth, 20)?;
    pair.expect(Way::Forth, b"straight, by TCP, by TCP again")
}

/// A thread in a blocking `recv` gets what comes, before the first grant and after it.
fn waiting_reader(rig: &mut Rig) -> Outcome {
    let mut pair = rig.pair(false)?;
    let mut reader = pair.b.try_clone()?;
    let reading = thread::spawn(move || -> io::Result<Vec<u8>> {
        let mut read = vec![0; 12];
        reader.read_exact(&mut read)?;
        Ok(read)
    });
    // It is to be waiting by then.
    let nap = Duration::from_millis(5);
    thread::sleep(nap);
    pair.send(rig, Way::Forth, b"by TCP", 0)?;
    pair.carry_to(Way::Forth, 6)?;
    thread::sleep(nap);
    pair.grant(rig, Way::Forth, 1 << 20)?;
    pair.send(rig, Way::Forth, b"direct", 6)?;
    let read = reading.join().map_err(|_| Failure("the reader panicked".to_owned()))?;
    let read = read.map_err(|error| Failure(format!("the reader was not woken: {error}")))?;
    demand(read == b"by TCPdirect", || format!("{:?} was read", String::from_utf8_lossy(&read)))
}

fn readiness(rig: &mut Rig) -> Outcome {
    let mut pair = spliced(rig)?;
    let socket = pair.b.try_clone()?;
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    epoll.add(&socket, EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, 0))?;
    let waits = |patience: Duration| {
        let patience = u16::try_from(patience.as_millis()).unwrap_or(u16::MAX);
        epoll.wait(&mut [EpollEvent::empty()], EpollTimeout::from(patience))
    };
    demand(waits(Duration::ZERO)? == 0, || "epoll reports an empty socket".to_owned())?;
    let waiting = thread::spawn({
        let socket = socket.try_clone()?;
        move || {
            let patience = PollTimeout::try_from(PATIENCE).unwrap_or(PollTimeout::MAX);
            poll(&mut [PollFd::new(socket.as_fd(), PollFlags::POLLIN)], patience)
        }
    });
    thread::sleep(Duration::from_millis(2));
    pair.send(rig, Way::Forth, b"ready", 5)?;
    let polled = waiting.join().map_err(|_| Failure("the poller panicked".to_owned()))??;
    demand(polled == 1, || "poll was not woken".to_owned())?;
    demand(waits(PATIENCE)? == 1, || "epoll was not woken".to_owned())?;
    demand(waits(Duration::ZERO)? == 0, || "an edge was reported twice".to_owned())?;
    pair.send(rig, Way::Forth, b"more", 4)?;
    demand(waits(PATIENCE)? == 1, || "epoll missed the second edge".to_owned())?;
    pair.expect(Way::Forth, b"readymore")?;
    demand(waits(Duration::ZERO)? == 0, || "epoll reports what was read".to_owned())
}

fn peek(rig: &mut Rig) -> Outcome {
    let mut pair = spliced(rig)?;
    pair.send(rig, Way::Forth, b"look", 4)?;
    let mut seen = [0; 8];
    let length = pair.b.peek(&mut seen)?;
    demand(seen[..length] == *b"look", || format!("a peek saw {length} bytes"))?;
    pair.expect(Way::Forth, b"look")
}

fn unread(rig: &mut Rig) -> Outcome {
    let mut pair = spliced(rig)?;
    let bytes = [7; 50_000];
    let (local, remote) = pair.ends[1];
    pair.send(rig, Way::Forth, &bytes, bytes.len())?;
    let waits = rig.diag.unread(local, remote)?;
    demand(waits.is_some_and(|waits| waits as usize >= bytes.len()), || format!("{waits:?} bytes wait"))?;
    pair.expect(Way::Forth, &bytes)?;
    let waits = rig.diag.unread(local, remote)?;
    demand(waits == Some(0), || format!("{waits:?} bytes wait after all were read"))
}

fn half_close(rig: &mut Rig) -> Outcome {
    let mut pair = spliced(rig)?;
    pair.send(rig, Way::Forth, b"the last", 8)?;
    pair.a.shutdown(Shutdown::Write)?;
    while !pair.carry(Way::Forth)? {
        thread::sleep(Duration::from_micros(100));
    }
    // The end is there, behind bytes that are unread.
    thread::sleep(Duration::from_millis(2));
    pair.expect(Way::Forth, b"the last")?;
    let after = pair.b.read(&mut [0; 8])?;
    demand(after == 0, || format!("{after} bytes were read instead of the end"))?;
    // The other direction lives on, by TCP: the relay's socket has left its state.
    let carried = pair.carried[Way::Back as usize];
    demand(!rig.splices.is_granted(&pair.b_socket), || "the grant outlived the half-close".to_owned())?;
    pair.send(rig, Way::Back, b"answer", 0)?;
    pair.carry_to(Way::Back, carried + 6)?;
    pair.expect(Way::Back, b"answer")?;
    // And may be granted anew.
    pair.grant(rig, Way::Back, 1 << 20)?;
    pair.send(rig, Way::Back, b"straight", 8)?;
    pair.b.shutdown(Shutdown::Write)?;
    while !pair.carry(Way::Back)? {
        thread::sleep(Duration::from_micros(100));
    }
    pair.expect(Way::Back, b"straight")?;
    let after = pair.a.read(&mut [0; 8])?;
    demand(after == 0, || format!("{after} bytes were read instead of the end"))
}

fn limit(rig: &mut Rig) -> Outcome {
    let mut pair = spliced(rig)?;
    let carried = pair.carried[Way::Forth as usize];
    pair.grant(rig, Way::Forth, 10 + MESSAGE)?;
    pair.send(rig, Way::Forth, b"six by", 6)?;
    pair.send(rig, Way::Forth, b" six, ", 0)?;
    pair.send(rig, Way::Forth, b"and", 0)?;
    pair.carry_to(Way::Forth, carried + 9)?;
    pair.expect(Way::Forth, b"six by six, and")?;
    pair.grant(rig, Way::Forth, 10 + MESSAGE)?;
    pair.send(rig, Way::Forth, b"all of ten", 10)?;
    pair.expect(Way::Forth, b"all of ten")?;
    // What the kernel keeps for a message counts, be it ever so short.
    let carried = pair.carried[Way::Forth as usize];
    pair.grant(rig, Way::Forth, 3 * (MESSAGE + 1))?;
    for straight in [1, 1, 1, 0, 0] {
        pair.send(rig, Way::Forth, b"x", straight)?;
    }
    pair.carry_to(Way::Forth, carried + 2)?;
    pair.expect(Way::Forth, b"xxxxx")
}

/// A full send buffer takes a part of a write. The kernel does not say so to the program, and does not ask
/// it about the next write; what is granted later must count what really went.
fn cut_short(rig: &mut Rig) -> Outcome {
    let mut pair = rig.pair(false)?;
    SockRef::from(&pair.a).set_send_buffer_size(8 * 1024)?;
    pair.a.set_nonblocking(true)?;
    let block: Vec<u8> = (0..200_003_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let (mut sent, mut read) = (Vec::new(), Vec::new());
    pair.b.set_nonblocking(true)?;
    let end = Instant::now() + PATIENCE;
    for _ in 0..3 {
        loop {
            match pair.a.write(&block) {
                Ok(length) => sent.extend(&block[..length]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error.into()),
            }
        }
        while read.len() < sent.len() {
            demand(Instant::now() < end, || format!("{} of {} bytes were read", read.len(), sent.len()))?;
            pair.carry(Way::Forth)?;
            match pair.b.read_to_end(&mut read) {
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error.into()),
                _ => {}
            }
        }
    }
    demand(read == sent, || "other bytes were read than were sent".to_owned())?;
    pair.a.set_nonblocking(false)?;
    pair.b.set_nonblocking(false)?;
    // This is the write about which the program may not be asked.
    pair.grant(rig, Way::Forth, 1 << 20)?;
    pair.a.write_all(b"one more, ")?;
    if rig.splices.redirected(&pair.a_socket) == 0 {
        let carried = pair.carried[Way::Forth as usize];
        pair.carry_to(Way::Forth, carried + 10)?;
    }
    pair.expect(Way::Forth, b"one more, ")?;
    pair.grant(rig, Way::Forth, 1 << 20)?;
    pair.send(rig, Way::Forth, b"straight", 8)?;
    pair.expect(Way::Forth, b"straight")
}

/// A grant does not let an application send after it has ended its side.
fn after_the_end(rig: &mut Rig) -> Outcome {
    let mut pair = spliced(rig)?;
    pair.a.shutdown(Shutdown::Write)?;
    rig.splices.grant(&pair.a_socket, &pair.b_socket, pair.carried[0], 1 << 20)?;
    let sent = pair.a.write(b"late");
    demand(sent.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::BrokenPipe), || {
        format!("a write after the end gave {sent:?}")
    })
}

fn relay_gone(rig: &mut Rig) -> Outcome {
    let mut pair = spliced(rig)?;
    pair.send(rig, Way::Forth, b"waits", 5)?;
    demand(rig.splices.is_granted(&pair.a_socket) && rig.splices.is_granted(&pair.b_socket), || {
        "there is no grant".to_owned()
    })?;
    // As they are closed when a process is killed.
    (pair.front, pair.onward) = (None, None);
    demand(!rig.splices.is_granted(&pair.a_socket), || "the sender's grant is still there".to_owned())?;
    demand(!rig.splices.is_granted(&pair.b_socket), || "the receiver's grant is still there".to_owned())?;
    pair.expect(Way::Forth, b"waits")?;
    let after = pair.b.read(&mut [0; 8])?;
    demand(after == 0, || format!("{after} bytes were read instead of the end"))
}

fn peer_gone(rig: &mut Rig) -> Outcome {
    let mut pair = spliced(rig)?;
    // A second pair gives the place of B's socket.
    let gone = std::mem::replace(&mut pair.b, rig.pair(false)?.b);
    drop(gone);
    pair.send(rig, Way::Forth, b"nobody", 0)?;
    let carried = pair.carried[Way::Forth as usize];
    pair.carry_to(Way::Forth, carried + 6)?;
    // B's kernel answers with a reset, which the relay hands on.
    let end = Instant::now() + PATIENCE;
    let reset = loop {
        let Some(onward) = &pair.onward else { return Err(Failure("no relay".to_owned())) };
        match onward.take_error()? {
            Some(error) => break error,
            None => demand(Instant::now() < end, || "no reset came".to_owned())?,
        }
        thread::sleep(Duration::from_micros(200));
    };
    demand(matches!(reset.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe), || {
        format!("the relay was told {reset}")
    })?;
    if let Some(front) = pair.front.take() {
        SockRef::from(&front).set_linger(Some(Duration::ZERO))?;
    }
    let told = pair.a.read(&mut [0; 8]);
    demand(told.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::ConnectionReset), || {
        format!("the sender was told {told:?}")
    })?;
    let sent = pair.a.write(b"late");
    demand(sent.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::BrokenPipe), || {
        format!("a write to nobody gave {sent:?}")
    })
}

/// Some kernels take the socket of a plain TCP caller at a listener of MPTCP (Go's servers have such ones) for
/// one of IPv4 once it is in a socket map, warn, and crash later.
fn mptcp_listener(rig: &mut Rig) -> Outcome {
    let panics = fs::read_to_string("/proc/sys/kernel/panic_on_warn").is_ok_and(|value| value.trim() == "1");
    demand(!panics, || "not tried, since this kernel is set to panic at a warning".to_owned())?;
    match rig.accepted_by_mptcp()? {
        None => Ok(()),
        Some(accepted) => {
            let at = accepted.local_addr()?;
            demand(at.is_ipv6(), || format!("a socket of IPv6 says that it stands at {at}"))
        }
    }
}

fn fionread(rig: &mut Rig) -> Outcome<bool> {
    let mut pair = spliced(rig)?;
    pair.send(rig, Way::Forth, b"five!", 5)?;
    let told = sys::unread(pair.b.as_fd())?;
    pair.expect(Way::Forth, b"five!")?;
    Ok(told == 5)
}

fn wait_all(rig: &mut Rig) -> Outcome<bool> {
    let mut pair = spliced(rig)?;
    pair.send(rig, Way::Forth, b"half", 4)?;
    pair.b.set_read_timeout(Some(Duration::from_millis(20)))?;
    let reader = SockRef::from(&pair.b);
    let mut bytes = [MaybeUninit::uninit(); 8];
    let start = Instant::now();
    let read = reader.recv_with_flags(&mut bytes, libc::MSG_WAITALL)?;
    Ok(read == 8 || start.elapsed() > Duration::from_millis(15))
}

/// A reader that is woken though nothing came: its thread's fellow may write again.
fn early_eagain(rig: &mut Rig) -> Outcome<bool> {
    let mut pair = rig.pair(false)?;
    SockRef::from(&pair.a).set_send_buffer_size(8 * 1024)?;
    let mut reader = pair.a.try_clone()?;
    let reading = thread::spawn(move || reader.read(&mut [0; 1]));
    thread::sleep(Duration::from_millis(5));
    let mut sent = 0;
    loop {
        match SockRef::from(&pair.a).send_with_flags(&[0; 50_000], libc::MSG_DONTWAIT) {
            Ok(length) => sent += length as u64,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) => return Err(error.into()),
        }
    }
    let mut sink = pair.b.try_clone()?;
    let draining = thread::spawn(move || io::copy(&mut (&mut sink).take(sent), &mut io::sink()));
    pair.carry_to(Way::Forth, sent)?;
    draining.join().map_err(|_| Failure("the reader panicked".to_owned()))??;
    pair.b.write_all(b"x")?;
    pair.carry_to(Way::Back, 1)?;
    match reading.join().map_err(|_| Failure("the reader panicked".to_owned()))? {
        Ok(1) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
        other => Err(Failure(format!("a read gave {other:?}"))),
    }
}

fn splice_to_pipe(rig: &mut Rig) -> Outcome<bool> {
    let mut pair = spliced(rig)?;
    pair.send(rig, Way::Forth, b"five!", 5)?;
    let (_read, write) = nix::unistd::pipe()?;
    // It would wait as long as a read.
    pair.b.set_nonblocking(true)?;
    let moved = sys::splice_now(pair.b.as_fd(), write.as_fd(), 5);
    pair.b.set_nonblocking(false)?;
    match moved {
        Ok(5) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            pair.expect(Way::Forth, b"five!").map(|()| false)
        }
        other => Err(Failure(format!("splice gave {other:?}"))),
    }
}
