//! Small servers inside a pod, as threads of the test, and the connection whose peace is watched.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{JoinHandle, sleep, spawn},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use bed::{Pod, eventually};

/// Says back what it hears; ends its own direction when the client has ended its.
pub const ECHO: u16 = 7000;
/// Hears everything, then says `BYTES DIGEST` of it: its answer comes after the client's FIN.
pub const SINK: u16 = 7001;
/// Says [`SOURCE_BYTES`] and waits for the client to end the connection.
pub const SOURCE: u16 = 7002;
/// Nobody listens here.
pub const CLOSED: u16 = 7999;

/// What [`SOURCE`] says.
pub const SOURCE_BYTES: usize = 24 << 20;

/// How long a read or write may be stuck.
const PATIENCE: Duration = Duration::from_secs(20);

/// Starts the servers of a pod: threads that end with the test's process.
pub fn serve_all(pod: &Pod) -> Result<()> {
    serve(pod.netns().listen(pod.at(ECHO))?, echo);
    serve(pod.netns().listen(pod.at(SINK))?, sink);
    serve(pod.netns().listen(pod.at(SOURCE))?, source);
    Ok(())
}

/// Serves one page of HTTP/1.1 on `port` of a pod, one request per connection.
pub fn serve_page(pod: &Pod, port: u16, body: &'static str) -> Result<()> {
    serve(pod.netns().listen(pod.at(port))?, move |stream| {
        let mut reader = BufReader::new(&stream);
        let mut line = String::new();
        // The head of the request ends with an empty line.
        while reader.read_line(&mut line)? > 2 {
            line.clear();
        }
        let length = body.len();
        let answer =
            format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}");
        (&stream).write_all(answer.as_bytes())
    });
    Ok(())
}

pub(crate) fn serve(
    listener: TcpListener,
    talk: impl Fn(TcpStream) -> std::io::Result<()> + Send + Sync + 'static,
) {
    let talk = Arc::new(talk);
    spawn(move || {
        for stream in listener.incoming() {
            let (Ok(stream), talk) = (stream, talk.clone()) else { return };
            // A client that goes away is the client's affair.
            spawn(move || drop(talk(stream)));
        }
    });
}

fn echo(mut stream: TcpStream) -> std::io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        match stream.read(&mut buffer)? {
            0 => return stream.shutdown(Shutdown::Write),
            read => stream.write_all(&buffer[..read])?,
        }
    }
}

fn sink(mut stream: TcpStream) -> std::io::Result<()> {
    let mut digest = Digest::default();
    let mut buffer = vec![0; 64 << 10];
    loop {
        match stream.read(&mut buffer)? {
            0 => return stream.write_all(digest.to_string().as_bytes()),
            read => digest.add(&buffer[..read]),
        }
    }
}

fn source(mut stream: TcpStream) -> std::io::Result<()> {
    stream.write_all(&pattern(SOURCE_BYTES))?;
    stream.read_to_end(&mut Vec::new()).map(drop)
}

/// A digest that sees order and loss: FNV-1a.
#[derive(Debug)]
pub struct Digest {
    bytes: u64,
    state: u64,
}

impl Default for Digest {
    fn default() -> Self {
        Self { bytes: 0, state: 0xcbf2_9ce4_8422_2325 }
    }
}

impl Digest {
    pub fn add(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        for byte in bytes {
            self.state = (self.state ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    pub fn of(bytes: &[u8]) -> Self {
        let mut digest = Self::default();
        digest.add(bytes);
        digest
    }
}

impl std::fmt::Display for Digest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {:016x}", self.bytes, self.state)
    }
}

/// Bytes in which a repeated, lost or exchanged block would show.
pub fn pattern(bytes: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut out = Vec::with_capacity(bytes + 8);
    while out.len() < bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.to_le_bytes());
    }
    out.truncate(bytes);
    out
}

/// What every way through a tunnel must do: carry a dialogue, a bulk upload that ends by a FIN and is
/// answered after it, and a bulk download to its end. `connect` opens a connection that leads to one of the
/// servers' ports. That a server ends first is not asked: Envoy 1.40 as HBONE server says INTERNAL_ERROR in
/// place of END_STREAM then, which is a reset to its peer, and bytes not yet delivered are lost.
pub fn carries_everything(connect: impl Fn(u16) -> Result<TcpStream>) -> Result<()> {
    let open = |port: u16| -> Result<TcpStream> {
        let stream = connect(port)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(stream)
    };
    dialogue(open(ECHO)?).context("dialogue")?;
    upload(open(SINK)?).context("upload with half-close")?;
    download(open(SOURCE)?).context("download")
}

