//! What the wire between the nodes shows: tcpdump on a node, and its file read.

use std::{
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail};

use super::cluster::Cluster;
use crate::shell;

const HBONE: u16 = 15008;

/// What was seen of TCP in some seconds.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    /// Segments with bytes.
    pub(crate) segments: usize,
    /// Of these, between ztunnels.
    pub(crate) hbone: usize,
    /// Of these, beginning with a record of TLS.
    pub(crate) tls: usize,
    /// Segments in which the secret can be read.
    pub(crate) secrets: usize,
}

/// Listens on a node's wire for a while: to the shop's port and to HBONE.
pub(crate) fn listen(cluster: &Cluster, node: &str, time: Duration, secret: &str) -> Result<Seen> {
    let filter = format!("tcp port {HBONE} or tcp port 8080");
    let tcpdump = ["tcpdump", "-i", "eth0", "-s", "0", "-w", "-", "-U", &filter];
    let seconds = time.as_secs().to_string();
    let limited = [&["timeout", "--signal=INT", &seconds][..], &tcpdump].concat();
    let mut command = if cluster.on(node, "command -v tcpdump").is_ok() {
        let mut docker = Command::new("docker");
        docker.args(["exec", node]).args(limited);
        docker
    } else if shell::which("tcpdump").is_some() {
        // The node's image has none: ours, in the node's network namespace.
        let mut docker = Command::new("docker");
        let pid =
            shell::output(docker.args(["inspect", "--format", "{{.State.Pid}}", node]), "ask for the node")?;
        let mut nsenter = Command::new("nsenter");
        nsenter.args(["--net", "--target", pid.trim()]).args(limited);
        nsenter
    } else {
        bail!("no tcpdump on the node nor in the PATH: install it (Debian: apt-get install tcpdump)");
    };
    // It ends by a signal: its status tells nothing.
    let output = command.stderr(Stdio::null()).output().context("start tcpdump")?;
    read(&output.stdout, secret.as_bytes())
}

/// Reads a file of tcpdump's, of Ethernet frames.
fn read(file: &[u8], secret: &[u8]) -> Result<Seen> {
    let (head, mut rest) = file.split_at_checked(24).context("tcpdump wrote nothing")?;
    if head[..4] != 0xa1b2_c3d4_u32.to_le_bytes() || head[20] != 1 {
        bail!("tcpdump wrote no pcap of Ethernet frames");
    }
    let mut seen = Seen::default();
    while let Some((record, after)) = rest.split_at_checked(16) {
        let length = u32::from_le_bytes([record[8], record[9], record[10], record[11]]) as usize;
        // The last one may be cut off.
        let Some((frame, after)) = after.split_at_checked(length) else { break };
        rest = after;
        if let Some((ports, bytes)) = segment(frame) {
            seen.segments += 1;
            let hbone = ports.contains(&HBONE);
            seen.hbone += usize::from(hbone);
            seen.tls += usize::from(hbone && is_record(bytes));
            seen.secrets += usize::from(bytes.windows(secret.len()).any(|window| window == secret));
        }
    }
    Ok(seen)
}

/// The ports and bytes of a TCP segment in a frame of IPv4; `None` for anything else, or no bytes.
fn segment(frame: &[u8]) -> Option<([u16; 2], &[u8])> {
    let packet = frame.get(14..)?;
    if frame.get(12..14)? != [8, 0] || *packet.get(9)? != 6 {
        return None;
    }
    let total = usize::from(u16::from_be_bytes([packet[2], packet[3]]));
    let tcp = packet.get(usize::from(packet[0] & 15) * 4..total.min(packet.len()))?;
    let bytes = tcp.get(usize::from(tcp.get(12)? >> 4) * 4..)?;
    let ports = [u16::from_be_bytes([tcp[0], tcp[1]]), u16::from_be_bytes([tcp[2], tcp[3]])];
    (!bytes.is_empty()).then_some((ports, bytes))
}

/// `22` to `23`: a handshake, or data; of any version, which all say 3.
fn is_record(bytes: &[u8]) -> bool {
    matches!(bytes, [20..=23, 3, 1..=4, ..])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(port: u16, bytes: &[u8]) -> Vec<u8> {
        let mut frame = vec![0; 12];
        frame.extend([8, 0, 0x45, 0]);
        frame.extend(u16::try_from(40 + bytes.len()).unwrap().to_be_bytes());
        frame.extend([0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        frame.extend(port.to_be_bytes());
        frame.extend([0x9c, 0x40, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0, 0, 0, 0, 0, 0, 0]);
        frame.extend(bytes);
        frame
    }

    #[test]
    fn what_is_on_the_wire_is_told_apart() {
        let mut file = 0xa1b2_c3d4_u32.to_le_bytes().to_vec();
        file.resize(24, 0);
        file[20] = 1;
        let record = [23, 3, 3, 0, 1, 9];
        for frame in
            [frame(8080, b"catalog: secret"), frame(15008, &record), frame(15008, b"rest"), frame(15008, b"")]
        {
            let length = u32::try_from(frame.len()).unwrap().to_le_bytes();
            file.extend([[0; 4], [0; 4], length, length].concat());
            file.extend(frame);
        }
        file.extend([0; 7]);
        let seen = read(&file, b"secret").unwrap();
        assert_eq!(seen, Seen { segments: 3, hbone: 2, tls: 1, secrets: 1 });
        assert!(read(b"", b"x").is_err());
    }
}
