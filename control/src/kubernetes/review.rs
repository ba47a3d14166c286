//! Tokens of service accounts: the API server is asked what each is worth, and its answer is remembered for
//! a while.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use aws_lc_rs::digest::{SHA256, digest};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
use serde_json::{Value, json};
use tokio::{sync::Semaphore, time::Instant};
use tonic::Status;
use tracing::warn;

use super::{
    held::Held,
    judge::{self, Account, Proved},
};
use crate::metrics::{Metrics, Review};
use apiserver::Api;

/// An answer is good for this long, and never longer than the token.
const REMEMBERED: Duration = Duration::from_secs(60);
/// A refusal is remembered for less: it may be that the API server was behind.
const REFUSED: Duration = Duration::from_secs(5);
/// Answers that are remembered at a time: a node has two tokens, which change every hour or so.
const MAX_REMEMBERED: usize = 16 * 1024;
/// Questions to the API server at a time; who comes then waits.
const MAX_QUESTIONS: usize = 32;
/// No token is longer.
const LONGEST: usize = 16 * 1024;
const PATH: &str = "/apis/authentication.k8s.io/v1/tokenreviews";

/// Asks and remembers.
pub struct Reviews {
    api: Api,
    held: Arc<Held>,
    audiences: Vec<String>,
    /// Who may speak for the nodes that their pods run on.
    accounts: BTreeSet<Account>,
    metrics: Arc<Metrics>,
    remembered: Mutex<HashMap<[u8; 32], Remembered>>,
    questions: Semaphore,
}

#[derive(Clone)]
struct Remembered {
    proved: Result<Proved, String>,
    until: Instant,
}

impl Reviews {
    pub fn new(
        api: Api,
        held: Arc<Held>,
        audiences: Vec<String>,
        accounts: BTreeSet<Account>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let (remembered, questions) = (Mutex::default(), Semaphore::new(MAX_QUESTIONS));
        Self { api, held, audiences, accounts, metrics, remembered, questions }
    }

    /// Who `token` proves to call now, a node or a pod by itself: the pod is looked at each time.
    ///
    /// # Errors
    /// `UNAUTHENTICATED` with the reason; `UNAVAILABLE` if the API server cannot be asked.
    pub async fn caller(&self, token: &str) -> Result<String, Status> {
        let proved = self.proved(token).await?;
        let judged = proved.and_then(|proved| {
            let pod = self.held.pod(&proved.account.namespace, &proved.pod);
            judge::caller(&proved, pod.as_ref(), &self.accounts)
        });
        judged.map_err(Status::unauthenticated)
    }

    async fn proved(&self, token: &str) -> Result<Result<Proved, String>, Status> {
        if token.len() > LONGEST {
            return Ok(Err(format!("a token has {LONGEST} bytes at most")));
        }
        let key = hash(token);
        let remembered = || {
            let now = Instant::now();
            self.lock().get(&key).filter(|remembered| now < remembered.until).cloned()
        };
        if let Some(remembered) = remembered() {
            self.metrics.reviewed(Review::Remembered);
            return Ok(remembered.proved);
        }
        let _place = self.questions.acquire().await.map_err(|_| Status::unavailable("control ends"))?;
        // Somebody may have asked while we waited.
        if let Some(remembered) = remembered() {
            self.metrics.reviewed(Review::Remembered);
            return Ok(remembered.proved);
        }
        let question = json!({
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": token, "audiences": self.audiences},
        });
        let answer = self.api.post(PATH, &question).await.map_err(|error| {
            self.metrics.reviewed(Review::Failed);
            warn!("a token cannot be reviewed: {error}");
            Status::unavailable(format!("the token cannot be reviewed: {error}"))
        })?;
        let proved = judge::proved(&answer["status"], &self.audiences);
        self.metrics.reviewed(if proved.is_ok() { Review::Accepted } else { Review::Refused });
        let life = match &proved {
            Ok(_) => remaining(token, SystemTime::now()).min(REMEMBERED),
            Err(_) => REFUSED,
        };
        self.remember(key, Remembered { proved: proved.clone(), until: Instant::now() + life });
        Ok(proved)
    }

    fn remember(&self, key: [u8; 32], answer: Remembered) {
        let mut remembered = self.lock();
        if remembered.len() >= MAX_REMEMBERED {
            let now = Instant::now();
            remembered.retain(|_, answer| now < answer.until);
        }
        if remembered.len() >= MAX_REMEMBERED {
            remembered.clear();
        }
        remembered.insert(key, answer);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<[u8; 32], Remembered>> {
        self.remembered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tokens are not kept, only what they hash to.
fn hash(token: &str) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest(&SHA256, token.as_bytes()).as_ref());
    hash
}

/// What is left of the life of a token (a JWT) that the API server has accepted; none if it does not say.
fn remaining(token: &str, now: SystemTime) -> Duration {
    let claims = token.split('.').nth(1).and_then(|claims| BASE64.decode(claims).ok());
    let claims: Option<Value> = claims.and_then(|claims| serde_json::from_slice(&claims).ok());
    let end = claims.and_then(|claims| claims["exp"].as_u64()).unwrap_or(0);
    (UNIX_EPOCH + Duration::from_secs(end)).duration_since(now).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_says_when_it_ends() {
        let token = format!("x.{}.y", BASE64.encode(r#"{"exp":100}"#));
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        assert_eq!(remaining(&token, at(70)), Duration::from_secs(30));
        assert_eq!(remaining(&token, at(170)), Duration::ZERO);
        assert_eq!(remaining("not a token", at(1)), Duration::ZERO);
    }
}
