//! Which TCP sockets a network namespace has, asked of the kernel by SOCK_DIAG (`linux/inet_diag.h`).

use netlink_sys::{Socket, SocketAddr as NetlinkAddr, protocols::NETLINK_SOCK_DIAG};
use std::{
    collections::HashMap,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsRawFd as _, BorrowedFd},
    sync::{Mutex, MutexGuard, PoisonError},
};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_DUMP: u16 = 0x300;
const IPPROTO_TCP: u8 = 6;
/// A request's optional attribute: the maps whose values on each socket are wanted.
const INET_DIAG_REQ_SK_BPF_STORAGES: u16 = 2;
const SK_DIAG_BPF_STORAGE_REQ_MAP_FD: u16 = 1;
/// An answer's attribute: those values.
const INET_DIAG_SK_BPF_STORAGES: u16 = 20;
const SK_DIAG_BPF_STORAGE: u16 = 1;
const SK_DIAG_BPF_STORAGE_MAP_VALUE: u16 = 3;
/// An answer's attribute: the socket's memory, words of four bytes. Asked for by a bit of the request.
const INET_DIAG_SKMEMINFO: u16 = 7;
/// …or `struct tcp_info`, and where in it `tcpi_bytes_received` lies (kernel 4.1).
const INET_DIAG_INFO: u16 = 2;
const TCPI_BYTES_RECEIVED: usize = 128;
/// Which of the words counts what waits to be read.
const SK_MEMINFO_RMEM_ALLOC: usize = 0;
/// Which counts what has not been looked at yet, since somebody holds the socket's lock.
const SK_MEMINFO_BACKLOG: usize = 7;
/// An answer's attribute: the id of the cgroup2 that made the socket.
const INET_DIAG_CGROUP_ID: u16 = 21;
/// Where `struct inet_diag_msg` has the socket's port, user and inode.
const PORT: usize = 4;
const USER: usize = 64;
const INODE: usize = 68;
/// An answer's attribute: the socket's packet mark. The kernel tells it to who has NET_ADMIN.
const INET_DIAG_MARK: u16 = 15;
const NLA_TYPE_MASK: u16 = 0x3fff;
const HEADER: usize = 16;
/// Where a message bears its number.
const SEQUENCE: usize = 8;
/// The kernel sends a dump in datagrams of at most this size, to one who reads as much.
const DATAGRAM: usize = 32 * 1024;
/// Where a request says in which states sockets are wanted.
const STATES: usize = HEADER + 4;
/// Where a request says which attributes are wanted.
const WANTED: usize = HEADER + 2;
/// `struct inet_diag_msg`.
const MESSAGE: usize = 72;

/// The states of `include/net/tcp_states.h` that matter here.
const TIME_WAIT: u8 = 6;
const CLOSE: u8 = 7;
const LISTEN: u8 = 10;

/// One TCP socket: where it stands and to whom. IPv4 addresses of dual-stack sockets are plain IPv4.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TcpSocket {
    /// The socket's own address.
    pub local: SocketAddr,
    /// The other end's address.
    pub remote: SocketAddr,
    /// The state, as the kernel numbers it (`TCP_ESTABLISHED` is 1, `TCP_LISTEN` 10).
    pub state: u8,
    /// Whether it bears ztunnel's mark; known only where the marks were asked for.
    pub own: bool,
    /// The packet mark (`SO_MARK`); 0 where there is none, or where the kernel would not tell.
    pub mark: u32,
}

impl TcpSocket {
    /// Whether it still carries something: neither closed nor in TIME_WAIT.
    pub fn is_live(&self) -> bool {
        !matches!(self.state, TIME_WAIT | CLOSE | LISTEN)
    }
}

/// A listening socket, as far as it tells whose it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listening {
    /// Where it listens.
    pub port: u16,
    /// By which `/proc/PID/fd` names it.
    pub inode: u64,
    /// The user who made it.
    pub uid: u32,
    /// The id of the cgroup2 that it was made in; `None` from a kernel before 5.9.
    pub cgroup: Option<u64>,
}

