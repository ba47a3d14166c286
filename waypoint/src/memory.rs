//! Where memory comes from.
//!
//! Requests are short-lived, and of all sizes up to a frame: glibc's allocator looks for most of what is larger than a
//! kilobyte in lists that all sizes share (`cargo xtask bench l7`).

#[global_allocator]
static HEAP: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;
