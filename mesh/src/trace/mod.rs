//! Where a request stands in a trace: what its headers say of it, and what they say to whoever is asked next.
//!
//! Two ways of saying it are known, W3C Trace Context and B3. A valid `traceparent` outweighs B3's headers. Nothing here
//! reads a clock or draws numbers: what is random is handed in.

mod b3;
mod request_id;
mod w3c;

use std::{fmt, str::FromStr};

pub use request_id::RequestId;

/// The header of a request's identifier.
pub const REQUEST_ID: &str = "x-request-id";

/// The headers that say where a request stands.
pub const TRACEPARENT: &str = "traceparent";
pub const TRACESTATE: &str = "tracestate";
pub const B3: &str = "b3";
pub const B3_TRACE: &str = "x-b3-traceid";
pub const B3_SPAN: &str = "x-b3-spanid";
pub const B3_PARENT: &str = "x-b3-parentspanid";
pub const B3_SAMPLED: &str = "x-b3-sampled";
pub const B3_FLAGS: &str = "x-b3-flags";

/// Identifies a trace; never all zeros.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceId([u8; 16]);

/// Identifies a span within its trace; never all zeros.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SpanId([u8; 8]);

impl TraceId {
    /// Of random bits; of zeros there is none, so the last bit is set then.
    pub fn random(bits: u128) -> Self {
        Self(bits.max(1).to_be_bytes())
    }

    /// Of its bytes, unless they are zeros.
    pub fn new(bytes: [u8; 16]) -> Option<Self> {
        (bytes != [0; 16]).then_some(Self(bytes))
    }

    pub fn bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// The part that is random wherever it was made (Trace Context, "random trace-id").
    fn low(&self) -> u64 {
        u128::from_be_bytes(self.0) as u64
    }
}

impl SpanId {
    /// Of random bits; of zeros there is none, so the last bit is set then.
    pub fn random(bits: u64) -> Self {
        Self(bits.max(1).to_be_bytes())
    }

    /// Of its bytes, unless they are zeros.
    pub fn new(bytes: [u8; 8]) -> Option<Self> {
        (bytes != [0; 8]).then_some(Self(bytes))
    }

    pub fn bytes(&self) -> &[u8; 8] {
        &self.0
    }
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl fmt::Display for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", u64::from_be_bytes(self.0))
    }
}

impl fmt::Debug for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TraceId({self})")
    }
}

impl fmt::Debug for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SpanId({self})")
    }
}

/// Headers of a request, to be read by their names in lower case.
pub trait Headers {
    /// Tells each value of `name`.
    fn each(&self, name: &str, told: &mut dyn FnMut(&[u8]));
}

/// The one value of a header.
enum One {
    None,
    Value(String),
    /// Several, or no text: it says nothing.
    Bad,
}

impl One {
    fn of(headers: &(impl Headers + ?Sized), name: &str) -> Self {
        let mut one = Self::None;
        headers.each(name, &mut |value| {
            one = match (&one, std::str::from_utf8(value)) {
                (Self::None, Ok(value)) => Self::Value(value.to_owned()),
                _ => Self::Bad,
            };
        });
        one
    }

    fn is_there(&self) -> bool {
        !matches!(self, Self::None)
    }

    fn value(&self) -> Option<&str> {
        match self {
            Self::Value(value) => Some(value),
            Self::None | Self::Bad => None,
        }
    }
}

/// The span that a request comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Parent {
    trace: TraceId,
    span: SpanId,
}

/// What the headers of a request say.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Arrived {
    parent: Option<Parent>,
    /// Whether the trace is recorded, where that was decided.
    sampled: Option<bool>,
    /// The trace's number is said to be random (Trace Context, level 2).
    is_random: bool,
    state: Option<String>,
    b3: b3::Spoken,
}

impl Arrived {
    /// Reads them. What is said wrongly was not said.
    pub fn read(headers: &(impl Headers + ?Sized)) -> Self {
        let mut b3 = b3::read(headers);
        if let Some(parent) = One::of(headers, TRACEPARENT).value().and_then(w3c::parse) {
            // Its trace's number is that of the other header.
            b3.spoken.is_short = false;
            return Self {
                parent: Some(parent.parent),
                sampled: Some(parent.sampled || b3.spoken.is_debug),
                is_random: parent.is_random,
                state: w3c::state(headers),
                b3: b3.spoken,
            };
        }
        Self { parent: b3.parent, sampled: b3.sampled, is_random: false, state: None, b3: b3.spoken }
    }
}

/// Where a request stands in its trace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trace {
    pub id: TraceId,
    /// The span of the request itself.
    pub span: SpanId,
    /// The caller's span.
    pub parent: Option<SpanId>,
    /// Whether its spans are recorded.
    pub is_sampled: bool,
    is_random: bool,
    /// `tracestate`, as it is passed on.
    pub state: Option<String>,
    b3: b3::Spoken,
}

impl Trace {
    /// The trace that has arrived, or else a new one; `random` draws bits.
    pub fn begin(arrived: Arrived, sampling: Sampling, mut random: impl FnMut() -> u64) -> Self {
        let id = match arrived.parent {
            Some(parent) => parent.trace,
            None => TraceId::random((u128::from(random()) << 64) | u128::from(random())),
        };
        Self {
            id,
            span: SpanId::random(random()),
            parent: arrived.parent.map(|parent| parent.span),
            is_sampled: arrived.sampled.unwrap_or_else(|| sampling.has(id)),
            is_random: arrived.is_random,
            state: arrived.state,
            b3: arrived.b3,
        }
    }

    /// Tells the headers of a request that is sent in `span`: names with values, or without one where it is to be taken
    /// out. W3C's are always told, B3's where the caller has used them.
    pub fn tell(&self, span: SpanId, mut told: impl FnMut(&'static str, Option<String>)) {
        told(TRACEPARENT, Some(w3c::format(self, span)));
        told(TRACESTATE, self.state.clone());
        b3::tell(self, span, &mut told);
    }
}

/// How many new traces are recorded.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    percent: f64,
    /// So many of 2⁶⁴.
    share: u128,
}

impl Sampling {
    /// Of a percentage between 0 and 100.
    pub fn percent(percent: f64) -> Option<Self> {
        let share = (percent / 100.0 * 2_f64.powi(64)) as u128;
        (0.0..=100.0).contains(&percent).then_some(Self { percent, share })
    }

    /// Whether a trace is recorded: the same everywhere, wherever it is asked.
    pub fn has(&self, trace: TraceId) -> bool {
        u128::from(trace.low()) < self.share
    }
}

impl FromStr for Sampling {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let percent = text.parse().ok().and_then(Self::percent);
        percent.ok_or_else(|| "write a percentage between 0 and 100, as 1 or 0.1".to_owned())
    }
}

impl fmt::Display for Sampling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.percent.fmt(f)
    }
}

/// So many digits of hexadecimal in lower case, and nothing else.
fn hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let text = text.as_bytes();
    if text.len() != 2 * N {
        return None;
    }
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests;
