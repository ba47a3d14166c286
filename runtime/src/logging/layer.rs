//! From `tracing` events to lines: the event's message and fields, then those of the spans around it.

use std::fmt::{self, Write};

use tracing::{
    Event, Subscriber,
    field::{Field, Visit},
    span,
};
use tracing_subscriber::{Layer, layer::Context, registry::LookupSpan};

use super::{
    Format,
    line::{self, Line},
    writer::Writer,
};

/// Writes every event that reaches it.
pub(super) struct Lines {
    format: Format,
    writer: Writer,
}

impl Lines {
    pub(super) fn new(format: Format, writer: Writer) -> Self {
        Self { format, writer }
    }
}

/// The fields of a span, kept until an event within it is written.
#[derive(Default)]
struct SpanFields(Vec<(&'static str, String)>);

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Lines {
    fn on_new_span(&self, attributes: &span::Attributes<'_>, id: &span::Id, context: Context<'_, S>) {
        if let Some(span) = context.span(id) {
            let mut fields = SpanFields::default();
            attributes.record(&mut fields);
            span.extensions_mut().insert(fields);
        }
    }

    fn on_record(&self, id: &span::Id, values: &span::Record<'_>, context: Context<'_, S>) {
        if let Some(span) = context.span(id)
            && let Some(fields) = span.extensions_mut().get_mut::<SpanFields>()
        {
            values.record(fields);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let metadata = event.metadata();
        line::with_buffer(|buffer| {
            let mut line = Line::open(self.format, buffer, *metadata.level(), metadata.target());
            let mut scratch = String::new();
            event.record(&mut Message { line: &mut line, scratch: &mut scratch });
            event.record(&mut Fields { line: &mut line, scratch: &mut scratch });
            for span in context.event_scope(event).into_iter().flatten() {
                if let Some(SpanFields(fields)) = span.extensions().get() {
                    for (key, value) in fields {
                        line.text(key, value);
                    }
                }
            }
            line.close();
            self.writer.push(buffer);
        });
    }
}

/// Takes the message only, so that it comes first.
struct Message<'a, 'b> {
    line: &'a mut Line<'b>,
    scratch: &'a mut String,
}

/// Takes everything but the message.
struct Fields<'a, 'b> {
    line: &'a mut Line<'b>,
    scratch: &'a mut String,
}

impl Visit for Message<'_, '_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.scratch.clear();
            let _ = write!(self.scratch, "{value:?}");
            self.line.message(self.scratch);
        }
    }
}

impl Visit for Fields<'_, '_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() != "message" {
            self.line.text(field.name(), value);
        }
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.line.number(field.name(), value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.line.number(field.name(), value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.line.number(field.name(), value);
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.scratch.clear();
        let _ = write!(self.scratch, "{value}");
        let mut source = value.source();
        while let Some(cause) = source {
            let _ = write!(self.scratch, ": {cause}");
            source = cause.source();
        }
        self.line.text(field.name(), self.scratch);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() != "message" {
            self.scratch.clear();
            let _ = write!(self.scratch, "{value:?}");
            self.line.text(field.name(), self.scratch);
        }
    }
}

impl Visit for SpanFields {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.push((field.name(), value.to_owned()));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.0.push((field.name(), format!("{value:?}")));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};
    use tracing_subscriber::layer::SubscriberExt;

    #[derive(Clone, Default)]
    struct Buffer(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Buffer {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().expect("not poisoned").extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn an_event_is_one_line_with_the_fields_of_its_spans() {
        let buffer = Buffer::default();
        let writer = Writer::start(buffer.clone()).expect("a thread");
        let subscriber = tracing_subscriber::registry().with(Lines::new(Format::Text, writer.clone()));
        tracing::subscriber::with_default(subscriber, || {
            let span = tracing::info_span!("pod", uid = "a b", node = tracing::field::Empty);
            let _entered = span.enter();
            span.record("node", "n1");
            tracing::info!(target: "t", count = 3, odd = %"x\ny", "hello {}", "you");
        });
        writer.flush();
        let written = String::from_utf8(buffer.0.lock().expect("not poisoned").clone()).expect("UTF-8");
        let (_, rest) = written.split_once('Z').expect("a time");
        assert_eq!(rest, " INFO  t hello you count=3 odd=\"x\\ny\" uid=\"a b\" node=n1\n");
    }
}
