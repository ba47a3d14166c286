//! A web server that trusts nobody: it writes down each request as it came, and says which could be read in two ways.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::TcpStream,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use anyhow::Result;
use bed::Pod;

use crate::apps::serve;

/// Where it listens.
pub const PORT: u16 = 7010;

/// A path whose answer never ends.
pub const ENDLESS: &str = "/endless";
/// A path whose answer breaks off after its first bytes.
pub const BROKEN: &str = "/broken";
/// A path whose request is not read beyond its head.
pub const DEAF: &str = "/deaf";

/// What it has heard.
#[derive(Debug, Default)]
pub struct Recorder {
    heard: Mutex<Vec<Heard>>,
    /// Bytes of endless answers that have left.
    pub said: AtomicU64,
}

/// A whole request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Heard {
    pub line: String,
    /// As they came, without the line end.
    pub headers: Vec<String>,
    pub body: Vec<u8>,
    /// Why another server might have read it otherwise.
    pub doubts: Vec<String>,
}

impl Recorder {
    /// Starts it in a pod: threads that end with the test's process.
    pub fn start(pod: &Pod) -> Result<Arc<Self>> {
        let recorder = Arc::new(Self::default());
        let own = recorder.clone();
        serve(pod.netns().listen(pod.at(PORT))?, move |stream| own.talk(&stream));
        Ok(recorder)
    }

    /// What was heard since it was asked last.
    pub fn take(&self) -> Vec<Heard> {
        std::mem::take(&mut *self.heard.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn talk(&self, stream: &TcpStream) -> io::Result<()> {
        let mut reader = BufReader::new(stream);
        loop {
            let mut heard = head(&mut reader)?;
            let path = heard.line.split(' ').nth(1).unwrap_or_default().to_owned();
            if path == DEAF {
                std::thread::sleep(std::time::Duration::from_secs(3600));
            }
            let sizes = heard.framing();
            match sizes {
                Framing::Chunked => heard.body = chunks(&mut reader)?,
                Framing::Length(length) => {
                    heard.body = vec![0; length];
                    reader.read_exact(&mut heard.body)?;
                }
            }
            self.heard.lock().unwrap_or_else(PoisonError::into_inner).push(heard);
            match path.as_str() {
                ENDLESS => self.endless(stream)?,
                BROKEN => {
                    let mut stream = stream;
                    stream
                        .write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")?;
                    return stream.shutdown(std::net::Shutdown::Both);
                }
                _ => {
                    let mut stream = stream;
                    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")?;
                }
            }
        }
    }

    fn endless(&self, mut stream: &TcpStream) -> io::Result<()> {
        stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")?;
        let chunk = [&b"4000\r\n"[..], &[b'x'; 0x4000], b"\r\n"].concat();
        loop {
            stream.write_all(&chunk)?;
            self.said.fetch_add(0x4000, Ordering::Relaxed);
        }
    }
}

enum Framing {
    Chunked,
    Length(usize),
}

impl Heard {
    fn values(&self, name: &str) -> Vec<String> {
        let value = |header: &String| {
            let (key, value) = header.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
        };
        self.headers.iter().filter_map(value).collect()
    }

    /// How long the body is, and what is doubtful about that and about the rest of the head.
    fn framing(&mut self) -> Framing {
        let (lengths, codings) = (self.values("content-length"), self.values("transfer-encoding"));
        if lengths.len() + codings.len() > 1 {
            self.doubts.push(format!("its length is said {lengths:?} and {codings:?}"));
        }
        if self.values("host").len() != 1 {
            self.doubts.push(format!("its hosts are {:?}", self.values("host")));
        }
        for header in &self.headers {
            let name = header.split(':').next().unwrap_or_default();
            let is_token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
            if !header.contains(':') || name.is_empty() || !name.chars().all(is_token) {
                self.doubts.push(format!("{header:?} is no header"));
            }
            if header.chars().any(|c| c.is_control() && c != '\t') {
                self.doubts.push(format!("{header:?} has control characters"));
            }
        }
        match codings.first() {
            Some(coding) if coding == "chunked" => Framing::Chunked,
            Some(coding) => {
                self.doubts.push(format!("its coding is {coding:?}"));
                Framing::Length(0)
            }
            None => {
                Framing::Length(lengths.first().and_then(|length| length.parse().ok()).unwrap_or_default())
            }
        }
    }
}

fn line(reader: &mut impl BufRead) -> io::Result<String> {
    let mut bytes = Vec::new();
    if reader.read_until(b'\n', &mut bytes)? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let text = String::from_utf8_lossy(&bytes);
    // Of a line that ends in LF alone the reader of the headers finds nothing to cut, and doubts it.
    Ok(text.strip_suffix("\r\n").unwrap_or(&text).to_owned())
}

fn head(reader: &mut impl BufRead) -> io::Result<Heard> {
    let mut heard = Heard { line: line(reader)?, ..Heard::default() };
    loop {
        let header = line(reader)?;
        if header.is_empty() {
            return Ok(heard);
        }
        heard.headers.push(header);
    }
}

fn chunks(reader: &mut impl BufRead) -> io::Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let size = usize::from_str_radix(&line(reader)?, 16).map_err(|_| io::ErrorKind::InvalidData)?;
        let mut chunk = vec![0; size];
        reader.read_exact(&mut chunk)?;
        body.extend(chunk);
        if size == 0 {
            while !line(reader)?.is_empty() {}
            return Ok(body);
        }
        if !line(reader)?.is_empty() {
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
}
