//! Addresses of endpoints that are known by their names alone: asked of DNS, and kept for a moment.
//!
//! Who asks while an answer is on its way waits for that one. What was known holds on while DNS does not answer, for a
//! while.

use std::{cell::RefCell, collections::HashMap, io, net::IpAddr, rc::Rc, sync::Arc, time::Duration};

use tokio::{
    net::lookup_host,
    sync::Mutex,
    time::{Instant, timeout},
};

/// After this an answer is asked for anew, and holds until there is another.
const FRESH: Duration = Duration::from_secs(5);
/// After this an answer holds no more.
const STALE: Duration = Duration::from_secs(300);
/// For so long nobody asks again after a failure.
const FAILED: Duration = Duration::from_secs(1);
/// How long DNS may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Names that are known at a time.
const MOST: usize = 1024;

/// What one worker knows.
#[derive(Default)]
pub(super) struct Names(RefCell<HashMap<Arc<str>, Rc<Name>>>);

#[derive(Default)]
struct Name {
    known: RefCell<Known>,
    asking: Mutex<()>,
}

#[derive(Default)]
struct Known {
    addresses: Arc<[IpAddr]>,
    answered: Option<Instant>,
    failed: Option<(Instant, Arc<str>)>,
}

impl Known {
    fn is_answered_within(&self, time: Duration) -> bool {
        self.answered.is_some_and(|answered| answered.elapsed() < time)
    }
}

impl Names {
    /// The addresses of a name; never none.
    ///
    /// # Errors
    /// With the reason, where there are none.
    pub(super) async fn resolve(&self, name: &Arc<str>) -> Result<Arc<[IpAddr]>, Arc<str>> {
        let held = self.name(name)?;
        let known = || {
            let known = held.known.borrow();
            known.is_answered_within(STALE).then(|| known.addresses.clone())
        };
        if let Some(addresses) = known() {
            let fresh = held.known.borrow().is_answered_within(FRESH);
            if !fresh && held.asking.try_lock().is_ok() {
                let (name, held) = (name.clone(), held.clone());
                tokio::task::spawn_local(async move { held.ask(&name).await });
            }
            return Ok(addresses);
        }
        held.ask(name).await;
        known().ok_or_else(|| {
            let known = held.known.borrow();
            known
                .failed
                .as_ref()
                .map_or_else(|| "DNS has no address of it".into(), |(_, reason)| reason.clone())
        })
    }

    fn name(&self, name: &Arc<str>) -> Result<Rc<Name>, Arc<str>> {
        let mut held = self.0.borrow_mut();
        if let Some(name) = held.get(name) {
            return Ok(name.clone());
        }
        if held.len() >= MOST {
            return Err(format!("more than {MOST} names are asked for at a time").into());
        }
        Ok(held.entry(name.clone()).or_default().clone())
    }

    /// Forgets what holds no more.
    pub(super) fn sweep(&self) {
        self.0.borrow_mut().retain(|_, name| {
            name.asking.try_lock().is_err() || name.known.borrow().is_answered_within(STALE)
        });
    }
}

impl Name {
    /// Asks, unless somebody else just has.
    async fn ask(&self, name: &str) {
        let _turn = self.asking.lock().await;
        let just = {
            let known = self.known.borrow();
            known.is_answered_within(FRESH)
                || known.failed.as_ref().is_some_and(|(at, _)| at.elapsed() < FAILED)
        };
        if just {
            return;
        }
        // With its dot: nothing is put behind it, so that nobody's service stands for it.
        let asked = (format!("{}.", name.trim_end_matches('.')), 0);
        let answered = timeout(PATIENCE, lookup_host(asked)).await;
        let answered = answered.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        let mut known = self.known.borrow_mut();
        match answered.map(|found| found.map(|at| at.ip().to_canonical()).collect::<Vec<_>>()) {
            Ok(mut found) if !found.is_empty() => {
                found.sort_unstable();
                found.dedup();
                *known = Known { addresses: found.into(), answered: Some(Instant::now()), failed: None };
            }
            Ok(_) => known.failed = Some((Instant::now(), "DNS has no address of it".into())),
            Err(error) => known.failed = Some((Instant::now(), error.to_string().into())),
        }
    }
}
