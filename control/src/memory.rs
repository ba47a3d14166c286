//! How the allocator treats what is read for a moment, beside what is kept for long.

/// One heap for all threads. Those that read manifests would each have one of their own, with what is kept of
/// them scattered over it, and the rest lost until somebody reads as much again: a third of all memory of a large
/// mesh (`cargo xtask bench control`). What threads allocate for a moment comes from their own caches anyway.
pub(crate) fn one_heap() {
    #[cfg(target_env = "gnu")]
    set(libc::M_ARENA_MAX, 1);
}

/// Gives what was freed back to the kernel: for when a great deal was read, and now it is quiet.
#[allow(unsafe_code)]
pub(crate) fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: asks the allocator to give up pages that hold nothing; it locks itself.
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(target_env = "gnu")]
#[allow(unsafe_code)]
fn set(parameter: libc::c_int, value: libc::c_int) {
    // SAFETY: sets a number of the allocator; there is no other thread yet.
    if unsafe { libc::mallopt(parameter, value) } == 0 {
        tracing::debug!(parameter, value, "the allocator does not take a setting");
    }
}
