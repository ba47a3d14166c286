//! Keeps a waypoint told who calls, for as long as a connection through it lasts: an assertion is good for a minute, and
//! what the waypoint opens for the caller later must have one that is good then.
//!
//! One word for all connections of a caller to the same thing through the same waypoint, however many there are.

use std::{
    cell::RefCell,
    collections::HashMap,
    rc::{Rc, Weak},
    sync::Arc,
    time::Duration,
};

use hbone::client::{Connect, Key, OpenError};
use identity::assertion::{Claims, REFRESH};

use crate::{
    pods::Pod,
    sockets::{self, Measure},
    worker::Worker,
};

/// Well below the life of an assertion, so that the waypoint never holds one that is about to end.
const EVERY: Duration = Duration::from_secs(25);

/// Whom the connections of one worker vouch for.
#[derive(Default)]
pub(crate) struct Vouchers {
    live: RefCell<HashMap<(Key, Claims), Weak<()>>>,
}

/// While one lives, its waypoint is told.
pub(crate) struct Vouched {
    _alive: Rc<()>,
}

/// Has the waypoint at `key` told of the caller, until what is returned is dropped.
pub(crate) fn vouch(worker: &Rc<Worker>, pod: &Arc<Pod>, key: Key, claims: Claims) -> Vouched {
    let mut live = worker.vouchers.live.borrow_mut();
    let name = (key, claims);
    if let Some(alive) = live.get(&name).and_then(Weak::upgrade) {
        return Vouched { _alive: alive };
    }
    let alive = Rc::new(());
    let watched = Rc::downgrade(&alive);
    live.insert(name.clone(), watched.clone());
    tokio::task::spawn_local(repeat(worker.clone(), pod.clone(), name, watched));
    Vouched { _alive: alive }
}

async fn repeat(worker: Rc<Worker>, pod: Arc<Pod>, name: (Key, Claims), alive: Weak<()>) {
    loop {
        tokio::time::sleep(EVERY).await;
        if alive.strong_count() == 0 {
            // Unless another connection has begun anew in the meantime.
            let mut live = worker.vouchers.live.borrow_mut();
            if live.get(&name).is_some_and(|held| held.ptr_eq(&alive)) {
                live.remove(&name);
            }
            return;
        }
        let (key, claims) = &name;
        if let Err(error) = tell(&worker, &pod, key, claims).await {
            tracing::debug!(pod = %pod.uid, peer = %key.peer, %error, "a waypoint could not be told who calls");
        }
    }
}

/// Why a waypoint could not be told.
#[derive(Debug, thiserror::Error)]
enum Untold {
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Assert(#[from] identity::assertion::CannotAssert),
}

async fn tell(worker: &Rc<Worker>, pod: &Arc<Pod>, key: &Key, claims: &Claims) -> Result<(), Untold> {
    let shared = &worker.shared;
    let certified = shared.store.certified(&pod.identity).await.map_err(OpenError::from)?;
    let connect = Connect {
        authority: REFRESH.to_owned(),
        source: (claims.address, 0).into(),
        service_host: None,
        baggage: None,
        traceparent: None,
        assertion: Some(shared.assertions.assert(&shared.store, &certified, claims)?),
    };
    let pool = worker.pool(pod);
    let (pod, shared, source_ip, peer) = (pod.clone(), shared.clone(), key.source_ip, key.peer);
    let dial = async move || {
        let options = &shared.settings.sockets;
        sockets::dial(&pod.netns, &pod.own, Some(source_ip), peer, Measure::No, options).await
    };
    // The answer is all there is to it.
    pool.open(key, dial, &connect).await?;
    Ok(())
}
