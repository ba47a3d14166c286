//! One CONNECT request, from its head to its answer.

use std::{cell::RefCell, fmt, future::poll_fn, rc::Rc, time::Duration};

use h2::{RecvStream, server::SendResponse};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use mesh::Identity;
use tokio::time::Instant;

use super::Ends;
use crate::{Authority, Baggage, Forwarded, Socket, Tunnel, chunk::Chunk};

/// One CONNECT request, to be accepted or refused. Dropping it refuses it with 503.
pub struct Arrival {
    /// The identity that the caller proved.
    pub peer: Identity,
    pub ends: Ends,
    /// Where the caller wants to go.
    pub authority: Authority,
    pub forwarded: Option<Forwarded>,
    pub baggage: Option<Baggage>,
    /// Of the form that W3C Trace Context gives it, or `None`.
    pub traceparent: Option<String>,
    /// What the caller says of who calls, to be verified ([`identity::assertion`]); what is no text is there, too,
    /// and empty, so that it is not taken for nothing said.
    pub assertion: Option<Box<str>>,
    /// The tunnel's TCP socket, for statistics.
    pub socket: Socket,
    reply: Reply,
}

/// The caller was gone before the answer.
#[derive(Debug, Clone, thiserror::Error)]
#[error("the caller gave up before the answer: {0}")]
pub struct Gone(pub String);

/// What all requests of one tunnel share.
pub(super) struct Origin {
    pub(super) peer: Identity,
    pub(super) ends: Ends,
    pub(super) socket: Socket,
    pub(super) resets: RefCell<Resets>,
}

/// Requests that were given up before their answer, lately.
pub(super) struct Resets {
    count: u32,
    since: Instant,
    window: Duration,
}

impl Resets {
    pub(super) fn new(window: Duration) -> Self {
        Self { count: 0, since: Instant::now(), window }
    }

    fn add(&mut self) {
        if self.since.elapsed() > self.window {
            (self.count, self.since) = (0, Instant::now());
        }
        self.count += 1;
    }

    pub(super) fn count(&self) -> u32 {
        self.count
    }
}

struct Reply {
    respond: Option<SendResponse<Chunk>>,
    body: Option<RecvStream>,
    origin: Rc<Origin>,
}

impl Arrival {
    /// Reads the head; what is no CONNECT to an address or host is answered 400.
    pub(super) fn new(
        request: Request<RecvStream>,
        mut respond: SendResponse<Chunk>,
        origin: &Rc<Origin>,
    ) -> Option<Self> {
        let (head, body) = request.into_parts();
        let authority = head.uri.authority().and_then(|authority| authority.as_str().parse().ok());
        let (Some(authority), true) = (authority, head.method == Method::CONNECT) else {
            refuse(&mut respond, StatusCode::BAD_REQUEST);
            return None;
        };
        Some(Self {
            peer: origin.peer.clone(),
            ends: origin.ends,
            authority,
            forwarded: text(&head.headers, "forwarded").and_then(|text| text.parse().ok()),
            baggage: text(&head.headers, "baggage").and_then(|text| Baggage::parse(text).ok()),
            traceparent: text(&head.headers, "traceparent")
                .filter(|text| is_traceparent(text))
                .map(str::to_owned),
            assertion: head
                .headers
                .get(identity::assertion::HEADER)
                .map(|value| value.to_str().unwrap_or_default().into()),
            socket: origin.socket.clone(),
            reply: Reply { respond: Some(respond), body: Some(body), origin: origin.clone() },
        })
    }

    /// Whether bytes of the caller have come already, with the request or right after it.
    pub fn has_bytes(&mut self) -> bool {
        self.reply.body.as_mut().is_some_and(|body| body.flow_control().used_capacity() > 0)
    }

    /// Answers 200 with the destination's own `baggage`.
    pub fn accept(mut self, baggage: Option<&str>) -> Result<Tunnel, Gone> {
        let (Some(mut respond), Some(body)) = (self.reply.respond.take(), self.reply.body.take()) else {
            return Err(Gone("it was answered already".to_owned()));
        };
        let mut response = Response::new(());
        // What is no header value was made by us from our own configuration: left out.
        if let Some(baggage) = baggage.filter(|baggage| !baggage.is_empty())
            && let Ok(value) = HeaderValue::from_str(baggage)
        {
            response.headers_mut().insert("baggage", value);
        }
        match respond.send_response(response, false) {
            Ok(send) => Ok(Tunnel::new(send, body, None)),
            Err(error) => {
                self.reply.origin.resets.borrow_mut().add();
                Err(Gone(error.to_string()))
            }
        }
    }

    /// Answers with an error status and ends the stream: 401 policy, 400 not this workload, 503 dial.
    pub fn refuse(mut self, status: StatusCode) {
        if let Some(mut respond) = self.reply.respond.take() {
            refuse(&mut respond, status);
        }
    }

    /// Resolves when the caller gives up before the answer: whoever dials can stop.
    pub async fn cancelled(&mut self) {
        let Some(respond) = &mut self.reply.respond else { return };
        let _reason = poll_fn(|cx| respond.poll_reset(cx)).await;
        self.reply.origin.resets.borrow_mut().add();
        self.reply.respond = None;
    }
}

fn refuse(respond: &mut SendResponse<Chunk>, status: StatusCode) {
    let mut response = Response::new(());
    *response.status_mut() = status;
    // Fails only where the caller is gone.
    let _ = respond.send_response(response, true);
}

impl Drop for Reply {
    fn drop(&mut self) {
        if let Some(respond) = &mut self.respond {
            refuse(respond, StatusCode::SERVICE_UNAVAILABLE);
        }
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// `version-traceid-parentid-flags`, in hexadecimal.
fn is_traceparent(text: &str) -> bool {
    let mut parts = text.split('-');
    let mut hex = |length: usize| {
        parts
            .next()
            .is_some_and(|part| part.len() == length && part.bytes().all(|byte| byte.is_ascii_hexdigit()))
    };
    text.len() == 55 && hex(2) && hex(32) && hex(16) && hex(2)
}

impl fmt::Debug for Arrival {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Arrival")
            .field("peer", &self.peer)
            .field("authority", &self.authority)
            .field("ends", &self.ends)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::is_traceparent;

    #[test]
    fn traceparents() {
        assert!(is_traceparent("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"));
        for bad in [
            "",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0",
            "00-xxf7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        ] {
            assert!(!is_traceparent(bad), "{bad}");
        }
    }
}
