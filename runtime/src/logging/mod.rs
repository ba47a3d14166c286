//! Logs: one line per event, as text or JSON, with levels that can be changed while running.
//!
//! Lines are handed to a thread that writes them to standard error, so a slow reader of the log
//! never holds up a connection: when more than 4 MiB wait, lines are dropped and counted.
//! Whatever a peer or an object's author can put into a value is quoted and escaped: one event is
//! one line, always.

mod layer;
pub(crate) mod line;
mod writer;

use std::sync::Arc;

use tracing_subscriber::{EnvFilter, Registry, layer::SubscriberExt, reload, util::SubscriberInitExt};

use self::writer::Writer;
use crate::metrics::Metrics;

/// How a line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Format {
    /// `2026-08-01T12:00:00.000000Z INFO  agent::enroll pod enrolled pod=shop/cart took=41ms`
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// Logging could not be set up or changed.
#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    #[error(
        "log level {given:?} is not understood: {reason}. Write a level (error, warn, info, debug, trace, \
         off) or a list such as info,hbone=debug,access=off"
    )]
    BadLevel { given: String, reason: String },
    #[error("logging was set up twice in this process")]
    AlreadyInstalled,
    #[error("the thread that writes the log could not be started: {0}")]
    NoThread(std::io::Error),
}

/// Logging of this process. Dropping it writes out what is waiting; keep it in `main`.
pub struct Logging {
    format: Format,
    levels: LevelHandle,
    writer: Writer,
}

/// Reads and changes the log levels while running.
#[derive(Clone)]
pub struct LevelHandle {
    filter: reload::Handle<EnvFilter, Registry>,
}

/// Where the lines of the access log go (target `access`); clones write to the same place.
#[derive(Clone)]
pub struct AccessLog {
    pub(crate) format: Format,
    sink: Sink,
}

#[derive(Clone)]
enum Sink {
    Log(Writer),
    Own(Arc<dyn Fn(&str) + Send + Sync>),
    Nowhere,
}

/// Sets up logging for the process. `levels` is a list of directives (`info,hbone=debug,access=off`).
///
/// # Errors
/// When `levels` is not understood, or logging was set up before.
pub fn init(format: Format, levels: &str) -> Result<Logging, LoggingError> {
    let (filter, handle) = reload::Layer::new(parse(levels)?);
    let writer = Writer::start(std::io::stderr()).map_err(LoggingError::NoThread)?;
    tracing_subscriber::registry()
        .with(filter)
        .with(layer::Lines::new(format, writer.clone()))
        .try_init()
        .map_err(|_| LoggingError::AlreadyInstalled)?;
    Ok(Logging { format, levels: LevelHandle { filter: handle }, writer })
}

/// Checks a list of levels without installing it; for use as a clap value parser.
///
/// # Errors
/// With what is wrong and what would be right.
pub fn check_levels(levels: &str) -> Result<String, LoggingError> {
    parse(levels).map(|_| levels.to_owned())
}

fn parse(levels: &str) -> Result<EnvFilter, LoggingError> {
    let bad = |reason: String| LoggingError::BadLevel { given: levels.to_owned(), reason };
    if levels.trim().is_empty() {
        return Err(bad("it is empty".into()));
    }
    // What is no level would be taken for a target of which everything is told, and of all others nothing.
    let is_level = |word: &str| word.parse::<tracing::level_filters::LevelFilter>().is_ok();
    if let Some(word) = levels.split(',').map(str::trim).find(|word| !word.contains('=') && !is_level(word)) {
        return Err(bad(format!(
            "{word:?} is no level: write error, warn, info, debug, trace or off, or TARGET=LEVEL"
        )));
    }
    EnvFilter::builder().parse(levels).map_err(|error| bad(error.to_string()))
}

impl Logging {
    /// For the admin server and whoever else changes levels.
    pub fn levels(&self) -> LevelHandle {
        self.levels.clone()
    }