fn dialogue(mut stream: TcpStream) -> Result<()> {
    for size in [1, 64, 1460, 16_384, 70_000] {
        let said = pattern(size);
        stream.write_all(&said)?;
        let mut heard = vec![0; size];
        stream.read_exact(&mut heard).with_context(|| format!("echo of {size} bytes"))?;
        ensure!(said == heard, "the echo of {size} bytes came back changed");
    }
    stream.shutdown(Shutdown::Write)?;
    let rest = stream.read_to_end(&mut Vec::new()).context("end of the echo")?;
    ensure!(rest == 0, "{rest} bytes too many came back");
    Ok(())
}

fn upload(mut stream: TcpStream) -> Result<()> {
    let said = pattern(24 << 20);
    stream.write_all(&said)?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).context("the answer after our FIN")?;
    let expected = Digest::of(&said).to_string();
    ensure!(answer == expected, "sent {expected}, arrived {answer}");
    Ok(())
}

fn download(mut stream: TcpStream) -> Result<()> {
    let mut heard = vec![0; SOURCE_BYTES];
    stream.read_exact(&mut heard).context("the bytes")?;
    ensure!(heard == pattern(SOURCE_BYTES), "the bytes that arrived are not the right ones");
    stream.shutdown(Shutdown::Write)?;
    let rest = stream.read_to_end(&mut Vec::new()).context("the end")?;
    ensure!(rest == 0, "{rest} bytes too many arrived");
    Ok(())
}

/// A connection that talks all the time while others misbehave beside it.
#[derive(Debug)]
pub struct Innocent {
    stop: Arc<AtomicBool>,
    rounds: Arc<AtomicU64>,
    thread: Option<JoinHandle<Result<Duration>>>,
}

impl Innocent {
    /// Opens a connection to the echo server and keeps a dialogue going.
    pub fn start(client: &Pod, server: &Pod) -> Result<Self> {
        let stream = client.netns().connect(server.at(ECHO), Duration::from_secs(5))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let (stop, rounds) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let thread = spawn({
            let (stop, rounds) = (stop.clone(), rounds.clone());
            move || keep_talking(stream, &stop, &rounds)
        });
        Ok(Self { stop, rounds, thread: Some(thread) })
    }

    /// Waits for one more round: the connection lives.
    pub fn still_talks(&self) -> Result<()> {
        let before = self.rounds.load(Ordering::Acquire);
        eventually(PATIENCE, "the innocent connection to go on", || {
            if self.thread.as_ref().is_some_and(JoinHandle::is_finished) {
                bail!("the innocent connection has ended");
            }
            Ok((self.rounds.load(Ordering::Acquire) > before + 1).then_some(()))
        })?;
        Ok(())
    }

    /// Ends the dialogue; fails if it was ever broken. Gives the longest wait for an answer.
    pub fn finish(mut self) -> Result<Duration> {
        self.stop.store(true, Ordering::Release);
        let Some(thread) = self.thread.take() else { bail!("finished twice") };
        thread.join().map_err(|_| anyhow::anyhow!("the innocent client panicked"))?
    }
}

fn keep_talking(mut stream: TcpStream, stop: &AtomicBool, rounds: &AtomicU64) -> Result<Duration> {
    let said = pattern(700);
    let mut heard = vec![0; said.len()];
    let mut longest = Duration::ZERO;
    while !stop.load(Ordering::Acquire) {
        let start = Instant::now();
        let round = rounds.load(Ordering::Acquire);
        stream.write_all(&said).with_context(|| format!("innocent write, round {round}"))?;
        stream.read_exact(&mut heard).with_context(|| format!("innocent read, round {round}"))?;
        ensure!(said == heard, "the innocent connection's bytes were changed in round {round}");
        longest = longest.max(start.elapsed());
        rounds.fetch_add(1, Ordering::AcqRel);
        sleep(Duration::from_millis(5));
    }
    Ok(longest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_sees_order_and_loss() {
        let bytes = pattern(1000);
        assert_eq!(Digest::of(&bytes).to_string(), Digest::of(&pattern(1000)).to_string());
        let mut exchanged = bytes.clone();
        exchanged.swap(10, 900);
        assert_ne!(Digest::of(&bytes).to_string(), Digest::of(&exchanged).to_string());
        assert_ne!(Digest::of(&bytes).to_string(), Digest::of(&bytes[..999]).to_string());
    }
}
