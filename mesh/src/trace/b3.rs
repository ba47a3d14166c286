//! B3, in one header and in several (<https://github.com/openzipkin/b3-propagation>).

use super::{
    B3, B3_FLAGS, B3_PARENT, B3_SAMPLED, B3_SPAN, B3_TRACE, Headers, One, Parent, SpanId, Trace, TraceId, hex,
};

/// How the caller speaks B3: what is sent on is said in the same words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Spoken {
    /// In one header.
    single: bool,
    /// In several.
    multi: bool,
    /// With a trace's number of 64 bits.
    pub(super) is_short: bool,
    /// Recorded whatever the rate, by everybody.
    pub(super) is_debug: bool,
}

#[derive(Debug, Default)]
pub(super) struct Arrived {
    pub(super) parent: Option<Parent>,
    pub(super) sampled: Option<bool>,
    pub(super) spoken: Spoken,
}

/// What one or several headers say.
#[derive(Debug, Default)]
struct Said {
    parent: Option<(Parent, bool)>,
    sampled: Option<bool>,
    is_debug: bool,
}

/// Reads B3's headers; the one outweighs the several.
pub(super) fn read(headers: &(impl Headers + ?Sized)) -> Arrived {
    let one = One::of(headers, B3);
    let several = [B3_TRACE, B3_SPAN, B3_SAMPLED, B3_FLAGS].map(|name| One::of(headers, name));
    let (single, multi) = (one.is_there(), several.iter().any(One::is_there));
    if !single && !multi {
        return Arrived::default();
    }
    let said = one.value().and_then(of_one).or_else(|| multi.then(|| of_several(&several))?);
    let Said { parent, sampled, is_debug } = said.unwrap_or_default();
    let is_short = parent.is_some_and(|(_, is_short)| is_short);
    Arrived {
        parent: parent.map(|(parent, _)| parent),
        sampled,
        spoken: Spoken { single, multi, is_short, is_debug },
    }
}

/// `TRACE-SPAN[-SAMPLED[-PARENT]]`, or what was decided alone.
fn of_one(text: &str) -> Option<Said> {
    if let Some((sampled, is_debug)) = decided(text) {
        return Some(Said { parent: None, sampled: Some(sampled), is_debug });
    }
    let mut parts = text.split('-');
    let parent = parent(parts.next()?, parts.next()?)?;
    let (sampled, is_debug) = match parts.next() {
        Some(text) => decided(text).map(|(sampled, is_debug)| (Some(sampled), is_debug))?,
        None => (None, false),
    };
    // Whose child the caller's span is, is nobody's business here; but it must be one.
    if let Some(text) = parts.next() {
        SpanId::new(hex(text)?)?;
    }
    parts.next().is_none().then_some(Said { parent: Some(parent), sampled, is_debug })
}

fn decided(text: &str) -> Option<(bool, bool)> {
    match text {
        "0" => Some((false, false)),
        "1" => Some((true, false)),
        "d" => Some((true, true)),
        _ => None,
    }
}

fn of_several([trace, span, sampled, flags]: &[One; 4]) -> Option<Said> {
    let is_debug = flags.value() == Some("1");
    let sampled = match sampled.value() {
        _ if is_debug => Some(true),
        // Some still say it in words, as it was said at first.
        Some("1" | "true") => Some(true),
        Some("0" | "false") => Some(false),
        _ => None,
    };
    let parent = trace.value().zip(span.value()).and_then(|(trace, span)| parent(trace, span));
    Some(Said { parent, sampled, is_debug })
}

/// The parent, and whether its trace's number has 64 bits.
fn parent(trace: &str, span: &str) -> Option<(Parent, bool)> {
    let is_short = trace.len() == 16;
    let trace = if is_short {
        let mut bytes = [0; 16];
        bytes[8..].copy_from_slice(&hex::<8>(trace)?);
        bytes
    } else {
        hex(trace)?
    };
    Some((Parent { trace: TraceId::new(trace)?, span: SpanId::new(hex(span)?)? }, is_short))
}

/// Tells the headers of a request that is sent in `span`.
pub(super) fn tell(trace: &Trace, span: SpanId, told: &mut impl FnMut(&'static str, Option<String>)) {
    let Spoken { single, multi, is_short, is_debug } = trace.b3;
    let (sampled, own) = (if trace.is_sampled { "1" } else { "0" }, trace.span);
    let mut id = trace.id.to_string();
    if is_short {
        id.drain(..16);
    }
    if single {
        let decided = if is_debug { "d" } else { sampled };
        told(B3, Some(format!("{id}-{span}-{decided}-{own}")));
    }
    if multi {
        told(B3_TRACE, Some(id));
        told(B3_SPAN, Some(span.to_string()));
        told(B3_PARENT, Some(own.to_string()));
        // Flags say it as well, and are not said beside it.
        told(B3_SAMPLED, (!is_debug).then(|| sampled.to_owned()));
        told(B3_FLAGS, is_debug.then(|| "1".to_owned()));
    }
}
