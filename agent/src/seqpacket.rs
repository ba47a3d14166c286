//! Unix sockets of type SEQPACKET: each packet is one message, and a descriptor may go with it.
//!
//! tokio has no type for them; its stream types, which only wait for readiness and accept, serve as
//! the vessel, and `sendmsg` and `recvmsg` do the rest.

use std::{
    fs, io,
    io::{IoSlice, IoSliceMut},
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
        unix::fs::{FileTypeExt, PermissionsExt},
    },
    path::{Path, PathBuf},
};

use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr,
    bind, connect, listen, recvmsg, sendmsg, socket,
};
use tokio::{
    io::Interest,
    net::{UnixListener, UnixStream},
};

/// Longest message that is taken. Istio's own reader takes 1,024 bytes.
const MAX_MESSAGE: usize = 16 << 10;

/// A socket that is listened on; its file goes with it.
pub(crate) struct Listener {
    inner: UnixListener,
    path: PathBuf,
}

/// One connection.
pub(crate) struct Connection {
    inner: UnixStream,
}

/// One message.
#[derive(Debug)]
pub(crate) struct Packet {
    pub(crate) bytes: Vec<u8>,
    pub(crate) descriptor: Option<OwnedFd>,
}

/// Nobody can listen at that path.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ListenError {
    #[error("cannot listen on {path}: {error}")]
    System { path: PathBuf, error: io::Error },
    #[error("cannot listen on {path}: somebody else does, is another agent running?")]
    Taken { path: PathBuf },
    #[error("cannot listen on {path}: there is a file that is no socket")]
    NoSocket { path: PathBuf },
}

