//! Messages over a Unix SEQPACKET socket, with descriptors that go along.

use std::{
    io::{self, IoSlice, IoSliceMut},
    os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd},
    path::Path,
};

use nix::{
    cmsg_space,
    sys::socket::{
        AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr, connect,
        recvmsg, sendmsg, socket,
    },
};
use tokio::io::{Interest, unix::AsyncFd};

use crate::fd::{self, Held};

/// The longest message taken.
pub(crate) const MESSAGE_BYTES: usize = 16 * 1024;

/// Descriptors taken with one message.
const DESCRIPTORS: usize = 4;

/// One packet: a message and what came with it.
#[derive(Debug)]
pub(crate) struct Packet {
    pub(crate) bytes: Vec<u8>,
    pub(crate) descriptors: Vec<OwnedFd>,
}

/// One connection; each packet is one message.
pub(crate) struct Wire {
    socket: AsyncFd<Held<OwnedFd>>,
}

impl Wire {
    pub(crate) fn connect(path: &Path) -> io::Result<Self> {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let socket = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?;
        connect(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
        Ok(Self { socket: fd::watch(socket, Interest::READABLE | Interest::WRITABLE)? })
    }

    pub(crate) async fn send(&self, bytes: &[u8], descriptor: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let raw: Vec<RawFd> = descriptor.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let control: &[ControlMessage<'_>] = if raw.is_empty() { &[] } else { &rights };
        self.socket
            .async_io(Interest::WRITABLE, |socket| {
                let bytes = [IoSlice::new(bytes)];
                Ok(sendmsg::<()>(socket.as_raw_fd(), &bytes, control, MsgFlags::MSG_NOSIGNAL, None)?)
            })
            .await?;
        Ok(())
    }

    /// The next packet; `None` when the other side has hung up, an error of kind `InvalidData` when it
    /// sent more than is taken.
    pub(crate) async fn receive(&self) -> io::Result<Option<Packet>> {
        self.socket.async_io(Interest::READABLE, receive).await
    }
}

fn receive(socket: &Held<OwnedFd>) -> io::Result<Option<Packet>> {
    let mut bytes = vec![0; MESSAGE_BYTES];
    let mut control = cmsg_space!([RawFd; DESCRIPTORS]);
    let (length, cut, descriptors) = {
        let mut into = [IoSliceMut::new(&mut bytes)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message = recvmsg::<()>(socket.as_raw_fd(), &mut into, Some(&mut control), flags)?;
        let cut = message.flags.intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC);
        let mut descriptors = Vec::new();
        if !message.flags.contains(MsgFlags::MSG_CTRUNC) {
            for part in message.cmsgs()? {
                if let ControlMessageOwned::ScmRights(raw) = part {
                    descriptors.extend(raw.into_iter().map(fd::own));
                }
            }
        }
        (message.bytes, cut, descriptors)
    };
    if cut {
        let reason = format!("a message of more than {MESSAGE_BYTES} bytes or {DESCRIPTORS} descriptors");
        return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
    }
    if length == 0 && descriptors.is_empty() {
        return Ok(None);
    }
    bytes.truncate(length);
    Ok(Some(Packet { bytes, descriptors }))
}
