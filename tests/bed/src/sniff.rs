//! Reading what crosses a link, and saying whether all of it was read.
//!
//! A sniffer that lost packets proves nothing, so its buffer is large, the kernel's count of drops is
//! asked at the end, and [`Sniffed::complete`] fails if there were any.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use anyhow::{Context, Result, bail};

use crate::{
    Netns, address, eventually,
    packet::{self, Packet, Segment},
};

mod socket;

use socket::PacketSocket;

/// HBONE's port.
pub const HBONE: u16 = 15008;
/// The control plane's port.
pub const CONTROL: u16 = 15010;
/// Distinct flows remembered; more are counted, not named.
const MAX_FLOWS: usize = 64;
/// Flows whose bytes are followed at a time.
const MAX_STREAMS: usize = 65_536;

/// What was counted on one port.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PortCount {
    pub packets: u64,
    pub payload: u64,
    /// Connections opened (SYN without ACK).
    pub opened: u64,
}

/// What a sniffer has seen so far.
#[derive(Debug, Clone, Default)]
pub struct Sniffed {
    pub frames: u64,
    pub bytes: u64,
    /// Frames the kernel could not hand over.
    pub dropped: u64,
    /// TCP by the port of the server (the target of the SYN; the lower port where none was seen).
    pub tcp: BTreeMap<u16, PortCount>,
    /// TLS ClientHellos to port 15008.
    pub tls_hellos: u64,
    /// Streams on port 15008 that began with something else than TLS.
    pub not_tls: Vec<String>,
    /// For each secret, the flows that showed it.
    pub found: BTreeMap<String, Vec<String>>,
    /// Packets that were neither HBONE, nor control, nor address resolution: flow → packets.
    pub strangers: BTreeMap<String, u64>,
    /// Payload bytes of TCP among the strangers: what an application said in the clear.
    pub plaintext: u64,
}

impl Sniffed {
    /// An error if the sniffer missed anything.
    pub fn complete(&self) -> Result<()> {
        if self.dropped > 0 {
            bail!(
                "the sniffer missed {} of {} frames: its evidence is worth nothing",
                self.dropped,
                self.frames
            );
        }
        Ok(())
    }

    /// What crossed on a TCP port.
    pub fn port(&self, port: u16) -> PortCount {
        self.tcp.get(&port).copied().unwrap_or_default()
    }

    /// The flows that showed a secret.
    pub fn showed(&self, secret: &str) -> &[String] {
        self.found.get(secret).map_or(&[], Vec::as_slice)
    }

    /// An error unless everything was seen, and it was nothing but TLS on 15008, talk with control and
    /// address resolution, and no secret was in it.
    pub fn only_tunnels(&self) -> Result<()> {
        self.complete()?;
        if let Some((secret, flows)) = self.found.iter().find(|(_, flows)| !flows.is_empty()) {
            bail!("the {secret} was seen on the wire: {flows:?}");
        }
        if !self.not_tls.is_empty() {
            bail!("port {HBONE} carried something else than TLS: {:?}", self.not_tls);
        }
        if !self.strangers.is_empty() {
            bail!("the wire carried more than tunnels: {:?}", self.strangers);
        }
        Ok(())
    }
}

/// A thread that reads every frame of a link until it is stopped.
#[derive(Debug)]
pub struct Sniffer {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    /// How often the reader found nothing more to read.
    idle: AtomicU64,
    seen: Mutex<Sniffed>,
    failure: Mutex<Option<String>>,
}

impl Sniffer {
    /// Reads what arrives at these devices of a bridge or router, each frame once.
    pub fn arrivals(ns: &Netns, devices: &[String], secrets: &[(&str, &[u8])]) -> Result<Self> {
        Self::start(ns, devices, false, secrets)
    }

    /// Reads what arrives at and leaves by one device.
    pub fn both_ways(ns: &Netns, device: &str, secrets: &[(&str, &[u8])]) -> Result<Self> {
        Self::start(ns, &[device.to_owned()], true, secrets)
    }

