//! A stream whose every byte is known from its offset: what was sent need not be kept to be compared.

/// The bytes of one stream. Two seeds give two different streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pattern {
    seed: u64,
}

impl Pattern {
    pub(crate) fn new(seed: u64) -> Self {
        Self { seed }
    }

    /// The eight bytes at `8 * index` (the finaliser of SplitMix64: no two neighbours look alike).
    fn word(self, index: u64) -> [u8; 8] {
        let mut z = self.seed.wrapping_add(index.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)).to_le_bytes()
    }

    /// Fills `buffer` with the bytes from `offset` on.
    pub(crate) fn fill(self, offset: u64, buffer: &mut [u8]) {
        let skip = (offset % 8) as usize;
        let head = buffer.len().min((8 - skip) % 8);
        let (head, body) = buffer.split_at_mut(head);
        head.copy_from_slice(&self.word(offset / 8)[skip..][..head.len()]);
        let first = offset.div_ceil(8);
        let mut words = body.chunks_exact_mut(8);
        let mut index = first;
        for (word, at) in (&mut words).zip(first..) {
            word.copy_from_slice(&self.word(at));
            index = at + 1;
        }
        let tail = words.into_remainder();
        let length = tail.len();
        tail.copy_from_slice(&self.word(index)[..length]);
    }

    /// The offset of the first byte of `bytes` (which begin at `offset`) that is not as it should be.
    pub(crate) fn first_difference(self, offset: u64, bytes: &[u8], scratch: &mut Vec<u8>) -> Option<u64> {
        scratch.resize(bytes.len(), 0);
        self.fill(offset, scratch);
        if bytes == scratch.as_slice() {
            return None;
        }
        bytes.iter().zip(scratch.iter()).position(|(got, wanted)| got != wanted).map(|at| offset + at as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_cut_of_the_stream_gives_the_same_bytes() {
        let pattern = Pattern::new(7);
        let mut whole = vec![0; 1000];
        pattern.fill(0, &mut whole);
        for (start, length) in [(0, 1), (1, 9), (7, 64), (13, 987)] {
            let mut part = vec![0; length];
            pattern.fill(start as u64, &mut part);
            assert_eq!(part, whole[start..start + length]);
        }
    }

    #[test]
    fn one_wrong_byte_is_found_where_it_is() {
        let pattern = Pattern::new(7);
        let mut bytes = vec![0; 100];
        pattern.fill(50, &mut bytes);
        let mut scratch = Vec::new();
        assert_eq!(pattern.first_difference(50, &bytes, &mut scratch), None);
        bytes[33] ^= 1;
        assert_eq!(pattern.first_difference(50, &bytes, &mut scratch), Some(83));
        assert!(Pattern::new(8).first_difference(50, &bytes, &mut scratch).is_some());
    }
}
