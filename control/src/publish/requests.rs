//! [`mesh::request::RequestPolicy`] → `culvert.waypoint.v1.RequestPolicy`.

use mesh::request::{
    PathPattern, RequestAction, RequestClause, RequestMatch, RequestPolicy, RequestRule, Subject, ValueMatch,
};
use proto::waypoint as wire;

use super::encode::{match_message, text, texts};

pub(super) fn message(from: &RequestPolicy) -> wire::RequestPolicy {
    let action = match from.action {
        RequestAction::Allow => wire::RequestAction::Allow,
        RequestAction::Deny => wire::RequestAction::Deny,
        RequestAction::Audit => wire::RequestAction::Audit,
    };
    wire::RequestPolicy {
        namespace: from.key.namespace.to_string(),
        name: from.key.name.to_string(),
        action: action.into(),
        dry_run: from.dry_run,
        rules: from.rules.iter().map(rule).collect(),
    }
}

fn rule(from: &RequestRule) -> wire::RequestRule {
    let clause = |clause: &RequestClause| wire::RequestClause {
        matches: clause.matches.iter().map(match_of).collect(),
    };
    wire::RequestRule { clauses: from.clauses.iter().map(clause).collect() }
}

fn match_of(from: &RequestMatch) -> wire::RequestMatch {
    wire::RequestMatch {
        caller: Some(match_message(&from.caller)),
        paths: from.paths.iter().map(path).collect(),
        not_paths: from.not_paths.iter().map(path).collect(),
        values: from.values.iter().map(value).collect(),
    }
}

fn path(from: &PathPattern) -> wire::PathPattern {
    use wire::path_pattern::Pattern;
    let pattern = match from {
        PathPattern::Text(of) => Pattern::Text(text(of)),
        PathPattern::Template(template) => Pattern::Template(template.to_string()),
    };
    wire::PathPattern { pattern: Some(pattern) }
}

fn value(from: &ValueMatch) -> wire::ValueMatch {
    use wire::subject::Subject as Wire;
    let subject = match &from.of {
        Subject::Host => Wire::Host(()),
        Subject::Method => Wire::Method(()),
        Subject::Header(name) => Wire::Header(name.to_string()),
        Subject::Principal => Wire::Principal(()),
        Subject::Audience => Wire::Audience(()),
        Subject::Presenter => Wire::Presenter(()),
        Subject::Claim(path) => {
            Wire::Claim(wire::Claim { path: path.iter().map(ToString::to_string).collect() })
        }
    };
    wire::ValueMatch {
        of: Some(wire::Subject { subject: Some(subject) }),
        values: texts(&from.values),
        not_values: texts(&from.not_values),
    }
}
