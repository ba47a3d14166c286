//! Ctrl-C takes down what was set up before the process ends.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};

/// Set by the first signal, for the rest of the process's life.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Watches for SIGINT, SIGTERM and SIGHUP; `what` is said, and `remove` is done.
pub(crate) fn watch(what: &'static str, remove: impl Fn() -> Result<()> + Send + 'static) -> Result<()> {
    let clean_up = move || {
        INTERRUPTED.store(true, Ordering::Release);
        eprintln!("\ninterrupted: {what}");
        let code = match remove() {
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

/// Where a step failed because what it needs is being removed under it: waits for the process's end.
pub(crate) fn give_way() {
    while INTERRUPTED.load(Ordering::Acquire) {
        std::thread::park();
    }
}
