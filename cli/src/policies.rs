//! Istio's security policies, in the version that this API server serves: v1 came with Istio 1.22, and definitions from
//! before have v1beta1, which says the same.

use serde_json::Value;

use crate::object::items;
use apiserver::{Api, ApiError};

const GROUP: &str = "security.istio.io";
/// The best first.
const VERSIONS: [&str; 2] = ["v1", "v1beta1"];

/// All policies of a kind, by its plural name. `None`: the kind is defined, and served in no version that is known, so
/// that nothing is known of them.
pub(crate) async fn list(api: &Api, plural: &str) -> Result<Option<Vec<Value>>, ApiError> {
    for version in VERSIONS {
        let Some(served) = api.find(&format!("/apis/{GROUP}/{version}")).await? else { continue };
        if items(&served["resources"]).iter().any(|resource| resource["name"] == plural) {
            return api.list(&format!("/apis/{GROUP}/{version}/{plural}"), "").await.map(Some);
        }
    }
    let definition = format!("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{plural}.{GROUP}");
    match api.find(&definition).await {
        Ok(Some(_)) => Ok(None),
        // Who may not see definitions is told by discovery all the same that there is none.
        Ok(None) => Ok(Some(Vec::new())),
        Err(error) if error.is_forbidden() => Ok(Some(Vec::new())),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::cluster::Cluster;

    #[tokio::test]
    async fn the_version_that_is_served_is_listed() {
        let cluster = Cluster::new();
        let api = cluster.api();
        let kind = "peerauthentications";
        assert_eq!(list(&api, kind).await.unwrap(), Some(Vec::new()), "not defined");
        let definition =
            "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/peerauthentications.security.istio.io";
        cluster.put(definition, json!({"metadata": {"name": "peerauthentications.security.istio.io"}}));
        assert_eq!(list(&api, kind).await.unwrap(), None, "defined, and not served");
        for version in ["v1beta1", "v1"] {
            let group = format!("/apis/security.istio.io/{version}");
            let policy = json!({"metadata": {"name": version, "namespace": "shop"}});
            cluster.put(&format!("{group}/namespaces/shop/peerauthentications/p"), policy.clone());
            cluster.put(&group, json!({"resources": [{"name": kind}]}));
            assert_eq!(list(&api, kind).await.unwrap(), Some(vec![policy]));
        }
        cluster.forbid("/apis/security.istio.io/v1/peerauthentications");
        assert!(list(&api, kind).await.unwrap_err().is_forbidden());
    }
}
