//! Who is in the mesh by what the API server knows: labels that ask for it, and the marks that control has left on pods.
//! And who is so although there is no mesh any more: nothing else would tell them.

use serde_json::Value;

use crate::{
    check::{AMBIENT, DATAPLANE_MODE},
    manifests::PART_OF,
    object::{self, text},
};
use apiserver::Api;

/// Written by control: for everybody, and for its replicas.
pub(crate) const REDIRECTION: &str = "ambient.istio.io/redirection";
pub(crate) const MARK: &str = "culvert.dev/redirection";
/// More names than these are counted.
const NAMED: usize = 10;
/// How those who were left behind come out.
pub(crate) const COME_BACK: &str =
    "`culvert install` puts the mesh back; then leave, if you like, by `culvert uninstall --release-all`";

/// Who is in the mesh, by labels and marks.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Enrolled {
    /// Namespaces with the label.
    pub(crate) namespaces: Vec<String>,
    /// Pods with a label of their own, as namespace and name.
    pub(crate) labelled: Vec<(String, String)>,
    /// Pods that are captured, or on their way out.
    pub(crate) captured: Vec<String>,
}

impl Enrolled {
    pub(crate) fn of(namespaces: &[Value], pods: &[Value]) -> Self {
        let ambient = |object: &&Value| object::label(object, DATAPLANE_MODE) == Some(AMBIENT);
        let living = |pod: &&Value| !matches!(text(&pod["status"]["phase"]), "Succeeded" | "Failed");
        let place = |pod: &Value| (object::namespace(pod).to_owned(), object::name(pod).to_owned());
        Self {
            namespaces: namespaces.iter().filter(ambient).map(|one| object::name(one).to_owned()).collect(),
            labelled: pods.iter().filter(ambient).map(place).collect(),
            captured: pods
                .iter()
                .filter(living)
                .filter(|pod| is_captured(pod))
                .map(|pod| format!("{}/{}", object::namespace(pod), object::name(pod)))
                .collect(),
        }
    }

    pub(crate) async fn look(api: &Api) -> anyhow::Result<Self> {
        let namespaces = api.list("/api/v1/namespaces", "").await?;
        Ok(Self::of(&namespaces, &api.list("/api/v1/pods", "").await?))
    }

    pub(crate) fn is_nobody(&self) -> bool {
        *self == Self::default()
    }

    pub(crate) fn text(&self) -> String {
        let labelled: Vec<String> =
            self.labelled.iter().map(|(namespace, name)| format!("{namespace}/{name}")).collect();
        let mut lines = Vec::new();
        for (what, names) in [
            ("namespaces in the mesh", &self.namespaces),
            ("pods with a label of their own", &labelled),
            ("pods captured", &self.captured),
        ] {
            if !names.is_empty() {
                lines.push(format!("  {what} ({}): {}", names.len(), some(names)));
            }
        }
        lines.join("\n")
    }
}

/// Whether a node holds the pod captured, as control has written on it.
fn is_captured(pod: &Value) -> bool {
    match object::annotation(pod, MARK) {
        Some("none") => false,
        Some(_) => true,
        None => object::annotation(pod, REDIRECTION) == Some("enabled"),
    }
}

pub(crate) fn some(names: &[String]) -> String {
    let mut text = names.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
    if names.len() > NAMED {
        text.push_str(&format!(" and {} more", names.len() - NAMED));
    }
    text
}

/// Who was left behind where there is no mesh any more.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Adrift {
    /// Pods that are marked as captured: they fail closed.
    CutOff(String),
    /// Labels alone. Where no mesh has been yet, they mean nothing by now.
    Labelled(String),
}

impl Adrift {
    /// In a cluster in which no program of ours is in the namespace that is meant. `daemonsets`: those of all namespaces;
    /// a mesh in another one, and Istio's own node side, look after the pods that they have marked.
    pub(crate) fn of(namespaces: &[Value], pods: &[Value], daemonsets: &[Value]) -> Option<Self> {
        let ours = |set: &Value| object::label(set, PART_OF) == Some("culvert");
        let named = |set: &Value, names: [&str; 2]| names.contains(&object::name(set));
        if daemonsets.iter().any(|set| ours(set) && named(set, ["agent", "ztunnel"])) {
            return None;
        }
        let of_istio = daemonsets.iter().any(|set| !ours(set) && named(set, ["ztunnel", "istio-cni-node"]));
        let marked: Vec<Value> =
            pods.iter().filter(|pod| !of_istio || object::annotation(pod, MARK).is_some()).cloned().collect();
        let found = Enrolled::of(namespaces, &marked);
        if !found.captured.is_empty() {
            let pods = match found.captured.len() {
                1 => "1 pod is".to_owned(),
                more => format!("{more} pods are"),
            };
            return Some(Self::CutOff(format!(
                "{pods} marked as captured ({}), and there is no mesh: they are cut off, and new pods may not start on \
                 nodes that have the CNI plugin",
                some(&found.captured)
            )));
        }
        (!found.namespaces.is_empty() && !of_istio).then(|| {
            Self::Labelled(format!(
                "{} asks for the mesh by its label, and there is none: new pods there do not start on a node on which \
                 one has left its CNI plugin",
                some(&found.namespaces)
            ))
        })
    }

    /// Asks the API server. Who may not list what it takes is told nothing.
    pub(crate) async fn look(api: &Api) -> Option<Self> {
        let list = async |path: &str| api.list(path, "").await.ok();
        let namespaces = list("/api/v1/namespaces").await?;
        let pods = list("/api/v1/pods").await?;
        Self::of(&namespaces, &pods, &list("/apis/apps/v1/daemonsets").await?)
    }

    pub(crate) fn text(&self) -> &str {
        let (Self::CutOff(text) | Self::Labelled(text)) = self;
        text
    }
}

#[cfg(test)]
mod tests {
    use std::slice::from_ref;

    use serde_json::json;

    use super::*;

    #[test]
    fn who_was_left_behind_is_told_from_who_is_looked_after() {
        let labelled = [json!({"metadata": {"name": "shop", "labels": {DATAPLANE_MODE: AMBIENT}}})];
        let pod = |annotations: Value| {
            json!({"metadata": {"namespace": "shop", "name": "web", "annotations": annotations},
                   "status": {"phase": "Running"}})
        };
        let set = |name: &str, labels: Value| json!({"metadata": {"name": name, "namespace": "x", "labels": labels}});
        let (ours, istios) = (set("agent", json!({PART_OF: "culvert"})), set("istio-cni-node", json!({})));
        let by_istio = [pod(json!({REDIRECTION: "enabled"}))];
        let by_us = [pod(json!({REDIRECTION: "enabled", MARK: "measured"}))];
        let cut_off = |pods: &[Value], sets: &[Value]| matches!(Adrift::of(&labelled, pods, sets), Some(Adrift::CutOff(said)) if said.contains("shop/web"));
        assert!(cut_off(&by_istio, &[]) && cut_off(&by_us, &[]) && cut_off(&by_us, from_ref(&istios)));
        assert!(!cut_off(&by_istio, from_ref(&istios)) && !cut_off(&by_us, &[istios.clone(), ours]));
        let gone = [pod(json!({MARK: "none", REDIRECTION: "enabled"}))];
        assert!(
            matches!(Adrift::of(&labelled, &gone, &[]), Some(Adrift::Labelled(said)) if said.contains("shop"))
        );
        assert_eq!(Adrift::of(&labelled, &gone, &[istios]), None);
        assert_eq!(Adrift::of(&[], &gone, &[]), None);
    }
}
