//! The mesh's certificate authority in Secrets, and its root in a ConfigMap for the nodes to trust.

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use identity::authority::{Authority, AuthorityError, new_root};
use rustls_pki_types::{CertificateDer, pem::PemObject};
use serde_json::{Value, json};
use tracing::info;

use apiserver::{Api, ApiError};

/// An authority from elsewhere, under the names that Istio gives it.
pub const PLUGGED: &str = "cacerts";
/// Control's own, made on first start.
pub const OWN: &str = "culvert-ca";
/// Where nodes find the roots that they trust, and under which key.
pub const BUNDLE: &str = "culvert-ca-root-cert";
pub const BUNDLE_KEY: &str = "root-cert.pem";

pub const CERT: &str = "ca-cert.pem";
pub const KEY: &str = "ca-key.pem";
pub const CHAIN: &str = "cert-chain.pem";
/// Every root that is to be trusted; the signing certificate's own comes first, or where a rotation has put it.
pub const ROOT: &str = "root-cert.pem";

/// Why there is no authority.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    #[error("Secret {namespace}/{name} cannot be {what}: {source}")]
    Api { namespace: String, name: &'static str, what: &'static str, source: ApiError },
    #[error("Secret {namespace}/{name}: {reason}; repair it, or remove it to {}", instead(name))]
    Content { namespace: String, name: &'static str, reason: String },
    #[error("no root can be made: {0}")]
    Make(AuthorityError),
}

fn instead(name: &str) -> &'static str {
    if name == PLUGGED { "use the authority that control makes" } else { "start with a new root" }
}

/// The authority that signs for the mesh.
pub struct Found {
    /// It tells everyone to trust every root that the Secret names.
    pub authority: Authority,
    /// Of two that sign with the same certificate and trust the same roots it is the same.
    pub fingerprint: String,
}

/// The plugged authority where there is one, else control's own, which is made where there is none. Whoever
/// of several replicas makes it first, all take that one.
///
/// # Errors
/// If the API server does not answer, or a Secret is not usable.
pub async fn load_or_create(api: &Api, namespace: &str, trust_domain: &str) -> Result<Found, SecretError> {
    for name in [PLUGGED, OWN] {
        if let Some(found) = load(api, namespace, name).await? {
            return Ok(found);
        }
    }
    let (root, key) = new_root(trust_domain).map_err(SecretError::Make)?;
    let data = json!({CERT: BASE64.encode(&root), KEY: BASE64.encode(key), ROOT: BASE64.encode(&root)});
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "type": "Opaque",
        "metadata": {"name": OWN, "namespace": namespace, "labels": {"app.kubernetes.io/part-of": "culvert"}},
        "data": data,
    });
    let failed = |what, source| SecretError::Api { namespace: namespace.to_owned(), name: OWN, what, source };
    match api.post(&format!("/api/v1/namespaces/{namespace}/secrets"), &secret).await {
        Ok(_) => info!(namespace, secret = OWN, "a root was made"),
        Err(error) if error.is_conflict() => {}
        Err(error) => return Err(failed("created", error)),
    }
    load(api, namespace, OWN)
        .await?
        .ok_or_else(|| failed("read", ApiError::Nonsense("it was made, and is not there".to_owned())))
}

async fn load(api: &Api, namespace: &str, name: &'static str) -> Result<Option<Found>, SecretError> {
    match api.get(&format!("/api/v1/namespaces/{namespace}/secrets/{name}")).await {
        Ok(secret) => {
            let found = from_secret(&secret["data"]).map_err(|reason| SecretError::Content {
                namespace: namespace.to_owned(),
                name,
                reason,
            })?;
            info!(namespace, secret = name, "certificate authority");
            Ok(Some(found))
        }
        Err(error) if error.is_absent() => Ok(None),
        Err(source) => Err(SecretError::Api { namespace: namespace.to_owned(), name, what: "read", source }),
    }
}

