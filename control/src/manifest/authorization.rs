//! AuthorizationPolicy (`security.istio.io`): with `targetRefs` to the rules of [`mesh::request::RequestPolicy`], by which
//! waypoints judge requests, else to the layer-4 rules of [`mesh::Policy`].
//!
//! What has no meaning at layer 4 never widens a policy: an ALLOW rule with a layer-7 field never
//! matches, a DENY rule loses those fields and so denies more, and a DENY of which nothing would be
//! left is refused, since it would deny everything.

mod values;

use std::sync::Arc;

use ipnet::IpNet;
use mesh::{
    Action, Clause, Match, Rule, ServiceAccountMatch,
    request::{PathPattern, RequestAction, RequestClause, RequestMatch, RequestRule, Subject, ValueMatch},
};
use serde::{Deserialize, de::IgnoredAny};

use self::values::{blocks, list, path, ports, principals, strings};
use super::{
    kube::{LabelSelector, Metadata, Strict},
    target::{self, PolicyTarget},
};

/// A field's path and what is wrong with it.
type Wrong = (String, String);

/// A policy that was understood; what it applies to is decided at compile time.
#[derive(Debug, Clone, PartialEq)]
pub struct Authorization {
    pub metadata: Metadata,
    pub dry_run: bool,
    pub judges: Judges,
    /// Fields that have no effect where the policy is judged, with what that means.
    pub remarks: Vec<(String, String)>,
}

/// What a policy judges.
#[derive(Debug, Clone, PartialEq)]
pub enum Judges {
    /// Connections, at the workloads.
    Connections {
        /// Labels of the workloads it is for; `None` for all of its scope.
        selector: Option<LabelSelector>,
        action: Action,
        rules: Vec<Rule>,
    },
    /// Requests, at the waypoint of what `targetRefs` name.
    Requests { targets: Vec<PolicyTarget>, action: RequestAction, rules: Vec<RequestRule> },
}

pub(super) type Manifest = Strict<Spec>;

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(super) struct Spec {
    selector: Option<LabelSelector>,
    target_ref: Option<target::Manifest>,
    target_refs: Option<Vec<target::Manifest>>,
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

/// One alternative of a clause.
#[derive(Default)]
struct Read {
    fields: RequestMatch,
    remote_ips: Vec<IpNet>,
    not_remote_ips: Vec<IpNet>,
    /// The layer-7 fields it has.
    layer7: Vec<&'static str>,
    /// One of them is not seen at a waypoint either.
    unseen: bool,
}

impl Authorization {
    /// Whether it is for waypoints as a whole, which may serve other namespaces.
    pub(crate) fn is_for_gateways(&self) -> bool {
        let Judges::Requests { targets, .. } = &self.judges else { return false };
        target::has_gateways(targets)
    }

    /// Converts and validates. `namespace` is the policy's own.
    pub(super) fn from_manifest(manifest: Manifest, namespace: &str) -> Result<Self, Wrong> {
        let Strict { metadata, spec, .. } = manifest;
        let wrong = |field: &str, reason: &str| Err((field.to_owned(), reason.to_owned()));
        let action = match spec.action.as_deref() {
            None | Some("ALLOW") => RequestAction::Allow,
            Some("DENY") => RequestAction::Deny,
            Some("AUDIT") => RequestAction::Audit,
            Some("CUSTOM") => {
                return wrong("spec.action", "CUSTOM asks an external authorizer, which is not done yet");
            }
            Some(other) => {
                return Err((
                    "spec.action".to_owned(),
                    format!("{other:?} is none of ALLOW, DENY, AUDIT, CUSTOM"),
                ));
            }
        };
        if spec.provider.is_some() {
            return wrong("spec.provider", "a provider goes with the action CUSTOM only");
        }
        let targets = target::all_of(spec.target_ref, spec.target_refs)?;
        let selector = spec.selector.filter(|selector| !selector.match_labels.is_empty());
        if !targets.is_empty() && selector.is_some() {
            return wrong(
                "spec.selector",
                "a policy is for workloads (selector) or for targetRefs, and not for both",
            );
        }
        let dry_run = match metadata.annotation("istio.io/dry-run") {
            None => false,
            Some(text) => text.parse().map_err(|_| {
                (
                    "metadata.annotations".to_owned(),
                    format!("istio.io/dry-run is {text:?}, not true or false"),
                )
            })?,
        };
        let mut converter = Converter { namespace, remarks: Vec::new() };
        let manifests = spec.rules.into_iter().flatten().enumerate();
        let read = manifests.map(|(index, rule)| converter.read(&format!("spec.rules[{index}]"), rule));
        let read = read.collect::<Result<Vec<_>, _>>()?;
        let judges = if targets.is_empty() {
            let action = match action {
                RequestAction::Allow => Action::Allow,
                RequestAction::Deny => Action::Deny,
                RequestAction::Audit => {
                    return wrong(
                        "spec.action",
                        "AUDIT is for requests, at a waypoint: name it by targetRefs",
                    );
                }
            };
            let mut rules = Vec::new();
            for (index, clauses) in read.into_iter().enumerate() {
                rules.extend(converter.of_connections(&format!("spec.rules[{index}]"), action, clauses)?);
            }
            rules.shrink_to_fit();
            Judges::Connections { selector, action, rules }
        } else {
            let rules = read.into_iter().map(of_requests);
            let rules = rules.collect::<Result<_, _>>()?;
            Judges::Requests { targets, action, rules }
        };
        Ok(Self { dry_run, judges, remarks: converter.remarks, metadata })
    }
}

/// A rule as a waypoint judges by it: what it says has a meaning there.
fn of_requests(clauses: Vec<(String, Vec<Read>)>) -> Result<RequestRule, Wrong> {
    let clause = |(field, alternatives): (String, Vec<Read>)| {
        let matches = alternatives.into_iter().map(|read| read.of_request(&field));
        Ok(RequestClause { matches: matches.collect::<Result<_, Wrong>>()? })
    };
    Ok(RequestRule { clauses: clauses.into_iter().map(clause).collect::<Result<_, Wrong>>()? })
}

struct Converter<'a> {
    namespace: &'a str,
    remarks: Vec<(String, String)>,
}

