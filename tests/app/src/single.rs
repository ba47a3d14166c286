//! Clients of one connection.

use std::{
    io,
    time::{Duration, Instant},
};

use anyhow::Result;
use clap::Args;
use socket2::SockRef;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpSocket, TcpStream},
    time::sleep,
};

use crate::{
    To,
    outcome::{Failure, Report, within},
    pattern::Pattern,
    serve::{BANNER, compare, reset, send},
};

async fn connect(to: &To) -> io::Result<TcpStream> {
    let stream = within(to.patience(), TcpStream::connect(to.to)).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

async fn connect_marked(to: &To, mark: u32) -> io::Result<TcpStream> {
    let socket = if to.to.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    SockRef::from(&socket).set_mark(mark)?;
    within(to.patience(), socket.connect(to.to)).await
}

/// Sends and reads back one message.
pub(crate) async fn exchange(stream: &mut TcpStream, limit: Duration, message: &[u8]) -> io::Result<()> {
    let mut answer = vec![0; message.len()];
    within(limit, stream.write_all(message)).await?;
    within(limit, stream.read_exact(&mut answer)).await?;
    if answer != message {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the echo differs from what was said"));
    }
    Ok(())
}

pub(crate) async fn expect_end(stream: &mut (impl AsyncReadExt + Unpin), limit: Duration) -> io::Result<()> {
    match within(limit, stream.read(&mut [0; 1])).await? {
        0 => Ok(()),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "more bytes than expected")),
    }
}

/// Exchange messages with an echo server.
#[derive(Debug, Args)]
pub(crate) struct Echo {
    #[command(flatten)]
    to: To,
    /// Messages, one after the other.
    #[arg(long, default_value_t = 1)]
    count: u32,
    /// Bytes of each.
    #[arg(long, default_value_t = 64)]
    size: usize,
    /// Say this text instead of a pattern.
    #[arg(long)]
    say: Option<String>,
    /// Milliseconds between two messages.
    #[arg(long, default_value_t = 0)]
    every: u64,
    /// Mark the packets so (SO_MARK, needs NET_ADMIN or NET_RAW).
    #[arg(long)]
    mark: Option<u32>,
}

impl Echo {
    pub(crate) async fn run(self) -> Result<bool> {
        let start = Instant::now();
        let mut report = Report::new();
        let result = self.talk(&mut report).await;
        Ok(report.close(result, start.elapsed()))
    }

    async fn talk(&self, report: &mut Report) -> io::Result<()> {
        let limit = self.to.patience();
        let mut stream = match self.mark {
            Some(mark) => connect_marked(&self.to, mark).await?,
            None => connect(&self.to).await?,
        };
        let mut message = vec![0; self.size];
        for number in 0..self.count {
            match &self.say {
                Some(text) => message = text.clone().into_bytes(),
                None => Pattern::new(number.into()).fill(0, &mut message),
            }
            exchange(&mut stream, limit, &message).await?;
            report.sent += message.len() as u64;
            report.received += message.len() as u64;
            if self.every > 0 {
                sleep(Duration::from_millis(self.every)).await;
            }
        }
        stream.shutdown().await?;
        expect_end(&mut stream, limit).await
    }
}

/// Send a stream to a sink (the default) or read one from a source.
#[derive(Debug, Args)]
pub(crate) struct Stream {
    #[command(flatten)]
    to: To,
    /// Bytes.
    #[arg(long, default_value_t = 1 << 30)]
    bytes: u64,
    /// Read from a source.
    #[arg(long)]
    download: bool,
    /// Which stream.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

impl Stream {
    pub(crate) async fn run(self) -> Result<bool> {
        let start = Instant::now();
        let mut report = Report::new();
        let result = self.talk(&mut report).await;
        let took = start.elapsed();
        let gigabits = (report.sent + report.received) as f64 * 8.0 / 1e9 / took.as_secs_f64();
        report.more.insert("gigabits_per_second", gigabits.into());
        Ok(report.close(result, took))
    }

    async fn talk(&self, report: &mut Report) -> io::Result<()> {
        let mut stream = connect(&self.to).await?;
        let pattern = Pattern::new(self.seed);
        stream.write_u64(self.seed).await?;
        stream.write_u64(self.bytes).await?;
        if self.download {
            report.received = compare(&mut stream, pattern, self.bytes, |_| async { Ok(()) }).await?;
            expect_end(&mut stream, self.to.patience()).await
        } else {
            send(&mut stream, pattern, self.bytes).await?;
            report.sent = self.bytes;
            let line = read_line(&mut stream, self.to.patience()).await?;
            if line == format!("exact {}", self.bytes) {
                return Ok(());
            }
            Err(io::Error::new(io::ErrorKind::InvalidData, format!("the sink says: {line}")))
        }
    }
}

async fn read_line(stream: &mut TcpStream, limit: Duration) -> io::Result<String> {
    let mut line = String::new();
    within(limit, BufReader::new(stream).read_line(&mut line)).await?;
    if !line.ends_with('\n') {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, format!("ended inside a line: {line:?}")));
    }
    Ok(line.trim_end().to_owned())
}

