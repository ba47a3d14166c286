//! One line of log: fields as `key=value` or as a JSON object, escaped so that it stays one line
//! and no value can pose as another field.

use std::{
    cell::Cell,
    fmt::{self, Write},
};

use tracing::Level;
use tracing_subscriber::fmt::{
    format::Writer,
    time::{FormatTime, SystemTime},
};

use super::Format;

/// A line under construction.
pub(crate) struct Line<'a> {
    format: Format,
    out: &'a mut String,
    /// Whether the next field needs a separator before it.
    separate: bool,
}

/// Lends this thread's line buffer, empty. A value whose `Display` logs something itself, and a
/// thread that is ending, get a new one.
pub(crate) fn with_buffer<T>(f: impl FnOnce(&mut String) -> T) -> T {
    thread_local!(static BUFFER: Cell<String> = const { Cell::new(String::new()) });
    let mut buffer = BUFFER.try_with(Cell::take).unwrap_or_default();
    let result = f(&mut buffer);
    buffer.clear();
    buffer.shrink_to(16 << 10);
    let _ = BUFFER.try_with(|place| place.set(buffer));
    result
}

impl<'a> Line<'a> {
    /// Begins with time, level and target.
    pub(crate) fn open(format: Format, out: &'a mut String, level: Level, target: &str) -> Self {
        match format {
            Format::Text => {
                let _ = SystemTime.format_time(&mut Writer::new(out));
                let _ = write!(out, " {level:<5} {target}");
                Self { format, out, separate: true }
            }
            Format::Json => {
                out.push_str("{\"time\":\"");
                let _ = SystemTime.format_time(&mut Writer::new(out));
                out.push('"');
                let mut line = Self { format, out, separate: true };
                line.text("level", level.as_str());
                line.text("target", target);
                line
            }
        }
    }

    /// Begins with nothing.
    pub(crate) fn bare(format: Format, out: &'a mut String) -> Self {
        if format == Format::Json {
            out.push('{');
        }
        Self { format, out, separate: false }
    }

    /// A message: plain in text, the field `message` in JSON.
    pub(crate) fn message(&mut self, message: &str) {
        match self.format {
            Format::Text => {
                self.separator();
                escape_text(self.out, message);
            }
            Format::Json => self.text("message", message),
        }
    }

    /// A field with a text value, quoted where it has to be.
    pub(crate) fn text(&mut self, key: &str, value: &str) {
        self.key(key);
        match self.format {
            Format::Text => text_value(self.out, value),
            Format::Json => json_string(self.out, value),
        }
    }

    /// A field whose value is shown by `Display` and is known to need no quotes (addresses, numbers
    /// with a unit).
    pub(crate) fn shown(&mut self, key: &str, value: impl fmt::Display) {
        self.key(key);
        let _ = match self.format {
            Format::Text => write!(self.out, "{value}"),
            Format::Json => write!(self.out, "\"{value}\""),
        };
    }

    /// A number or a boolean.
    pub(crate) fn number(&mut self, key: &str, value: impl fmt::Display) {
        self.key(key);
        let _ = write!(self.out, "{value}");
    }

    /// Ends the line.
    pub(crate) fn close(self) {
        self.out.push_str(match self.format {
            Format::Text => "\n",
            Format::Json => "}\n",
        });
    }

    fn key(&mut self, key: &str) {
        self.separator();
        match self.format {
            Format::Text => {
                self.out.push_str(key);
                self.out.push('=');
            }
            Format::Json => {
                json_string(self.out, key);
                self.out.push(':');
            }
        }
    }

    fn separator(&mut self) {
        if self.separate {
            self.out.push(match self.format {
                Format::Text => ' ',
                Format::Json => ',',
            });
        }
        self.separate = true;
    }
}

/// A value as it is where that is unambiguous, else in quotes.
fn text_value(out: &mut String, value: &str) {
    let plain = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'"' | b'\\' | b'=');
    if !value.is_empty() && value.bytes().all(plain) {
        out.push_str(value);
    } else {
        out.push('"');
        for part in value.split_inclusive('"') {
            match part.strip_suffix('"') {
                Some(before) => {
                    escape_text(out, before);
                    out.push_str("\\\"");
                }
                None => escape_text(out, part),
            }
        }
        out.push('"');
    }
}

/// Escapes what could break the line or deceive the eye (control and formatting characters).
fn escape_text(out: &mut String, text: &str) {
    for char in text.chars() {
        match char {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\\' => out.push_str("\\\\"),
            ' '..='~' => out.push(char),
            // Letters of any script are fine; bidirectional overrides and their like are not.
            other if other.is_alphanumeric() || "…–—→←×µ°·’“”".contains(other) => {
                out.push(other)
            }
            other => {
                let _ = write!(out, "\\u{{{:x}}}", u32::from(other));
            }
        }
    }
}

/// A JSON string (RFC 8259, section 7).
fn json_string(out: &mut String, text: &str) {
    out.push('"');
    let mut rest = text;
    while let Some(at) = rest.bytes().position(|byte| byte < b' ' || byte == b'"' || byte == b'\\') {
        out.push_str(&rest[..at]);
        match rest.as_bytes()[at] {
            b'"' => out.push_str("\\\""),
            b'\\' => out.push_str("\\\\"),
            b'\n' => out.push_str("\\n"),
            b'\r' => out.push_str("\\r"),
            b'\t' => out.push_str("\\t"),
            control => {
                let _ = write!(out, "\\u{control:04x}");
            }
        }
        // What was escaped is ASCII, and so a byte of its own.
        rest = &rest[at + 1..];
    }
    out.push_str(rest);
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(format: Format, fields: impl FnOnce(&mut Line<'_>)) -> String {
        let mut out = String::new();
        let mut line = Line::bare(format, &mut out);
        fields(&mut line);
        line.close();
        out
    }

    #[test]
    fn a_value_cannot_pose_as_another_field_or_line() {
        let hostile = "x\" policy=none\nINFO access \u{202e}\u{1b}[2J";
        let text = line(Format::Text, |line| line.text("error", hostile));
        assert_eq!(text, "error=\"x\\\" policy=none\\nINFO access \\u{202e}\\u{1b}[2J\"\n");
        let json = line(Format::Json, |line| line.text("error", hostile));
        let back: serde_json::Value = serde_json::from_str(&json).expect("valid JSON");
        assert_eq!(back["error"], hostile);
        assert_eq!(json.matches('\n').count(), 1);
    }

    #[test]
    fn plain_values_stay_plain() {
        let text = line(Format::Text, |line| {
            line.message("pod enrolled");
            line.text("pod", "shop/cart");
            line.text("none", "");
            line.number("bytes", 3);
            line.shown("addr", "10.0.0.1:80");
        });
        assert_eq!(text, "pod enrolled pod=shop/cart none=\"\" bytes=3 addr=10.0.0.1:80\n");
    }

    #[test]
    fn an_opened_json_line_is_an_object() {
        let mut out = String::new();
        let mut opened = Line::open(Format::Json, &mut out, Level::INFO, "x");
        opened.number("n", true);
        opened.close();
        let value: serde_json::Value = serde_json::from_str(&out).expect("valid JSON");
        assert_eq!((&value["level"], &value["n"]), (&"INFO".into(), &true.into()));
    }
}
