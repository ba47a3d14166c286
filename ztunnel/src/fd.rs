//! The only unsafe code of this program: raw descriptors, taken from the kernel or lent to the reactor.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd},
    sync::Arc,
};

use tokio::io::{Interest, unix::AsyncFd};

/// Owns a descriptor that a call of the kernel has just returned.
#[expect(unsafe_code, reason = "SCM_RIGHTS and accept hand over raw descriptors")]
pub(crate) fn own(raw: RawFd) -> OwnedFd {
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
    unsafe { OwnedFd::from_raw_fd(raw) }
}

/// Something that owns its descriptor, or a share in it, for as long as it lives.
pub(crate) struct Held<T>(pub(crate) T);

/// Types whose descriptor is open, and the same, as long as they live.
pub(crate) trait Owner: AsFd {}
impl Owner for OwnedFd {}
impl Owner for Arc<std::net::TcpListener> {}
impl Owner for Arc<std::net::UdpSocket> {}

impl<T: Owner> AsRawFd for Held<T> {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

/// Lets this thread's reactor watch a descriptor.
#[expect(unsafe_code, reason = "tokio asks for a promise that the descriptor stays open")]
pub(crate) fn watch<T: Owner>(inner: T, interest: Interest) -> io::Result<AsyncFd<Held<T>>> {
    // SAFETY: an `Owner` keeps its one descriptor open for life, and the AsyncFd owns the `Owner`.
    Ok(unsafe { AsyncFd::register_with_interest(Held(inner), interest) }?)
}