/// Read slowly from a source.
#[derive(Debug, Args)]
pub(crate) struct Slow {
    #[command(flatten)]
    to: To,
    /// Bytes.
    #[arg(long, default_value_t = 64 << 20)]
    bytes: u64,
    /// Bytes per second.
    #[arg(long, default_value_t = 16 << 20)]
    rate: u64,
    /// Seconds to read nothing at all, at the start.
    #[arg(long, default_value_t = 1.0)]
    wait: f64,
}

impl Slow {
    pub(crate) async fn run(self) -> Result<bool> {
        let start = Instant::now();
        let mut report = Report::new();
        let result = self.talk(&mut report).await;
        Ok(report.close(result, start.elapsed()))
    }

    async fn talk(&self, report: &mut Report) -> io::Result<()> {
        let mut stream = connect(&self.to).await?;
        stream.write_u64(3).await?;
        stream.write_u64(self.bytes).await?;
        sleep(Duration::from_secs_f64(self.wait)).await;
        let rate = self.rate as f64;
        let pause = |size: usize| async move {
            sleep(Duration::from_secs_f64(size as f64 / rate)).await;
            Ok(())
        };
        report.received = compare(&mut stream, Pattern::new(3), self.bytes, pause).await?;
        expect_end(&mut stream, self.to.patience()).await
    }
}

/// Say all, close the sending side, read the answer.
#[derive(Debug, Args)]
pub(crate) struct HalfClose {
    #[command(flatten)]
    to: To,
    /// Bytes to say.
    #[arg(long, default_value_t = 1 << 20)]
    bytes: u64,
}

impl HalfClose {
    pub(crate) async fn run(self) -> Result<bool> {
        let start = Instant::now();
        let mut report = Report::new();
        let result = self.talk(&mut report).await;
        Ok(report.close(result, start.elapsed()))
    }

    async fn talk(&self, report: &mut Report) -> io::Result<()> {
        let mut stream = connect(&self.to).await?;
        send(&mut stream, Pattern::new(5), self.bytes).await?;
        report.sent = self.bytes;
        stream.shutdown().await?;
        let mut answer = String::new();
        within(self.to.patience(), stream.read_to_string(&mut answer)).await?;
        report.received = answer.len() as u64;
        if answer.trim_end() == self.bytes.to_string() {
            return Ok(());
        }
        Err(io::Error::new(io::ErrorKind::InvalidData, format!("the server counted {answer:?}")))
    }
}

/// Be reset by the server (its reset port), or reset it.
#[derive(Debug, Args)]
pub(crate) struct Rst {
    #[command(flatten)]
    to: To,
    /// Send the RST instead of waiting for it.
    #[arg(long)]
    send: bool,
}

impl Rst {
    pub(crate) async fn run(self) -> Result<bool> {
        let start = Instant::now();
        let mut report = Report::new();
        let result = self.talk(&mut report).await;
        Ok(report.close(result, start.elapsed()))
    }

    async fn talk(&self, report: &mut Report) -> io::Result<()> {
        let mut stream = connect(&self.to).await?;
        stream.write_all(b"x").await?;
        report.sent = 1;
        if self.send {
            // Only once the other end has the byte, so that the RST ends a connection and not a handshake.
            within(self.to.patience(), stream.read_exact(&mut [0; 1])).await?;
            return reset(stream);
        }
        match within(self.to.patience(), stream.read(&mut [0; 1])).await {
            Err(error) if Failure::of(&error) == Failure::Reset => Ok(()),
            Err(error) => Err(error),
            Ok(0) => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "an orderly end where a RST was due")),
            Ok(_) => Err(io::Error::new(io::ErrorKind::InvalidData, "bytes where a RST was due")),
        }
    }
}

/// Read what the server says before it is asked.
#[derive(Debug, Args)]
pub(crate) struct Banner {
    #[command(flatten)]
    to: To,
}

impl Banner {
    pub(crate) async fn run(self) -> Result<bool> {
        let start = Instant::now();
        let mut report = Report::new();
        let result = self.talk(&mut report).await;
        Ok(report.close(result, start.elapsed()))
    }

    async fn talk(&self, report: &mut Report) -> io::Result<()> {
        let limit = self.to.patience();
        let mut stream = connect(&self.to).await?;
        let mut banner = vec![0; BANNER.len()];
        within(limit, stream.read_exact(&mut banner)).await?;
        report.received = banner.len() as u64;
        if banner != BANNER {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "another banner"));
        }
        exchange(&mut stream, limit, b"hello").await
    }
}

/// Ask the server whom it sees.
#[derive(Debug, Args)]
pub(crate) struct Peer {
    #[command(flatten)]
    to: To,
}

impl Peer {
    pub(crate) async fn run(self) -> Result<bool> {
        let start = Instant::now();
        let mut report = Report::new();
        let result = self.talk(&mut report).await;
        Ok(report.close(result, start.elapsed()))
    }

    async fn talk(&self, report: &mut Report) -> io::Result<()> {
        let mut stream = connect(&self.to).await?;
        let line = read_line(&mut stream, self.to.patience()).await?;
        report.received = line.len() as u64 + 1;
        let mut words = line.split(' ').map(str::to_owned);
        for name in ["seen_by_server", "called_as"] {
            let word =
                words.next().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, line.clone()))?;
            report.more.insert(name, word.into());
        }
        report.more.insert("own", stream.local_addr()?.to_string().into());
        Ok(())
    }
}
