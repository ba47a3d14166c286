//! The thread that writes the log, and the bounded buffer before it.

use std::{
    io::{self, Write},
    mem,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use prometheus_client::metrics::counter::Counter;

/// Lines beyond this many waiting bytes are dropped.
const CAPACITY: usize = 4 << 20;
/// How long lines gather before they are written together: one wake-up and one write for all.
const GATHER: Duration = Duration::from_millis(5);
/// How long [`Writer::flush`] waits for a reader that does not read.
const FLUSH: Duration = Duration::from_secs(2);

/// A handle to the writing thread, which lives as long as the process.
#[derive(Clone)]
pub(super) struct Writer {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    /// Signalled when lines come while the thread sleeps.
    filled: Condvar,
    /// Signalled when everything is written.
    emptied: Condvar,
    dropped: Counter,
}

#[derive(Default)]
struct State {
    waiting: Vec<u8>,
    /// The thread waits for `filled`.
    asleep: bool,
    /// The thread is writing what it took.
    writing: bool,
}

impl Writer {
    /// Starts the thread, which owns `out`.
    pub(super) fn start(out: impl Write + Send + 'static) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            filled: Condvar::new(),
            emptied: Condvar::new(),
            dropped: Counter::default(),
        });
        let own = shared.clone();
        thread::Builder::new().name("log".into()).spawn(move || own.run(out))?;
        Ok(Self { shared })
    }

    /// Hands a line over; never blocks on the output.
    pub(super) fn push(&self, line: &str) {
        let mut state = self.shared.lock();
        if state.waiting.len() + line.len() > CAPACITY {
            self.shared.dropped.inc();
            return;
        }
        state.waiting.extend_from_slice(line.as_bytes());
        if mem::take(&mut state.asleep) {
            drop(state);
            self.shared.filled.notify_one();
        }
    }

    /// Waits until everything so far is written, two seconds at most.
    pub(super) fn flush(&self) {
        let state = self.shared.lock();
        let unwritten = |state: &mut State| state.writing || !state.waiting.is_empty();
        drop(
            self.shared
                .emptied
                .wait_timeout_while(state, FLUSH, unwritten)
                .unwrap_or_else(PoisonError::into_inner),
        );
    }

    /// Counts the lines that were dropped.
    pub(super) fn dropped(&self) -> Counter {
        self.shared.dropped.clone()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self, mut out: impl Write) {
        let mut batch = Vec::new();
        loop {
            let mut state = self.lock();
            while state.waiting.is_empty() {
                state.asleep = true;
                state = self.filled.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            drop(state);
            thread::sleep(GATHER);

            let mut state = self.lock();
            mem::swap(&mut state.waiting, &mut batch);
            state.writing = true;
            drop(state);

            // Nobody is left to tell when the log itself cannot be written.
            let _ = out.write_all(&batch).and_then(|()| out.flush());
            batch.clear();
            batch.shrink_to(64 << 10);

            let mut state = self.lock();
            state.writing = false;
            let empty = state.waiting.is_empty();
            drop(state);
            if empty {
                self.emptied.notify_all();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    /// An output that blocks until it is let go.
    struct Stuck(mpsc::Receiver<()>, Arc<Mutex<usize>>);

    impl Write for Stuck {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.0.recv();
            *self.1.lock().expect("not poisoned") += bytes.len();
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_stuck_reader_costs_lines_but_never_time() {
        let (release, stuck) = mpsc::channel();
        let written = Arc::new(Mutex::new(0));
        let writer = Writer::start(Stuck(stuck, written.clone())).expect("a thread");
        let line = "x".repeat(1 << 10);
        let pushed = 3 * CAPACITY / line.len();
        for _ in 0..pushed {
            writer.push(&line);
        }
        let dropped = writer.dropped().get() as usize;
        assert!(dropped > 0, "nothing was dropped");
        drop(release);
        writer.flush();
        assert_eq!(*written.lock().expect("not poisoned"), (pushed - dropped) * line.len());
    }
}
