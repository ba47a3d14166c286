//! What a process with NET_RAW tries in order to get out past the mesh: frames written to the device as
//! they stand. The one place of this program that needs unsafe code.
#![expect(unsafe_code, reason = "PACKET_QDISC_BYPASS and sockaddr_ll have no safe wrapper")]

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::AsRawFd,
};

use anyhow::{Context, Result, bail};
use clap::Args;
use nix::{errno::Errno, net::if_::if_nametoindex};
use socket2::{Domain, Protocol, SockAddr, SockAddrStorage, Socket, Type};

use crate::outcome::print_line;

const SYN: u8 = 0x02;
const ACK: u8 = 0x10;
const PSH: u8 = 0x08;
const TCP: u8 = 6;
/// Bytes of a TCP header without options.
const HEADER: usize = 20;

/// Write TCP segments to the device by a packet socket: a SYN, and data, each with the text in it.
#[derive(Debug, Args)]
pub(crate) struct Smuggle {
    #[arg(long)]
    from: SocketAddr,
    #[arg(long)]
    to: SocketAddr,
    /// Hardware address of the next hop, as `02:00:00:00:00:01`.
    #[arg(long)]
    gateway: String,
    #[arg(long, default_value = "eth0")]
    device: String,
    #[arg(long)]
    say: String,
    /// Past every queueing discipline and hook of the device (PACKET_QDISC_BYPASS).
    #[arg(long)]
    bypass: bool,
}

impl Smuggle {
    pub(crate) fn run(self) -> Result<bool> {
        let device = if_nametoindex(self.device.as_str()).context("the device")?;
        let socket = Socket::new(Domain::PACKET, Type::RAW, None::<Protocol>).context("a packet socket")?;
        if self.bypass {
            bypass(&socket).context("PACKET_QDISC_BYPASS")?;
        }
        let mut sent = 0;
        for flags in [SYN, PSH | ACK, ACK] {
            let frame = [self.link()?, self.packet(flags)?].concat();
            socket.send_to(&frame, &link_layer(device)).context("write a frame")?;
            sent += 1;
        }
        print_line(&serde_json::json!({ "ok": true, "sent": sent }));
        Ok(true)
    }

    /// The Ethernet header.
    fn link(&self) -> Result<Vec<u8>> {
        let gateway: Vec<u8> = self
            .gateway
            .split(':')
            .map(|byte| u8::from_str_radix(byte, 16))
            .collect::<Result<_, _>>()
            .context("the gateway's hardware address")?;
        let kind = if self.to.is_ipv4() { libc::ETH_P_IP } else { libc::ETH_P_IPV6 };
        Ok([&gateway[..], &[2, 0, 0, 0, 0, 1], &(kind as u16).to_be_bytes()].concat())
    }

    fn packet(&self, flags: u8) -> Result<Vec<u8>> {
        let segment = self.segment(flags);
        let length = u16::try_from(segment.len())?;
        Ok(match (self.from.ip(), self.to.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let mut header = vec![0x45, 0, 0, 0, 0, 1, 0x40, 0, 64, TCP, 0, 0];
                header[2..4].copy_from_slice(&(length + 20).to_be_bytes());
                header.extend([from.octets(), to.octets()].concat());
                // A router drops what has a wrong one; of TCP's it knows nothing.
                let sum = checksum(&header);
                header[10..12].copy_from_slice(&sum.to_be_bytes());
                [header, segment].concat()
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                let mut header = vec![0x60, 0, 0, 0, 0, 0, TCP, 64];
                header[4..6].copy_from_slice(&length.to_be_bytes());
                header.extend([from.octets(), to.octets()].concat());
                [header, segment].concat()
            }
            _ => bail!("--from and --to are of different families"),
        })
    }

    fn segment(&self, flags: u8) -> Vec<u8> {
        let mut segment = Vec::with_capacity(HEADER + self.say.len());
        segment.extend(self.from.port().to_be_bytes());
        segment.extend(self.to.port().to_be_bytes());
        segment.extend(1_u32.to_be_bytes());
        segment.extend(u32::from(flags & ACK != 0).to_be_bytes());
        segment.extend([(HEADER as u8 / 4) << 4, flags, 0xff, 0xff, 0, 0, 0, 0]);
        segment.extend(self.say.as_bytes());
        segment
    }
}

/// The checksum of an IPv4 header (RFC 791).
fn checksum(header: &[u8]) -> u16 {
    let words = header.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

fn bypass(socket: &Socket) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the option is an int, which is given with its size and lives through the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_QDISC_BYPASS,
            (&raw const on).cast(),
            size_of_val(&on) as libc::socklen_t,
        )
    };
    Errno::result(result)?;
    Ok(())
}

/// `struct sockaddr_ll`.
fn link_layer(device: u32) -> SockAddr {
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: the storage is large enough for any address and zeroed; the type is plain integers.
    unsafe {
        let address = storage.view_as::<libc::sockaddr_ll>();
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_ifindex = device.cast_signed();
        address.sll_halen = 6;
        SockAddr::new(storage, size_of::<libc::sockaddr_ll>() as libc::socklen_t)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_the_one_of_the_textbook() {
        let header = [
            0x45, 0x00, 0x00, 0x73, 0x00, 0x00, 0x40, 0x00, 0x40, 0x11, 0, 0, 0xc0, 0xa8, 0x00, 0x01, 0xc0,
            0xa8, 0x00, 0xc7,
        ];
        assert_eq!(checksum(&header), 0xb861);
    }
}
