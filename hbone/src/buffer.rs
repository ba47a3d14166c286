//! Buffers that are borrowed only while bytes flow: a bounded free list per thread, three sizes.
//!
//! An idle connection holds none. What the list cannot keep goes back to the allocator.

use std::{
    cell::RefCell,
    ops::{Deref, DerefMut},
};

/// Bytes per buffer of each class. The smallest holds one TLS record of any size.
const SIZES: [usize; 3] = [17 << 10, 64 << 10, 256 << 10];
/// How many of each class a thread keeps: 2 MiB, 2 MiB and 4 MiB at most.
const KEPT: [usize; 3] = [128, 32, 16];

thread_local! {
    static FREE: RefCell<[Vec<Box<[u8]>>; 3]> = const { RefCell::new([Vec::new(), Vec::new(), Vec::new()]) };
}

/// How big a buffer to borrow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    Small = 0,
    Medium = 1,
    Large = 2,
}

impl Class {
    /// In bytes.
    pub fn size(self) -> usize {
        SIZES[self as usize]
    }

    /// For the next read, after one of `read` bytes into a buffer of this class: grows when it was
    /// filled, shrinks when the next smaller would have done.
    pub(crate) fn adapted(self, read: usize) -> Self {
        match self {
            Self::Small if read >= self.size() => Self::Medium,
            Self::Medium if read >= self.size() => Self::Large,
            Self::Medium if read <= Self::Small.size() / 2 => Self::Small,
            Self::Large if read <= Self::Medium.size() / 2 => Self::Medium,
            same => same,
        }
    }
}

/// A borrowed buffer; its contents are whatever was left in it. Dropping it gives it back.
pub struct Buffer {
    bytes: Box<[u8]>,
    class: Class,
}

impl Buffer {
    /// One from this thread's list, or a new one.
    pub fn take(class: Class) -> Self {
        let free = FREE.with_borrow_mut(|free| free[class as usize].pop());
        Self { bytes: free.unwrap_or_else(|| vec![0; class.size()].into_boxed_slice()), class }
    }

    /// One that begins with these bytes, of which there are no more than it holds.
    pub(crate) fn with(class: Class, bytes: &[u8]) -> Self {
        let mut buffer = Self::take(class);
        buffer[..bytes.len()].copy_from_slice(bytes);
        buffer
    }

    pub(crate) fn class(&self) -> Class {
        self.class
    }
}

impl Deref for Buffer {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        let class = self.class as usize;
        // At the end of a thread the list may be gone already; then the allocator takes it.
        let _ = FREE.try_with(|free| {
            let free = &mut free.borrow_mut()[class];
            if free.len() < KEPT[class] {
                free.push(bytes);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_comes_back_and_the_list_is_bounded() {
        let first = Buffer::take(Class::Large);
        let place = first.as_ptr();
        drop(first);
        assert_eq!(Buffer::take(Class::Large).as_ptr(), place);
        let many: Vec<_> = (0..100).map(|_| Buffer::take(Class::Large)).collect();
        drop(many);
        FREE.with_borrow(|free| assert_eq!(free[Class::Large as usize].len(), KEPT[2]));
    }

    #[test]
    fn reads_grow_and_shrink_the_class() {
        let grown = Class::Small.adapted(17 << 10).adapted(64 << 10);
        assert_eq!(grown, Class::Large);
        assert_eq!(grown.adapted(200 << 10), Class::Large);
        assert_eq!(grown.adapted(1000).adapted(1000), Class::Small);
    }
}
