//! What is wrong with a manifest, in words a person can act on.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use serde::Serialize;

use super::ObjectKey;

/// Whether the object is refused or taken with a remark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The object is refused; its last good version holds.
    Refused,
    /// The object is taken; something in it does not do what its author may expect.
    Warning,
}

/// One problem: where, what, why.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct Problem {
    pub severity: Severity,
    pub file: PathBuf,
    /// 1-based, counted over the whole file.
    pub line: Option<usize>,
    /// 1-based.
    pub document: usize,
    #[serde(serialize_with = "display")]
    pub object: Option<ObjectKey>,
    /// The path of the field, as in `spec.rules[0].from[1].source.ipBlocks[0]`; empty for the document.
    pub field: String,
    pub reason: String,
}

fn display<S: serde::Serializer>(key: &Option<ObjectKey>, to: S) -> Result<S::Ok, S::Error> {
    match key {
        Some(key) => to.collect_str(key),
        None => to.serialize_none(),
    }
}

impl Problem {
    /// A refusal at a place of a file.
    pub(super) fn at(path: &Path, document: usize, line: Option<usize>, field: &str, reason: String) -> Self {
        Self {
            severity: Severity::Refused,
            file: path.to_owned(),
            line,
            document,
            object: None,
            field: field.to_owned(),
            reason,
        }
    }

    pub(super) fn of(mut self, key: ObjectKey) -> Self {
        self.object = Some(key);
        self
    }

    /// A problem that shows only when all objects are seen together.
    pub fn about(object: &ObjectKey, severity: Severity, field: &str, reason: impl Into<String>) -> Self {
        Self {
            severity,
            file: PathBuf::new(),
            line: None,
            document: 0,
            object: Some(object.clone()),
            field: field.to_owned(),
            reason: reason.into(),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.file.as_os_str().is_empty() {
            write!(f, "{}", self.file.display())?;
            if let Some(line) = self.line {
                write!(f, ":{line}")?;
            }
            write!(f, ": ")?;
        }
        if let Some(object) = &self.object {
            write!(f, "{object}: ")?;
        }
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        f.write_str(&self.reason)
    }
}
