//! What is wrong with a configuration, as a person reads it.

use std::fmt;

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The flag, variable or field, as the person wrote it: `--node`, `CULVERT_NODE`, `FILE: node`.
    pub place: String,
    /// The value that was given, if any.
    pub value: Option<String>,
    /// What is wrong and what would be right.
    pub reason: String,
}

/// Everything that is wrong; shown as one list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Problems {
    list: Vec<Problem>,
}

impl Problems {
    /// Adds one.
    pub fn add(&mut self, place: impl Into<String>, value: Option<String>, reason: impl fmt::Display) {
        self.list.push(Problem { place: place.into(), value, reason: reason.to_string() });
    }

    /// Nothing is wrong.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// In the order of the flags.
    pub fn iter(&self) -> impl Iterator<Item = &Problem> {
        self.list.iter()
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.value {
            Some(value) => write!(f, "{} is {value:?}: {}", self.place, self.reason),
            None => write!(f, "{}: {}", self.place, self.reason),
        }
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.list.len() {
            1 => writeln!(f, "the configuration has a problem:")?,
            count => writeln!(f, "the configuration has {count} problems:")?,
        }
        self.list.iter().try_for_each(|problem| writeln!(f, "  - {problem}"))
    }
}