/// A socket to ask with. It belongs to the network namespace in which it was opened, for good. Threads that
/// share one wait for each other.
#[derive(Debug)]
pub struct Diag(Mutex<Asker>);

/// The socket, and the number of the last question: an answer bears that of its question.
#[derive(Debug)]
struct Asker {
    socket: Socket,
    number: u32,
}

impl Asker {
    fn ask(&mut self, mut question: Vec<u8>) -> io::Result<()> {
        self.number = self.number.wrapping_add(1);
        question[SEQUENCE..SEQUENCE + 4].copy_from_slice(&self.number.to_ne_bytes());
        self.socket.send(&question, 0).map(drop)
    }

    /// One datagram of the answer, into the buffer. Those of an earlier question, whose reading failed, are
    /// passed over.
    fn answer<'a>(&self, buffer: &'a mut [u8]) -> io::Result<&'a [u8]> {
        loop {
            let length = self.socket.recv(&mut &mut buffer[..], 0)?;
            if u32_at(&buffer[..length], SEQUENCE)? == self.number {
                return Ok(&buffer[..length]);
            }
        }
    }
}

impl Diag {
    /// Opens one in the calling thread's network namespace.
    pub fn open() -> io::Result<Self> {
        let socket = Socket::new(NETLINK_SOCK_DIAG)?;
        socket.connect(&NetlinkAddr::new(0, 0))?;
        Ok(Self(Mutex::new(Asker { socket, number: 0 })))
    }

    /// Whether there is a socket with exactly these two addresses. A listener does not count, but the
    /// remains of a closed connection (TIME_WAIT) do.
    pub fn exists(&self, local: SocketAddr, remote: SocketAddr) -> io::Result<bool> {
        Ok(self.find(local, remote)?.is_some())
    }

    /// The socket with exactly these two addresses, be it alive or the remains of a closed connection
    /// (TIME_WAIT, see [`TcpSocket::is_live`]). A listener does not count.
    pub fn find(&self, local: SocketAddr, remote: SocketAddr) -> io::Result<Option<TcpSocket>> {
        self.ask(request(0, local, remote, None), |_| Ok(())).map(|found| found.map(|(socket, ())| socket))
    }

    /// How many bytes of memory wait in the receive queues of the socket with exactly these two addresses:
    /// what came by TCP (more memory than there are bytes of data) and what was redirected to it. 0 if the
    /// application has read everything; `None` if there is no such socket, or only its remains.
    pub fn unread(&self, local: SocketAddr, remote: SocketAddr) -> io::Result<Option<u32>> {
        let mut question = request(0, local, remote, None);
        question[WANTED] = 1 << (INET_DIAG_SKMEMINFO - 1);
        let found = self.ask(question, |attributes| {
            let Some(memory) = attribute(attributes, INET_DIAG_SKMEMINFO) else { return Ok(None) };
            let word = |at: usize| u32_at(memory, 4 * at);
            Ok(Some(word(SK_MEMINFO_RMEM_ALLOC)?.saturating_add(word(SK_MEMINFO_BACKLOG)?)))
        })?;
        Ok(found.and_then(|(_, unread)| unread))
    }

    /// How many bytes the socket with exactly these two addresses has received by TCP since it was connected,
    /// read or not; `None` if there is no such socket, or only its remains.
    pub fn received(&self, local: SocketAddr, remote: SocketAddr) -> io::Result<Option<u64>> {
        let mut question = request(0, local, remote, None);
        question[WANTED] = 1 << (INET_DIAG_INFO - 1);
        let found = self.ask(question, |attributes| {
            let Some(info) = attribute(attributes, INET_DIAG_INFO) else { return Ok(None) };
            let bytes =
                info.get(TCPI_BYTES_RECEIVED..TCPI_BYTES_RECEIVED + 8).and_then(|b| b.try_into().ok());
            bytes.map(|bytes| Some(u64::from_ne_bytes(bytes))).ok_or_else(|| malformed("a short tcp_info"))
        })?;
        Ok(found.and_then(|(_, received)| received))
    }

