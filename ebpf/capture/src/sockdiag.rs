//! Which TCP sockets a network namespace has, asked of the kernel by SOCK_DIAG.

use std::{io, net::SocketAddr};

/// One TCP socket: where it stands and to whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TcpSocket {
    /// The socket's own address.
    pub local: SocketAddr,
    /// The other end's address.
    pub remote: SocketAddr,
    /// The state, as the kernel numbers it (`TCP_ESTABLISHED` is 1, `TCP_LISTEN` 10).
    pub state: u8,
}

/// Every TCP socket of the calling thread's network namespace, of both families, listeners excepted.
pub fn list() -> io::Result<Vec<TcpSocket>> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Whether the calling thread's network namespace has a socket with exactly these two addresses.
/// A listener does not count.
pub fn exists(_local: SocketAddr, _remote: SocketAddr) -> io::Result<bool> {
    Err(io::ErrorKind::Unsupported.into())
}
