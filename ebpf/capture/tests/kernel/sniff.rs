//! Listens to every device of a network namespace. A packet socket hears what comes in before tc may drop
//! it, so on the node it hears even what the guard stops.

use capture::Netns;
use nix::libc;
use socket2::{Domain, Protocol, Socket, Type};
use std::{
    io::{self, Read},
    time::Duration,
};

pub(crate) struct Sniffer(Socket);

impl Sniffer {
    pub(crate) fn open(netns: &Netns) -> Self {
        let everything = Protocol::from(i32::from((libc::ETH_P_ALL as u16).to_be()));
        let socket =
            netns.enter(|| Socket::new(Domain::PACKET, Type::RAW, Some(everything))).unwrap().unwrap();
        socket.set_recv_buffer_size(8 << 20).unwrap();
        socket.set_nonblocking(true).unwrap();
        Self(socket)
    }

    /// Every frame heard since the last time.
    pub(crate) fn frames(&self) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        let mut buffer = vec![0; 70_000];
        loop {
            match (&self.0).read(&mut buffer) {
                Ok(length) => frames.push(buffer[..length].to_vec()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return frames,
                Err(error) => panic!("sniff: {error}"),
            }
        }
    }

    /// The sizes of the frames heard since the last time, however large.
    pub(crate) fn sizes(&self) -> Vec<usize> {
        let mut sizes = Vec::new();
        // The flag has the whole size told, not what was copied.
        while let Ok(size) = self.0.recv_with_flags(&mut [], libc::MSG_TRUNC) {
            sizes.push(size);
        }
        sizes
    }

    /// Whether any frame since the last time held these bytes; listens for a while for it to come.
    pub(crate) fn hears(&self, secret: &[u8], while_: Duration) -> bool {
        let end = std::time::Instant::now() + while_;
        loop {
            let heard = self.frames().iter().any(|frame| frame.windows(secret.len()).any(|w| w == secret));
            if heard || std::time::Instant::now() > end {
                return heard;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}
