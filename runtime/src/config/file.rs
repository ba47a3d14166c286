//! The configuration file: a YAML mapping from flag names to values.

use std::{collections::BTreeMap, ffi::OsString, fs, path::Path};

use serde_yaml_ng::Value;

use super::Problems;

/// A file larger than this is not a configuration.
const MAX_SIZE: u64 = 1 << 20;

/// The settings of a file as text, by flag name. What cannot be read is added to `problems`.
pub(super) fn read(path: &Path, problems: &mut Problems) -> BTreeMap<String, Vec<OsString>> {
    let place = path.display().to_string();
    let text = match fs::metadata(path).map(|metadata| metadata.len()) {
        Ok(size) if size > MAX_SIZE => {
            Err(format!("it has {size} bytes; a configuration has {MAX_SIZE} at most"))
        }
        _ => fs::read_to_string(path).map_err(|error| format!("it cannot be read: {error}")),
    };
    let parsed = text.and_then(|text| {
        serde_yaml_ng::from_str::<Option<BTreeMap<String, Value>>>(&text)
            .map_err(|error| format!("it is not a YAML mapping of flag names to values: {error}"))
    });
    match parsed {
        Err(reason) => {
            problems.add(place, None, reason);
            BTreeMap::new()
        }
        Ok(settings) => {
            let mut texts = BTreeMap::new();
            for (key, value) in settings.unwrap_or_default() {
                match self::texts(&value) {
                    Some(text) => drop(texts.insert(key.replace('_', "-"), text)),
                    None => {
                        problems.add(format!("{place}: {key}"), None, "write a value or a list of values")
                    }
                }
            }
            texts
        }
    }
}

/// A scalar, or a list of them, as text.
fn texts(value: &Value) -> Option<Vec<OsString>> {
    let scalar = |value: &Value| match value {
        Value::Bool(value) => Some(value.to_string()),
        Value::Number(value) => Some(value.to_string()),
        Value::String(value) => Some(value.clone()),
        Value::Null | Value::Sequence(_) | Value::Mapping(_) | Value::Tagged(_) => None,
    };
    match value {
        Value::Sequence(values) => values.iter().map(|value| scalar(value).map(OsString::from)).collect(),
        value => scalar(value).map(|text| vec![text.into()]),
    }
}
