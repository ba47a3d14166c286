//! The bytes that HTTP/2 queues: a borrowed buffer as it was read, or a small copy of its own.

use bytes::Buf;

use crate::buffer::Buffer;

/// Reads no longer than this are copied out of their buffer, so that a queue of small messages does
/// not hold a big buffer each.
const SMALL: usize = 1024;

pub(crate) struct Chunk {
    bytes: Bytes,
    at: usize,
    end: usize,
}

enum Bytes {
    Borrowed(Buffer),
    Owned(Box<[u8]>),
}

impl Chunk {
    /// The first `length` bytes of `buffer`.
    pub(crate) fn new(buffer: Buffer, length: usize) -> Self {
        let bytes =
            if length <= SMALL { Bytes::Owned(buffer[..length].into()) } else { Bytes::Borrowed(buffer) };
        Self { bytes, at: 0, end: length }
    }

    pub(crate) fn owned(bytes: Box<[u8]>) -> Self {
        let end = bytes.len();
        Self { bytes: Bytes::Owned(bytes), at: 0, end }
    }

    pub(crate) fn empty() -> Self {
        Self::owned(Box::default())
    }
}

impl Buf for Chunk {
    fn remaining(&self) -> usize {
        self.end - self.at
    }

    fn chunk(&self) -> &[u8] {
        match &self.bytes {
            Bytes::Borrowed(buffer) => &buffer[self.at..self.end],
            Bytes::Owned(bytes) => &bytes[self.at..self.end],
        }
    }

    fn advance(&mut self, count: usize) {
        assert!(count <= self.remaining(), "cannot advance past the end of a chunk");
        self.at += count;
    }
}
