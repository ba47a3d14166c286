//! How the allocator treats what bulk streams borrow for a moment.

/// Freed memory that is kept at the top of each heap.
#[cfg(target_env = "gnu")]
const KEPT: libc::c_int = 16 << 20;

/// Blocks from this size on are mapped one by one: more than any frame.
#[cfg(target_env = "gnu")]
const MAPPED: libc::c_int = 4 << 20;

/// Keeps freed memory for the next frame.
///
/// The allocator of glibc gives the top of a heap back to the kernel as soon as 128 KiB are free there, so that
/// each frame of a bulk stream is paid for page by page; whether it does depends on what idle connections lie
/// above, and cost a third of the bulk rate (`cargo xtask bench --only memory,bulk-1,two-nodes`).
#[allow(unsafe_code)]
pub(crate) fn keep_freed() {
    #[cfg(target_env = "gnu")]
    for (parameter, value) in [(libc::M_TRIM_THRESHOLD, KEPT), (libc::M_MMAP_THRESHOLD, MAPPED)] {
        // One that it does not take costs speed alone.
        // SAFETY: sets a number of the allocator; there is no other thread yet.
        let _ = unsafe { libc::mallopt(parameter, value) };
    }
}
