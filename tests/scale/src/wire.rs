//! Reads a delta discovery stream without keeping it: what each answer brings is counted, not decoded, so that
//! five hundred readers cost as little as possible.

use bytes::{Buf, BytesMut};

/// One whole answer.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) type_url: String,
    pub(crate) nonce: String,
    pub(crate) resources: u64,
    pub(crate) removed: u64,
}

/// Fields of `DeltaDiscoveryResponse` (discovery.proto).
const RESOURCES: u64 = 2;
const TYPE_URL: u64 = 4;
const NONCE: u64 = 5;
const REMOVED: u64 = 6;

/// The state between two chunks of bytes.
#[derive(Debug, Default)]
pub(crate) struct Scanner {
    pending: BytesMut,
    /// Bytes of the message under way that were not looked at yet.
    message: Option<usize>,
    /// Bytes of a field that nobody reads.
    skip: usize,
    answer: Answer,
}

impl Scanner {
    /// Takes bytes in; gives the answers that they complete.
    pub(crate) fn feed(&mut self, bytes: &[u8]) -> Vec<Answer> {
        self.pending.extend_from_slice(bytes);
        let mut answers = Vec::new();
        while self.step(&mut answers) {}
        answers
    }

    /// One step; whether there may be another.
    fn step(&mut self, answers: &mut Vec<Answer>) -> bool {
        let Some(left) = self.message else {
            // gRPC: a byte that says whether it is compressed, and the length.
            if self.pending.len() < 5 {
                return false;
            }
            self.pending.advance(1);
            self.message = Some(self.pending.get_u32() as usize);
            return true;
        };
        if left == 0 {
            answers.push(std::mem::take(&mut self.answer));
            self.message = None;
            return true;
        }
        if self.skip > 0 {
            let now = self.skip.min(self.pending.len());
            self.take(now);
            self.skip -= now;
            return now > 0;
        }
        self.field()
    }

    /// The next field, once its tag and length are there, and its content where that is read.
    fn field(&mut self) -> bool {
        let Some((tag, tag_bytes)) = varint(&self.pending) else { return false };
        let Some((length, length_bytes)) = varint(&self.pending[tag_bytes..]) else { return false };
        let (head, length) = (tag_bytes + length_bytes, length as usize);
        match tag >> 3 {
            field @ (TYPE_URL | NONCE) => {
                if self.pending.len() < head + length {
                    return false;
                }
                let text = String::from_utf8_lossy(&self.pending[head..head + length]).into_owned();
                self.take(head + length);
                if field == NONCE { self.answer.nonce = text } else { self.answer.type_url = text }
            }
            field => {
                self.answer.resources += u64::from(field == RESOURCES);
                self.answer.removed += u64::from(field == REMOVED);
                self.take(head);
                self.skip = length;
            }
        }
        true
    }

    fn take(&mut self, bytes: usize) {
        self.pending.advance(bytes);
        self.message = self.message.map(|left| left.saturating_sub(bytes));
    }
}

/// A number and how many bytes it takes; `None` until all of them are there.
fn varint(bytes: &[u8]) -> Option<(u64, usize)> {
    let mut value = 0;
    for (at, byte) in bytes.iter().enumerate().take(10) {
        value |= u64::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            return Some((value, at + 1));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use prost::Message;
    use proto::discovery::{DeltaDiscoveryResponse, Resource};

    use super::*;

    #[test]
    fn answers_are_counted_however_they_are_cut() {
        let resource =
            |name: &str| Resource { name: name.repeat(200), version: "1".into(), ..Default::default() };
        let answers = [
            DeltaDiscoveryResponse {
                type_url: "a".into(),
                nonce: "1".into(),
                system_version_info: "7".into(),
                resources: vec![resource("x"), resource("y")],
                removed_resources: vec!["z".into()],
            },
            DeltaDiscoveryResponse { type_url: "b".into(), nonce: "2".into(), ..Default::default() },
        ];
        let mut bytes = Vec::new();
        for answer in &answers {
            bytes.push(0);
            bytes.extend((answer.encoded_len() as u32).to_be_bytes());
            bytes.extend(answer.encode_to_vec());
        }
        for size in [1, 2, 7, 100, bytes.len()] {
            let mut scanner = Scanner::default();
            let found: Vec<Answer> = bytes.chunks(size).flat_map(|chunk| scanner.feed(chunk)).collect();
            let answer = |type_url: &str, nonce: &str, resources, removed| Answer {
                type_url: type_url.into(),
                nonce: nonce.into(),
                resources,
                removed,
            };
            assert_eq!(found, [answer("a", "1", 2, 1), answer("b", "2", 0, 0)], "chunks of {size}");
        }
    }
}