    /// Asks about one socket, and reads the attributes of the answer.
    fn ask<T>(
        &self,
        question: Vec<u8>,
        read: impl FnOnce(&[u8]) -> io::Result<T>,
    ) -> io::Result<Option<(TcpSocket, T)>> {
        let mut asker = self.asker();
        asker.ask(question)?;
        let mut buffer = [0_u8; 1_024];
        let answer = asker.answer(&mut buffer)?;
        match u16_at(answer, 4)? {
            SOCK_DIAG_BY_FAMILY => {
                let message = answer.get(HEADER..).unwrap_or_default();
                let found = socket(message)?;
                if found.state == LISTEN {
                    return Ok(None);
                }
                Ok(Some((found, read(message.get(MESSAGE..).unwrap_or_default())?)))
            }
            NLMSG_ERROR => match error_of(answer)? {
                error if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
                error => Err(error),
            },
            other => Err(malformed(&format!("message type {other}"))),
        }
    }

    /// Every TCP socket, of both families, listeners excepted.
    pub fn list(&self) -> io::Result<Vec<TcpSocket>> {
        self.dump(None)
    }

    /// Every listening TCP socket, of both families.
    pub fn listeners(&self) -> io::Result<Vec<Listening>> {
        let mut found = Vec::new();
        let mut asker = self.asker();
        let mut buffer = vec![0; DATAGRAM];
        let any = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];
        for at in any.map(|ip| SocketAddr::new(ip, 0)) {
            let mut question = request(NLM_F_DUMP, at, at, None);
            question[STATES..STATES + 4].copy_from_slice(&(1_u32 << LISTEN).to_ne_bytes());
            asker.ask(question)?;
            let mut take = |message: &[u8]| {
                let cgroup = attribute(message.get(MESSAGE..).unwrap_or_default(), INET_DIAG_CGROUP_ID)
                    .and_then(|id| id.get(..8)?.try_into().ok())
                    .map(u64::from_ne_bytes);
                let (inode, uid) = (u64::from(u32_at(message, INODE)?), u32_at(message, USER)?);
                let port = u16::from_be(u16_at(message, PORT)?);
                found.push(Listening { port, inode, uid, cgroup });
                Ok(())
            };
            while each_message(asker.answer(&mut buffer)?, &mut take)? {}
        }
        Ok(found)
    }

    /// The same, with ztunnel's told apart by the storage in `marks`.
    pub(crate) fn list_marked(&self, marks: BorrowedFd<'_>) -> io::Result<Vec<TcpSocket>> {
        self.dump(Some(marks))
    }

    fn dump(&self, marks: Option<BorrowedFd<'_>>) -> io::Result<Vec<TcpSocket>> {
        let mut sockets = Vec::new();
        let mut asker = self.asker();
        let mut buffer = vec![0; DATAGRAM];
        let any = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];
        for at in any.map(|ip| SocketAddr::new(ip, 0)) {
            asker.ask(request(NLM_F_DUMP, at, at, marks))?;
            while read_dump(asker.answer(&mut buffer)?, &mut sockets)? {}
        }
        Ok(sockets)
    }

    fn asker(&self) -> MutexGuard<'_, Asker> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads one datagram of a dump; whether another follows.
fn read_dump(datagram: &[u8], sockets: &mut Vec<TcpSocket>) -> io::Result<bool> {
    each_message(datagram, &mut |message| {
        sockets.push(socket(message)?);
        Ok(())
    })
}

