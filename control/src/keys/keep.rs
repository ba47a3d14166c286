//! Keeps the keys of tokens fresh: each place is asked again and again, a failure leaves what was fetched last.

use std::{
    collections::{BTreeMap, BTreeSet},
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
    FetchedKeys, Want, Wanted,
    client::{Client, Failed},
};
use crate::{
    manifest::{KeySource, configuration},
    metrics::Metrics,
    objects::Objects,
};

/// The pause after a first failure, if keys do not become that old; each further one doubles it.
const PAUSE: Duration = Duration::from_secs(2);
/// Places that are asked at a time …
const MOST_AT_A_TIME: usize = 32;
/// … and for one namespace: nobody waits for others whose places are silent.
const MOST_FOR_NAMESPACE: usize = 4;
/// Places that are asked at all.
const MOST: usize = 1024;

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
    /// Those that are not asked, since there are too many.
    beyond: BTreeSet<KeySource>,
    asking: JoinSet<(KeySource, Result<jwt::keys::KeySet, NoKeys>)>,
    /// For whom each of them is asked.
    asking_for: BTreeMap<KeySource, Arc<str>>,
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
    want: Want,
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
        let first = objects.lock().unwrap_or_else(PoisonError::into_inner).key_sources(&Wanted::new());
        let (wants, wanted) = watch::channel(first);
        let (changes, changed) = watch::channel(0);
        let (settled, is_settled) = watch::channel(false);
        let keeper = Self {
            client: client.among(objects.clone()),
            refresh,
            objects,
            metrics,
            wanted,
            changes,
            settled,
            held: BTreeMap::new(),
            beyond: BTreeSet::new(),
            asking: JoinSet::new(),
            asking_for: BTreeMap::new(),
        };
        (keeper, Handle { wanted: wants, changes: changed, settled: is_settled })
    }

    /// Runs until nobody wants anything any more.
    pub async fn run(mut self) {
        loop {
            self.take_wanted();
            let due = self.ask_due();
            self.count();
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
        let is_gone = |source: &&KeySource| !wanted.contains_key(*source);
        let gone: Vec<KeySource> = self.held.keys().chain(&self.beyond).filter(is_gone).cloned().collect();
        for source in gone {
            self.held.remove(&source);
            self.beyond.remove(&source);
            self.tell(&source, None);
        }
        for (source, want) in wanted {
            let held = self.held.len();
            let problem = match self.held.get_mut(&source) {
                _ if want.namespaces.is_empty() => {
                    format!("its namespace has more than {} such places", Want::MOST_OF_NAMESPACE)
                }
                Some(held) => {
                    held.want = want;
                    continue;
                }
                None if held >= MOST => format!("there are more than {MOST} such places"),
                None => {
                    self.beyond.remove(&source);
                    let (fetched, due) = (FetchedKeys::default(), Some(Instant::now()));
                    self.held.insert(source, Held { fetched, want, failures: 0, due, asked: false });
                    continue;
                }
            };
            self.held.remove(&source);
            self.tell(&source, Some(FetchedKeys { keys: None, problem: Some(problem.into()) }));
            self.beyond.insert(source);
        }
        self.settle();
    }

    /// Asks those that are due, whoever has waited longest first. When the next one is.
    fn ask_due(&mut self) -> Option<Instant> {
        let now = Instant::now();
        let mut due: Vec<(Instant, &KeySource)> =
            self.held.iter().filter_map(|(source, held)| Some((held.due?, source))).collect();
        due.sort();
        let mut busy: BTreeMap<Arc<str>, usize> = BTreeMap::new();
        for namespace in self.asking_for.values() {
            *busy.entry(namespace.clone()).or_default() += 1;
        }
        let mut asked = Vec::new();
        let mut next = None;
        for (at, source) in due {
            if self.asking.len() + asked.len() >= MOST_AT_A_TIME {
                break;
            }
            let namespaces = self.held.get(source).map(|held| &held.want.namespaces);
            let has_room = |of: &&Arc<str>| busy.get(*of).is_none_or(|busy| *busy < MOST_FOR_NAMESPACE);
            // Whoever has none is asked for when an answer has come.
            let Some(namespace) = namespaces.into_iter().flatten().find(has_room) else { continue };
            if at > now {
                next = Some(at);
                break;
            }
            *busy.entry(namespace.clone()).or_default() += 1;
            asked.push((source.clone(), namespace.clone()));
        }
        for (source, namespace) in asked {
            let Some(held) = self.held.get_mut(&source) else { continue };
            held.due = None;
            self.asking_for.insert(source.clone(), namespace);
            let (client, patience) = (self.client.clone(), held.want.patience);
            self.asking.spawn(async move {
                let outcome = fetch(&client, &source, patience).await;
                (source, outcome)
            });
        }
        next
    }

    /// Takes an answer.
    fn take(&mut self, source: KeySource, outcome: Result<jwt::keys::KeySet, NoKeys>) {
        self.asking_for.remove(&source);
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
        let missing = self.held.len() - fresh - stale;
        self.metrics.set_key_sources(fresh, stale, missing, self.beyond.len());
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
