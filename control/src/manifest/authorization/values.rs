//! Lists of values: texts with wildcards, blocks of addresses, ports, paths.

use std::{net::IpAddr, sync::Arc};

use ipnet::IpNet;
use mesh::{
    StringMatch,
    request::{PathPattern, Template, normal_path},
};

use super::Wrong;

pub(super) fn list<T>(
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

pub(super) fn strings(field: &str, values: Option<Vec<String>>) -> Result<Vec<StringMatch>, Wrong> {
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

pub(super) fn principals(field: &str, values: Option<Vec<String>>) -> Result<Vec<StringMatch>, Wrong> {
    list(field, values, |value| {
        if value.starts_with("spiffe://") {
            return Err(format!(
                "{value:?}: principals are written without spiffe://, as in cluster.local/ns/NAMESPACE/sa/ACCOUNT"
            ));
        }
        string(value)
    })
}

pub(super) fn blocks(field: &str, values: Option<Vec<String>>) -> Result<Vec<IpNet>, Wrong> {
    list(field, values, |value| {
        let net = value.parse::<IpNet>().ok().or_else(|| value.parse::<IpAddr>().ok().map(IpNet::from));
        net.map(|net| net.trunc()).ok_or_else(|| format!("{value:?} is neither an address nor a CIDR range"))
    })
}

pub(super) fn ports(field: &str, values: Option<Vec<String>>) -> Result<Vec<u16>, Wrong> {
    list(field, values, |value| {
        value
            .parse::<u16>()
            .ok()
            .filter(|port| *port != 0)
            .ok_or_else(|| format!("{value:?} is not a port (1 to 65535)"))
    })
}

/// A template, or a text with a wildcard at one end. One that no path in its normal form can match is a mistake.
pub(super) fn path(value: &str) -> Result<PathPattern, String> {
    let pattern = if Template::is_one(value) {
        PathPattern::Template(Template::new(value).map_err(|error| format!("{value:?}: {error}"))?)
    } else {
        PathPattern::Text(string(value)?)
    };
    let normal = normal_path(value);
    if let Some(ambiguity) = normal.ambiguous {
        return Err(format!("{value:?} matches nothing: {ambiguity}, and such requests are refused"));
    }
    if normal.path != value {
        return Err(format!(
            "{value:?} matches nothing: paths are compared in their normal form, {:?}",
            normal.path
        ));
    }
    Ok(pattern)
}