/// Shows each `struct inet_diag_msg`, with its attributes, of one datagram of a dump; whether another follows.
fn each_message(datagram: &[u8], take: &mut dyn FnMut(&[u8]) -> io::Result<()>) -> io::Result<bool> {
    let mut rest = datagram;
    while rest.len() >= HEADER {
        let length = u32_at(rest, 0)? as usize;
        let message = rest.get(..length).filter(|message| message.len() >= HEADER);
        let message = message.ok_or_else(|| malformed("a length"))?;
        match u16_at(message, 4)? {
            NLMSG_DONE => return Ok(false),
            NLMSG_ERROR => return Err(error_of(message)?),
            SOCK_DIAG_BY_FAMILY => take(&message[HEADER..])?,
            other => return Err(malformed(&format!("message type {other}"))),
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or(&[]);
    }
    Ok(true)
}

/// [`Diag::list`] for the calling thread's network namespace.
pub fn list() -> io::Result<Vec<TcpSocket>> {
    Diag::open()?.list()
}

/// [`Diag::exists`] for the calling thread's network namespace.
pub fn exists(local: SocketAddr, remote: SocketAddr) -> io::Result<bool> {
    Diag::open()?.exists(local, remote)
}

/// The pairs of live sockets that face each other within one namespace, where one end stands on an address
/// that is not the namespace's own: what ztunnel carries for the pod's applications.
pub(crate) fn mirrored_pairs(sockets: &[TcpSocket], is_local: impl Fn(&IpAddr) -> bool) -> usize {
    let live: HashMap<_, _> = sockets
        .iter()
        .filter(|socket| socket.is_live())
        .map(|socket| ((socket.local, socket.remote), socket))
        .collect();
    live.values()
        .filter(|socket| !is_local(&socket.local.ip()))
        .filter(|socket| live.contains_key(&(socket.remote, socket.local)))
        .count()
}

/// `struct inet_diag_req_v2` in its envelope.
fn request(flags: u16, local: SocketAddr, remote: SocketAddr, marks: Option<BorrowedFd<'_>>) -> Vec<u8> {
    let mut message = vec![0; 4];
    message.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    message.extend((NLM_F_REQUEST | flags).to_ne_bytes());
    message.extend([0; 8]); // the number, which is written when it is asked; the port
    let family = if local.is_ipv6() { libc::AF_INET6 } else { libc::AF_INET };
    message.extend([family as u8, IPPROTO_TCP, 0, 0]);
    let states: u32 = !(1 << LISTEN);
    message.extend(states.to_ne_bytes());
    message.extend(local.port().to_be_bytes());
    message.extend(remote.port().to_be_bytes());
    for ip in [local.ip(), remote.ip()] {
        match ip {
            IpAddr::V4(ip) => message.extend(ip.octets().into_iter().chain([0; 12])),
            IpAddr::V6(ip) => message.extend(ip.octets()),
        }
    }
    message.extend(0_u32.to_ne_bytes()); // any device
    message.extend([0xff; 8]); // any cookie
    if let Some(marks) = marks {
        message.extend(12_u16.to_ne_bytes());
        message.extend(INET_DIAG_REQ_SK_BPF_STORAGES.to_ne_bytes());
        message.extend(8_u16.to_ne_bytes());
        message.extend(SK_DIAG_BPF_STORAGE_REQ_MAP_FD.to_ne_bytes());
        message.extend(marks.as_raw_fd().to_ne_bytes());
    }
    let length = message.len() as u32;
    message[..4].copy_from_slice(&length.to_ne_bytes());
    message
}

/// Reads `struct inet_diag_msg` and its attributes.
fn socket(message: &[u8]) -> io::Result<TcpSocket> {
    let (family, state) = (byte_at(message, 0)?, byte_at(message, 1)?);
    let port = |at| Ok::<_, io::Error>(u16::from_be(u16_at(message, at)?));
    let address = |at: usize| -> io::Result<IpAddr> {
        let bytes: [u8; 16] = message
            .get(at..at + 16)
            .and_then(|bytes| bytes.try_into().ok())
            .ok_or_else(|| malformed("an address"))?;
        Ok(match i32::from(family) {
            libc::AF_INET6 => Ipv6Addr::from(bytes).to_canonical(),
            _ => Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3]).into(),
        })
    };
    let attributes = message.get(MESSAGE..).unwrap_or(&[]);
    Ok(TcpSocket {
        local: SocketAddr::new(address(8)?, port(4)?),
        remote: SocketAddr::new(address(24)?, port(6)?),
        state,
        own: is_own(attributes),
        mark: attribute(attributes, INET_DIAG_MARK).and_then(|mark| u32_at(mark, 0).ok()).unwrap_or(0),
    })
}

