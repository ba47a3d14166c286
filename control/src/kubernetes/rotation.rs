//! Follows where the authority is kept, and leads a rotation of control's own root from one step to the next.
//!
//! ```text
//! annotation culvert.dev/rotate ─▶ a new root is made; both are trusted, the old one signs
//!      ─▶ (both are published, and everyone has certificates that bring both) ─▶ the new one signs, both are trusted
//!      ─▶ (nobody has a certificate of the old one) ─▶ the old one is trusted no more
//! ```
//!
//! The Secret says how far it is, so any replica goes on with it. Who plugs an authority in (`cacerts`) takes the same
//! steps by writing the Secret; one that leaves a step out is not taken, since nodes would refuse each other.

use std::time::Duration;

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use identity::authority::{Authority, AuthorityError, new_root};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use rustls_pki_types::{CertificateDer, pem::PemObject};
use serde_json::{Value, json};
use tokio::{sync::watch, time::sleep};
use tracing::{info, warn};

use super::authority::{BUNDLE, BUNDLE_KEY, CERT, CHAIN, KEY, OWN, PLUGGED, ROOT, from_secret};
use crate::serve::Signer;
use apiserver::{Api, ApiError};

/// Asks for a rotation; removed when it has begun.
pub const ROTATE: &str = "culvert.dev/rotate";
/// Before this the next step is not taken (RFC 3339).
const NOT_BEFORE: &str = "culvert.dev/rotation-not-before";
/// The root that follows, while the one before still signs.
const NEXT_CERT: &str = "next-cert.pem";
const NEXT_KEY: &str = "next-key.pem";
/// The root that signed before, while it is still trusted.
const LAST_CERT: &str = "last-cert.pem";

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

    /// From one step to the next: what was signed before the step has run out, and what was published is everywhere.
    fn settled(&self) -> Duration {
        self.lifetime + SPREAD.min(self.lifetime)
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
                    Ok(found) => match overlap(&self.signer.current(), &found.authority) {
                        Ok(()) => {
                            let roots = certificates(found.authority.trusted_pem()).len();
                            info!(secret = name, roots, "the certificate authority has changed");
                            fingerprint.clone_from(&found.fingerprint);
                            self.signer.replace(found.authority);
                        }
                        Err(reason) => warn!(secret = name, "{reason}; the authority from before signs on"),
                    },
                    Err(reason) => warn!(
                        secret = name,
                        "{reason}; the authority from before signs on, repair the Secret"
                    ),
                }
            }
            // Not under another authority: what is to be waited for is what the mesh lives by.
            let ours = from_secret(&secret["data"]).is_ok_and(|found| found.fingerprint == *fingerprint);
            if name == OWN && ours && *self.leading.borrow() {
                let published = self.published().await?;
                let step = next(&secret, Timestamp::now(), self.settled(), &published, || {
                    new_root(&self.trust_domain)
                });
                match step {
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

impl Keeper {
    /// The roots that nodes find now.
    async fn published(&self) -> Result<String, ApiError> {
        let path = format!("/api/v1/namespaces/{}/configmaps/{BUNDLE}", self.namespace);
        match self.api.get(&path).await {
            Ok(map) => Ok(map["data"][BUNDLE_KEY].as_str().unwrap_or_default().to_owned()),
            Err(error) if error.is_absent() => Ok(String::new()),
            Err(error) => Err(error),
        }
    }
}

/// Whether one authority may follow another while certificates of both are about: each must be trusted by those who
/// were told by the other.
fn overlap(now: &Authority, then: &Authority) -> Result<(), String> {
    if !trusts(then.trusted_pem(), now.root_pem()) {
        return Err(format!(
            "its {ROOT} lacks the root that signs now: add it until all certificates have been renewed"
        ));
    }
    if !trusts(now.trusted_pem(), then.root_pem()) {
        return Err(format!(
            "nobody trusts its root yet: first add it to the {ROOT} of the authority that signs now, and wait for the \
             life of a certificate"
        ));
    }
    Ok(())
}

fn certificates(pem: &str) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_slice_iter(pem.as_bytes()).flatten().collect()
}

fn trusts(bundle: &str, root: &str) -> bool {
    let bundle = certificates(bundle);
    let root = certificates(root);
    !root.is_empty() && root.iter().all(|root| bundle.contains(root))
}

/// What is to be done about a Secret of our own, in words and as a patch; `None` if nothing. `published`: the roots
/// that nodes find.
fn next(
    secret: &Value,
    now: Timestamp,
    settled: Duration,
    published: &str,
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
    let settled = SignedDuration::try_from(settled).map_err(|error| error.to_string())?;
    let later = (now + settled).to_string();
    let due = match annotations[NOT_BEFORE].as_str() {
        Some(text) => {
            let due: Timestamp = text.parse().map_err(|error| format!("annotation {NOT_BEFORE}: {error}"))?;
            Some(due)
        }
        None => None,
    };
    if !data[NEXT_CERT].is_null() {
        let (cert, _) = (text(NEXT_CERT)?, text(NEXT_KEY)?);
        // Published first, and only then the time begins.
        if !trusts(published, &cert) {
            return Ok(None);
        }
        return match due {
            None => Ok(Some(("the new one is published", patch(json!({}), json!({NOT_BEFORE: later}))))),
            Some(due) if now < due => Ok(None),
            Some(_) => {
                let change = json!({
                    CERT: data[NEXT_CERT], KEY: data[NEXT_KEY], LAST_CERT: data[CERT],
                    CHAIN: null, NEXT_CERT: null, NEXT_KEY: null,
                });
                // What does not work must not take the place of what does.
                let mut then = data.clone();
                for (key, value) in change.as_object().into_iter().flatten() {
                    then[key.as_str()] = value.clone();
                }
                let found =
                    from_secret(&then).map_err(|reason| format!("the new root is of no use: {reason}"))?;
                if !trusts(found.authority.trusted_pem(), &cert) {
                    return Err(format!("{ROOT} lacks the new root"));
                }
                Ok(Some(("the new one signs, both are trusted", patch(change, json!({NOT_BEFORE: later})))))
            }
        };
    }
    if !data[LAST_CERT].is_null() {
        return match due {
            // Somebody took the annotation away: the time begins anew.
            None => {
                Ok(Some(("the old one is trusted for now", patch(json!({}), json!({NOT_BEFORE: later})))))
            }
            Some(due) if now < due => Ok(None),
            Some(_) => {
                let last = certificates(&text(LAST_CERT)?);
                // Others that somebody put there stay.
                let left = certificates(&text(ROOT)?).into_iter().filter(|root| !last.contains(root));
                let left: String = left.map(|root| identity::authority::pem_of(&root)).collect();
                let change = json!({ROOT: encoded(&left), LAST_CERT: null});
                Ok(Some(("the old one is trusted no more", patch(change, json!({NOT_BEFORE: null})))))
            }
        };
    }
    if annotations[ROTATE].is_null() {
        return Ok(None);
    }
    let (root, key) = make().map_err(|error| error.to_string())?;
    let both = format!("{}\n{root}", text(ROOT)?.trim_end());
    let change = json!({NEXT_CERT: encoded(&root), NEXT_KEY: encoded(&key), ROOT: encoded(&both)});
    let begun = patch(change, json!({ROTATE: null, NOT_BEFORE: null}));
    Ok(Some(("a new one is made, and trusted beside the one that signs", begun)))
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

    fn encoded(text: &str) -> String {
        BASE64.encode(text)
    }

    fn make() -> Result<(String, String), AuthorityError> {
        new_root("cluster.local")
    }

    #[test]
    fn one_root_follows_another_and_both_are_trusted_meanwhile() {
        let (old, key) = make().expect("a root");
        let (foreign, _) = make().expect("a root");
        let mut secret = json!({
            "metadata": {"resourceVersion": "7", "annotations": {}},
            "data": {CERT: encoded(&old), KEY: encoded(&key), ROOT: encoded(&format!("{old}{foreign}"))},
        });
        let mut now = Timestamp::now();
        assert_eq!(next(&secret, now, LIFE, &old, make), Ok(None), "nobody asked");
        secret["metadata"]["annotations"][ROTATE] = "please".into();
        let seen = |secret: &Value| {
            let found = from_secret(&secret["data"]).expect("usable");
            let trusted = found.authority.trusted_pem().to_owned();
            (
                found.authority.root_pem() == old,
                trusts(&trusted, &old),
                trusts(&trusted, &foreign),
                certificates(&trusted).len(),
            )
        };
        let step = |secret: &mut Value, now, published: &str| {
            let step = next(secret, now, LIFE, published, make).expect("possible");
            let Some((_, patch)) = step else { return false };
            assert_eq!(patch["metadata"]["resourceVersion"], "7");
            apply(secret, &patch);
            true
        };
        assert!(step(&mut secret, now, &old));
        assert_eq!(seen(&secret), (true, true, true, 3), "the old one signs");
        let both = from_secret(&secret["data"]).expect("usable").authority.trusted_pem().to_owned();
        now += SignedDuration::from_secs(10 * 3600);
        assert!(!step(&mut secret, now, &old), "however late it is, not before it is published");
        assert!(step(&mut secret, now, &both));
        now += SignedDuration::from_secs(3500);
        assert!(!step(&mut secret, now, &both), "not before everyone has it");
        now += SignedDuration::from_secs(101);
        assert!(!step(&mut secret, now, &old), "nor if somebody took it back");
        assert!(step(&mut secret, now, &both));
        assert_eq!(seen(&secret), (false, true, true, 3), "the new one signs");
        now += SignedDuration::from_secs(3500);
        assert!(!step(&mut secret, now, &both), "certificates of the old one are about");
        now += SignedDuration::from_secs(101);
        assert!(step(&mut secret, now, &both));
        assert_eq!(seen(&secret), (false, false, true, 2), "roots of others stay");
        assert!(!step(&mut secret, now, &both), "it is over");
        for key in [NEXT_CERT, NEXT_KEY, LAST_CERT] {
            assert!(secret["data"][key].is_null(), "{key}");
        }
        assert_eq!(secret["metadata"]["annotations"], json!({}));
    }

    #[test]
    fn a_pair_that_does_not_fit_never_takes_the_place_of_one_that_signs() {
        let ((old, key), (new, _), (_, other)) =
            (make().expect("a root"), make().expect("a root"), make().expect("a root"));
        let both = format!("{old}{new}");
        let secret = json!({
            "metadata": {"annotations": {NOT_BEFORE: "2020-01-01T00:00:00Z"}},
            "data": {CERT: encoded(&old), KEY: encoded(&key), ROOT: encoded(&both),
                NEXT_CERT: encoded(&new), NEXT_KEY: encoded(&other)},
        });
        let told = next(&secret, Timestamp::now(), LIFE, &both, make).expect_err("refused");
        assert!(told.contains("of no use"), "{told}");
    }

    #[test]
    fn an_authority_follows_only_where_each_is_trusted_by_the_others_nodes() {
        let pairs = [make().expect("a root"), make().expect("a root")];
        let one = |at: usize, bundle: &str| {
            let (root, key) = &pairs[at];
            Authority::from_pem(root, key).and_then(|one| one.trusting(bundle)).expect("usable")
        };
        let both = format!("{}{}", pairs[0].0, pairs[1].0);
        assert!(
            overlap(&one(0, ""), &one(1, ""))
                .is_err_and(|told| told.contains("lacks the root that signs now"))
        );
        assert!(
            overlap(&one(0, ""), &one(1, &both))
                .is_err_and(|told| told.contains("nobody trusts its root yet"))
        );
        assert_eq!(overlap(&one(0, ""), &one(0, &both)), Ok(()), "first both are trusted");
        assert_eq!(overlap(&one(0, &both), &one(1, &both)), Ok(()), "then the other signs");
        assert_eq!(overlap(&one(1, &both), &one(1, "")), Ok(()), "then the first is gone");
    }

    #[test]
    fn a_secret_that_somebody_broke_is_left_alone() {
        let secret = json!({"metadata": {"annotations": {ROTATE: "x"}}, "data": {ROOT: "%"}});
        let told = next(&secret, Timestamp::now(), LIFE, "", make).expect_err("refused");
        assert!(told.contains(ROOT), "{told}");
        let secret = json!({"metadata": {"annotations": {NOT_BEFORE: "yesterday"}}, "data": {}});
        assert!(next(&secret, Timestamp::now(), LIFE, "", make).expect_err("refused").contains(NOT_BEFORE));
    }
}
