//! Network namespaces: making one, stepping into one, reading and setting its sysctls.
//!
//! A namespace is entered on the calling thread and left again before the call returns, so sockets and
//! child processes made inside belong to it while no thread of ours stays in it.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, setns};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

/// Where named network namespaces live (the convention of iproute2).
pub const FOLDER: &str = "/run/netns";

/// States of a TCP socket, as the kernel lists them.
const TIME_WAIT: u8 = 6;
const LISTEN: u8 = 10;

/// A line of the kernel's list of TCP sockets.
#[derive(Debug, PartialEq, Eq)]
struct Listed {
    local_port: u16,
    remote_port: u16,
    state: u8,
}

impl Listed {
    /// `  12: 0100007F:1F90 00000000:0000 0A …`, all numbers but the first in hexadecimal.
    fn parse(line: &str) -> Option<Self> {
        let mut fields = line.split_whitespace().skip(1);
        let mut port = || u16::from_str_radix(fields.next()?.rsplit_once(':')?.1, 16).ok();
        let (local_port, remote_port) = (port()?, port()?);
        Some(Self { local_port, remote_port, state: u8::from_str_radix(fields.next()?, 16).ok()? })
    }
}

/// A named network namespace, kept open.
#[derive(Debug)]
pub struct Netns {
    name: String,
    file: File,
}

impl Netns {
    /// Opens the namespace called `name` under [`FOLDER`].
    pub fn open(name: &str) -> Result<Self> {
        let path = path_of(name);
        let file = File::open(&path).with_context(|| format!("open network namespace {}", path.display()))?;
        Ok(Self { name: name.to_owned(), file })
    }

    /// The name, as `ip netns exec` takes it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that names it, as manifests give it.
    pub fn path(&self) -> PathBuf {
        path_of(&self.name)
    }

    /// Runs `f` on this thread inside the namespace. A child process spawned by `f` lives there.
    ///
    /// Aborts the process if the thread cannot return to its own namespace: going on would send the
    /// next test's traffic to the wrong place.
    pub fn enter<T>(&self, f: impl FnOnce() -> T) -> Result<T> {
        let home =
            Home { file: File::open("/proc/thread-self/ns/net").context("open own network namespace")? };
        setns(&self.file, CloneFlags::CLONE_NEWNET)
            .with_context(|| format!("enter network namespace {} (needs root)", self.name))?;
        let value = f();
        drop(home);
        Ok(value)
    }

    /// Connects a TCP socket from inside the namespace; the socket stays there.
    pub fn connect(&self, to: SocketAddr, timeout: Duration) -> Result<TcpStream> {
        self.enter(|| TcpStream::connect_timeout(&to, timeout))?
            .with_context(|| format!("connect from {} to {to}", self.name))
    }

    /// Connects from a chosen local port (0: the kernel chooses), with SO_REUSEADDR.
    pub fn connect_from(&self, port: u16, to: SocketAddr, timeout: Duration) -> Result<TcpStream> {
        let connect = || -> std::io::Result<TcpStream> {
            let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
            socket.set_reuse_address(true)?;
            let any: IpAddr = if to.is_ipv4() { [0; 4].into() } else { [0u16; 8].into() };
            socket.bind(&SockAddr::from(SocketAddr::new(any, port)))?;
            socket.connect_timeout(&SockAddr::from(to), timeout)?;
            Ok(socket.into())
        };
        self.enter(connect)?.with_context(|| format!("connect from {} port {port} to {to}", self.name))
    }

    /// Listens on a TCP port inside the namespace; the socket stays there.
    pub fn listen(&self, at: SocketAddr) -> Result<TcpListener> {
        self.enter(|| TcpListener::bind(at))?.with_context(|| format!("listen in {} on {at}", self.name))
    }

