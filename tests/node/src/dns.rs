//! The apps' side of DNS, and a resolver for them: messages by hand, so that what is asserted is what is on the wire.

use std::{
    fs,
    io::{self, Read, Write},
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use bed::{Pod, World, eventually};

use crate::PATIENCE;

/// Types of records.
pub const A: u16 = 1;
pub const AAAA: u16 = 28;
pub const SRV: u16 = 33;
/// How long an app waits before it asks again.
const TRY: Duration = Duration::from_secs(2);

/// A query of the plainest kind (RFC 1035 §4.1).
pub fn query(id: u16, name: &str, kind: u16) -> Vec<u8> {
    let mut bytes = [id.to_be_bytes(), [1, 0], [0, 1], [0, 0], [0, 0], [0, 0]].concat();
    for label in name.split('.') {
        bytes.push(u8::try_from(label.len()).expect("a short label"));
        bytes.extend(label.as_bytes());
    }
    bytes.push(0);
    bytes.extend(kind.to_be_bytes());
    bytes.extend([0, 1]);
    bytes
}

/// What the fake resolver answers: the query with QR and TC, an unassigned flag, and bytes that no message has.
pub fn odd_answer(query: &[u8]) -> Vec<u8> {
    let mut bytes = query.to_vec();
    bytes[2] |= 0x82;
    bytes[3] = 0xc5;
    bytes[11] = 3;
    bytes.extend(b"\xc0\x0c additional records that nobody reads \xff\x00\x01");
    bytes
}

/// A true answer with one address.
pub fn true_answer(query: &[u8], address: [u8; 4]) -> Vec<u8> {
    let mut bytes = query[..query.len().min(512)].to_vec();
    // Without the client's EDNS.
    let end = 12 + bytes[12..].iter().position(|byte| *byte == 0).unwrap_or(0) + 5;
    bytes.truncate(end);
    bytes[2] |= 0x80;
    bytes[3] = 0x80;
    let wants_v4 = bytes[end - 4..end - 2] == [0, 1];
    bytes[7] = u8::from(wants_v4);
    bytes[11] = 0;
    if wants_v4 {
        bytes.extend([0xc0, 0x0c, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        bytes.extend(address);
    }
    bytes
}

/// A resolver in a pod of its own, for as long as the test runs.
#[derive(Debug)]
pub struct Resolver {
    /// Its addresses of both families.
    pub at: [SocketAddr; 2],
    asked: Arc<AtomicUsize>,
}

/// What the resolver knows itself.
pub type Host = (&'static str, [u8; 4]);

impl Resolver {
    /// Starts one in a pod.
    pub fn start(pod: &Pod, known: Option<Host>) -> Result<Self> {
        let at = [pod.at(53), pod.at6(53)];
        let asked = Arc::new(AtomicUsize::new(0));
        let answer = move |query: &[u8]| match known {
            Some((name, address)) if query.windows(name.len()).any(|part| part == name.as_bytes()) => {
                true_answer(query, address)
            }
            _ => odd_answer(query),
        };
        for at in at {
            let (udp, count) = (pod.netns().udp(at)?, asked.clone());
            thread::spawn(move || {
                let mut buffer = [0; 65_535];
                while let Ok((length, client)) = udp.recv_from(&mut buffer) {
                    count.fetch_add(1, Ordering::Relaxed);
                    let _ = udp.send_to(&answer(&buffer[..length]), client);
                }
            });
            let (tcp, count) = (pod.netns().listen(at)?, asked.clone());
            thread::spawn(move || {
                for stream in tcp.incoming().flatten() {
                    let count = count.clone();
                    thread::spawn(move || {
                        let mut stream = stream;
                        while let Ok(query) = read_framed(&mut stream) {
                            count.fetch_add(1, Ordering::Relaxed);
                            if write_framed(&mut stream, &answer(&query)).is_err() {
                                break;
                            }
                        }
                    });
                }
            });
        }
        Ok(Self { at, asked })
    }

    /// How many queries it has heard.
    pub fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

/// Reads a message over TCP (RFC 1035 §4.2.2).
pub fn read_framed(stream: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut bytes = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// Writes a message over TCP.
pub fn write_framed(stream: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    let length = u16::try_from(bytes.len()).expect("a short message");
    stream.write_all(&[&length.to_be_bytes()[..], bytes].concat())
}

/// Asks as an app does, three times at most.
pub fn ask(pod: &Pod, at: SocketAddr, query: &[u8]) -> Result<Vec<u8>> {
    ask_times(pod, at, query, 3)
}

/// Asks from a connected socket, which hears nobody but the resolver.
pub fn ask_times(pod: &Pod, at: SocketAddr, query: &[u8], times: u32) -> Result<Vec<u8>> {
    let any = if at.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = pod.netns().enter(|| -> io::Result<UdpSocket> {
        let socket = UdpSocket::bind(any)?;
        socket.connect(at)?;
        Ok(socket)
    })??;
    socket.set_read_timeout(Some(TRY))?;
    let mut buffer = vec![0; 65_535];
    for _ in 0..times {
        socket.send(query)?;
        if let Ok(length) = socket.recv(&mut buffer) {
            buffer.truncate(length);
            return Ok(buffer);
        }
    }
    bail!("{at} did not answer")
}

/// The addresses in an answer of ours, in order; an error where it is another answer.
pub fn addresses(answer: &[u8]) -> Result<Vec<IpAddr>> {
    ensure!(answer.len() > 12 && answer[3] & 0x0f == 0, "no answer: {answer:x?}");
    let skip_name = |mut at: usize| -> Result<usize> {
        loop {
            match *answer.get(at).context("an answer cut short")? {
                0 => return Ok(at + 1),
                length if length >= 0xc0 => return Ok(at + 2),
                length => at += usize::from(length) + 1,
            }
        }
    };
    let mut at = skip_name(12)? + 4;
    let mut found = Vec::new();
    for _ in 0..u16::from_be_bytes([answer[6], answer[7]]) {
        at = skip_name(at)?;
        let length = usize::from(u16::from_be_bytes([answer[at + 8], answer[at + 9]]));
        let data = answer.get(at + 10..at + 10 + length).context("a record cut short")?;
        match (answer[at + 1], length) {
            (1, 4) => found.push(IpAddr::from(<[u8; 4]>::try_from(data)?)),
            (28, 16) => found.push(IpAddr::from(<[u8; 16]>::try_from(data)?)),
            _ => {}
        }
        at += 10 + length;
    }
    found.sort_unstable();
    Ok(found)
}

/// A ServiceEntry of the namespace `mesh`.
pub fn entry(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: {name}, namespace: mesh}}\nspec:\n{spec}"
    )
}

/// Writes into the manifest of a pod of the namespace `mesh` whether its queries are to be answered.
pub fn annotate(world: &World, pod: &str, word: &str) -> Result<()> {
    let file = format!("pod-mesh-{pod}");
    let yaml = fs::read_to_string(world.manifests().path(&file)).context("read the pod's manifest")?;
    let said = format!("  annotations:\n    ambient.istio.io/dns-capture: \"{word}\"\n");
    let with = yaml.replace("  annotations:\n", &said);
    ensure!(with != yaml, "{file} has no annotations");
    world.manifests().put(&file, &with)
}

/// Asks until the mesh's answer has addresses; the folder of manifests is read in its own time.
pub fn resolved(pod: &Pod, at: SocketAddr, name: &str, kind: u16) -> Result<Vec<IpAddr>> {
    eventually(PATIENCE, name, || {
        let answer = ask(pod, at, &query(9, name, kind))?;
        Ok(addresses(&answer).ok().filter(|found| !found.is_empty()))
    })
    .map(|(found, _)| found)
}

/// Whether an answer says that the resolver failed.
pub fn is_servfail(answer: &[u8]) -> bool {
    answer.len() >= 12 && answer[2] & 0x80 != 0 && answer[3] & 0x0f == 2
}
