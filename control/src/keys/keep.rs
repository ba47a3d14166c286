//! Keeps the keys of tokens fresh: each place is asked again and again, a failure leaves what was fetched last.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use serde::Deserialize;
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep_until},
};
use tracing::{debug, info, warn};

use super::{
    FetchedKeys,
    client::{Client, Failed},
};
use crate::{
    manifest::{KeySource, configuration},
    metrics::Metrics,
    objects::Objects,
};

/// The pause after a first failure, if keys do not become that old; each further one doubles it.
const PAUSE: Duration = Duration::from_secs(2);
/// Places that are asked at a time.
const MOST_AT_A_TIME: usize = 16;
/// Places that are asked at all.
const MOST: usize = 1024;

/// Where keys are to be fetched from, and how long that may take.
pub type Wanted = BTreeMap<KeySource, Duration>;

/// Fetches, as long as it runs.
pub struct Keeper {
    client: Client,
    /// How old keys become before they are fetched again.
    refresh: Duration,
    objects: Arc<Mutex<Objects>>,
    metrics: Arc<Metrics>,
    wanted: watch::Receiver<Wanted>,
    /// Rises whenever other keys are there, or another problem.
    changes: watch::Sender<u64>,
    /// Whether every place that is wanted was asked once.
    settled: watch::Sender<bool>,
    held: BTreeMap<KeySource, Held>,
    asking: JoinSet<(KeySource, Result<jwt::keys::KeySet, NoKeys>)>,
}

/// The keeper as the rest of control knows it.
pub struct Handle {
    pub wanted: watch::Sender<Wanted>,
    pub changes: watch::Receiver<u64>,
    pub settled: watch::Receiver<bool>,
}

/// What is known of a place.
struct Held {
    fetched: FetchedKeys,
    patience: Duration,
    failures: u32,
    /// When it is asked; `None` while it is.
    due: Option<Instant>,
    asked: bool,
}