    /// Binds a UDP socket inside the namespace.
    pub fn udp(&self, at: SocketAddr) -> Result<UdpSocket> {
        self.enter(|| UdpSocket::bind(at))?.with_context(|| format!("bind UDP in {} on {at}", self.name))
    }

    /// How many TCP connections to this remote port are not over yet, by the kernel's list. One in
    /// TIME_WAIT is over: both ends have said and heard so.
    pub fn connections_to(&self, port: u16) -> Result<usize> {
        let is = |socket: &Listed| socket.remote_port == port && socket.state != TIME_WAIT;
        Ok(self.tcp_sockets()?.into_iter().filter(is).count())
    }

    /// How many TCP connections of this local port are over and still remembered (TIME_WAIT).
    pub fn remains_of(&self, port: u16) -> Result<usize> {
        let is = |socket: &Listed| socket.local_port == port && socket.state == TIME_WAIT;
        Ok(self.tcp_sockets()?.into_iter().filter(is).count())
    }

    /// The TCP ports that are listened on.
    pub fn listening(&self) -> Result<BTreeSet<u16>> {
        let listening = self.tcp_sockets()?.into_iter().filter(|socket| socket.state == LISTEN);
        Ok(listening.map(|socket| socket.local_port).collect())
    }

    /// The kernel's list of TCP sockets, of both families.
    fn tcp_sockets(&self) -> Result<Vec<Listed>> {
        let mut listed = Vec::new();
        for family in ["tcp", "tcp6"] {
            // Not /proc/net, which is that of the process's first thread.
            let path = Path::new("/proc/thread-self/net").join(family);
            let text = self
                .enter(|| fs::read_to_string(&path))?
                .with_context(|| format!("read {}", path.display()))?;
            listed.extend(text.lines().skip(1).filter_map(Listed::parse));
        }
        Ok(listed)
    }

    /// Sets a sysctl of the namespace, for example `net/ipv4/tcp_fin_timeout`.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let path = Path::new("/proc/sys").join(key);
        self.enter(|| fs::write(&path, value))?
            .with_context(|| format!("set {key} = {value} in {}", self.name))
    }

    /// Runs iproute2 commands, one per line, inside the namespace.
    pub fn ip(&self, lines: &str) -> Result<()> {
        self.enter(|| crate::plumbing::ip_batch(lines))?.with_context(|| format!("configure {}", self.name))
    }
}

/// The namespace this thread came from; dropping it is the way back.
struct Home {
    file: File,
}

impl Drop for Home {
    fn drop(&mut self) {
        if let Err(error) = setns(&self.file, CloneFlags::CLONE_NEWNET) {
            eprintln!("cannot return to the own network namespace: {error}");
            std::process::abort();
        }
    }
}

fn path_of(name: &str) -> PathBuf {
    Path::new(FOLDER).join(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_kernels_list_is_read() {
        let line =
            "   3: 00000000000000000000000000000000:3A98 00000000000000000000000000000000:0000 0A 0000";
        let listed = Listed { local_port: 15000, remote_port: 0, state: LISTEN };
        assert_eq!(Listed::parse(line), Some(listed));
        assert_eq!(Listed::parse("  sl  local_address rem_address   st"), None);
    }

    #[test]
    fn the_thread_comes_home_even_when_the_work_panics() {
        let before = fs::read_link("/proc/thread-self/ns/net").unwrap();
        let name = format!("cvt{}", std::process::id());
        crate::plumbing::ip_batch(&format!("netns add {name}\n")).unwrap();
        let ns = Netns::open(&name).unwrap();
        let inside = ns.enter(|| fs::read_link("/proc/thread-self/ns/net").unwrap()).unwrap();
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _ = ns.enter(|| panic!("on purpose"));
        }));
        crate::plumbing::ip_batch(&format!("netns del {name}\n")).unwrap();
        assert!(panicked.is_err());
        assert_ne!(before, inside);
        assert_eq!(before, fs::read_link("/proc/thread-self/ns/net").unwrap());
    }
}
