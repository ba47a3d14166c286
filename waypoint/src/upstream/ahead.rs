//! A plain connection to a backend, of which more is read at a time than was asked for: HTTP/2 asks frame by frame, and
//! each time the kernel is asked costs more than the copy of what came along.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use hbone::buffer::{Buffer, Class};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

/// A TCP connection.
pub(crate) struct Plain {
    stream: TcpStream,
    ahead: Option<Ahead>,
}

/// What was read and is not asked for yet. Nothing is borrowed while there is nothing.
#[derive(Default)]
struct Ahead {
    buffer: Option<Buffer>,
    at: usize,
    end: usize,
}

impl Plain {
    /// `ahead`: it is to be read ahead.
    pub(crate) fn new(stream: TcpStream, ahead: bool) -> Self {
        Self { stream, ahead: ahead.then(Ahead::default) }
    }
}

impl Ahead {
    fn poll_read(
        &mut self,
        stream: &mut TcpStream,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let buffer = match &mut self.buffer {
            Some(buffer) => buffer,
            None => {
                let mut buffer = Buffer::take(Class::Medium);
                let mut read = ReadBuf::new(&mut buffer);
                ready!(Pin::new(stream).poll_read(cx, &mut read))?;
                (self.at, self.end) = (0, read.filled().len());
                self.buffer.insert(buffer)
            }
        };
        let count = (self.end - self.at).min(out.remaining());
        out.put_slice(&buffer[self.at..self.at + count]);
        self.at += count;
        if self.at == self.end {
            self.buffer = None;
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for Plain {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self { stream, ahead } = self.get_mut();
        match ahead {
            Some(ahead) => ahead.poll_read(stream, cx, out),
            None => Pin::new(stream).poll_read(cx, out),
        }
    }
}

impl AsyncWrite for Plain {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;

    #[tokio::test]
    async fn small_reads_have_every_byte_in_order_and_then_the_end() {
        for ahead in [true, false] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            let mut plain = Plain::new(stream, ahead);
            let (mut backend, _) = listener.accept().await.unwrap();
            let said: Vec<u8> = (0..200_000_u32).map(|at| at as u8).collect();
            let sent = said.clone();
            let sending = tokio::spawn(async move { backend.write_all(&sent).await });
            let (mut heard, mut piece) = (Vec::new(), [0; 777]);
            while let count @ 1.. = plain.read(&mut piece).await.unwrap() {
                heard.extend_from_slice(&piece[..count]);
            }
            assert!(heard == said, "{ahead}: {} bytes", heard.len());
            sending.await.unwrap().unwrap();
        }
    }
}