    fn start(ns: &Netns, devices: &[String], outgoing: bool, secrets: &[(&str, &[u8])]) -> Result<Self> {
        let sockets: Vec<PacketSocket> = ns
            .enter(|| {
                devices.iter().map(|device| PacketSocket::open(device, outgoing)).collect::<Result<_>>()
            })?
            .with_context(|| format!("sniff in {}", ns.name()))?;
        let shared = Arc::new(Shared::default());
        lock(&shared.seen).found = secrets.iter().map(|(name, _)| ((*name).to_owned(), Vec::new())).collect();
        let reader = Reader {
            shared: shared.clone(),
            sockets,
            secrets: secrets.iter().map(|(name, bytes)| ((*name).to_owned(), bytes.to_vec())).collect(),
            overlap: secrets.iter().map(|(_, bytes)| bytes.len()).max().unwrap_or(1) - 1,
            streams: HashMap::new(),
        };
        let thread = std::thread::Builder::new().name("sniffer".into()).spawn(move || reader.run())?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// What was seen up to now: waits until the reader has caught up.
    pub fn so_far(&self) -> Result<Sniffed> {
        let before = self.shared.idle.load(Ordering::Acquire);
        // Two idle moments: the first may have begun before this call.
        eventually(Duration::from_secs(10), "the sniffer to catch up", || {
            Ok((self.shared.idle.load(Ordering::Acquire) >= before + 2).then_some(()))
        })?;
        self.seen()
    }

    /// Stops and gives what was seen.
    pub fn stop(mut self) -> Result<Sniffed> {
        self.join();
        self.seen()
    }

    fn seen(&self) -> Result<Sniffed> {
        if let Some(failure) = lock(&self.shared.failure).as_ref() {
            bail!("the sniffer failed: {failure}");
        }
        Ok(lock(&self.shared.seen).clone())
    }

    fn join(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            lock(&self.shared.failure).get_or_insert("the reader panicked".to_owned());
        }
    }
}