/// An authority from the data of a Secret.
pub fn from_secret(data: &Value) -> Result<Found, String> {
    let text = |key: &str| -> Result<Option<String>, String> {
        let Some(encoded) = data[key].as_str() else { return Ok(None) };
        let bytes = BASE64.decode(encoded).map_err(|error| format!("{key}: {error}"))?;
        String::from_utf8(bytes).map(Some).map_err(|_| format!("{key} is not text"))
    };
    let needed = |key: &str| text(key)?.ok_or_else(|| format!("{key} is missing"));
    let (cert, key, bundle) = (needed(CERT)?, needed(KEY)?, needed(ROOT)?);
    let chain = text(CHAIN)?.unwrap_or_default();
    let ders = |name: &str, pem: &str| -> Result<Vec<CertificateDer<'static>>, String> {
        let all = CertificateDer::pem_slice_iter(pem.as_bytes());
        all.collect::<Result<_, _>>().map_err(|error| format!("{name}: {error}"))
    };
    let roots = ders(ROOT, &bundle)?;
    let signer = ders(CERT, &cert)?;
    let own = root_of(&signer, &roots).ok_or_else(|| format!("{ROOT} holds no certificate"))?;
    // The chain names its own certificate again, and often the root: each is told once, the root last.
    let mut whole: Vec<CertificateDer<'static>> = Vec::new();
    for der in [signer, ders(CHAIN, &chain)?].concat() {
        if !whole.contains(&der) && !roots.contains(&der) {
            whole.push(der);
        }
    }
    whole.push(own);
    let chain: String = whole.iter().map(|der| identity::authority::pem_of(der)).collect();
    let authority = Authority::from_pem(&chain, &key).map_err(|error| error.to_string())?;
    let authority = authority.trusting(&bundle).map_err(|error| error.to_string())?;
    let fingerprint = format!("{chain}{}", authority.trusted_pem());
    Ok(Found { authority, fingerprint })
}

/// The root of the signing certificate: itself where it is among the roots, else the first of them.
fn root_of(
    signer: &[CertificateDer<'static>],
    roots: &[CertificateDer<'static>],
) -> Option<CertificateDer<'static>> {
    let itself = signer.first().filter(|signer| roots.contains(signer));
    itself.or_else(|| roots.first()).cloned()
}

/// Publishes the roots for the nodes, if they are not there as they should be.
///
/// # Errors
/// If the API server refuses or does not answer.
pub async fn publish(api: &Api, namespace: &str, bundle: &str) -> Result<(), ApiError> {
    let all = format!("/api/v1/namespaces/{namespace}/configmaps");
    let one = format!("{all}/{BUNDLE}");
    match api.get(&one).await {
        Ok(map) if map["data"][BUNDLE_KEY] == bundle => Ok(()),
        Ok(_) => api.patch(&one, &json!({"data": {BUNDLE_KEY: bundle}})).await.map(|_| ()),
        Err(error) if error.is_absent() => {
            let map = json!({
                "apiVersion": "v1", "kind": "ConfigMap",
                "metadata": {"name": BUNDLE, "namespace": namespace, "labels": {"app.kubernetes.io/part-of": "culvert"}},
                "data": {BUNDLE_KEY: bundle},
            });
            api.post(&all, &map).await.map(|_| ())
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn secret(pairs: &[(&str, &str)]) -> Value {
        pairs.iter().map(|(key, text)| ((*key).to_owned(), Value::from(BASE64.encode(text)))).collect()
    }

    #[test]
    fn a_root_of_our_own_is_read_back() {
        let (root, key) = new_root("cluster.local").unwrap();
        let found = from_secret(&secret(&[(CERT, &root), (KEY, &key), (ROOT, &root)])).unwrap();
        assert_eq!(found.authority.trusted_pem(), root);
        assert!(
            found.authority.server_certificate(&["control".into()], &[], Duration::from_secs(60)).is_ok()
        );
    }

    #[test]
    fn a_plugged_intermediate_is_read_as_istio_has_it() {
        let (root, key) = new_root("cluster.local").unwrap();
        let above = Authority::from_pem(&root, &key).unwrap();
        let (chain, key) = above.intermediate("plugged", Duration::from_secs(3600)).unwrap();
        let cut = chain.find("-----END CERTIFICATE-----").unwrap() + "-----END CERTIFICATE-----\n".len();
        let data = secret(&[(CERT, &chain[..cut]), (KEY, &key), (CHAIN, &chain), (ROOT, &root)]);
        let found = from_secret(&data).unwrap();
        let made = found.authority.server_certificate(&["c".into()], &[], Duration::from_secs(60)).unwrap();
        assert_eq!(made.chain_pem.matches("BEGIN CERTIFICATE").count(), 3, "leaf, intermediate, root");
    }

    #[test]
    fn what_is_missing_or_wrong_is_named() {
        let (root, key) = new_root("cluster.local").unwrap();
        let (_, other) = new_root("cluster.local").unwrap();
        let refused = |data: &Value| from_secret(data).err().unwrap();
        assert!(refused(&secret(&[(CERT, &root), (ROOT, &root)])).contains(KEY));
        assert!(refused(&secret(&[(CERT, &root), (KEY, &key), (ROOT, "")])).contains(ROOT));
        assert!(refused(&json!({CERT: "%"})).contains(CERT));
        assert!(refused(&secret(&[(CERT, &root), (KEY, &other), (ROOT, &root)])).contains("another one's"));
    }
}
