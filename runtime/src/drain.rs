//! Drain: one place asks everybody to finish, and waits until nobody holds work any more.
//!
//! ```
//! # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
//! let (drain, watch) = runtime::drain::channel();
//! let hold = watch.hold();            // one per accepted connection: "I am still working"
//! tokio::spawn(async move {
//!     watch.started().await;          // stop taking new work …
//!     drop(hold);                     // … and let go when the old is done
//! });
//! drain.start();
//! drain.finished().await;             // every hold is gone
//! # });
//! ```

use std::{io, sync::Arc};

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};

/// Makes a drain that has not started.
pub fn channel() -> (Drain, Watch) {
    let state = Arc::new(State { started: watch::Sender::new(false), holds: watch::Sender::new(()) });
    (Drain { state: state.clone() }, Watch { state })
}

struct State {
    started: watch::Sender<bool>,
    /// Each [`Hold`] keeps one receiver: the channel is closed when the last one is dropped.
    holds: watch::Sender<()>,
}

/// The side that asks for the drain. Dropping it does not start one.
pub struct Drain {
    state: Arc<State>,
}

/// The side that is asked. Clones are cheap and do not delay the drain; a [`Hold`] does.
#[derive(Clone)]
pub struct Watch {
    state: Arc<State>,
}

/// Work in progress: while one lives, [`Drain::finished`] waits.
pub struct Hold {
    _alive: watch::Receiver<()>,
}

impl Drain {
    /// Asks everybody to finish. A second call changes nothing.
    pub fn start(&self) {
        self.state.started.send_replace(true);
    }

    /// Waits until no [`Hold`] is left. Bound it with a timeout: a carried connection has none.
    pub async fn finished(&self) {
        self.state.holds.closed().await;
    }

    /// How many holds are left.
    pub fn holds(&self) -> usize {
        self.state.holds.receiver_count()
    }

    /// Another watch of this drain.
    pub fn watch(&self) -> Watch {
        Watch { state: self.state.clone() }
    }
}

impl Watch {
    /// Completes once the drain has started, at once if it has already.
    pub async fn started(&self) {
        let mut started = self.state.started.subscribe();
        // The sender lives in the state that this watch owns, so waiting cannot fail.
        let _ = started.wait_for(|started| *started).await;
    }

    /// Whether the drain has started.
    pub fn is_started(&self) -> bool {
        *self.state.started.borrow()
    }

    /// Declares work in progress.
    pub fn hold(&self) -> Hold {
        Hold { _alive: self.state.holds.subscribe() }
    }
}

/// Waits for SIGTERM or SIGINT and says which came.
///
/// # Errors
/// When the handlers cannot be installed.
pub async fn termination() -> io::Result<&'static str> {
    let mut term = signal(SignalKind::terminate())?;
    let mut int = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = term.recv() => Ok("SIGTERM"),
        _ = int.recv() => Ok("SIGINT"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn finished_waits_for_every_hold_and_clones_do_not_count() {
        let (drain, watch) = channel();
        let (first, second) = (watch.hold(), watch.clone().hold());
        assert!(!watch.is_started());
        drain.start();
        watch.started().await;
        assert_eq!(drain.holds(), 2);
        drop(first);
        let finished = drain.finished();
        tokio::pin!(finished);
        tokio::select! {
            biased;
            () = &mut finished => panic!("finished while a hold lives"),
            () = tokio::task::yield_now() => {}
        }
        drop(second);
        finished.await;
    }

    #[tokio::test]
    async fn a_watch_made_after_the_start_knows_of_it() {
        let (drain, _) = channel();
        drain.start();
        drain.watch().started().await;
        drain.finished().await;
    }
}
