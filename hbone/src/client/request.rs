//! One CONNECT on a seat of a tunnel.

use std::{net::SocketAddr, time::Duration};

use http::{HeaderValue, Method, Request, StatusCode, Uri, Version, header::FORWARDED};
use tokio::time::timeout;

use super::{Connect, OpenError, Seat, TunnelInfo};
use crate::{
    Baggage, Forwarded, Tunnel,
    buffer::{Buffer, Class},
    chunk::Chunk,
    keepalive::DOUBT,
};

/// How an attempt failed.
pub(super) enum Failed {
    /// The peer did not look at the request: it may be sent again, elsewhere.
    Unprocessed(OpenError),
    ForGood(OpenError),
}

/// The head of a CONNECT: `:method`, `:authority` and our headers, nothing else.
pub(super) fn head(connect: &Connect, peer: SocketAddr) -> Result<Request<()>, OpenError> {
    let bad = |reason: String| OpenError::BadRequest { peer, reason };
    let authority: http::uri::Authority = connect
        .authority
        .parse()
        .map_err(|error| bad(format!("authority {:?}: {error}", connect.authority)))?;
    let mut parts = http::uri::Parts::default();
    parts.authority = Some(authority);
    let mut request = Request::new(());
    *request.method_mut() = Method::CONNECT;
    *request.version_mut() = Version::HTTP_2;
    *request.uri_mut() = Uri::from_parts(parts).map_err(|error| bad(error.to_string()))?;
    let forwarded = Forwarded { source: connect.source, host: connect.service_host.clone() };
    let headers = [
        ("forwarded", Some(forwarded.to_string())),
        ("baggage", connect.baggage.clone().filter(|baggage| !baggage.is_empty())),
        ("traceparent", connect.traceparent.clone()),
        (identity::assertion::HEADER, connect.assertion.as_deref().map(str::to_owned)),
    ];
    for (name, value) in headers {
        if let Some(value) = value {
            let value = HeaderValue::try_from(value).map_err(|error| bad(format!("{name}: {error}")))?;
            request.headers_mut().insert(name, value);
        }
    }
    debug_assert!(request.headers().contains_key(FORWARDED));
    Ok(request)
}

/// The bytes that the caller has said already. They ride with the request, so that a first exchange takes
/// one trip and not two; a peer that refuses throws them away.
pub(super) struct Early<'a> {
    read: &'a mut dyn FnMut(&mut [u8]) -> usize,
    /// What was read, for the case that the request has to be sent again; `None` before.
    said: Option<Box<[u8]>>,
}

impl<'a> Early<'a> {
    pub(super) fn new(read: &'a mut dyn FnMut(&mut [u8]) -> usize) -> Self {
        Self { read, said: None }
    }

    pub(super) fn was_read(&self) -> bool {
        self.said.is_some()
    }

    fn bytes(&mut self) -> &[u8] {
        let read = &mut self.read;
        self.said.get_or_insert_with(|| {
            let mut buffer = Buffer::take(Class::Small);
            let count = read(&mut buffer).min(buffer.len());
            buffer[..count].into()
        })
    }
}

/// Sends the request, with what there is of `early` bytes, and waits for its answer.
pub(super) async fn send(
    seat: Seat,
    head: Request<()>,
    early: &mut Early<'_>,
    reused: bool,
    patience: Duration,
) -> Result<(Tunnel, TunnelInfo), Failed> {
    let connection = seat.connection().clone();
    let peer = connection.peer;
    // What the driver knows says more than what HTTP/2 passes on.
    let broken = |error: &h2::Error| {
        connection.failure().unwrap_or_else(|| OpenError::Broken { peer, reason: error.to_string() })
    };
    let heard = connection.was_heard_lately();
    let Some(mut sender) = connection.sender() else {
        let closed = || OpenError::Broken { peer, reason: "it was closed meanwhile".to_owned() };
        return Err(Failed::Unprocessed(connection.failure().unwrap_or_else(closed)));
    };
    let (response, mut send) = sender.send_request(head, false).map_err(|error| {
        // Nothing was sent, and nothing will be over this tunnel.
        connection.retire();
        Failed::Unprocessed(broken(&error))
    })?;
    drop(sender);
    connection.stir();
    // What was said once is said: a peer of which nothing was heard of late, and which may be gone, gets it only when it
    // has answered.
    let is_said = (early.was_read() || !reused || heard) && {
        let said = early.bytes();
        if !said.is_empty() {
            // Should this fail, so will the answer, with a better word for it.
            let _ = send.send_data(Chunk::owned(said.into()), false);
        }
        !said.is_empty()
    };
    let answer = async {
        tokio::select! {
            biased;
            response = response => Some(response),
            () = connection.silenced(), if !is_said => None,
        }
    };
    let response = match timeout(patience, answer).await {
        Ok(Some(Ok(response))) => response,
        Ok(Some(Err(error))) if is_unprocessed(&error) => {
            connection.retire();
            return Err(Failed::Unprocessed(broken(&error)));
        }
        Ok(Some(Err(error))) => return Err(Failed::ForGood(broken(&error))),
        Ok(None) => return Err(Failed::ForGood(OpenError::Silent { peer, after: DOUBT })),
        Err(_elapsed) => {
            let what = "answer the CONNECT";
            return Err(Failed::ForGood(OpenError::Timeout { peer, what, after: patience }));
        }
    };
    if response.status() != StatusCode::OK {
        return Err(Failed::ForGood(OpenError::Refused { peer, status: response.status() }));
    }
    let baggage = response.headers().get("baggage").and_then(|value| value.to_str().ok());
    let info = TunnelInfo {
        peer: connection.identity.clone(),
        baggage: baggage.and_then(|text| Baggage::parse(text).ok()),
        reused,
        socket: connection.socket.clone(),
    };
    let tunnel = Tunnel {
        early: if is_said { early.bytes().len() } else { 0 },
        ..Tunnel::new(send, response.into_body(), Some(seat))
    };
    Ok((tunnel, info))
}

/// The peer says so itself: RFC 9113 sections 8.7 (REFUSED_STREAM) and 6.8 (a GOAWAY ends only
/// streams above the last one that was looked at).
fn is_unprocessed(error: &h2::Error) -> bool {
    let refused = error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM);
    error.is_remote() && (refused || error.is_go_away())
}
