//! Where memory comes from.
//!
//! Control reads many times what it keeps, in pieces of all sizes. With glibc's allocator what is kept ends up
//! scattered: a large mesh took a quarter more memory, and three times the CPU to look for gaps (`cargo xtask bench
//! control`).

#[global_allocator]
static HEAP: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// One arena: those that read would each have one of their own, with what is kept of it scattered over all of them; what
/// threads allocate for a moment comes from their own caches anyway. What is free goes back to the kernel after a fifth
/// of a second, from a thread of its own, so that a quiet control is as small as it can be.
///
/// jemalloc reads its settings from a symbol of this name, as text that ends with a zero.
#[unsafe(export_name = "_rjem_malloc_conf")]
#[allow(unsafe_code)] // The name: nobody else has it.
static SETTINGS: &u8 = &b"narenas:1,background_thread:true,dirty_decay_ms:200,muzzy_decay_ms:0\0"[0];