    /// The access log, in the format of the log or one of its own.
    pub fn access_log(&self, format: Option<Format>) -> AccessLog {
        AccessLog { format: format.unwrap_or(self.format), sink: Sink::Log(self.writer.clone()) }
    }

    /// Registers `culvert_log_lines_dropped_total`.
    pub fn register(&self, metrics: &Metrics) {
        metrics.under("culvert", |registry| {
            registry.register(
                "log_lines_dropped",
                "Log lines dropped because the reader of the log was too slow",
                self.writer.dropped(),
            );
        });
    }

    /// Waits (two seconds at most) until every line so far is written.
    pub fn flush(&self) {
        self.writer.flush();
    }
}

impl Drop for Logging {
    fn drop(&mut self) {
        self.writer.flush();
    }
}

impl LevelHandle {
    /// Replaces the levels.
    ///
    /// # Errors
    /// When `levels` is not understood; the old ones stay.
    pub fn set(&self, levels: &str) -> Result<(), LoggingError> {
        let filter = parse(levels)?;
        self.filter.reload(filter).map_err(|error| LoggingError::BadLevel {
            given: levels.to_owned(),
            reason: format!("it could not be installed: {error}"),
        })
    }

    /// The levels in force.
    pub fn current(&self) -> String {
        self.filter.with_current(ToString::to_string).unwrap_or_default()
    }
}

impl AccessLog {
    /// No access log.
    pub fn none() -> Self {
        Self { format: Format::Text, sink: Sink::Nowhere }
    }

    /// An access log apart from the log: `sink` gets each line, ended by a newline, without time,
    /// level and target.
    pub fn to(format: Format, sink: impl Fn(&str) + Send + Sync + 'static) -> Self {
        Self { format, sink: Sink::Own(Arc::new(sink)) }
    }

    /// Whether a line of this level would be written; checked before one is built.
    pub(crate) fn is_enabled(&self, failed: bool) -> bool {
        match (&self.sink, failed) {
            (Sink::Nowhere, _) => false,
            (Sink::Own(_), _) => true,
            (Sink::Log(_), true) => tracing::enabled!(target: "access", tracing::Level::WARN),
            (Sink::Log(_), false) => tracing::enabled!(target: "access", tracing::Level::INFO),
        }
    }

    /// Writes one line; `fields` adds what it says.
    pub(crate) fn write(&self, failed: bool, fields: impl FnOnce(&mut line::Line<'_>)) {
        let level = if failed { tracing::Level::WARN } else { tracing::Level::INFO };
        line::with_buffer(|buffer| match &self.sink {
            Sink::Nowhere => {}
            Sink::Log(writer) => {
                let mut line = line::Line::open(self.format, buffer, level, "access");
                fields(&mut line);
                line.close();
                writer.push(buffer);
            }
            Sink::Own(sink) => {
                let mut line = line::Line::bare(self.format, buffer);
                fields(&mut line);
                line.close();
                sink(buffer);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_level_is_told_with_what_is_right() {
        let error = check_levels("info,hbone=loud").expect_err("loud is no level").to_string();
        assert!(error.contains("loud") && error.contains("debug"), "{error}");
        assert!(check_levels(" ").is_err());
        let error = check_levels("info,loud").expect_err("a word alone is a level").to_string();
        assert!(error.contains("\"loud\" is no level") && error.contains("TARGET=LEVEL"), "{error}");
        assert!(check_levels("info,access=off").is_ok());
    }

    #[test]
    fn levels_change_while_running_and_a_bad_one_changes_nothing() {
        let (filter, handle) = reload::Layer::new(parse("info").expect("a level"));
        let levels = LevelHandle { filter: handle };
        let subscriber = tracing_subscriber::registry().with(filter);
        tracing::subscriber::with_default(subscriber, || {
            assert!(!tracing::enabled!(target: "x", tracing::Level::DEBUG));
            levels.set("x=debug").expect("a level");
            assert!(tracing::enabled!(target: "x", tracing::Level::DEBUG));
            levels.set("x=quiet").expect_err("no level");
            assert_eq!(levels.current(), "x=debug");
        });
    }
}
