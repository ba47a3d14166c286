//! Who may start while nobody can be asked: what the agent knew last of the namespaces, in a file, and the
//! decision by it. Plugin and agent decide by the same function.

use std::{collections::BTreeMap, fs, io, path::Path};

use serde::{Deserialize, Serialize};

use crate::ask::Refusal;

/// Largest file that is read: some 10,000 namespaces.
const MAX_FILE: u64 = 4 << 20;

/// What a namespace wants of its pods, where these say nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    InTheMesh,
    NotInTheMesh,
}

/// The namespaces of the cluster, as far as they are known.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Known {
    #[serde(default)]
    pub namespaces: BTreeMap<String, Mode>,
}

/// What is known of pods that nobody can be asked about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Knowledge {
    Known(Known),
    /// No agent has ever written it here.
    Never,
    /// It cannot be read.
    Unreadable(String),
}

/// Reads the agent's file.
pub fn read(path: &Path) -> Knowledge {
    let text = fs::metadata(path).and_then(|metadata| {
        if metadata.len() > MAX_FILE { Err(io::Error::other("it is too large")) } else { fs::read(path) }
    });
    match text {
        Ok(text) => match serde_json::from_slice(&text) {
            Ok(known) => Knowledge::Known(known),
            Err(error) => Knowledge::Unreadable(error.to_string()),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Knowledge::Never,
        Err(error) => Knowledge::Unreadable(error.to_string()),
    }
}

/// Whether a pod of the namespace may start uncaptured, for the reason `why` that nothing is known of the pod
/// itself.
///
/// # Errors
/// With what to tell who reads the pod's events.
pub fn decide(exempt: &[String], knowledge: &Knowledge, namespace: &str, why: &str) -> Result<(), Refusal> {
    if exempt.iter().any(|exempt| exempt == namespace) {
        return Ok(());
    }
    let look = "look at the agent of this node (kubectl get pods --all-namespaces --selector \
                app.kubernetes.io/name=agent --output wide); the pod is tried again by itself";
    let refuse = |about: String, details: String| {
        Err(Refusal { message: format!("not started outside of the mesh: {about}"), details })
    };
    match knowledge {
        Knowledge::Known(known) => match known.namespaces.get(namespace) {
            Some(Mode::NotInTheMesh) => Ok(()),
            Some(Mode::InTheMesh) => refuse(
                format!("namespace {namespace} is in the mesh, and the pod cannot be captured: {why}"),
                format!("{look}. If the mesh was uninstalled, run `agent uninstall` on this node"),
            ),
            None => refuse(
                format!("namespace {namespace} is not known on this node, so it may be in the mesh: {why}"),
                look.to_owned(),
            ),
        },
        Knowledge::Never => refuse(
            format!("whether namespace {namespace} is in the mesh was never known on this node: {why}"),
            format!("the agent starts in an exempt namespace ({}) and learns it; {look}", exempt.join(", ")),
        ),
        Knowledge::Unreadable(error) => refuse(
            format!("what is known of namespace {namespace} cannot be read ({error}): {why}"),
            format!("the agent writes the file anew when it starts; {look}"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exempt() -> Vec<String> {
        ["kube-system", "culvert-system"].map(String::from).to_vec()
    }

    fn known() -> Knowledge {
        let namespaces = [("shop", Mode::InTheMesh), ("default", Mode::NotInTheMesh)];
        let namespaces = namespaces.map(|(name, mode)| (name.to_owned(), mode)).into();
        Knowledge::Known(Known { namespaces })
    }

    #[test]
    fn only_who_is_known_to_be_outside_starts() {
        let may =
            |knowledge: &Knowledge, namespace| decide(&exempt(), knowledge, namespace, "nobody is there");
        assert_eq!(may(&known(), "default"), Ok(()));
        assert_eq!(may(&known(), "kube-system"), Ok(()), "exempt, and not in the file");
        for (knowledge, namespace, expected) in [
            (known(), "shop", "namespace shop is in the mesh"),
            (known(), "new", "namespace new is not known"),
            (Knowledge::Never, "default", "was never known"),
            (Knowledge::Unreadable("torn".into()), "default", "(torn)"),
        ] {
            let refusal = may(&knowledge, namespace).expect_err("refused");
            assert!(refusal.message.contains(expected), "{refusal:?}");
            assert!(refusal.message.contains("nobody is there"), "{refusal:?}");
            assert!(refusal.details.contains("agent"), "{refusal:?}");
        }
        for knowledge in [Knowledge::Never, Knowledge::Unreadable(String::new())] {
            assert_eq!(may(&knowledge, "culvert-system"), Ok(()), "the agent's own");
        }
    }

    #[test]
    fn the_file_is_read_or_it_is_told_why_not() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("cni.json");
        assert_eq!(read(&path), Knowledge::Never);
        let Knowledge::Known(known) = known() else { panic!("known") };
        fs::write(&path, serde_json::to_vec(&known).expect("JSON")).expect("writes");
        assert_eq!(read(&path), Knowledge::Known(known));
        fs::write(&path, "{\"namespaces\":").expect("writes");
        assert!(matches!(read(&path), Knowledge::Unreadable(_)));
    }
}
