//! Kinds that look like the mesh's and are not: a slip of the pen must not take a policy away in silence.

/// The kinds of the groups that the mesh reads from, with their versions and those other kinds which belong there
/// and are passed over. (Kubernetes' own groups have too many kinds to know: there only what is close counts.)
const GROUPS: [Group; 5] = [
    Group { name: "", versions: &["v1"], ours: &["Namespace", "Node", "Pod", "Service"], others: None },
    Group { name: "discovery.k8s.io", versions: &["v1", "v1beta1"], ours: &["EndpointSlice"], others: None },
    Group {
        name: "networking.istio.io",
        versions: &["v1", "v1beta1", "v1alpha3"],
        ours: &["ServiceEntry", "WorkloadEntry"],
        others: Some(&[
            "DestinationRule",
            "EnvoyFilter",
            "Gateway",
            "ProxyConfig",
            "Sidecar",
            "VirtualService",
            "WorkloadGroup",
        ]),
    },
    Group {
        name: "security.istio.io",
        versions: &["v1", "v1beta1"],
        ours: &["AuthorizationPolicy", "PeerAuthentication", "RequestAuthentication"],
        others: Some(&[]),
    },
    Group {
        name: "gateway.networking.k8s.io",
        versions: &["v1", "v1beta1"],
        ours: &[
            "GRPCRoute",
            "Gateway",
            "HTTPRoute",
            "ReferenceGrant",
            "TCPRoute",
            "TLSRoute",
            "BackendTLSPolicy",
        ],
        others: Some(&["GatewayClass", "ListenerSet", "UDPRoute"]),
    },
];

/// Kinds whose first versions say the same in the fields that are read.
const EARLY: [(&str, &[&str]); 3] = [
    ("BackendTLSPolicy", &["v1alpha3"]),
    ("TCPRoute", &["v1alpha2"]),
    ("TLSRoute", &["v1alpha3", "v1alpha2"]),
];

/// Letters changed, added or left out that still are a slip.
const SLIPS: usize = 2;

struct Group {
    name: &'static str,
    versions: &'static [&'static str],
    ours: &'static [&'static str],
    /// The other kinds of the group; `None` where they are not all known.
    others: Option<&'static [&'static str]>,
}

/// What is wrong with the manifest's kind, and in which field, if it is not plainly somebody else's.
pub(super) fn mistaken(api_version: &str, kind: &str) -> Option<(&'static str, String)> {
    let (group, version) = api_version.rsplit_once('/').unwrap_or(("", api_version));
    let Some(known) = GROUPS.iter().find(|known| known.name == group) else {
        // Other makes have kinds of the same name, so the group must be close, too.
        let meant = GROUPS.iter().find(|known| known.ours.contains(&kind) && is_slip(group, known.name))?;
        let reason = format!("{group:?} has no {kind} that is known here; {:?} has one", meant.name);
        return Some(("apiVersion", reason));
    };
    let is_ours = known.ours.contains(&kind);
    let early = EARLY.iter().find(|(of, _)| *of == kind).map_or(&[][..], |(_, versions)| versions);
    if is_ours && !known.versions.contains(&version) && !early.contains(&version) {
        let versions = [known.versions, early].concat().join(", ");
        let reason = format!("{version:?} is no version of {kind} that is known here: {versions}");
        return Some(("apiVersion", reason));
    }
    if is_ours || known.others.is_some_and(|others| others.contains(&kind)) {
        return None;
    }
    match (known.ours.iter().find(|ours| is_slip(kind, ours)), known.others) {
        (Some(meant), _) => Some(("kind", format!("{group:?} has no kind {kind}; is {meant} meant?"))),
        (None, Some(_)) => {
            let ours = known.ours.join(" and ");
            Some(("kind", format!("{group:?} has no kind {kind}; the mesh reads {ours} from it")))
        }
        (None, None) => None,
    }
}

fn is_slip(written: &str, meant: &str) -> bool {
    // A short name is close to many.
    let slips = SLIPS.min(meant.len() / 3);
    let distance = strsim::damerau_levenshtein(&written.to_ascii_lowercase(), &meant.to_ascii_lowercase());
    !meant.is_empty() && distance <= slips
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_are_told_with_what_is_meant() {
        for (api_version, kind, field, says) in [
            ("security.istio.io/v1", "AuthorisationPolicy", "kind", "AuthorizationPolicy"),
            ("security.istio.io/v1", "Policy", "kind", "PeerAuthentication"),
            ("security.istio.io/v7", "AuthorizationPolicy", "apiVersion", "v1beta1"),
            ("securty.istio.io/v1", "AuthorizationPolicy", "apiVersion", "security.istio.io"),
            ("v1", "namespace", "kind", "Namespace"),
            ("v1", "Pods", "kind", "Pod"),
            ("v2", "Service", "apiVersion", "v1"),
            ("discovery.k8s.io/v1", "EndpointSlices", "kind", "EndpointSlice"),
            ("gateway.networking.k8s.io/v1alpha2", "HTTPRoute", "apiVersion", "v1beta1"),
            ("gateway.networking.k8s.io/v1alpha9", "TCPRoute", "apiVersion", "v1alpha2"),
            ("gateway.networking.k8s.io/v1", "TLSRoutes", "kind", "TLSRoute"),
        ] {
            let (at, reason) = mistaken(api_version, kind).expect(kind);
            assert_eq!(at, field, "{kind}");
            assert!(reason.contains(says), "{reason}");
        }
    }

    #[test]
    fn other_peoples_kinds_are_no_slips() {
        for (api_version, kind) in [
            ("v1", "ConfigMap"),
            ("v1", "ServiceAccount"),
            ("v1", "Secret"),
            ("apps/v1", "Deployment"),
            ("batch/v1", "Job"),
            ("networking.istio.io/v1", "VirtualService"),
            ("security.istio.io/v1", "RequestAuthentication"),
            ("serving.knative.dev/v1", "Service"),
            ("policy.linkerd.io/v1alpha1", "AuthorizationPolicy"),
            ("discovery.k8s.io/v1", "Other"),
            ("security.istio.io/v1", "AuthorizationPolicy"),
            ("gateway.networking.k8s.io/v1", "GatewayClass"),
            ("gateway.networking.k8s.io/v1", "GRPCRoute"),
            ("gateway.networking.k8s.io/v1alpha2", "TCPRoute"),
            ("gateway.networking.k8s.io/v1", "TLSRoute"),
            ("gateway.networking.k8s.io/v1alpha3", "BackendTLSPolicy"),
            ("gateway.networking.k8s.io/v1beta1", "ReferenceGrant"),
            ("v1", "Pod"),
        ] {
            assert_eq!(mistaken(api_version, kind), None, "{api_version} {kind}");
        }
    }
}
