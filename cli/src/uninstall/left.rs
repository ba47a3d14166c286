//! What an uninstall leaves: control's own keepsakes, the definitions, the namespace. And what of it is really ours:
//! definitions are the whole cluster's, and whatever is written in their terms goes with them.

use serde_json::Value;

use super::some;
use crate::{
    api::MANAGER,
    manifests::{self, MANAGED_BY, PART_OF},
    object::{self, MANAGER_LABEL, items, text},
    rollout,
};
use apiserver::Api;

/// In control's namespace.
const LEFT: [(&str, &str, &str); 3] = [
    ("api/v1", "secrets", "culvert-ca"),
    ("api/v1", "configmaps", "culvert-ca-root-cert"),
    ("apis/coordination.k8s.io/v1", "leases", "culvert-control"),
];

/// The programs of a mesh in another namespace, whoever installed it.
pub(super) async fn elsewhere(api: &Api, namespace: &str) -> anyhow::Result<Vec<String>> {
    let mut found = Vec::new();
    for kind in ["Deployment", "DaemonSet"] {
        // Of all namespaces.
        let path = object::collection(kind, "").replace("/namespaces//", "/");
        for mut one in api.list(&path, &format!("{PART_OF}=culvert")).await? {
            one["kind"] = kind.into();
            let program =
                rollout::PROGRAMS.iter().any(|(name, of)| *name == object::name(&one) && *of == kind);
            if program && object::namespace(&one) != namespace {
                found.push(object::named(&one));
            }
        }
    }
    Ok(found)
}

/// What control has left in its namespace.
pub(super) async fn in_namespace(api: &Api, namespace: &str) -> anyhow::Result<Vec<String>> {
    let mut left = Vec::new();
    for (version, plural, name) in LEFT {
        // Who may not read Secrets may uninstall all the same.
        let found = api.find(&format!("/{version}/namespaces/{namespace}/{plural}/{name}")).await;
        if found.is_ok_and(|found| found.is_some()) {
            left.push(format!("{plural}/{name} in {namespace}"));
        }
    }
    Ok(left)
}

pub(super) fn definitions() -> anyhow::Result<Vec<Value>> {
    let objects = manifests::objects(manifests::NAMESPACE, &manifests::unchosen(), (1, 34))?;
    Ok(objects.into_iter().filter(|object| object["kind"] == "CustomResourceDefinition").collect())
}

/// Says what is left, and why.
pub(super) async fn stays(api: &Api, namespace: &str) -> anyhow::Result<()> {
    let left = in_namespace(api, namespace).await?;
    let mut definitions_left = Vec::new();
    for definition in definitions()? {
        if api.find(&object::path(&definition)).await?.is_some_and(|there| is_ours(&there)) {
            definitions_left.push(object::name(&definition).to_owned());
        }
    }
    if !left.is_empty() {
        println!("\nStays, so that the next install has the same root:\n  {}", left.join("\n  "));
    }
    if !definitions_left.is_empty() {
        println!("\nStays, because policies would go with them:\n  {}", definitions_left.join("\n  "));
    }
    if !left.is_empty() || !definitions_left.is_empty() {
        println!("\n`culvert uninstall --purge` removes these, too.");
    }
    Ok(())
}

/// Removes what is left, as far as nobody else needs it. `policies`: also the definitions that policies are written by.
pub(super) async fn purge(
    api: &Api,
    namespace: &str,
    elsewhere: &[String],
    policies: bool,
) -> anyhow::Result<()> {
    for (version, plural, name) in LEFT {
        if api.delete(&format!("/{version}/namespaces/{namespace}/{plural}/{name}")).await? {
            println!("  removed    {plural}/{name}");
        }
    }
    for definition in definitions()? {
        let (path, named) = (object::path(&definition), object::named(&definition));
        let Some(there) = api.find(&path).await? else { continue };
        match needed(api, &there, elsewhere, policies).await? {
            Some(why) => println!("  stays      {named}: {why}"),
            None if api.delete(&path).await? => println!("  removed    {named}"),
            None => {}
        }
    }
    let path = format!("/api/v1/namespaces/{namespace}");
    let ours =
        api.find(&path).await?.is_some_and(|there| object::label(&there, MANAGED_BY) == Some(MANAGER_LABEL));
    if ours && api.delete(&path).await? {
        println!("  removed    Namespace {namespace}");
    }
    Ok(())
}

/// Why a definition is not to go, if it is not.
async fn needed(
    api: &Api,
    definition: &Value,
    elsewhere: &[String],
    policies: bool,
) -> anyhow::Result<Option<String>> {
    if !is_ours(definition) {
        return Ok(Some("`culvert install` has not made it".to_owned()));
    }
    let others = others(definition);
    if !others.is_empty() {
        return Ok(Some(format!("{} has set fields of it, too", others.join(", "))));
    }
    if !elsewhere.is_empty() {
        return Ok(Some(format!("there is another mesh: {}", some(elsewhere))));
    }
    let spec = &definition["spec"];
    let Some(version) = items(&spec["versions"]).iter().find(|version| version["served"] == true) else {
        return Ok(None);
    };
    let path = format!(
        "/apis/{}/{}/{}",
        text(&spec["group"]),
        text(&version["name"]),
        text(&spec["names"]["plural"])
    );
    let written: Vec<String> = api
        .list(&path, "")
        .await?
        .iter()
        .map(|one| format!("{}/{}", object::namespace(one), object::name(one)))
        .collect();
    if written.is_empty() || policies {
        return Ok(None);
    }
    Ok(Some(format!(
        "{} of it are written ({}), and would go with it; --purge-policies removes it all the same",
        written.len(),
        some(&written)
    )))
}

/// Whether it was our apply that made a definition: Istio's own stay.
pub(super) fn is_ours(object: &Value) -> bool {
    items(&object["metadata"]["managedFields"])
        .iter()
        .any(|fields| fields["manager"] == MANAGER && fields["operation"] == "Apply")
}

/// Who else has set fields of a definition. The API server itself writes how it stands, as a subresource.
pub(super) fn others(object: &Value) -> Vec<&str> {
    let of_others = items(&object["metadata"]["managedFields"])
        .iter()
        .filter(|fields| fields["manager"] != MANAGER && text(&fields["subresource"]).is_empty());
    let mut names: Vec<&str> = of_others.map(|fields| text(&fields["manager"])).collect();
    names.dedup();
    names
}