/// Why there are no keys.
#[derive(Debug, thiserror::Error)]
enum NoKeys {
    #[error(transparent)]
    Fetch(#[from] Failed),
    #[error("what it has cannot be used: {0}")]
    Set(#[from] jwt::keys::BadKeySet),
    #[error("the issuer's configuration is none: it has no jwks_uri")]
    Configuration,
    #[error("the configuration was read by https, and names keys that are not: {0}")]
    Unsafe(String),
    #[error("the configuration is that of another issuer")]
    AnotherIssuer,
}

/// An issuer's configuration (OpenID Connect Discovery 1.0, 3).
#[derive(Deserialize)]
struct Configuration {
    issuer: String,
    jwks_uri: String,
}

impl Keeper {
    pub fn new(
        client: Client,
        refresh: Duration,
        objects: Arc<Mutex<Objects>>,
        metrics: Arc<Metrics>,
    ) -> (Self, Handle) {
        let first = objects.lock().unwrap_or_else(PoisonError::into_inner).key_sources();
        let (wants, wanted) = watch::channel(first);
        let (changes, changed) = watch::channel(0);
        let (settled, is_settled) = watch::channel(false);
        let (held, asking) = (BTreeMap::new(), JoinSet::new());
        let keeper = Self { client, refresh, objects, metrics, wanted, changes, settled, held, asking };
        (keeper, Handle { wanted: wants, changes: changed, settled: is_settled })
    }

    /// Runs until nobody wants anything any more.
    pub async fn run(mut self) {
        loop {
            self.take_wanted();
            self.ask_due();
            self.count();
            let due = self.held.values().filter_map(|held| held.due).min();
            let due = due.filter(|_| self.asking.len() < MOST_AT_A_TIME);
            tokio::select! {
                changed = self.wanted.changed() => if changed.is_err() { return },
                Some(asked) = self.asking.join_next() => {
                    // Nothing breaks off: whatever goes wrong is an outcome.
                    if let Ok((source, outcome)) = asked {
                        self.take(source, outcome);
                    }
                }
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {}
            }
        }
    }

    fn take_wanted(&mut self) {
        let wanted = self.wanted.borrow_and_update().clone();
        let gone: Vec<KeySource> =
            self.held.keys().filter(|source| !wanted.contains_key(*source)).cloned().collect();
        for source in gone {
            self.held.remove(&source);
            self.tell(&source, None);
        }
        for (source, patience) in wanted {
            if let Some(held) = self.held.get_mut(&source) {
                held.patience = patience;
                continue;
            }
            let is_one_too_many = self.held.len() >= MOST;
            let problem = is_one_too_many.then(|| format!("there are more than {MOST} such places").into());
            let fetched = FetchedKeys { keys: None, problem };
            if is_one_too_many {
                self.tell(&source, Some(fetched));
                continue;
            }
            let due = Some(Instant::now());
            self.held.insert(source, Held { fetched, patience, failures: 0, due, asked: false });
        }
        self.settle();
    }

    fn ask_due(&mut self) {
        let now = Instant::now();
        for (source, held) in &mut self.held {
            if self.asking.len() >= MOST_AT_A_TIME {
                break;
            }
            if held.due.is_some_and(|due| due <= now) {
                held.due = None;
                let (client, source, patience) = (self.client.clone(), source.clone(), held.patience);
                self.asking.spawn(async move {
                    let outcome = fetch(&client, &source, patience).await;
                    (source, outcome)
                });
            }
        }
    }

    /// Takes an answer.
    fn take(&mut self, source: KeySource, outcome: Result<jwt::keys::KeySet, NoKeys>) {
        let Some(held) = self.held.get_mut(&source) else { return };
        held.asked = true;
        self.metrics.keys_fetched(outcome.is_ok());
        let before = held.fetched.clone();
        let pause = match outcome {
            Ok(set) => {
                held.failures = 0;
                held.fetched = FetchedKeys { keys: Some(set.keys), problem: None };
                for left_out in set.left_out {
                    debug!(%source, left_out, "a key is left out");
                }
                self.refresh
            }
            Err(problem) => {
                held.failures = held.failures.saturating_add(1);
                held.fetched.problem = Some(problem.to_string().into());
                PAUSE.saturating_mul(1 << (held.failures - 1).min(8)).min(self.refresh)
            }
        };
        // Not all replicas at one time, and not all places.
        held.due = Some(Instant::now() + pause.mul_f64(0.9 + 0.1 * rand::random::<f64>()));
        let now = held.fetched.clone();
        match (&now.problem, before.problem.is_some()) {
            (Some(problem), _) if now.problem != before.problem => {
                warn!(%source, %problem, known = now.keys.is_some(), "keys of tokens cannot be fetched");
            }
            (None, true) => info!(%source, "keys of tokens can be fetched again"),
            (None, false) if now.keys != before.keys => {
                info!(%source, keys = now.keys.as_ref().map_or(0, |keys| keys.len()), "keys of tokens were fetched");
            }
            _ => {}
        }
        self.tell(&source, Some(now));
        self.settle();
    }

    fn tell(&self, source: &KeySource, fetched: Option<FetchedKeys>) {
        let changed = {
            let mut objects = self.objects.lock().unwrap_or_else(PoisonError::into_inner);
            objects.set_keys(source, fetched)
        };
        if changed {
            self.changes.send_modify(|changes| *changes += 1);
        }
    }

    fn settle(&self) {
        let settled = self.held.values().all(|held| held.asked);
        self.settled.send_if_modified(|before| std::mem::replace(before, settled) != settled);
    }

    fn count(&self) {
        let of =
            |pick: fn(&FetchedKeys) -> bool| self.held.values().filter(|held| pick(&held.fetched)).count();
        let fresh = of(|fetched| fetched.keys.is_some() && fetched.problem.is_none());
        let stale = of(|fetched| fetched.keys.is_some() && fetched.problem.is_some());
        self.metrics.set_key_sources(fresh, stale, self.held.len() - fresh - stale);
    }
}

async fn fetch(client: &Client, source: &KeySource, patience: Duration) -> Result<jwt::keys::KeySet, NoKeys> {
    let uri = match source {
        KeySource::Set(uri) => uri.to_string(),
        KeySource::Issuer(issuer) => {
            let found = client.get(&configuration(issuer), patience).await?;
            let found: Configuration = serde_json::from_slice(&found).map_err(|_| NoKeys::Configuration)?;
            // Whoever has another's configuration has another's keys (4.3).
            if *found.issuer != **issuer {
                return Err(NoKeys::AnotherIssuer);
            }
            // On the way anybody could put others in their place.
            if issuer.starts_with("https:") && !found.jwks_uri.starts_with("https:") {
                return Err(NoKeys::Unsafe(found.jwks_uri));
            }
            found.jwks_uri
        }
    };
    Ok(jwt::keys::read(&client.get(&uri, patience).await?)?)
}
