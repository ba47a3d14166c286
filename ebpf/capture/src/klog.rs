//! The kernel programs' log, brought to `tracing`: one thread per pod while it is switched on.

use crate::Error;
use aya::Ebpf;
use aya_log::EbpfLogger;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::{
    os::fd::AsFd as _,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

/// The map through which the log comes.
pub(crate) const RING: &str = "AYA_LOGS";
/// How long the thread may take to notice that it is to end, in milliseconds.
const BEAT: u16 = 200;

/// What is written into the programs as their level: all of it, or nothing.
pub(crate) const fn level(on: bool) -> u8 {
    if on { u8::MAX } else { 0 }
}

/// Reads the log until it is dropped.
#[derive(Debug)]
pub(crate) struct Reader(Arc<AtomicBool>);

impl Reader {
    /// Starts reading the log of the programs in `ebpf`, which belong to the pod `uid`.
    pub(crate) fn start(ebpf: &mut Ebpf, uid: &str) -> Result<Self, Error> {
        let sink =
            Sink { uid: uid.to_owned(), names: abi::counters().map(|(c, name)| (c.0, name)).collect() };
        let mut logger = EbpfLogger::init_with_logger(ebpf, sink)
            .map_err(|error| Error::kernel("read the kernel programs' log", &error))?;
        let stop = Arc::new(AtomicBool::new(false));
        let told = stop.clone();
        thread::Builder::new()
            .name("kernel-log".to_owned())
            .spawn(move || {
                while !told.load(Ordering::Relaxed) {
                    let _ =
                        poll(&mut [PollFd::new(logger.as_fd(), PollFlags::POLLIN)], PollTimeout::from(BEAT));
                    logger.flush();
                }
            })
            .map_err(|source| Error::system("start a thread for the kernel programs' log", source))?;
        Ok(Self(stop))
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Puts the verdict's name in the place of its number.
struct Sink {
    uid: String,
    names: Vec<(u32, &'static str)>,
}

impl log::Log for Sink {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let line = record.args().to_string();
        let parts = line.strip_prefix("verdict ").and_then(|rest| rest.split_once(": "));
        let named = parts.and_then(|(number, packet)| {
            let number = number.parse::<u32>().ok()?;
            let (_, name) = self.names.iter().find(|(place, _)| *place == number)?;
            Some((*name, packet))
        });
        match named {
            Some((verdict, packet)) => {
                tracing::info!(target: "culvert::kernel", pod = self.uid, verdict, "{packet}");
            }
            None => tracing::info!(target: "culvert::kernel", pod = self.uid, "{line}"),
        }
    }

    fn flush(&self) {}
}
