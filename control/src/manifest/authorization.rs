//! AuthorizationPolicy (`security.istio.io`) to the layer-4 rules of [`mesh::Policy`].
//!
//! What has no meaning at layer 4 never widens a policy: an ALLOW rule with a layer-7 field never
//! matches, a DENY rule loses those fields and so denies more, and a DENY of which nothing would be
//! left is refused, since it would deny everything.

use std::{net::IpAddr, sync::Arc};

use ipnet::IpNet;
use mesh::{Action, Clause, Match, Rule, ServiceAccountMatch, StringMatch};
use serde::{Deserialize, de::IgnoredAny};

use super::kube::{LabelSelector, Metadata};

/// A field's path and what is wrong with it.
type Wrong = (String, String);

/// A policy that was understood; its scope depends on where it lies and is decided at compile time.
#[derive(Debug, Clone, PartialEq)]
pub struct Authorization {
    pub metadata: Metadata,
    /// Labels of the workloads it is for; `None` for all of its scope.
    pub selector: Option<LabelSelector>,
    pub action: Action,
    pub dry_run: bool,
    pub rules: Vec<Rule>,
    /// Layer-7 fields that have no effect at layer 4, with what that means here.
    pub remarks: Vec<(String, String)>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Manifest {
    // Read before; named here so that a misspelt `spec` is not passed over.
    #[serde(rename = "apiVersion")]
    _api_version: IgnoredAny,
    #[serde(rename = "kind")]
    _kind: IgnoredAny,
    #[serde(rename = "status", default)]
    _status: IgnoredAny,
    metadata: Metadata,
    #[serde(default)]
    spec: Spec,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct Spec {
    selector: Option<LabelSelector>,
    target_ref: Option<IgnoredAny>,
    target_refs: Option<Vec<IgnoredAny>>,
    action: Option<String>,
    provider: Option<IgnoredAny>,
    rules: Option<Vec<RuleManifest>>,
}

#[derive(Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
struct RuleManifest {
    from: Option<Vec<From>>,
    to: Option<Vec<To>>,
    when: Option<Vec<Condition>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct From {
    source: Source,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct Source {
    principals: Option<Vec<String>>,
    not_principals: Option<Vec<String>>,
    request_principals: Option<Vec<String>>,
    not_request_principals: Option<Vec<String>>,
    namespaces: Option<Vec<String>>,
    not_namespaces: Option<Vec<String>>,
    service_accounts: Option<Vec<String>>,
    not_service_accounts: Option<Vec<String>>,
    ip_blocks: Option<Vec<String>>,
    not_ip_blocks: Option<Vec<String>>,
    remote_ip_blocks: Option<Vec<String>>,
    not_remote_ip_blocks: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct To {
    operation: Operation,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct Operation {
    hosts: Option<Vec<String>>,
    not_hosts: Option<Vec<String>>,
    ports: Option<Vec<String>>,
    not_ports: Option<Vec<String>>,
    methods: Option<Vec<String>>,
    not_methods: Option<Vec<String>>,
    paths: Option<Vec<String>>,
    not_paths: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Condition {
    key: String,
    #[serde(default)]
    values: Option<Vec<String>>,
    #[serde(default)]
    not_values: Option<Vec<String>>,
}

/// One alternative of a clause after its layer-7 fields were taken out.
struct Reduced {
    fields: Match,
    /// The layer-7 fields it had.
    layer7: Vec<&'static str>,
}

impl Authorization {
    /// Converts and validates. `namespace` is the policy's own.
    pub(super) fn from_manifest(manifest: Manifest, namespace: &str) -> Result<Self, Wrong> {
        let Manifest { metadata, spec, .. } = manifest;
        let wrong = |field: &str, reason: &str| Err((field.to_owned(), reason.to_owned()));
        let action = match spec.action.as_deref() {
            None | Some("ALLOW") => Action::Allow,
            Some("DENY") => Action::Deny,
            Some("AUDIT") => {
                return wrong("spec.action", "AUDIT is judged at a waypoint, and there are none yet");
            }
            Some("CUSTOM") => {
                return wrong(
                    "spec.action",
                    "CUSTOM needs a waypoint with an external authorizer; none exist yet",
                );
            }
            Some(other) => {
                return Err((
                    "spec.action".to_owned(),
                    format!("{other:?} is none of ALLOW, DENY, AUDIT, CUSTOM"),
                ));
            }
        };
        if spec.target_ref.is_some() || spec.target_refs.is_some_and(|refs| !refs.is_empty()) {
            let reason =
                "targetRefs name a waypoint or a service behind one, and there are none yet; use a selector";
            return wrong("spec.targetRefs", reason);
        }
        if spec.provider.is_some() {
            return wrong("spec.provider", "a provider goes with the action CUSTOM only");
        }
        let mut converter = Converter { action, namespace, remarks: Vec::new() };
        let mut rules = Vec::new();
        for (index, rule) in spec.rules.into_iter().flatten().enumerate() {
            rules.extend(converter.rule(&format!("spec.rules[{index}]"), rule)?);
        }
        rules.shrink_to_fit();
        let dry_run = match metadata.annotation("istio.io/dry-run") {
            None => false,
            Some(text) => text.parse().map_err(|_| {
                (
                    "metadata.annotations".to_owned(),
                    format!("istio.io/dry-run is {text:?}, not true or false"),
                )
            })?,
        };
        Ok(Self {
            dry_run,
            action,
            rules,
            remarks: converter.remarks,
            selector: spec.selector.filter(|selector| !selector.match_labels.is_empty()),
            metadata,
        })
    }
}

struct Converter<'a> {
    action: Action,
    namespace: &'a str,
    remarks: Vec<(String, String)>,
}

impl Converter<'_> {
    /// `None` for an ALLOW rule that can never match at layer 4.
    fn rule(&mut self, field: &str, rule: RuleManifest) -> Result<Option<Rule>, Wrong> {
        let mut alternatives = Vec::new();
        if let Some(from) = rule.from {
            let field = format!("{field}.from");
            let reduced =
                each(&field, from, |field, from| self.source(&format!("{field}.source"), from.source))?;
            alternatives.push((field, reduced));
        }
        if let Some(to) = rule.to {
            let field = format!("{field}.to");
            let reduced =
                each(&field, to, |field, to| operation(&format!("{field}.operation"), to.operation))?;
            alternatives.push((field, reduced));
        }
        for (index, condition) in rule.when.into_iter().flatten().enumerate() {
            let field = format!("{field}.when[{index}]");
            let reduced = self.condition(&field, condition)?;
            alternatives.push((field, vec![reduced]));
        }
        let clauses = match self.action {
            Action::Allow => self.allowed(alternatives),
            Action::Deny => self.denied(field, alternatives)?,
        };
        // A rule without any condition is for everybody: one clause without matches.
        Ok(clauses.map(|clauses| Rule {
            clauses: if clauses.is_empty() { vec![Clause::default()] } else { clauses },
        }))
    }

    /// ALLOW: an alternative with layer-7 fields never matches; a clause left without alternatives
    /// takes the rule with it.
    fn allowed(&mut self, clauses: Vec<(String, Vec<Reduced>)>) -> Option<Vec<Clause>> {
        let mut kept = Vec::new();
        let mut possible = true;
        for (field, alternatives) in clauses {
            let mut matches = Vec::new();
            for Reduced { fields, layer7 } in alternatives {
                if layer7.is_empty() {
                    matches.push(fields);
                } else {
                    let reason =
                        format!("{} is of layer 7: at ztunnel this never matches", layer7.join(", "));
                    self.remarks.push((field.clone(), reason));
                }
            }
            possible &= !matches.is_empty();
            matches.shrink_to_fit();
            kept.push(Clause { matches });
        }
        kept.shrink_to_fit();
        possible.then_some(kept)
    }

    /// DENY: layer-7 fields are dropped; a rule of nothing else would deny everything and is refused.
    fn denied(
        &mut self,
        rule: &str,
        clauses: Vec<(String, Vec<Reduced>)>,
    ) -> Result<Option<Vec<Clause>>, Wrong> {
        let mut kept = Vec::new();
        let mut dropped = false;
        for (field, alternatives) in clauses {
            // One alternative without layer-4 fields makes the whole clause match everything.
            let open = alternatives.iter().any(|found| found.fields == Match::default());
            for found in alternatives.iter().filter(|found| !found.layer7.is_empty()) {
                dropped = true;
                let reason = format!(
                    "{} is of layer 7: ztunnel denies without looking at it",
                    found.layer7.join(", ")
                );
                self.remarks.push((field.clone(), reason));
            }
            if !open {
                kept.push(Clause { matches: alternatives.into_iter().map(|found| found.fields).collect() });
            }
        }
        if kept.is_empty() && dropped {
            let reason = "only layer-7 fields: without them ztunnel would deny everything; name a port or a caller \
                          too, or wait for waypoints";
            return Err((rule.to_owned(), reason.to_owned()));
        }
        Ok(Some(kept))
    }

    fn source(&self, field: &str, from: Source) -> Result<Reduced, Wrong> {
        let mut layer7 = Vec::new();
        for (name, present) in [
            ("requestPrincipals", from.request_principals.is_some()),
            ("notRequestPrincipals", from.not_request_principals.is_some()),
            ("remoteIpBlocks", from.remote_ip_blocks.is_some()),
            ("notRemoteIpBlocks", from.not_remote_ip_blocks.is_some()),
        ] {
            if present {
                layer7.push(name);
            }
        }
        let at = |name: &str| format!("{field}.{name}");
        let fields = Match {
            principals: principals(&at("principals"), from.principals)?,
            not_principals: principals(&at("notPrincipals"), from.not_principals)?,
            namespaces: strings(&at("namespaces"), from.namespaces)?,
            not_namespaces: strings(&at("notNamespaces"), from.not_namespaces)?,
            service_accounts: self.accounts(&at("serviceAccounts"), from.service_accounts)?,
            not_service_accounts: self.accounts(&at("notServiceAccounts"), from.not_service_accounts)?,
            source_ips: blocks(&at("ipBlocks"), from.ip_blocks)?,
            not_source_ips: blocks(&at("notIpBlocks"), from.not_ip_blocks)?,
            ..Match::default()
        };
        reduced(field, fields, layer7)
    }

    fn condition(&self, field: &str, condition: Condition) -> Result<Reduced, Wrong> {
        let (values, not_values) = (condition.values, condition.not_values);
        let at = |name: &str| format!("{field}.{name}");
        let (yes, no) = (at("values"), at("notValues"));
        let mut fields = Match::default();
        let mut layer7 = Vec::new();
        match condition.key.as_str() {
            "source.ip" => {
                fields.source_ips = blocks(&yes, values)?;
                fields.not_source_ips = blocks(&no, not_values)?;
            }
            "source.namespace" => {
                fields.namespaces = strings(&yes, values)?;
                fields.not_namespaces = strings(&no, not_values)?;
            }
            "source.principal" => {
                fields.principals = principals(&yes, values)?;
                fields.not_principals = principals(&no, not_values)?;
            }
            "source.serviceAccount" => {
                fields.service_accounts = self.accounts(&yes, values)?;
                fields.not_service_accounts = self.accounts(&no, not_values)?;
            }
            "destination.ip" => {
                fields.destination_ips = blocks(&yes, values)?;
                fields.not_destination_ips = blocks(&no, not_values)?;
            }
            "destination.port" => {
                fields.destination_ports = ports(&yes, values)?;
                fields.not_destination_ports = ports(&no, not_values)?;
            }
            "remote.ip" => layer7.push("remote.ip"),
            "connection.sni" => layer7.push("connection.sni"),
            key if key.starts_with("request.headers[") => layer7.push("request.headers"),
            key if key.starts_with("request.auth.") => layer7.push("request.auth"),
            key if key.starts_with("experimental.envoy.filters.") => {
                layer7.push("experimental.envoy.filters")
            }
            key => return Err((at("key"), format!("{key:?} is not a key of a condition"))),
        }
        reduced(field, fields, layer7)
    }

    /// `namespace/account`, or `account` in the policy's own namespace.
    fn accounts(&self, field: &str, values: Option<Vec<String>>) -> Result<Vec<ServiceAccountMatch>, Wrong> {
        list(field, values, |value| {
            let (namespace, account) = value.split_once('/').unwrap_or((self.namespace, value));
            if namespace.is_empty() || account.is_empty() || value.contains('*') || account.contains('/') {
                return Err(format!("{value:?} is neither ACCOUNT nor NAMESPACE/ACCOUNT (no wildcards)"));
            }
            Ok(ServiceAccountMatch { namespace: namespace.into(), service_account: account.into() })
        })
    }
}

fn operation(field: &str, to: Operation) -> Result<Reduced, Wrong> {
    let mut layer7 = Vec::new();
    for (name, present) in [
        ("hosts", to.hosts.is_some()),
        ("notHosts", to.not_hosts.is_some()),
        ("methods", to.methods.is_some()),
        ("notMethods", to.not_methods.is_some()),
        ("paths", to.paths.is_some()),
        ("notPaths", to.not_paths.is_some()),
    ] {
        if present {
            layer7.push(name);
        }
    }
    let fields = Match {
        destination_ports: ports(&format!("{field}.ports"), to.ports)?,
        not_destination_ports: ports(&format!("{field}.notPorts"), to.not_ports)?,
        ..Match::default()
    };
    reduced(field, fields, layer7)
}

/// Nothing at all in a source, operation or condition would match everybody: surely not what was meant.
fn reduced(field: &str, fields: Match, layer7: Vec<&'static str>) -> Result<Reduced, Wrong> {
    if layer7.is_empty() && fields == Match::default() {
        return Err((field.to_owned(), "it says nothing; leave it out to match everybody".to_owned()));
    }
    Ok(Reduced { fields, layer7 })
}

fn each<T>(
    field: &str,
    items: Vec<T>,
    mut convert: impl FnMut(&str, T) -> Result<Reduced, Wrong>,
) -> Result<Vec<Reduced>, Wrong> {
    if items.is_empty() {
        return Err((field.to_owned(), "the list is empty; leave it out to match everybody".to_owned()));
    }
    items.into_iter().enumerate().map(|(index, item)| convert(&format!("{field}[{index}]"), item)).collect()
}

fn list<T>(
    field: &str,
    values: Option<Vec<String>>,
    convert: impl Fn(&str) -> Result<T, String>,
) -> Result<Vec<T>, Wrong> {
    let Some(values) = values else { return Ok(Vec::new()) };
    if values.is_empty() {
        return Err((field.to_owned(), "the list is empty; leave it out, or name a value".to_owned()));
    }
    let converted = values.iter().enumerate().map(|(index, value)| {
        if value.is_empty() {
            return Err((format!("{field}[{index}]"), "the value is empty".to_owned()));
        }
        convert(value).map_err(|reason| (format!("{field}[{index}]"), reason))
    });
    converted.collect()
}

fn strings(field: &str, values: Option<Vec<String>>) -> Result<Vec<StringMatch>, Wrong> {
    list(field, values, string)
}

/// `*`, `prefix*`, `*suffix` or the exact text.
fn string(value: &str) -> Result<StringMatch, String> {
    let (front, back) = (value.strip_prefix('*'), value.strip_suffix('*'));
    let found = match (front, back) {
        (Some(""), _) => StringMatch::Presence,
        (Some(suffix), None) => StringMatch::Suffix(Arc::from(suffix)),
        (None, Some(prefix)) => StringMatch::Prefix(Arc::from(prefix)),
        (None, None) => StringMatch::Exact(Arc::from(value)),
        (Some(_), Some(_)) => return Err(format!("{value:?}: a wildcard stands at one end only")),
    };
    match &found {
        StringMatch::Exact(text) | StringMatch::Prefix(text) | StringMatch::Suffix(text)
            if text.contains('*') =>
        {
            Err(format!("{value:?}: a wildcard stands at the beginning or at the end"))
        }
        _ => Ok(found),
    }
}

fn principals(field: &str, values: Option<Vec<String>>) -> Result<Vec<StringMatch>, Wrong> {
    list(field, values, |value| {
        if value.starts_with("spiffe://") {
            return Err(format!(
                "{value:?}: principals are written without spiffe://, as in cluster.local/ns/NAMESPACE/sa/ACCOUNT"
            ));
        }
        string(value)
    })
}

fn blocks(field: &str, values: Option<Vec<String>>) -> Result<Vec<IpNet>, Wrong> {
    list(field, values, |value| {
        let net = value.parse::<IpNet>().ok().or_else(|| value.parse::<IpAddr>().ok().map(IpNet::from));
        net.map(|net| net.trunc()).ok_or_else(|| format!("{value:?} is neither an address nor a CIDR range"))
    })
}

fn ports(field: &str, values: Option<Vec<String>>) -> Result<Vec<u16>, Wrong> {
    list(field, values, |value| {
        value
            .parse::<u16>()
            .ok()
            .filter(|port| *port != 0)
            .ok_or_else(|| format!("{value:?} is not a port (1 to 65535)"))
    })
}
