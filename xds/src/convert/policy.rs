//! `istio.security.Authorization` → [`mesh::Policy`].

use ipnet::IpNet;
use mesh::{Action, Clause, Match, Policy, PolicyKey, Rule, Scope, ServiceAccountMatch, StringMatch};
use prost::Message;
use proto::security as wire;

use super::{Converter, Invalid, invalid, ip, port, required};

/// A policy that is refused, and the scope it would have had where that much could be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidPolicy {
    pub scope: Option<Scope>,
    pub reason: Invalid,
}

impl Converter {
    /// Decodes and converts a resource of type `istio.security.Authorization` that was sent as `name`.
    pub fn authorization(&mut self, name: &str, encoded: &[u8]) -> Result<Policy, InvalidPolicy> {
        let from = wire::Authorization::decode(encoded)
            .map_err(|error| InvalidPolicy { scope: None, reason: Invalid::Encoding(error.to_string()) })?;
        let scope = scope(from.scope);
        let refuse = |reason| InvalidPolicy { scope: scope.clone().ok(), reason };
        let policy = self.policy(&from).map_err(refuse)?;
        let found = policy.key.to_string();
        if found == name { Ok(policy) } else { Err(refuse(Invalid::Name { wanted: name.to_owned(), found })) }
    }

    /// Converts a policy.
    pub fn policy(&mut self, from: &wire::Authorization) -> Result<Policy, Invalid> {
        let key = PolicyKey {
            namespace: self.share(required("namespace", &from.namespace)?),
            name: self.share(required("name", &from.name)?),
        };
        let action = match wire::Action::try_from(from.action) {
            Ok(wire::Action::Allow) => Action::Allow,
            Ok(wire::Action::Deny) => Action::Deny,
            Err(_) => return Err(invalid("action", format!("{} is not an action we know", from.action))),
        };
        let rules = from.rules.iter().map(|rule| self.rule(rule)).collect::<Result<_, _>>()?;
        Ok(Policy { key, scope: scope(from.scope)?, action, dry_run: from.dry_run, rules })
    }

    /// All clauses of no clauses match: on the wire such a rule matches everything (it is what `rules: [{}]`
    /// becomes), whereas in `mesh` it would never match. A clause that matches everything says the same.
    fn rule(&mut self, from: &wire::Rule) -> Result<Rule, Invalid> {
        if from.clauses.is_empty() {
            return Ok(Rule { clauses: vec![Clause::default()] });
        }
        let clause = |clause: &wire::Clause| {
            let matches = clause.matches.iter().map(|m| self.r#match(m)).collect::<Result<_, _>>()?;
            Ok(Clause { matches })
        };
        Ok(Rule { clauses: from.clauses.iter().map(clause).collect::<Result<_, _>>()? })
    }

    pub(super) fn r#match(&mut self, from: &wire::Match) -> Result<Match, Invalid> {
        Ok(Match {
            namespaces: self.texts("namespaces", &from.namespaces)?,
            not_namespaces: self.texts("not_namespaces", &from.not_namespaces)?,
            service_accounts: self.accounts("service_accounts", &from.service_accounts)?,
            not_service_accounts: self.accounts("not_service_accounts", &from.not_service_accounts)?,
            principals: self.texts("principals", &from.principals)?,
            not_principals: self.texts("not_principals", &from.not_principals)?,
            source_ips: blocks("source_ips", &from.source_ips)?,
            not_source_ips: blocks("not_source_ips", &from.not_source_ips)?,
            destination_ips: blocks("destination_ips", &from.destination_ips)?,
            not_destination_ips: blocks("not_destination_ips", &from.not_destination_ips)?,
            destination_ports: ports("destination_ports", &from.destination_ports)?,
            not_destination_ports: ports("not_destination_ports", &from.not_destination_ports)?,
        })
    }

    pub(super) fn texts(
        &mut self,
        field: &'static str,
        from: &[wire::StringMatch],
    ) -> Result<Vec<StringMatch>, Invalid> {
        from.iter().map(|from| self.text(field, from)).collect()
    }

    pub(super) fn text(
        &mut self,
        field: &'static str,
        from: &wire::StringMatch,
    ) -> Result<StringMatch, Invalid> {
        use wire::string_match::MatchType;
        match &from.match_type {
            Some(MatchType::Exact(exact)) => Ok(StringMatch::Exact(self.share(exact))),
            Some(MatchType::Prefix(prefix)) => Ok(StringMatch::Prefix(self.share(prefix))),
            Some(MatchType::Suffix(suffix)) => Ok(StringMatch::Suffix(self.share(suffix))),
            Some(MatchType::Presence(())) => Ok(StringMatch::Presence),
            None => Err(invalid(field, "a match of no kind we know")),
        }
    }

    fn accounts(
        &mut self,
        field: &'static str,
        from: &[wire::ServiceAccountMatch],
    ) -> Result<Vec<ServiceAccountMatch>, Invalid> {
        from.iter()
            .map(|from| {
                Ok(ServiceAccountMatch {
                    namespace: self.share(required(field, &from.namespace)?),
                    service_account: self.share(required(field, &from.service_account)?),
                })
            })
            .collect()
    }
}

fn scope(from: i32) -> Result<Scope, Invalid> {
    match wire::Scope::try_from(from) {
        Ok(wire::Scope::Global) => Ok(Scope::Global),
        Ok(wire::Scope::Namespace) => Ok(Scope::Namespace),
        Ok(wire::Scope::WorkloadSelector) => Ok(Scope::WorkloadSelector),
        Err(_) => Err(invalid("scope", format!("{from} is not a scope we know"))),
    }
}

/// A block that does not parse refuses the policy: left out, it would widen or narrow the match.
fn blocks(field: &'static str, from: &[wire::Address]) -> Result<Vec<IpNet>, Invalid> {
    from.iter()
        .map(|from| {
            let address = ip(field, &from.address)?;
            let length = u8::try_from(from.length).ok();
            length
                .and_then(|length| IpNet::new(address, length).ok())
                .map(|block| block.trunc())
                .ok_or_else(|| invalid(field, format!("{address}/{} is not an address block", from.length)))
        })
        .collect()
}

fn ports(field: &'static str, from: &[u32]) -> Result<Vec<u16>, Invalid> {
    from.iter().map(|&number| port(field, number)).collect()
}
