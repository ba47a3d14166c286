//! `targetRefs` of a policy: what it is for, all in its own namespace.

use std::sync::Arc;

use serde::Deserialize;

/// A field's path and what is wrong with it.
type Wrong = (String, String);

/// The most targets that the API allows.
const MOST: usize = 16;

/// What a policy is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyTarget {
    pub kind: TargetKind,
    pub name: Arc<str>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TargetKind {
    Service,
    ServiceEntry,
    /// A waypoint, with whatever passes it.
    Gateway,
    /// Every waypoint of that class; in the root namespace alone.
    GatewayClass,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Manifest {
    #[serde(default)]
    group: String,
    kind: String,
    name: Arc<str>,
    #[serde(default)]
    namespace: Option<String>,
}

/// Whether waypoints as a whole are among them, which may serve other namespaces.
pub(super) fn has_gateways(targets: &[PolicyTarget]) -> bool {
    targets.iter().any(|target| matches!(target.kind, TargetKind::Gateway | TargetKind::GatewayClass))
}

/// `targetRef` and `targetRefs`, which may not both be there.
pub(super) fn all_of(
    one: Option<Manifest>,
    several: Option<Vec<Manifest>>,
) -> Result<Vec<PolicyTarget>, Wrong> {
    let several = several.unwrap_or_default();
    let (field, manifests) = match one {
        Some(_) if !several.is_empty() => {
            let reason = "targetRef and targetRefs are one thing; say targetRefs";
            return Err(("spec.targetRef".to_owned(), reason.to_owned()));
        }
        Some(one) => ("spec.targetRef", vec![one]),
        None => ("spec.targetRefs", several),
    };
    if manifests.len() > MOST {
        return Err((field.to_owned(), format!("more than {MOST}")));
    }
    let named = |at: usize| if field.ends_with('s') { format!("{field}[{at}]") } else { field.to_owned() };
    manifests.into_iter().enumerate().map(|(at, manifest)| target(&named(at), manifest)).collect()
}

fn target(field: &str, from: Manifest) -> Result<PolicyTarget, Wrong> {
    if from.namespace.is_some_and(|namespace| !namespace.is_empty()) {
        let reason = "what a policy is for is of the policy's own namespace; leave it out";
        return Err((format!("{field}.namespace"), reason.to_owned()));
    }
    let kind = match (from.group.as_str(), from.kind.as_str()) {
        ("" | "core", "Service") => TargetKind::Service,
        ("networking.istio.io", "ServiceEntry") => TargetKind::ServiceEntry,
        ("gateway.networking.k8s.io", "Gateway") => TargetKind::Gateway,
        ("gateway.networking.k8s.io", "GatewayClass") => TargetKind::GatewayClass,
        (group, kind) => {
            let reason = format!(
                "{kind:?} of group {group:?} is no target: a Service, a ServiceEntry (networking.istio.io), a Gateway or \
                 a GatewayClass (gateway.networking.k8s.io) is"
            );
            return Err((format!("{field}.kind"), reason));
        }
    };
    if from.name.is_empty() {
        return Err((format!("{field}.name"), "it has no name".to_owned()));
    }
    Ok(PolicyTarget { kind, name: from.name })
}