/// Whether the attributes hold a storage whose value has the mark.
fn is_own(attributes: &[u8]) -> bool {
    let storage = attribute(attributes, INET_DIAG_SK_BPF_STORAGES)
        .and_then(|storages| attribute(storages, SK_DIAG_BPF_STORAGE))
        .and_then(|storage| attribute(storage, SK_DIAG_BPF_STORAGE_MAP_VALUE));
    storage.and_then(|value| u32_at(value, 0).ok()).is_some_and(|mark| mark & abi::OWN_MARK != 0)
}

/// The value of the first attribute of a kind.
fn attribute(mut attributes: &[u8], kind: u16) -> Option<&[u8]> {
    while attributes.len() >= 4 {
        let length = usize::from(u16_at(attributes, 0).ok()?);
        let value = attributes.get(4..length)?;
        if u16_at(attributes, 2).ok()? & NLA_TYPE_MASK == kind {
            return Some(value);
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
    None
}

fn error_of(message: &[u8]) -> io::Result<io::Error> {
    let code = u32_at(message, HEADER)? as i32;
    Ok(io::Error::from_raw_os_error(code.wrapping_neg()))
}

fn byte_at(bytes: &[u8], at: usize) -> io::Result<u8> {
    bytes.get(at).copied().ok_or_else(|| malformed("a short message"))
}

fn u16_at(bytes: &[u8], at: usize) -> io::Result<u16> {
    let field = bytes.get(at..at + 2).and_then(|field| field.try_into().ok());
    field.map(u16::from_ne_bytes).ok_or_else(|| malformed("a short message"))
}

fn u32_at(bytes: &[u8], at: usize) -> io::Result<u32> {
    let field = bytes.get(at..at + 4).and_then(|field| field.try_into().ok());
    field.map(u32::from_ne_bytes).ok_or_else(|| malformed("a short message"))
}

fn malformed(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("SOCK_DIAG answered with {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        io::{Read as _, Write as _},
        net::{TcpListener, TcpStream},
    };

    #[test]
    fn the_remains_of_a_closed_connection_are_found_and_are_not_alive() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, _) = listener.accept().unwrap();
        let (local, remote) = (client.local_addr().unwrap(), client.peer_addr().unwrap());
        let diag = Diag::open().unwrap();
        let alive = diag.find(local, remote).unwrap().unwrap();
        assert!(alive.is_live());
        assert_eq!((alive.local, alive.remote), (local, remote));
        // Who closes first keeps the remains.
        drop(client);
        drop(server);
        let remains = diag.find(local, remote).unwrap().unwrap();
        assert!(!remains.is_live(), "{remains:?}");
        assert_eq!(diag.find(remote, local).unwrap(), None);
    }

    #[test]
    fn finds_a_live_connection_and_no_other() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (local, remote) = (client.local_addr().unwrap(), client.peer_addr().unwrap());
        assert!(exists(local, remote).unwrap());
        assert!(exists(remote, local).unwrap());
        // The listener would match a lookup with a port that nobody has.
        assert!(!exists(remote, SocketAddr::new(local.ip(), 1)).unwrap());
        let listed = list().unwrap();
        assert!(
            listed.iter().any(|socket| socket.local == local && socket.remote == remote && socket.is_live())
        );
        assert!(!listed.iter().any(|socket| socket.state == LISTEN));
    }

    #[test]
    fn a_packet_mark_is_told() {
        let listener = socket2::Socket::new(socket2::Domain::IPV6, socket2::Type::STREAM, None).unwrap();
        // As a foreign ztunnel does: what is accepted inherits it.
        listener.set_mark(abi::FOREIGN_MARK).unwrap();
        listener.bind(&"[::]:0".parse::<SocketAddr>().unwrap().into()).unwrap();
        listener.listen(1).unwrap();
        let port = listener.local_addr().unwrap().as_socket().unwrap().port();
        let client = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let accepted = listener.accept().unwrap().0;
        let (here, there) = (client.local_addr().unwrap(), client.peer_addr().unwrap());
        let listed = list().unwrap();
        let mark = |local, remote| {
            listed
                .iter()
                .find(|socket| socket.local == local && socket.remote == remote)
                .map(|found| found.mark)
        };
        assert_eq!(mark(there, here), Some(abi::FOREIGN_MARK));
        assert_eq!(mark(here, there), Some(0));
        drop(accepted);
    }

    #[test]
    fn unread_bytes_are_counted_until_they_are_read() {
        let listener = TcpListener::bind("[::]:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut client = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let mut accepted = listener.accept().unwrap().0;
        let (here, there) = (client.peer_addr().unwrap(), client.local_addr().unwrap());
        let diag = Diag::open().unwrap();
        assert_eq!(diag.unread(here, there).unwrap(), Some(0));
        assert_eq!(diag.received(here, there).unwrap(), Some(0));
        client.write_all(&[1; 100]).unwrap();
        accepted.peek(&mut [0; 1]).unwrap();
        assert!(diag.unread(here, there).unwrap().unwrap() >= 100);
        assert_eq!(diag.received(here, there).unwrap(), Some(100));
        accepted.read_exact(&mut [0; 100]).unwrap();
        assert_eq!(diag.unread(here, there).unwrap(), Some(0));
        assert_eq!(diag.received(here, there).unwrap(), Some(100));
        drop(client);
        drop(accepted);
        assert_eq!(diag.unread(there, here).unwrap(), None, "remains have no queue");
        assert_eq!(diag.received(there, here).unwrap(), None, "nor a count");
        assert_eq!(diag.unread(here, SocketAddr::new(here.ip(), 1)).unwrap(), None);
    }

    #[test]
    fn threads_that_share_one_get_their_own_answers() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let pairs = [1, 20_000].map(|length| {
            let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            client.write_all(&vec![1; length]).unwrap();
            (client, listener.accept().unwrap().0, length as u32)
        });
        let diag = Diag::open().unwrap();
        std::thread::scope(|scope| {
            for (client, accepted, length) in &pairs {
                let (here, there) = (accepted.local_addr().unwrap(), client.local_addr().unwrap());
                accepted.peek(&mut [0; 1]).unwrap();
                let unread = diag.unread(here, there).unwrap();
                assert!(unread >= Some(*length));
                let diag = &diag;
                scope.spawn(move || {
                    for _ in 0..2_000 {
                        assert_eq!(diag.find(here, there).unwrap().unwrap().remote, there);
                        assert_eq!(diag.unread(here, there).unwrap(), unread);
                    }
                });
            }
        });
    }

    #[test]
    fn dual_stack_sockets_show_plain_addresses() {
        let listener = TcpListener::bind("[::]:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let client = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let accepted = listener.accept().unwrap().0;
        assert!(accepted.local_addr().unwrap().is_ipv6());
        let (here, there) = (client.peer_addr().unwrap(), client.local_addr().unwrap());
        assert!(list().unwrap().iter().any(|socket| socket.local == here && socket.remote == there));
        assert!(exists(here, there).unwrap());
    }

    #[test]
    fn only_pairs_with_a_foreign_address_are_carried() {
        let socket = |local: &str, remote: &str, state| TcpSocket {
            local: local.parse().unwrap(),
            remote: remote.parse().unwrap(),
            state,
            own: false,
            mark: 0,
        };
        let pod: IpAddr = "10.0.0.1".parse().unwrap();
        let mut sockets = vec![
            socket("10.0.0.1:40000", "10.9.0.1:80", 1),
            socket("10.9.0.1:80", "10.0.0.1:40000", 1),
            // The pod talks to itself.
            socket("10.0.0.1:40001", "10.0.0.1:80", 1),
            socket("10.0.0.1:80", "10.0.0.1:40001", 1),
            // A connection from before the enrollment.
            socket("10.0.0.1:40002", "10.9.0.1:80", 1),
            // One that ended.
            socket("10.0.0.1:40003", "10.9.0.1:80", TIME_WAIT),
            socket("10.9.0.1:80", "10.0.0.1:40003", TIME_WAIT),
        ];
        assert_eq!(mirrored_pairs(&sockets, |ip| *ip == pod), 1);
        sockets.remove(0);
        assert_eq!(mirrored_pairs(&sockets, |ip| *ip == pod), 0);
    }
}
