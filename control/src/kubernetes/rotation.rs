//! Follows where the authority is kept, and leads a rotation of control's own root from one step to the next.
//!
//! ```text
//! annotation culvert.dev/rotate ─▶ a new root is made; both are trusted, the old one signs
//!      ─▶ (everyone has certificates that bring both) ─▶ the new one signs, both are trusted
//!      ─▶ (nobody has a certificate of the old one) ─▶ the old one is gone
//! ```
//!
//! The Secret says how far it is, so any replica goes on with it. Who plugs an authority in (`cacerts`) takes the same
//! steps by writing the Secret.

use std::time::Duration;

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use identity::authority::{AuthorityError, new_root};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use tokio::{sync::watch, time::sleep};
use tracing::{info, warn};

use super::{
    api::{Api, ApiError},
    authority::{CERT, CHAIN, KEY, OWN, PLUGGED, ROOT, from_secret},
};
use crate::serve::Signer;

/// Asks for a rotation; removed when it has begun.
pub const ROTATE: &str = "culvert.dev/rotate";
/// When the step was taken that holds now (RFC 3339).
const SINCE: &str = "culvert.dev/rotation-since";
/// The root that follows, while the one before still signs.
const NEXT_CERT: &str = "next-cert.pem";
const NEXT_KEY: &str = "next-key.pem";

/// How often the Secret is looked at.
const EVERY: Duration = Duration::from_secs(30);
/// Beyond the life of a certificate: until a kubelet has brought a changed ConfigMap to its pods.
const SPREAD: Duration = Duration::from_secs(120);

/// Follows the authority.
pub struct Keeper {
    pub api: Api,
    pub namespace: String,
    pub trust_domain: String,
    pub signer: Signer,
    pub leading: watch::Receiver<bool>,
    /// Of the authority that signs now.
    pub fingerprint: String,
    /// Longest life of a certificate that is signed.
    pub lifetime: Duration,
}

impl Keeper {
    /// Never ends.
    pub async fn run(self) {
        let (mut last, mut fingerprint) = (Value::Null, self.fingerprint.clone());
        loop {
            match self.look(&mut last, &mut fingerprint).await {
                Ok(()) => {}
                Err(error) => warn!("the certificate authority is not followed just now: {error}"),
            }
            sleep(EVERY.min(self.lifetime / 4)).await;
        }
    }

    async fn look(&self, last: &mut Value, fingerprint: &mut String) -> Result<(), ApiError> {
        for name in [PLUGGED, OWN] {
            let path = format!("/api/v1/namespaces/{}/secrets/{name}", self.namespace);
            let secret = match self.api.get(&path).await {
                Ok(secret) => secret,
                Err(error) if error.is_absent() => continue,
                Err(error) => return Err(error),
            };
            if secret["data"] != *last {
                last.clone_from(&secret["data"]);
                match from_secret(&secret["data"]) {
                    // At the start: what was found first is what signs.
                    Ok(found) if found.fingerprint == *fingerprint => {}
                    Ok(found) => {
                        let roots = found.authority.trusted_pem().matches("BEGIN CERTIFICATE").count();
                        info!(secret = name, roots, "another certificate authority signs");
                        fingerprint.clone_from(&found.fingerprint);
                        self.signer.replace(found.authority);
                    }
                    Err(reason) => warn!(
                        secret = name,
                        "{reason}; the authority from before signs on, repair the Secret"
                    ),
                }
            }
            if name == OWN && *self.leading.borrow() {
                let settled = self.lifetime + SPREAD;
                match next(&secret, Timestamp::now(), settled, || new_root(&self.trust_domain)) {
                    Ok(Some((step, patch))) => {
                        self.api.patch(&path, &patch).await?;
                        info!(secret = name, "rotation of the root: {step}");
                    }
                    Ok(None) => {}
                    Err(reason) => warn!(secret = name, "rotation of the root: {reason}"),
                }
            }
            return Ok(());
        }
        warn!("no Secret holds a certificate authority any more; the one from before signs on");
        Ok(())
    }
}

