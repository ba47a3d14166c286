//! The path of a request in the form in which it is judged, and patterns of paths.
//!
//! Two spellings of one path must not be judged differently: what a policy calls `/admin` is also `/%61dmin` and
//! `/x/../admin` (RFC 3986, 6.2.2). Where servers disagree on what a spelling means, nobody can say what is judged:
//! that is told as well, and whoever judges by paths refuses it.

use std::{borrow::Cow, fmt, sync::Arc};

use crate::StringMatch;

/// A path in its normal form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NormalPath<'a> {
    /// As it is sent: unreserved characters decoded, other escapes in upper case, no dot segments.
    pub path: Cow<'a, str>,
    /// As it is compared: every escape decoded but those of a slash, a backslash, a percent sign and what is no text,
    /// since most servers read `%3A` as a colon.
    pub judged: Cow<'a, str>,
    /// Servers read it differently, for this reason.
    pub ambiguous: Option<Ambiguity>,
}

/// Why servers read a path differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Ambiguity {
    #[error("a percent sign in its path is followed by no two hexadecimal digits")]
    BadEscape,
    #[error("its path holds an encoded slash")]
    EncodedSlash,
    #[error("its path holds a backslash")]
    Backslash,
    #[error("its path holds a control character")]
    Control,
    #[error("its path holds two slashes in a row")]
    EmptySegment,
    #[error("its path holds a semicolon")]
    Semicolon,
}

/// The normal form of a path, which is without its query.
pub fn normal_path(path: &str) -> NormalPath<'_> {
    let odd = |byte: u8| b"%\\;".contains(&byte) || byte.is_ascii_control();
    let is_plain = !path.bytes().any(odd)
        && !path.as_bytes().windows(2).any(|two| two[0] == b'/' && matches!(two[1], b'/' | b'.'));
    // The target of OPTIONS may be an asterisk.
    if is_plain || !path.starts_with('/') {
        return NormalPath { path: Cow::Borrowed(path), judged: Cow::Borrowed(path), ambiguous: None };
    }
    let (decoded, in_escapes) = decode(path);
    let (path, in_segments) = without_dots(&decoded);
    let judged = Cow::Owned(decoded_path(&path).into_owned());
    NormalPath { path: Cow::Owned(path), judged, ambiguous: in_escapes.or(in_segments) }
}

/// A path, or a pattern of one, as paths are compared.
pub(super) fn decoded_path(path: &str) -> Cow<'_, str> {
    if !path.contains('%') {
        return Cow::Borrowed(path);
    }
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        match escaped(after).filter(|_| first == b'%') {
            Some(value) if !b"/\\%".contains(&value) && !value.is_ascii_control() => {
                bytes.push(value);
                rest = &after[2..];
            }
            _ => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    // What is no text stays as it was written.
    String::from_utf8(bytes).map_or(Cow::Borrowed(path), Cow::Owned)
}

/// What the two hexadecimal digits stand for that follow a percent sign.
fn escaped(after: &[u8]) -> Option<u8> {
    let digit = |at: usize| char::from(*after.get(at)?).to_digit(16);
    u8::try_from(digit(0)? * 16 + digit(1)?).ok()
}

