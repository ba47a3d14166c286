//! Web servers that break off in the middle of an answer: after its head and the first bytes of its body; and one that
//! ends the connection with each whole answer.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{Shutdown, TcpStream},
};

use anyhow::Result;
use bed::Pod;

use crate::{
    apps::serve,
    frames::{DATA, END_HEADERS, HEADERS, OK, PREFACE, RST_STREAM, SETTINGS, frame},
};

/// Where HTTP/1.1 is spoken. The path says how the answer's length is told: [`CHUNKED`] or [`LENGTH`]; or that it is
/// [`WHOLE`].
pub const PORT: u16 = 7040;
/// Where HTTP/2 is spoken, and the connection ended.
pub const ENDED_PORT: u16 = 7041;
/// Where HTTP/2 is spoken, and the stream reset.
pub const RESET_PORT: u16 = 7042;

pub const CHUNKED: &str = "/chunked";
pub const LENGTH: &str = "/length";
pub const WHOLE: &str = "/whole";

/// What comes of each body.
pub const SAID: &str = "hello";

/// ACK of SETTINGS (RFC 9113, 6.5).
const ACK: u8 = 1;
const INTERNAL_ERROR: [u8; 4] = [0, 0, 0, 2];

/// Starts them in a pod: threads that end with the test's process.
pub fn start(pod: &Pod) -> Result<()> {
    serve(pod.netns().listen(pod.at(PORT))?, |stream| one(&stream));
    serve(pod.netns().listen(pod.at(ENDED_PORT))?, |stream| two(&stream, false));
    serve(pod.netns().listen(pod.at(RESET_PORT))?, |stream| two(&stream, true));
    Ok(())
}

fn one(mut stream: &TcpStream) -> io::Result<()> {
    let mut lines = BufReader::new(stream).lines();
    let request = lines.next().transpose()?.unwrap_or_default();
    for header in lines.by_ref() {
        if header?.is_empty() {
            break;
        }
    }
    let rest = match request.contains(CHUNKED) {
        true => format!("Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{SAID}\r\n", SAID.len()),
        false if request.contains(WHOLE) => {
            format!("Connection: close\r\nContent-Length: {}\r\n\r\n{SAID}", SAID.len())
        }
        false => format!("Content-Length: {}\r\n\r\n{SAID}", SAID.len() + 100),
    };
    stream.write_all(format!("HTTP/1.1 200 OK\r\n{rest}").as_bytes())?;
    leave(stream)
}

fn two(mut stream: &TcpStream, resets: bool) -> io::Result<()> {
    stream.read_exact(&mut [0; PREFACE.len()])?;
    stream.write_all(&frame(SETTINGS, 0, 0, &[]))?;
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head)?;
        let [a, b, c, kind, flags, id @ ..] = head;
        let length = u32::from_be_bytes([0, a, b, c]);
        io::copy(&mut stream.take(length.into()), &mut io::sink())?;
        match kind {
            SETTINGS if flags & ACK == 0 => stream.write_all(&frame(SETTINGS, ACK, 0, &[]))?,
            HEADERS => {
                let id = u32::from_be_bytes(id);
                let answer = [frame(HEADERS, END_HEADERS, id, &[OK]), frame(DATA, 0, id, SAID.as_bytes())];
                stream.write_all(&answer.concat())?;
                if !resets {
                    return leave(stream);
                }
                stream.write_all(&frame(RST_STREAM, 0, id, &INTERNAL_ERROR))?;
            }
            _ => {}
        }
    }
}

/// Ends our side alone: what was said is to arrive.
fn leave(mut stream: &TcpStream) -> io::Result<()> {
    stream.shutdown(Shutdown::Write)?;
    io::copy(&mut stream, &mut io::sink()).map(drop)
}
