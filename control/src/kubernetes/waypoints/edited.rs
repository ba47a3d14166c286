//! Who else has a hand in what was deployed: Deployments, Services and what scales them, with our label, are followed, and what is not as
//! it was applied is applied again.

use std::{
    collections::BTreeMap,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures_util::TryStreamExt;
use serde_json::{Value, json};
use tokio::sync::Notify;
use tracing::debug;

use super::objects::{MANAGED_BY, MANAGER, names};
use crate::kubernetes::backoff::Backoff;
use apiserver::{Api, ApiError, Told, with_query};

const FOLLOWED: [(&str, &str); 4] = [
    ("/apis/apps/v1", "deployments"),
    ("/api/v1", "services"),
    ("/apis/autoscaling/v2", "horizontalpodautoscalers"),
    ("/apis/policy/v1", "poddisruptionbudgets"),
];
/// The API server ends a watch after this many seconds.
const WATCH_SECONDS: &str = "120";

/// By path: the version that was seen last, empty where it is gone.
#[derive(Default)]
pub struct Edited {
    seen: Mutex<BTreeMap<String, String>>,
    told: Notify,
}

/// The version of what is wanted of an object; of one that does not count these, of all of it.
pub fn version(object: &Value) -> String {
    let metadata = &object["metadata"];
    // Its status changes all the time, and nothing counts what is wanted of it.
    if object["kind"] == "HorizontalPodAutoscaler" {
        return json!([object["spec"], metadata["labels"], metadata["ownerReferences"]]).to_string();
    }
    match metadata["generation"].as_i64() {
        Some(generation) => generation.to_string(),
        None => metadata["resourceVersion"].as_str().unwrap_or_default().to_owned(),
    }
}

impl Edited {
    /// Whether an object is in another version than that which was applied.
    pub fn is(&self, path: &str, applied: &str) -> bool {
        self.lock().get(path).is_some_and(|seen| seen != applied)
    }

    /// It was applied: what was seen before counts no more.
    pub fn applied(&self, path: &str, version: &str) {
        self.lock().insert(path.to_owned(), version.to_owned());
    }

    /// Forgets what nobody asks for any more.
    pub fn retain(&self, is_applied: impl Fn(&str) -> bool) {
        self.lock().retain(|path, _| is_applied(path));
    }

    /// Something was seen.
    pub async fn changed(&self) {
        self.told.notified().await;
    }

    /// Follows them, for ever.
    pub async fn follow(self: Arc<Self>, api: Api) {
        let all = FOLLOWED.map(|(prefix, plural)| self.of_kind(&api, prefix, plural));
        futures_util::future::join_all(all).await;
    }

    async fn of_kind(&self, api: &Api, prefix: &str, plural: &str) {
        let mut backoff = Backoff::default();
        loop {
            match self.watch(api, prefix, plural).await {
                Ok(()) => backoff.reset(),
                // It is applied from time to time all the same.
                Err(error) => debug!(plural, "what is deployed cannot be watched: {error}"),
            }
            backoff.wait().await;
        }
    }

    async fn watch(&self, api: &Api, prefix: &str, plural: &str) -> Result<(), ApiError> {
        let ours = format!("{MANAGED_BY}={MANAGER}");
        let pairs = [("watch", "true"), ("timeoutSeconds", WATCH_SECONDS), ("labelSelector", &ours)];
        let mut events = pin!(api.watch(&with_query(&format!("{prefix}/{plural}"), &pairs)).await?);
        while let Some(event) = events.try_next().await? {
            let (object, version) = match &event {
                Told::Is(object) => (object, version(object)),
                Told::IsGone(object) => (object, String::new()),
                Told::Version(_) => continue,
            };
            let (name, namespace) = names(object);
            let path = format!("{prefix}/namespaces/{namespace}/{plural}/{name}");
            let before = self.lock().insert(path, version.clone());
            if before.as_ref() != Some(&version) {
                self.told.notify_one();
            }
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, String>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_seen_and_applied_by_nobody_is_forgotten() {
        let edited = Edited::default();
        edited.applied("/mine", "1");
        edited.lock().extend([("/mine".to_owned(), "2".to_owned()), ("/gone".to_owned(), String::new())]);
        edited.retain(|path| path == "/mine");
        assert!(edited.is("/mine", "1") && !edited.is("/gone", "1"));
        assert_eq!(edited.lock().len(), 1);
    }
}
