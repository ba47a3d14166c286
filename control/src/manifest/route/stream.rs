//! TCPRoute and TLSRoute of the Gateway API: connections that are carried as they are, by weight; the latter by the name
//! of the server that is asked for.

use std::{net::IpAddr, sync::Arc};

use mesh::route::Timeouts;
use serde::Deserialize;

use super::{BackendManifest, Route, Rule, Spec, Wrong, backend_of, few};
use crate::manifest::{
    backend_tls::is_server,
    kube::{Strict, bounded},
};

pub(in crate::manifest) type Manifest = Strict<Spec<RuleManifest>>;

/// The most servers that a route may name, as the API has it.
const MOST_HOSTNAMES: usize = 1024;

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(in crate::manifest) struct RuleManifest {
    name: Option<Arc<str>>,
    backend_refs: Option<Vec<BackendManifest>>,
}

impl Route {
    /// Converts and validates a TCPRoute.
    pub(in crate::manifest) fn from_tcp_manifest(manifest: Manifest) -> Result<Self, Wrong> {
        if manifest.spec.hostnames.is_some() {
            let reason = "a TCPRoute has no host names: TCP says none; a TLSRoute has them";
            return Err(("spec.hostnames".to_owned(), reason.to_owned()));
        }
        Self::of_connections(manifest)
    }

    /// Converts and validates a TLSRoute.
    pub(in crate::manifest) fn from_tls_manifest(mut manifest: Manifest) -> Result<Self, Wrong> {
        let hostnames = manifest.spec.hostnames.take().unwrap_or_default();
        bounded("spec.hostnames", hostnames.len(), MOST_HOSTNAMES)?;
        for (at, name) in hostnames.iter().enumerate() {
            check_server(name).map_err(|reason| (format!("spec.hostnames[{at}]"), reason))?;
        }
        let route = Self::of_connections(manifest)?;
        Ok(Self { hostnames: hostnames.into_iter().map(Into::into).collect(), ..route })
    }

    fn of_connections(manifest: Manifest) -> Result<Self, Wrong> {
        match manifest.spec.rules.as_deref().unwrap_or_default() {
            [_] => {}
            rules => {
                let reason = format!(
                    "{} rules; it has exactly one, since nothing of a connection would tell them apart",
                    rules.len()
                );
                return Err(("spec.rules".to_owned(), reason));
            }
        }
        Self::of(manifest, Vec::new(), |rule, field, _| rule_of(rule, field))
    }
}

fn rule_of(rule: RuleManifest, field: &str) -> Result<Rule, Wrong> {
    let backends = rule.backend_refs.unwrap_or_default();
    few(&format!("{field}.backendRefs"), backends.len())?;
    if let Some(at) = backends.iter().position(|backend| backend.filters.is_some()) {
        let reason = "unknown field: of a connection nothing is changed";
        return Err((format!("{field}.backendRefs[{at}].filters"), reason.to_owned()));
    }
    let backends = backends.into_iter().map(|backend| backend_of(backend, field));
    Ok(Rule {
        name: rule.name,
        matches: Vec::new(),
        filters: Vec::new(),
        backends: backends.collect::<Result<_, _>>()?,
        timeouts: Timeouts::default(),
        retry: None,
    })
}

/// Whether a name may be asked for in TLS (RFC 6066), or is `*.` and one.
fn check_server(name: &str) -> Result<(), String> {
    if name.parse::<IpAddr>().is_ok() {
        return Err(format!("{name} is an address: nobody asks for one in TLS"));
    }
    if !is_server(name.strip_prefix("*.").unwrap_or(name)) {
        return Err(format!(
            "{name:?} is no host name: letters in lower case, digits, hyphens and dots, with *. before it at most"
        ));
    }
    Ok(())
}
