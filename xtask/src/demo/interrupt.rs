//! Ctrl-C takes the world down before the process ends.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};

/// Set by the first signal, for the rest of the process's life.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Watches for SIGINT, SIGTERM and SIGHUP.
pub(crate) fn watch(id: &str) -> Result<()> {
    let id = id.to_owned();
    let clean_up = move || {
        INTERRUPTED.store(true, Ordering::Release);
        eprintln!("\ninterrupted: removing the demo's world");
        let code = match bed::remove_world(&id) {
            Ok(()) => 130,
            Err(error) => {
                eprintln!("{error:#}");
                1
            }
        };
        std::process::exit(code);
    };
    ctrlc::set_handler(clean_up).context("watch for Ctrl-C")
}

/// Where a step failed because the world is being removed under it: waits for the process's end.
pub(crate) fn give_way() {
    while INTERRUPTED.load(Ordering::Acquire) {
        std::thread::park();
    }
}
