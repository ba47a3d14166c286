//! The filters of a route.

use std::{collections::BTreeSet, sync::Arc};

use mesh::route::{Cors, HeaderChange, PathChange, Redirect, Rewrite};
use serde::{Deserialize, de::IgnoredAny};

use super::{Reference, Wrong, few};

/// Why filters that are right by themselves are refused together.
pub(super) const NOT_BOTH: &str = "a request is redirected or rewritten, not both";

/// A header's name and value.
type Pair = (Arc<str>, Arc<str>);

/// A filter that was understood; what it refers to is not looked for yet.
#[derive(Debug, Clone, PartialEq)]
pub enum Filter {
    RequestHeaders(HeaderChange),
    ResponseHeaders(HeaderChange),
    Redirect(Redirect),
    Rewrite(Rewrite),
    Mirror {
        to: Reference,
        /// Of so many requests ...
        of: u32,
        /// ... so many are copied.
        copied: u32,
    },
    Cors(Cors),
    /// It is somebody else's: the rule is answered 500, as the specification wants it.
    Foreign(Arc<str>),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Manifest {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    request_header_modifier: Option<HeadersManifest>,
    #[serde(default)]
    response_header_modifier: Option<HeadersManifest>,
    #[serde(default)]
    request_redirect: Option<RedirectManifest>,
    #[serde(default, rename = "urlRewrite")]
    url_rewrite: Option<RewriteManifest>,
    #[serde(default)]
    request_mirror: Option<MirrorManifest>,
    #[serde(default)]
    cors: Option<CorsManifest>,
    #[serde(default)]
    extension_ref: Option<IgnoredAny>,
}

#[derive(Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
struct HeadersManifest {
    set: Option<Vec<HeaderManifest>>,
    add: Option<Vec<HeaderManifest>>,
    remove: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HeaderManifest {
    name: String,
    value: Arc<str>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct RedirectManifest {
    scheme: Option<Arc<str>>,
    hostname: Option<Arc<str>>,
    path: Option<PathManifest>,
    port: Option<u16>,
    status_code: Option<u16>,
}

#[derive(Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
struct RewriteManifest {
    hostname: Option<Arc<str>>,
    path: Option<PathManifest>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PathManifest {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    replace_full_path: Option<Arc<str>>,
    #[serde(default)]
    replace_prefix_match: Option<Arc<str>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct MirrorManifest {
    backend_ref: Reference,
    #[serde(default)]
    percent: Option<u32>,
    #[serde(default)]
    fraction: Option<Fraction>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Fraction {
    numerator: u32,
    #[serde(default)]
    denominator: Option<u32>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct CorsManifest {
    allow_origins: Vec<Arc<str>>,
    allow_credentials: Option<bool>,
    allow_methods: Vec<Arc<str>>,
    allow_headers: Vec<Arc<str>>,
    expose_headers: Vec<Arc<str>>,
    max_age: Option<u32>,
}

impl Manifest {
    /// What it says it is.
    pub(super) fn kind(&self) -> &str {
        &self.kind
    }
}

/// Headers of which HTTP itself makes use (RFC 9110, 7.6.1; RFC 9112, 6). Others than those that a message has would make
/// the two ends of a connection disagree on where it ends.
pub(in crate::manifest) const OF_CONNECTIONS: [&str; 9] = [
    "connection",
    "content-length",
    "expect",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Converts the filters of a rule or backend, whose path is `field`.
pub(super) fn all_of(from: Option<Vec<Manifest>>, field: &str) -> Result<Vec<Filter>, Wrong> {
    let from = from.unwrap_or_default();
    let field = format!("{field}.filters");
    few(&field, from.len())?;
    let each = from.into_iter().enumerate().map(|(at, of)| filter_of(of, &format!("{field}[{at}]")));
    let filters: Vec<Filter> = each.collect::<Result<_, _>>()?;
    let has = |wanted: fn(&Filter) -> bool| filters.iter().any(wanted);
    if has(|filter| matches!(filter, Filter::Redirect(_)))
        && has(|filter| matches!(filter, Filter::Rewrite(_)))
    {
        return Err((field, NOT_BOTH.to_owned()));
    }
    for (at, filter) in filters.iter().enumerate() {
        let same = |other: &Filter| std::mem::discriminant(other) == std::mem::discriminant(filter);
        let may_repeat = matches!(filter, Filter::Mirror { .. } | Filter::Foreign(_));
        if !may_repeat && filters[..at].iter().any(same) {
            return Err((format!("{field}[{at}].type"), "there is a filter of this type already".to_owned()));
        }
    }
    Ok(filters)
}

/// Whether it puts something in the place of the prefix by which a rule matched.
pub(super) fn replaces_prefix(filter: &Filter) -> bool {
    let path = match filter {
        Filter::Redirect(redirect) => &redirect.path,
        Filter::Rewrite(rewrite) => &rewrite.path,
        _ => return false,
    };
    matches!(path, Some(PathChange::Prefix(_)))
}

fn filter_of(of: Manifest, field: &str) -> Result<Filter, Wrong> {
    let missing = |name: &str| (format!("{field}.{name}"), "it is missing".to_owned());
    let headers = |of: Option<HeadersManifest>, name: &str| {
        header_change(of.ok_or_else(|| missing(name))?, &format!("{field}.{name}"))
    };
    Ok(match of.kind.as_str() {
        "RequestHeaderModifier" => {
            Filter::RequestHeaders(headers(of.request_header_modifier, "requestHeaderModifier")?)
        }
        "ResponseHeaderModifier" => {
            Filter::ResponseHeaders(headers(of.response_header_modifier, "responseHeaderModifier")?)
        }
        "RequestRedirect" => {
            let redirect = of.request_redirect.ok_or_else(|| missing("requestRedirect"))?;
            Filter::Redirect(redirect_of(redirect, &format!("{field}.requestRedirect"))?)
        }
        "URLRewrite" => {
            let rewrite = of.url_rewrite.ok_or_else(|| missing("urlRewrite"))?;
            let path = rewrite.path.map(|path| path_change(path, &format!("{field}.urlRewrite.path")));
            Filter::Rewrite(Rewrite { hostname: rewrite.hostname, path: path.transpose()? })
        }
        "RequestMirror" => {
            let mirror = of.request_mirror.ok_or_else(|| missing("requestMirror"))?;
            mirror_of(mirror, &format!("{field}.requestMirror"))?
        }
        "CORS" => {
            let cors = of.cors.ok_or_else(|| missing("cors"))?;
            Filter::Cors(cors_of(cors, &format!("{field}.cors"))?)
        }
        "ExtensionRef" if of.extension_ref.is_some() => {
            Filter::Foreign("an ExtensionRef is none that is known here".into())
        }
        "ExtensionRef" => return Err(missing("extensionRef")),
        other => return Err((format!("{field}.type"), format!("{other:?} is no filter that is known here"))),
    })
}

fn cors_of(from: CorsManifest, field: &str) -> Result<Cors, Wrong> {
    for (at, origin) in from.allow_origins.iter().enumerate() {
        let plain = |host: &str| !host.is_empty() && !host.contains(['/', '?', '#', '@', ' ']);
        let is_origin = |origin: &str| origin.split_once("://").is_some_and(|(_, host)| plain(host));
        if **origin != *"*" && !is_origin(origin) {
            let reason =
                format!("{origin:?} is no origin, such as https://www.example.com or https://*.example.com");
            return Err((format!("{field}.allowOrigins[{at}]"), reason));
        }
    }
    for (name, list) in [
        ("allowMethods", &from.allow_methods),
        ("allowHeaders", &from.allow_headers),
        ("exposeHeaders", &from.expose_headers),
    ] {
        few(&format!("{field}.{name}"), list.len())?;
        if let Some(at) = list.iter().position(|text| !is_token(text)) {
            return Err((format!("{field}.{name}[{at}]"), format!("{:?} is no name", list[at])));
        }
    }
    few(&format!("{field}.allowOrigins"), from.allow_origins.len())?;
    Ok(Cors {
        allow_origins: from.allow_origins,
        allow_credentials: from.allow_credentials.unwrap_or(false),
        allow_methods: from.allow_methods,
        allow_headers: from.allow_headers,
        expose_headers: from.expose_headers,
        // As the API's default has it.
        max_age: from.max_age.filter(|age| *age > 0).unwrap_or(5),
    })
}

/// Whether a text is a token (RFC 9110, 5.6.2): what methods and names of headers are.
fn is_token(text: &str) -> bool {
    let of_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !text.is_empty() && text.len() <= 256 && text.bytes().all(of_token)
}

fn header_change(from: HeadersManifest, field: &str) -> Result<HeaderChange, Wrong> {
    let pairs = |from: Option<Vec<HeaderManifest>>, name: &str| -> Result<Vec<Pair>, Wrong> {
        let from = from.unwrap_or_default();
        few(&format!("{field}.{name}"), from.len())?;
        let pair = |(at, header): (usize, HeaderManifest)| {
            let field = format!("{field}.{name}[{at}]");
            if !header.value.bytes().all(|byte| byte == b'\t' || (b' '..=b'~').contains(&byte)) {
                return Err((format!("{field}.value"), "no header may hold this".to_owned()));
            }
            Ok((header_name(&header.name, &format!("{field}.name"))?, header.value))
        };
        let mut pairs: Vec<Pair> = from.into_iter().enumerate().map(pair).collect::<Result<_, _>>()?;
        // Of two of one name the first counts.
        let mut seen = BTreeSet::new();
        pairs.retain(|(name, _)| seen.insert(name.clone()));
        Ok(pairs)
    };
    let remove = from.remove.unwrap_or_default();
    few(&format!("{field}.remove"), remove.len())?;
    let remove = remove.iter().enumerate();
    let change = HeaderChange {
        set: pairs(from.set, "set")?,
        add: pairs(from.add, "add")?,
        remove: remove
            .map(|(at, name)| header_name(name, &format!("{field}.remove[{at}]")))
            .collect::<Result<_, _>>()?,
    };
    let mut set = change.set.iter().map(|(name, _)| name);
    let added = |name: &&Arc<str>| change.add.iter().any(|(of, _)| of == *name);
    let both = set.find(|name| added(name) || change.remove.contains(name));
    match both.or_else(|| change.remove.iter().find(added)) {
        Some(name) => {
            Err((field.to_owned(), format!("{name} is set, added or removed, and not more than one")))
        }
        None => Ok(change),
    }
}

/// A header's name in lower case (RFC 9110, 5.1).
fn header_name(name: &str, field: &str) -> Result<Arc<str>, Wrong> {
    if !is_token(name) {
        return Err((field.to_owned(), format!("{name:?} is no name of a header")));
    }
    let name = name.to_ascii_lowercase();
    if OF_CONNECTIONS.contains(&name.as_str()) {
        let reason =
            format!("{name} says where a message ends or what its connection does: no route changes it");
        return Err((field.to_owned(), reason));
    }
    Ok(name.into())
}

fn redirect_of(from: RedirectManifest, field: &str) -> Result<Redirect, Wrong> {
    let status = from.status_code.unwrap_or(302);
    if ![301, 302, 303, 307, 308].contains(&status) {
        return Err((format!("{field}.statusCode"), "use 301, 302, 303, 307 or 308".to_owned()));
    }
    if from.scheme.as_deref().is_some_and(|scheme| !["http", "https"].contains(&scheme)) {
        return Err((format!("{field}.scheme"), "use http or https".to_owned()));
    }
    let path = from.path.map(|path| path_change(path, &format!("{field}.path"))).transpose()?;
    Ok(Redirect { scheme: from.scheme, hostname: from.hostname, path, port: from.port, status })
}

fn path_change(from: PathManifest, field: &str) -> Result<PathChange, Wrong> {
    match (from.kind.as_str(), from.replace_full_path, from.replace_prefix_match) {
        ("ReplaceFullPath", Some(path), None) => Ok(PathChange::Full(path)),
        ("ReplacePrefixMatch", None, Some(path)) => Ok(PathChange::Prefix(path)),
        _ => {
            let reason =
                "use ReplaceFullPath with replaceFullPath, or ReplacePrefixMatch with replacePrefixMatch";
            Err((field.to_owned(), reason.to_owned()))
        }
    }
}

fn mirror_of(from: MirrorManifest, field: &str) -> Result<Filter, Wrong> {
    let (copied, of) = match (from.percent, from.fraction) {
        (None, None) => (1, 1),
        (Some(percent), None) => (percent, 100),
        (None, Some(fraction)) => (fraction.numerator, fraction.denominator.unwrap_or(100)),
        (Some(_), Some(_)) => {
            return Err((format!("{field}.fraction"), "percent and fraction exclude each other".to_owned()));
        }
    };
    if of == 0 || copied > of {
        return Err((field.to_owned(), format!("{copied} of {of} is no share")));
    }
    Ok(Filter::Mirror { to: from.backend_ref, of, copied })
}
