//! The messages of a call of gRPC, counted as its body goes by: of each the five bytes before it are read, and nothing is
//! kept ("Length-Prefixed-Message", gRPC over HTTP/2).

/// Whether it is compressed, and its length in four bytes.
const PREFIX: usize = 5;

/// The messages of one direction.
#[derive(Debug, Clone, Default)]
pub(super) struct Messages {
    count: u64,
    /// Bytes of a prefix that have come, and what they say of the length.
    prefix: usize,
    length: u32,
    /// Bytes of the message that are still to come.
    left: u32,
}

impl Messages {
    pub(super) fn count(&self) -> u64 {
        self.count
    }

    /// Reads the next part of the body.
    pub(super) fn read(&mut self, mut part: &[u8]) {
        loop {
            let skipped = part.len().min(self.left as usize);
            part = &part[skipped..];
            self.left -= skipped as u32;
            let Some((byte, rest)) = part.split_first() else { return };
            part = rest;
            // The first byte is no part of the length, and is shifted out of it.
            self.length = self.length << 8 | u32::from(*byte);
            self.prefix += 1;
            if self.prefix == PREFIX {
                self.count += 1;
                self.left = self.length;
                self.prefix = 0;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn framed(lengths: &[u32]) -> Vec<u8> {
        let mut body = Vec::new();
        for length in lengths {
            body.push(1);
            body.extend_from_slice(&length.to_be_bytes());
            body.extend(vec![7; *length as usize]);
        }
        body
    }

    #[test]
    fn messages_are_counted_however_they_are_cut() {
        let body = framed(&[0, 1, 300, 0, 70_000, 5]);
        for size in [1, 2, 3, 4, 5, 6, 7, 1000, body.len()] {
            let mut messages = Messages::default();
            body.chunks(size).for_each(|part| messages.read(part));
            assert_eq!((messages.count(), messages.left), (6, 0), "parts of {size}");
        }
    }

    #[test]
    fn what_is_cut_off_counts_once_its_length_was_said() {
        let mut messages = Messages::default();
        messages.read(&framed(&[3])[..4]);
        assert_eq!(messages.count(), 0);
        messages.read(&[3, 7]);
        assert_eq!(messages.count(), 1);
        messages.read(&[]);
        let mut huge = Messages::default();
        huge.read(&[0, 0xff, 0xff, 0xff, 0xff, 1]);
        assert_eq!((huge.count(), huge.left), (1, u32::MAX - 1));
    }
}