impl Listener {
    /// Listens at `path`, for this user only (0600). A socket that nobody listens on any more is replaced.
    pub(crate) fn bind(path: &Path) -> Result<Self, ListenError> {
        let failed = |error: io::Error| ListenError::System { path: path.to_owned(), error };
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory).map_err(failed)?;
        }
        match fs::symlink_metadata(path) {
            Ok(metadata) if !metadata.file_type().is_socket() => {
                return Err(ListenError::NoSocket { path: path.to_owned() });
            }
            Ok(_) if client(path).is_ok() => return Err(ListenError::Taken { path: path.to_owned() }),
            Ok(_) => fs::remove_file(path).map_err(failed)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
        }
        // Bound beside and renamed: nobody meets it before it has its mode and is listened on.
        let beside = path.with_extension(format!("{}.new", std::process::id()));
        let _ = fs::remove_file(&beside);
        let inner = listen_at(&beside).map_err(failed)?;
        fs::rename(&beside, path).map_err(failed)?;
        Ok(Self { inner, path: path.to_owned() })
    }

    /// The next connection.
    pub(crate) async fn accept(&self) -> io::Result<Connection> {
        let (inner, _) = self.inner.accept().await?;
        Ok(Connection { inner })
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

fn listen_at(path: &Path) -> io::Result<UnixListener> {
    let socket = new_socket()?;
    bind(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    listen(&socket, Backlog::new(64)?)?;
    UnixListener::from_std(socket.into())
}

fn client(path: &Path) -> io::Result<OwnedFd> {
    let socket = new_socket()?;
    connect(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(socket)
}

fn new_socket() -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    Ok(socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?)
}

impl Connection {
    /// Connects to a listener.
    #[cfg(test)]
    pub(crate) fn connect(path: &Path) -> io::Result<Self> {
        Ok(Self { inner: UnixStream::from_std(client(path)?.into())? })
    }

    /// The user the other side runs as (SO_PEERCRED).
    pub(crate) fn peer_uid(&self) -> io::Result<u32> {
        Ok(self.inner.peer_cred()?.uid())
    }

    /// Sends one message.
    pub(crate) async fn send(&self, bytes: &[u8], descriptor: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let raw: Vec<RawFd> = descriptor.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let control: &[ControlMessage<'_>] = if raw.is_empty() { &[] } else { &rights };
        let send = || {
            let bytes = [IoSlice::new(bytes)];
            let socket = self.inner.as_raw_fd();
            Ok(sendmsg::<()>(socket, &bytes, control, MsgFlags::MSG_NOSIGNAL, None)?)
        };
        self.inner.async_io(Interest::WRITABLE, send).await.map(drop)
    }

    /// The next message; `None` once the other side has hung up. Dropping the future loses nothing.
    ///
    /// # Errors
    /// `InvalidData` for a message that is too long or comes with more than one descriptor.
    pub(crate) async fn receive(&self) -> io::Result<Option<Packet>> {
        self.inner.async_io(Interest::READABLE, || receive(self.inner.as_raw_fd())).await
    }
}

fn receive(socket: RawFd) -> io::Result<Option<Packet>> {
    let mut bytes = vec![0; MAX_MESSAGE];
    // Room for two, so that a second one is seen rather than cut off.
    let mut control = nix::cmsg_space!([RawFd; 2]);
    let mut into = [IoSliceMut::new(&mut bytes)];
    let message = recvmsg::<()>(socket, &mut into, Some(&mut control), MsgFlags::MSG_CMSG_CLOEXEC)?;
    let mut descriptors: Vec<OwnedFd> = Vec::new();
    for part in message.cmsgs().into_iter().flatten() {
        if let ControlMessageOwned::ScmRights(raw) = part {
            // SAFETY: recvmsg(2) opened these descriptors for this process in this very call, and
            // nobody else has seen their numbers: from here on they are owned here.
            descriptors.extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    let length = message.bytes;
    let cut = message.flags.intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC);
    if cut || descriptors.len() > 1 {
        let reason = format!("a message of more than {MAX_MESSAGE} bytes, or with more than one descriptor");
        return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
    }
    let descriptor = descriptors.pop();
    if length == 0 && descriptor.is_none() {
        return Ok(None);
    }
    bytes.truncate(length);
    Ok(Some(Packet { bytes, descriptor }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[tokio::test]
    async fn messages_and_descriptors_cross_whole() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("deep/er/x.sock");
        let listener = Listener::bind(&path).expect("binds");
        assert_eq!(fs::metadata(&path).expect("the socket").permissions().mode() & 0o777, 0o600);
        assert!(matches!(Listener::bind(&path), Err(ListenError::Taken { .. })));

        let near = Connection::connect(&path).expect("connects");
        // The one that looked whether somebody listens is in the queue, too.
        let gone = listener.accept().await.expect("accepts");
        assert!(gone.receive().await.expect("reads").is_none());
        let far = listener.accept().await.expect("accepts");
        assert_eq!(far.peer_uid().expect("credentials"), nix::unistd::getuid().as_raw());

        let file = tempfile::tempfile().expect("a file");
        near.send(b"one", None).await.expect("sends");
        near.send(b"two", Some(file.as_fd())).await.expect("sends");
        let one = far.receive().await.expect("reads").expect("a packet");
        assert_eq!((one.bytes.as_slice(), one.descriptor.is_some()), (&b"one"[..], false));
        let two = far.receive().await.expect("reads").expect("a packet");
        assert_eq!((two.bytes.as_slice(), two.descriptor.is_some()), (&b"two"[..], true));

        near.send(&[7; MAX_MESSAGE + 1], None).await.expect("sends");
        let error = far.receive().await.expect_err("it is too long");
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        drop(near);
        assert!(far.receive().await.expect("reads").is_none());
        drop(listener);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_socket_left_behind_is_replaced_and_a_file_is_not() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("x.sock");
        let left = std::os::unix::net::UnixListener::bind(&path).expect("binds");
        drop(left);
        let _listener = Listener::bind(&path).expect("replaces it");
        let file = directory.path().join("file");
        fs::write(&file, "precious").expect("writes");
        assert!(matches!(Listener::bind(&file), Err(ListenError::NoSocket { .. })));
    }
}