impl Drop for Sniffer {
    fn drop(&mut self) {
        self.join();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One direction of a connection.
type Direction = (SocketAddr, SocketAddr);

/// What is remembered of one direction of a connection.
#[derive(Debug, Default)]
struct Stream {
    /// The last bytes, in which a secret may have begun.
    tail: Vec<u8>,
    began: bool,
}

struct Reader {
    shared: Arc<Shared>,
    sockets: Vec<PacketSocket>,
    secrets: Vec<(String, Vec<u8>)>,
    /// One byte less than the longest secret.
    overlap: usize,
    streams: HashMap<Direction, Stream>,
}

impl Reader {
    fn run(mut self) {
        let mut buffer = vec![0; 256 * 1024];
        let outcome = loop {
            // Asked before reading: what came before the stop is still read.
            let stop = self.shared.stop.load(Ordering::Acquire);
            match self.drain(&mut buffer) {
                Err(error) => break Err(error),
                Ok(0) if stop => break Ok(()),
                Ok(0) => {
                    self.shared.idle.fetch_add(1, Ordering::Release);
                    if let Err(error) = socket::wait(&self.sockets, Duration::from_millis(10)) {
                        break Err(error);
                    }
                }
                Ok(_) => {}
            }
        };
        if let Err(error) = outcome {
            *lock(&self.shared.failure) = Some(format!("{error:#}"));
        }
    }

    /// Reads until every socket is empty; the number of frames read.
    fn drain(&mut self, buffer: &mut [u8]) -> Result<u64> {
        let shared = self.shared.clone();
        let mut read = 0;
        for at in 0..self.sockets.len() {
            // A busy link must not keep `so_far` waiting for its lock.
            for _ in 0..256 {
                let Some(length) = self.sockets[at].read(buffer)? else { break };
                read += 1;
                self.note(&mut lock(&shared.seen), &buffer[..length]);
            }
            lock(&shared.seen).dropped += self.sockets[at].take_drops()?;
        }
        Ok(read)
    }

    fn note(&mut self, seen: &mut Sniffed, frame: &[u8]) {
        seen.frames += 1;
        seen.bytes += frame.len() as u64;
        match packet::parse(frame) {
            Packet::Arp | Packet::Neighbour => {}
            Packet::Tcp(segment) => self.note_tcp(seen, &segment),
            Packet::Udp { from, to } => note_stranger(seen, format!("UDP {from} → {to}")),
            Packet::OtherIp { from, to, protocol } => {
                note_stranger(seen, format!("IP protocol {protocol} {from} → {to}"));
            }
            Packet::Unknown { ethertype } => note_stranger(seen, format!("ethertype {ethertype:#06x}")),
        }
    }

    fn note_tcp(&mut self, seen: &mut Sniffed, segment: &Segment<'_>) {
        let Segment { from, to, payload, .. } = *segment;
        if segment.opens() && self.streams.len() < MAX_STREAMS {
            self.streams.insert((from, to), Stream::default());
            self.streams.insert((to, from), Stream::default());
        }
        let server = server_port(from, to);
        let count = seen.tcp.entry(server).or_default();
        count.packets += 1;
        count.payload += payload.len() as u64;
        count.opened += u64::from(segment.opens());
        let control = address::control().contains(&from.ip()) && from.port() == CONTROL
            || address::control().contains(&to.ip()) && to.port() == CONTROL;
        if server != HBONE && !control {
            seen.plaintext += payload.len() as u64;
            note_stranger(seen, format!("TCP {}", flow(from, to)));
        }
        if payload.is_empty() {
            return;
        }
        let stream = self.streams.entry((from, to)).or_insert(Stream { tail: Vec::new(), began: true });
        if server == HBONE && !stream.began {
            if !payload.starts_with(&[0x16, 0x03]) {
                remember(&mut seen.not_tls, flow(from, to));
            } else if to.port() == HBONE {
                seen.tls_hellos += 1;
            }
        }
        stream.began = true;
        for (name, secret) in &self.secrets {
            if stream.shows(payload, secret) {
                remember(seen.found.entry(name.clone()).or_default(), flow(from, to));
            }
        }
        stream.push(payload, self.overlap);
    }
}

impl Stream {
    /// Whether `secret` is in the payload, or began in an earlier one and ends in this.
    fn shows(&self, payload: &[u8], secret: &[u8]) -> bool {
        if memchr::memmem::find(payload, secret).is_some() {
            return true;
        }
        let mut seam = self.tail.clone();
        seam.extend_from_slice(&payload[..payload.len().min(secret.len())]);
        memchr::memmem::find(&seam, secret).is_some()
    }

    fn push(&mut self, payload: &[u8], keep: usize) {
        self.tail.extend_from_slice(&payload[payload.len().saturating_sub(keep)..]);
        let excess = self.tail.len().saturating_sub(keep);
        self.tail.drain(..excess);
    }
}

/// The server's port of a segment: HBONE's or control's where one end has it, else the lower.
fn server_port(from: SocketAddr, to: SocketAddr) -> u16 {
    let ports = [from.port(), to.port()];
    [HBONE, CONTROL]
        .into_iter()
        .find(|port| ports.contains(port))
        .unwrap_or_else(|| from.port().min(to.port()))
}

/// Both directions of a connection under one name: the server's side last.
fn flow(from: SocketAddr, to: SocketAddr) -> String {
    let client = |ip: IpAddr| ip;
    if from.port() == server_port(from, to) {
        format!("{} ↔ {from}", client(to.ip()))
    } else {
        format!("{} ↔ {to}", client(from.ip()))
    }
}

fn note_stranger(seen: &mut Sniffed, flow: String) {
    if seen.strangers.len() < MAX_FLOWS || seen.strangers.contains_key(&flow) {
        *seen.strangers.entry(flow).or_default() += 1;
    } else {
        *seen.strangers.entry("(more)".to_owned()).or_default() += 1;
    }
}

fn remember(list: &mut Vec<String>, flow: String) {
    if list.len() < MAX_FLOWS && !list.contains(&flow) {
        list.push(flow);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_found_across_the_seam_of_packets() {
        let secret = b"correct horse";
        let mut stream = Stream::default();
        for part in [&b"noise cor"[..], b"rect", b" ho"] {
            assert!(!stream.shows(part, secret));
            stream.push(part, secret.len() - 1);
        }
        assert!(stream.shows(b"rse", secret));
        assert!(!stream.shows(b"house", secret));
    }
}
