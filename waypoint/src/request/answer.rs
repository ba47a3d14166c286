//! Answers of the waypoint's own, in the words of the protocol: a status, or a call's `grpc-status`.

use ::http::{HeaderValue, Response, StatusCode, header};

use super::{Context, Settled};
use crate::body::Body;

/// The answer that was settled, and what is told of it.
pub(super) fn settled(context: &Context, settled: Settled) -> Response<Body> {
    let Settled { status, flag, reason, location } = settled;
    let mut response = Response::new(Body::Empty);
    if context.is_grpc && location.is_none() {
        // "Trailers only": the whole answer is one head (the gRPC specification over HTTP/2).
        let code = grpc_code(status);
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert("grpc-status", HeaderValue::from(code));
        let message: String = reason.chars().filter(|c| matches!(c, ' '..='~') && *c != '%').collect();
        if let Ok(message) = HeaderValue::try_from(message) {
            headers.insert("grpc-message", message);
        }
        context.record.borrow_mut().grpc_status(code);
    } else {
        *response.status_mut() = status;
        match location {
            Some(location) => drop(response.headers_mut().insert(header::LOCATION, location)),
            None => {
                let text = HeaderValue::from_static("text/plain; charset=utf-8");
                response.headers_mut().insert(header::CONTENT_TYPE, text);
                // The reason is for the log; to callers the status says enough.
                let words = status.canonical_reason().unwrap_or("error");
                *response.body_mut() = Body::text(format!("{words}\n"));
            }
        }
    }
    let mut record = context.record.borrow_mut();
    record.status(response.status().as_u16());
    record.flag(flag, reason);
    response
}

/// The status of a call for one of HTTP ("HTTP to gRPC Status Code Mapping").
fn grpc_code(status: StatusCode) -> u16 {
    match status.as_u16() {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502 | 503 | 504 => 14,
        _ => 2,
    }
}