/// What is to be done about a Secret of our own, in words and as a patch; `None` if nothing.
fn next(
    secret: &Value,
    now: Timestamp,
    settled: Duration,
    make: impl FnOnce() -> Result<(String, String), AuthorityError>,
) -> Result<Option<(&'static str, Value)>, String> {
    let (data, annotations) = (&secret["data"], &secret["metadata"]["annotations"]);
    let encoded = |text: &str| Value::from(BASE64.encode(text));
    let text = |key: &str| -> Result<String, String> {
        let bytes = BASE64.decode(data[key].as_str().unwrap_or_default());
        let text = bytes.ok().and_then(|bytes| String::from_utf8(bytes).ok());
        text.filter(|text| !text.is_empty()).ok_or_else(|| format!("{key} is missing or not readable"))
    };
    // The version: of two leaders for a moment, one takes the step.
    let patch = |data: Value, annotations: Value| {
        let version = &secret["metadata"]["resourceVersion"];
        json!({"metadata": {"resourceVersion": version, "annotations": annotations}, "data": data})
    };
    let Some(since) = annotations[SINCE].as_str() else {
        if annotations[ROTATE].is_null() {
            return Ok(None);
        }
        let (root, key) = make().map_err(|error| error.to_string())?;
        let both = format!("{}\n{root}", text(ROOT)?.trim_end());
        let data = json!({NEXT_CERT: encoded(&root), NEXT_KEY: encoded(&key), ROOT: encoded(&both)});
        let begun = patch(data, json!({ROTATE: null, SINCE: now.to_string()}));
        return Ok(Some(("a new one is made, and trusted beside the one that signs", begun)));
    };
    let since: Timestamp = since.parse().map_err(|error| format!("annotation {SINCE}: {error}"))?;
    let settled = SignedDuration::try_from(settled).map_err(|error| error.to_string())?;
    if now.duration_since(since) < settled {
        return Ok(None);
    }
    if data[NEXT_CERT].is_null() {
        let cert = text(CERT)?;
        let done = patch(json!({ROOT: encoded(&cert)}), json!({SINCE: null}));
        return Ok(Some(("the one from before is trusted no more", done)));
    }
    let (cert, key) = (&data[NEXT_CERT], &data[NEXT_KEY]);
    text(NEXT_KEY)?;
    let data = json!({CERT: cert, KEY: key, CHAIN: null, NEXT_CERT: null, NEXT_KEY: null});
    let turned = patch(data, json!({SINCE: now.to_string()}));
    Ok(Some(("the new one signs, both are trusted", turned)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIFE: Duration = Duration::from_secs(3600);

    /// RFC 7386, as far as it is needed.
    fn apply(secret: &mut Value, patch: &Value) {
        for part in ["/data", "/metadata/annotations"] {
            for (key, value) in patch.pointer(part).and_then(Value::as_object).expect("an object") {
                let held = secret.pointer_mut(part).and_then(Value::as_object_mut).expect("an object");
                if value.is_null() {
                    held.remove(key)
                } else {
                    held.insert(key.clone(), value.clone())
                };
            }
        }
    }

    #[test]
    fn one_root_follows_another_and_both_are_trusted_meanwhile() {
        let (old, key) = new_root("cluster.local").expect("a root");
        let encoded = |text: &str| BASE64.encode(text);
        let mut secret = json!({
            "metadata": {"resourceVersion": "7", "annotations": {}},
            "data": {CERT: encoded(&old), KEY: encoded(&key), ROOT: encoded(&old)},
        });
        let make = || new_root("cluster.local");
        let mut now = Timestamp::now();
        assert_eq!(next(&secret, now, LIFE, make), Ok(None), "nobody asked");
        secret["metadata"]["annotations"][ROTATE] = "please".into();
        let seen = |secret: &Value| {
            let found = from_secret(&secret["data"]).expect("usable");
            let roots = found.authority.trusted_pem().matches("BEGIN CERTIFICATE").count();
            (found.authority.root_pem() == old, roots)
        };
        let mut states = vec![seen(&secret)];
        for _ in 0..3 {
            let (_, patch) = next(&secret, now, LIFE, make).expect("possible").expect("a step");
            assert_eq!(patch["metadata"]["resourceVersion"], "7");
            apply(&mut secret, &patch);
            states.push(seen(&secret));
            if secret["metadata"]["annotations"][SINCE].is_string() {
                let soon = now + SignedDuration::from_secs(60);
                assert_eq!(next(&secret, soon, LIFE, make), Ok(None), "not before everyone has it");
            }
            now += SignedDuration::from_secs(3601);
        }
        assert_eq!(states, [(true, 1), (true, 2), (false, 2), (false, 1)]);
        assert_eq!(next(&secret, now, LIFE, make), Ok(None), "it is over");
        assert!(secret["data"][NEXT_KEY].is_null());
    }

    #[test]
    fn a_secret_that_somebody_broke_is_left_alone() {
        let secret = json!({"metadata": {"annotations": {ROTATE: "x"}}, "data": {ROOT: "%"}});
        let told = next(&secret, Timestamp::now(), LIFE, || new_root("x")).expect_err("refused");
        assert!(told.contains(ROOT), "{told}");
        let secret = json!({"metadata": {"annotations": {SINCE: "yesterday"}}, "data": {}});
        assert!(
            next(&secret, Timestamp::now(), LIFE, || new_root("x")).expect_err("refused").contains(SINCE)
        );
    }
}
