//! The system calls that aya does not wrap.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

const BPF_OBJ_GET: libc::c_int = 7;
const BPF_LINK_DETACH: libc::c_int = 34;
const SO_NETNS_COOKIE: libc::c_int = 71;
const TCP_ESTABLISHED: u8 = 1;

/// Detaches a pinned link at once. (Without this it goes when its last holder lets go, and the kernel lets
/// go of a removed pin only after a while.) A link whose device is gone is detached already.
pub(crate) fn detach_pinned_link(pin: &Path) -> io::Result<()> {
    let link = get(pin)?;
    let attributes = link.as_raw_fd() as u32;
    // SAFETY: the command reads one word, whose size is given.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, BPF_LINK_DETACH, &raw const attributes, size_of_val(&attributes))
    };
    if result == 0 {
        return Ok(());
    }
    match io::Error::last_os_error() {
        error if error.raw_os_error() == Some(libc::ENOLINK) => Ok(()),
        error => Err(error),
    }
}

/// The cookie of the network namespace that a socket is in.
pub(crate) fn netns_cookie(socket: BorrowedFd<'_>) -> io::Result<u64> {
    let mut cookie = 0_u64;
    let mut size = size_of_val(&cookie) as libc::socklen_t;
    // SAFETY: the option fills a word of eight bytes, whose size is given.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &mut size,
        )
    };
    if result == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}

/// Whether a TCP socket is in the state `ESTABLISHED`.
pub(crate) fn is_established(socket: BorrowedFd<'_>) -> bool {
    let mut state = 0_u8;
    let mut size = 1 as libc::socklen_t;
    // SAFETY: the option fills as many bytes as given: the first one, which is the state.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut state).cast(),
            &mut size,
        )
    };
    result == 0 && state == TCP_ESTABLISHED
}

/// How many bytes wait to be read, by FIONREAD.
pub(crate) fn unread(socket: BorrowedFd<'_>) -> io::Result<usize> {
    queued(socket, libc::FIONREAD)
}

/// How many bytes were written to a TCP socket and not yet acknowledged by its peer (SIOCOUTQ).
pub fn unsent(socket: BorrowedFd<'_>) -> io::Result<usize> {
    queued(socket, libc::TIOCOUTQ)
}

/// `splice(2)` from a socket into a pipe, of what is there.
pub(crate) fn splice_now(from: BorrowedFd<'_>, to: BorrowedFd<'_>, length: usize) -> io::Result<usize> {
    let (from, to) = (from.as_raw_fd(), to.as_raw_fd());
    let none = std::ptr::null_mut();
    // SAFETY: no memory of ours is read or written.
    let moved = unsafe { libc::splice(from, none, to, none, length, libc::SPLICE_F_NONBLOCK) };
    usize::try_from(moved).map_err(|_| io::Error::last_os_error())
}

fn queued(socket: BorrowedFd<'_>, what: libc::Ioctl) -> io::Result<usize> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: both questions fill one integer.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), what, &raw mut bytes) };
    if result == 0 { Ok(bytes.unsigned_abs() as usize) } else { Err(io::Error::last_os_error()) }
}

/// Opens what is pinned at a path.
fn get(pin: &Path) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Attributes {
        path: u64,
        fd: u32,
        flags: u32,
    }
    let path = CString::new(pin.as_os_str().as_bytes())?;
    let attributes = Attributes { path: path.as_ptr() as u64, fd: 0, flags: 0 };
    // SAFETY: the command reads the attributes, whose size is given, and the path, which outlives the call.
    let fd =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_OBJ_GET, &raw const attributes, size_of_val(&attributes)) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a descriptor that the kernel just opened for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as libc::c_int) })
}