impl Converter<'_> {
    /// The clauses of a rule, each under its field.
    fn read(&mut self, field: &str, rule: RuleManifest) -> Result<Vec<(String, Vec<Read>)>, Wrong> {
        let mut clauses = Vec::new();
        if let Some(from) = rule.from {
            let field = format!("{field}.from");
            let read =
                each(&field, from, |field, from| self.source(&format!("{field}.source"), from.source))?;
            clauses.push((field, read));
        }
        if let Some(to) = rule.to {
            let field = format!("{field}.to");
            for (at, to) in to.iter().enumerate() {
                self.remark_methods(&format!("{field}[{at}].operation"), &to.operation);
            }
            let read = each(&field, to, |field, to| operation(&format!("{field}.operation"), to.operation))?;
            clauses.push((field, read));
        }
        for (index, condition) in rule.when.into_iter().flatten().enumerate() {
            let field = format!("{field}.when[{index}]");
            let read = self.condition(&field, condition)?;
            clauses.push((field, vec![read]));
        }
        Ok(clauses)
    }

    /// Methods are compared letter by letter (RFC 9110, 9.1), and those that have a name have it in capitals.
    fn remark_methods(&mut self, field: &str, operation: &Operation) {
        for (name, methods) in [("methods", &operation.methods), ("notMethods", &operation.not_methods)] {
            let small = |method: &&String| method.bytes().any(|byte| byte.is_ascii_lowercase());
            for method in methods.iter().flatten().filter(small) {
                let reason = format!(
                    "{method:?} is no {:?}: methods are compared letter by letter",
                    method.to_uppercase()
                );
                self.remarks.push((format!("{field}.{name}"), reason));
            }
        }
    }

    /// A rule as the layer-4 proxies judge by it. `None` for an ALLOW rule that can never match there.
    fn of_connections(
        &mut self,
        field: &str,
        action: Action,
        clauses: Vec<(String, Vec<Read>)>,
    ) -> Result<Option<Rule>, Wrong> {
        let clauses = match action {
            Action::Allow => self.allowed(clauses),
            Action::Deny => self.denied(field, clauses)?,
        };
        // A rule without any condition is for everybody: one clause without matches.
        Ok(clauses.map(|clauses| Rule {
            clauses: if clauses.is_empty() { vec![Clause::default()] } else { clauses },
        }))
    }

    /// ALLOW: an alternative with layer-7 fields never matches; a clause left without alternatives
    /// takes the rule with it.
    fn allowed(&mut self, clauses: Vec<(String, Vec<Read>)>) -> Option<Vec<Clause>> {
        let mut kept = Vec::new();
        let mut possible = true;
        for (field, alternatives) in clauses {
            let mut matches = Vec::new();
            for Read { fields, layer7, .. } in alternatives {
                if layer7.is_empty() {
                    matches.push(fields.caller);
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
        clauses: Vec<(String, Vec<Read>)>,
    ) -> Result<Option<Vec<Clause>>, Wrong> {
        let mut kept = Vec::new();
        let mut dropped = false;
        for (field, alternatives) in clauses {
            // One alternative without layer-4 fields makes the whole clause match everything.
            let open = alternatives.iter().any(|found| found.fields.caller == Match::default());
            for found in alternatives.iter().filter(|found| !found.layer7.is_empty()) {
                dropped = true;
                let reason = format!(
                    "{} is of layer 7: ztunnel denies without looking at it",
                    found.layer7.join(", ")
                );
                self.remarks.push((field.clone(), reason));
            }
            if !open {
                let matches = alternatives.into_iter().map(|found| found.fields.caller).collect();
                kept.push(Clause { matches });
            }
        }
        if kept.is_empty() && dropped {
            let reason = "only layer-7 fields: without them ztunnel would deny everything; name a port or a caller \
                          too, or a waypoint by targetRefs";
            return Err((rule.to_owned(), reason.to_owned()));
        }
        Ok(Some(kept))
    }

    fn source(&self, field: &str, from: Source) -> Result<Read, Wrong> {
        let at = |name: &str| format!("{field}.{name}");
        let mut read = Read::default();
        let remote = [from.remote_ip_blocks, from.not_remote_ip_blocks];
        read.remote(["remoteIpBlocks", "notRemoteIpBlocks"].map(|name| (name, at(name))), remote)?;
        let names = ["requestPrincipals", "notRequestPrincipals"].map(|name| (name, at(name)));
        read.value(Subject::Principal, names, [from.request_principals, from.not_request_principals])?;
        read.fields.caller = Match {
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
        read.checked(field)
    }

    fn condition(&self, field: &str, condition: Condition) -> Result<Read, Wrong> {
        let Condition { key, values, not_values } = condition;
        let at = |name: &str| format!("{field}.{name}");
        let (yes, no) = (at("values"), at("notValues"));
        let mut read = Read::default();
        let caller = &mut read.fields.caller;
        // What is told as a field of layer 7 is the key, whichever of the lists is there.
        let named = |name: &'static str| [(name, yes.clone()), (name, no.clone())];
        match key.as_str() {
            "source.ip" => {
                caller.source_ips = blocks(&yes, values)?;
                caller.not_source_ips = blocks(&no, not_values)?;
            }
            "source.namespace" => {
                caller.namespaces = strings(&yes, values)?;
                caller.not_namespaces = strings(&no, not_values)?;
            }
            "source.principal" => {
                caller.principals = principals(&yes, values)?;
                caller.not_principals = principals(&no, not_values)?;
            }
            "source.serviceAccount" => {
                caller.service_accounts = self.accounts(&yes, values)?;
                caller.not_service_accounts = self.accounts(&no, not_values)?;
            }
            "destination.ip" => {
                caller.destination_ips = blocks(&yes, values)?;
                caller.not_destination_ips = blocks(&no, not_values)?;
            }
            "destination.port" => {
                caller.destination_ports = ports(&yes, values)?;
                caller.not_destination_ports = ports(&no, not_values)?;
            }
            "remote.ip" => read.remote(named("remote.ip"), [values, not_values])?,
            "connection.sni" => read.unseen("connection.sni"),
            key if key.starts_with("experimental.envoy.filters.") => {
                read.unseen("experimental.envoy.filters")
            }
            key => {
                let of = subject(key)
                    .ok_or_else(|| (at("key"), format!("{key:?} is not a key of a condition")))?;
                let name =
                    if key.starts_with("request.headers") { "request.headers" } else { "request.auth" };
                read.value(of, named(name), [values, not_values])?;
            }
        }
        read.checked(field)
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

/// What a condition's key asks of a request.
fn subject(key: &str) -> Option<Subject> {
    // `[a][b]` behind the name of the map.
    let names = |of: &str| -> Option<Box<[Arc<str>]>> {
        let inner = key.strip_prefix(of)?.strip_prefix('[')?.strip_suffix(']')?;
        let names: Vec<Arc<str>> = inner.split("][").map(Arc::from).collect();
        names.iter().all(|name| !name.is_empty() && !name.contains(['[', ']'])).then(|| names.into())
    };
    match key {
        "request.auth.principal" => Some(Subject::Principal),
        "request.auth.audiences" => Some(Subject::Audience),
        "request.auth.presenter" => Some(Subject::Presenter),
        _ => names("request.auth.claims").map(Subject::Claim).or_else(|| match &*names("request.headers")? {
            // What is no header's name would never be there.
            [name] if is_field_name(name) => Some(Subject::Header(name.to_ascii_lowercase().into())),
            _ => None,
        }),
    }
}

/// Whether a header may be called so (RFC 9110, 5.1).
pub(super) fn is_field_name(name: &str) -> bool {
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !name.is_empty() && name.bytes().all(token)
}

fn operation(field: &str, to: Operation) -> Result<Read, Wrong> {
    let at = |name: &'static str| (name, format!("{field}.{name}"));
    let mut read = Read::default();
    read.value(Subject::Host, [at("hosts"), at("notHosts")], [to.hosts, to.not_hosts])?;
    read.value(Subject::Method, [at("methods"), at("notMethods")], [to.methods, to.not_methods])?;
    read.fields.paths = read.paths(at("paths"), to.paths)?;
    read.fields.not_paths = read.paths(at("notPaths"), to.not_paths)?;
    read.fields.caller.destination_ports = ports(&at("ports").1, to.ports)?;
    read.fields.caller.not_destination_ports = ports(&at("notPorts").1, to.not_ports)?;
    read.checked(field)
}

/// A field of layer 7: as it is told, and where it stands.
type Named = (&'static str, String);

impl Read {
    fn value(
        &mut self,
        of: Subject,
        names: [Named; 2],
        lists: [Option<Vec<String>>; 2],
    ) -> Result<(), Wrong> {
        let [(yes, yes_at), (no, no_at)] = names;
        let [values, not_values] = lists;
        self.layer7.extend(values.is_some().then_some(yes));
        self.layer7.extend(not_values.is_some().then_some(no).filter(|no| self.layer7.last() != Some(no)));
        let (values, not_values) = (strings(&yes_at, values)?, strings(&no_at, not_values)?);
        if !(values.is_empty() && not_values.is_empty()) {
            self.fields.values.push(ValueMatch { of, values, not_values });
        }
        Ok(())
    }

    fn paths(
        &mut self,
        (name, field): Named,
        values: Option<Vec<String>>,
    ) -> Result<Vec<PathPattern>, Wrong> {
        self.layer7.extend(values.is_some().then_some(name));
        list(&field, values, path)
    }

    /// Blocks of addresses from which the request came at first. Nobody's word is taken for that within the mesh, so
    /// that it is the caller's address.
    fn remote(&mut self, names: [Named; 2], lists: [Option<Vec<String>>; 2]) -> Result<(), Wrong> {
        for (negated, ((name, field), list)) in names.into_iter().zip(lists).enumerate() {
            self.layer7
                .extend(list.is_some().then_some(name).filter(|name| self.layer7.last() != Some(name)));
            let blocks = blocks(&field, list)?;
            if negated == 0 { self.remote_ips = blocks } else { self.not_remote_ips = blocks }
        }
        Ok(())
    }

    /// What no waypoint sees either.
    fn unseen(&mut self, name: &'static str) {
        self.layer7.push(name);
        self.unseen = true;
    }

    /// Nothing at all in a source, operation or condition would match everybody: surely not what was meant.
    fn checked(self, field: &str) -> Result<Self, Wrong> {
        if self.layer7.is_empty() && self.fields.caller == Match::default() {
            return Err((field.to_owned(), "it says nothing; leave it out to match everybody".to_owned()));
        }
        Ok(self)
    }

    /// As it is for requests.
    fn of_request(mut self, field: &str) -> Result<RequestMatch, Wrong> {
        if self.unseen {
            let reason = format!("a waypoint does not see {}", self.layer7.join(", "));
            return Err((field.to_owned(), reason));
        }
        let caller = &mut self.fields.caller;
        for (own, remote) in
            [(&mut caller.source_ips, self.remote_ips), (&mut caller.not_source_ips, self.not_remote_ips)]
        {
            if remote.is_empty() {
                continue;
            }
            if !own.is_empty() {
                let reason = "ipBlocks and remoteIpBlocks are of the same address here; say one of them";
                return Err((field.to_owned(), reason.to_owned()));
            }
            *own = remote;
        }
        Ok(self.fields)
    }
}

fn each<T>(
    field: &str,
    items: Vec<T>,
    mut convert: impl FnMut(&str, T) -> Result<Read, Wrong>,
) -> Result<Vec<Read>, Wrong> {
    if items.is_empty() {
        return Err((field.to_owned(), "the list is empty; leave it out to match everybody".to_owned()));
    }
    items.into_iter().enumerate().map(|(index, item)| convert(&format!("{field}[{index}]"), item)).collect()
}