/// Decodes what means the same decoded (RFC 3986, 2.3); other escapes are put in upper case.
fn decode(path: &str) -> (String, Option<Ambiguity>) {
    let mut decoded = String::with_capacity(path.len());
    let mut ambiguous = None;
    let mut rest = path.chars();
    while let Some(found) = rest.next() {
        match found {
            '\\' => ambiguous = ambiguous.or(Some(Ambiguity::Backslash)),
            // To some servers what follows is no part of the path.
            ';' => ambiguous = ambiguous.or(Some(Ambiguity::Semicolon)),
            _ if found.is_ascii_control() => ambiguous = ambiguous.or(Some(Ambiguity::Control)),
            _ => {}
        }
        if found != '%' {
            decoded.push(found);
            continue;
        }
        let text = rest.as_str();
        let Some(value) = escaped(text.as_bytes()) else {
            ambiguous = ambiguous.or(Some(Ambiguity::BadEscape));
            decoded.push('%');
            continue;
        };
        rest = text[2..].chars();
        match value {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                decoded.push(char::from(value));
                continue;
            }
            b'/' => ambiguous = ambiguous.or(Some(Ambiguity::EncodedSlash)),
            b'\\' => ambiguous = ambiguous.or(Some(Ambiguity::Backslash)),
            _ if value.is_ascii_control() => ambiguous = ambiguous.or(Some(Ambiguity::Control)),
            _ => {}
        }
        decoded.push_str(&format!("%{value:02X}"));
    }
    (decoded, ambiguous)
}

/// Takes `.` and `..` out (RFC 3986, 5.2.4).
fn without_dots(path: &str) -> (String, Option<Ambiguity>) {
    let mut ambiguous = None;
    let mut kept: Vec<&str> = Vec::new();
    let mut segments = path.split('/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        let is_last = segments.peek().is_none();
        match segment {
            "." | ".." => {
                if segment == ".." {
                    kept.pop();
                }
                if is_last {
                    kept.push("");
                }
                continue;
            }
            "" if !is_last => ambiguous = ambiguous.or(Some(Ambiguity::EmptySegment)),
            _ => {}
        }
        kept.push(segment);
    }
    let mut whole = String::with_capacity(path.len());
    for segment in kept {
        whole.push('/');
        whole.push_str(segment);
    }
    (whole, ambiguous)
}

/// What a path must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PathPattern {
    Text(StringMatch),
    Template(Template),
}

/// A path with `{*}`, which stands for one segment, and at its end `{**}`, for any number of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    text: Arc<str>,
    parts: Box<[Part]>,
    /// It ends with `{**}`.
    open: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Segment(Box<str>),
    Any,
}

/// What is wrong with a template.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadTemplate {
    #[error("a template of a path begins with a slash")]
    NoSlash,
    #[error("{{*}} and {{**}} are whole segments of a path, between slashes")]
    PartOfSegment,
    #[error("{{**}} stands at the end")]
    Inner,
    #[error("a template has no other wildcards than {{*}} and {{**}}")]
    Wildcard,
}

impl Template {
    /// Whether a pattern is a template, and no text with a wildcard at one end.
    pub fn is_one(text: &str) -> bool {
        text.contains("{*}") || text.contains("{**}")
    }

    /// Reads a template.
    ///
    /// # Errors
    /// With what is wrong with it.
    pub fn new(text: &str) -> Result<Self, BadTemplate> {
        let segments = text.strip_prefix('/').ok_or(BadTemplate::NoSlash)?;
        let mut parts = Vec::new();
        let mut open = false;
        for segment in segments.split('/') {
            if open {
                return Err(BadTemplate::Inner);
            }
            match segment {
                "{*}" => parts.push(Part::Any),
                "{**}" => open = true,
                _ if segment.contains(['{', '}']) => return Err(BadTemplate::PartOfSegment),
                _ if segment.contains('*') => return Err(BadTemplate::Wildcard),
                _ => parts.push(Part::Segment(decoded_path(segment).into())),
            }
        }
        Ok(Self { text: text.into(), parts: parts.into(), open })
    }

    /// Whether a path in its normal form is meant.
    pub fn holds(&self, path: &str) -> bool {
        let Some(path) = path.strip_prefix('/') else { return false };
        let mut segments = path.split('/');
        for part in &self.parts {
            let Some(segment) = segments.next() else { return false };
            let held = match part {
                Part::Segment(text) => **text == *segment,
                Part::Any => !segment.is_empty(),
            };
            if !held {
                return false;
            }
        }
        self.open || segments.next().is_none()
    }
}

impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}
