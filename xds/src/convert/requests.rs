//! `culvert.waypoint.v1.RequestPolicy` → [`mesh::request::RequestPolicy`].
//!
//! What cannot be read refuses all of the service's routes: half a policy would let somebody in.

use mesh::{
    PolicyKey,
    request::{
        PathPattern, RequestAction, RequestClause, RequestMatch, RequestPolicy, RequestRule, Subject,
        Template, ValueMatch,
    },
};
use proto::waypoint as wire;

use super::{Converter, Invalid, invalid, required};

impl Converter {
    pub(super) fn request_policy(&mut self, from: &wire::RequestPolicy) -> Result<RequestPolicy, Invalid> {
        let action = match wire::RequestAction::try_from(from.action) {
            Ok(wire::RequestAction::Allow) => RequestAction::Allow,
            Ok(wire::RequestAction::Deny) => RequestAction::Deny,
            Ok(wire::RequestAction::Audit) => RequestAction::Audit,
            Err(_) => {
                return Err(invalid("policy.action", format!("{} is not an action we know", from.action)));
            }
        };
        Ok(RequestPolicy {
            key: PolicyKey {
                namespace: self.share(required("policy.namespace", &from.namespace)?),
                name: self.share(required("policy.name", &from.name)?),
            },
            action,
            dry_run: from.dry_run,
            rules: from.rules.iter().map(|rule| self.request_rule(rule)).collect::<Result<_, _>>()?,
        })
    }

    fn request_rule(&mut self, from: &wire::RequestRule) -> Result<RequestRule, Invalid> {
        let clause = |clause: &wire::RequestClause| {
            let matches = clause.matches.iter().map(|of| self.request_match(of)).collect::<Result<_, _>>()?;
            Ok(RequestClause { matches })
        };
        Ok(RequestRule { clauses: from.clauses.iter().map(clause).collect::<Result<_, _>>()? })
    }

    fn request_match(&mut self, from: &wire::RequestMatch) -> Result<RequestMatch, Invalid> {
        let caller = from.caller.as_ref().ok_or(Invalid::Missing { field: "policy.caller" })?;
        let mut paths =
            |of: &[wire::PathPattern]| of.iter().map(|path| self.path(path)).collect::<Result<_, _>>();
        let (paths, not_paths) = (paths(&from.paths)?, paths(&from.not_paths)?);
        let found = RequestMatch {
            caller: self.r#match(caller)?,
            paths,
            not_paths,
            values: from.values.iter().map(|value| self.value(value)).collect::<Result<_, _>>()?,
        };
        // It would match everything, which nobody writes so.
        if found == RequestMatch::default() {
            return Err(invalid("policy.match", "it says nothing"));
        }
        Ok(found)
    }

    fn path(&mut self, from: &wire::PathPattern) -> Result<PathPattern, Invalid> {
        use wire::path_pattern::Pattern;
        match &from.pattern {
            Some(Pattern::Text(of)) => Ok(PathPattern::Text(self.text("policy.paths", of)?)),
            Some(Pattern::Template(text)) => {
                let template =
                    Template::new(text).map_err(|error| invalid("policy.paths", error.to_string()))?;
                Ok(PathPattern::Template(template))
            }
            None => Err(Invalid::Missing { field: "policy.paths" }),
        }
    }

    fn value(&mut self, from: &wire::ValueMatch) -> Result<ValueMatch, Invalid> {
        use wire::subject::Subject as Wire;
        let missing = Invalid::Missing { field: "policy.of" };
        let of = match from.of.as_ref().and_then(|of| of.subject.as_ref()) {
            Some(Wire::Host(())) => Subject::Host,
            Some(Wire::Method(())) => Subject::Method,
            Some(Wire::Header(name)) => Subject::Header(self.share(required("policy.header", name)?)),
            Some(Wire::Principal(())) => Subject::Principal,
            Some(Wire::Audience(())) => Subject::Audience,
            Some(Wire::Presenter(())) => Subject::Presenter,
            Some(Wire::Claim(claim)) if !claim.path.is_empty() => {
                Subject::Claim(claim.path.iter().map(|name| self.share(name)).collect())
            }
            Some(Wire::Claim(_)) | None => return Err(missing),
        };
        let values = self.texts("policy.values", &from.values)?;
        Ok(ValueMatch { of, values, not_values: self.texts("policy.not_values", &from.not_values)? })
    }
}
