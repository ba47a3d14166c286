//! Follows one kind: list, then watch, for ever. Nothing that the API server does ends it.
//!
//! ```text
//! locate ─▶ list ─▶ watch ─▶ (ended, broken) ─▶ watch from where it was
//!   ▲        ▲        ├─▶ (410: too long ago) ─▶ list
//!   │        └────────┘
//!   └── the kind is not served (any more)
//! ```

use std::{collections::HashSet, pin::pin, sync::Arc, time::Duration};

use futures_util::TryStreamExt;
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, info, warn};

use super::{
    backoff::Backoff,
    held::{Held, Name},
    kinds::{Place, fields, locate},
};
use crate::{manifest::Kind, metrics::Metrics};
use apiserver::{Api, ApiError, Told, with_query};

/// Objects in one answer to a list.
const PAGE: &str = "500";
/// A kind that is not there is looked for this often.
const LOOK_AGAIN: Duration = Duration::from_secs(30);
/// A kind that was there is gone when it was missed this often in a row.
const GONE_AFTER: u32 = 2;
/// The API server ends a watch after this many seconds; a connection that died unseen costs no more.
const WATCH_SECONDS: u64 = 120;
/// What is silent for this much longer is dead.
const GRACE: Duration = Duration::from_secs(15);
/// A watch that ends earlier, without a word, is taken for broken.
const SHORTEST: Duration = Duration::from_secs(1);

/// Follows one kind.
pub struct Follower {
    pub api: Api,
    pub held: Arc<Held>,
    pub kind: Kind,
    pub metrics: Arc<Metrics>,
}

/// Why a watch is over.
enum Over {
    /// Everything must be listed again.
    Relist(ApiError),
    /// The kind is not served where it was.
    Moved,
}

impl Follower {
    /// Never ends.
    pub async fn run(self) {
        let mut backoff = Backoff::default();
        let mut missed = 0;
        loop {
            match locate(&self.api, self.kind).await {
                Ok(Some(place)) => {
                    missed = 0;
                    self.follow(&place, &mut backoff).await;
                }
                Ok(None) => {
                    missed += 1;
                    self.missing(missed);
                    sleep(LOOK_AGAIN).await;
                }
                Err(error) => {
                    self.failed("looked for", &error);
                    backoff.wait().await;
                }
            }
        }
    }

    fn missing(&self, missed: u32) {
        let never_seen = self.held.is_pending(self.kind);
        if never_seen || missed >= GONE_AFTER {
            if never_seen {
                info!(kind = ?self.kind, "the API server does not have this kind; it is looked for again");
            }
            self.held.absent(self.kind);
        }
    }

    /// Until the kind is not there any more.
    async fn follow(&self, place: &Place, backoff: &mut Backoff) {
        loop {
            let version = match self.list(place).await {
                Ok(version) => version,
                Err(error) if error.is_absent() => return backoff.wait().await,
                Err(error) => {
                    self.failed("listed", &error);
                    backoff.wait().await;
                    continue;
                }
            };
            match self.watch(place, version, backoff).await {
                Over::Moved => return,
                Over::Relist(error) if error.is_gone() => {
                    // It has answered, so it is not what the pause had grown for.
                    backoff.reset();
                    debug!(kind = ?self.kind, "{error}: everything is listed again");
                }
                Over::Relist(error) => self.failed("watched", &error),
            }
            backoff.wait().await;
        }
    }

    /// Lists everything, page by page. The version from which to watch.
    async fn list(&self, place: &Place) -> Result<String, ApiError> {
        // By the keys that the store has: texts of their own, gone a moment later, would leave gaps in it.
        let mut keys = HashSet::new();
        let mut next = String::new();
        loop {
            let pairs = [("limit", PAGE), ("fieldSelector", fields(self.kind)), ("continue", &next)];
            let put = |object| keys.extend(self.held.put(self.kind, place, object));
            let page = self.api.page(&with_query(&place.path, &pairs), put).await?;
            if page.next.is_empty() {
                let version = page.resource_version;
                debug!(kind = ?self.kind, objects = keys.len(), version, "listed");
                self.held.listed(self.kind, &keys);
                return Ok(version);
            }
            next = page.next;
        }
    }

    async fn watch(&self, place: &Place, mut version: String, backoff: &mut Backoff) -> Over {
        loop {
            let begun = Instant::now();
            let before = version.clone();
            let ended = self.watch_once(place, &mut version).await;
            let went_well = version != before || begun.elapsed() >= SHORTEST;
            if went_well {
                backoff.reset();
            }
            match ended {
                Ok(()) if went_well => {}
                Ok(()) => backoff.wait().await,
                Err(error) if error.is_absent() => return Over::Moved,
                // What cannot be read would be sent again.
                Err(error) if error.is_gone() || matches!(error, ApiError::Nonsense(_)) => {
                    return Over::Relist(error);
                }
                // A server that is overloaded, or may not be asked just now, is not asked for everything besides.
                Err(error) => {
                    self.failed("watched", &error);
                    backoff.wait().await;
                }
            }
        }
    }

    /// One watch to its end; `version` is what was seen last.
    async fn watch_once(&self, place: &Place, version: &mut String) -> Result<(), ApiError> {
        let seconds = WATCH_SECONDS.to_string();
        let pairs = [
            ("watch", "true"),
            ("allowWatchBookmarks", "true"),
            ("timeoutSeconds", &seconds),
            ("resourceVersion", version),
            ("fieldSelector", fields(self.kind)),
        ];
        let mut events = pin!(self.api.watch(&with_query(&place.path, &pairs)).await?);
        loop {
            let event = timeout(Duration::from_secs(WATCH_SECONDS) + GRACE, events.try_next()).await;
            let seen = match event.map_err(|_| ApiError::Silent)?? {
                None => return Ok(()),
                Some(Told::Version(seen)) => {
                    *version = seen;
                    continue;
                }
                Some(Told::Is(object)) => {
                    let seen = seen_version(&object);
                    self.held.put(self.kind, place, object);
                    seen
                }
                Some(Told::IsGone(object)) => {
                    if let Some(name) = Name::of(&object) {
                        self.held.remove(self.kind, &name);
                    }
                    seen_version(&object)
                }
            };
            if let Some(seen) = seen {
                *version = seen;
            }
        }
    }

    fn failed(&self, what: &str, error: &ApiError) {
        self.metrics.watch_failed(self.kind);
        warn!(kind = ?self.kind, "cannot be {what}: {error}; what is held holds");
        self.held.failed(self.kind, error.to_string());
    }
}

fn seen_version(object: &serde_json::Value) -> Option<String> {
    object["metadata"]["resourceVersion"].as_str().map(str::to_owned)
}
