//! Answers of the waypoint's own, in the words of the protocol: a status, or a call's `grpc-status`.

use ::http::{HeaderValue, Response, StatusCode, header};

use runtime::record::Flag;

use super::{Context, Settled};
use crate::body::Body;

/// The answer that was settled, and what is told of it.
pub(super) fn settled(context: &Context, settled: Settled) -> Response<Body> {
    let Settled { status, flag, reason, reply, challenge, allowance } = settled;
    let mut response = Response::new(Body::Empty);
    if context.is_grpc && reply.is_none() {
        // "Trailers only": the whole answer is one head (the gRPC specification over HTTP/2).
        let code = grpc_code(status, flag);
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
        match reply {
            Some(headers) => *response.headers_mut() = *headers,
            None => {
                let text = HeaderValue::from_static("text/plain; charset=utf-8");
                response.headers_mut().insert(header::CONTENT_TYPE, text);
                // The reason is for the log; to callers the status says enough.
                let words = status.canonical_reason().unwrap_or("error");
                *response.body_mut() = Body::text(format!("{words}\n"));
            }
        }
    }
    if let Some(challenge) = challenge {
        response.headers_mut().insert(header::WWW_AUTHENTICATE, *challenge);
    }
    // What a browser may read, be it an error.
    if let Some(allowance) = allowance {
        allowance.apply(response.headers_mut());
    }
    let mut record = context.record.borrow_mut();
    record.status(response.status().as_u16());
    record.flag(flag, reason);
    response
}

/// The status of a call for one of HTTP ("HTTP to gRPC Status Code Mapping"). A backend that is none makes a call
/// unavailable (GRPCRoute).
fn grpc_code(status: StatusCode, flag: Flag) -> u16 {
    match status.as_u16() {
        500 if flag == Flag::NoRoute => 14,
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502 | 503 | 504 => 14,
        _ => 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_told_in_its_own_words() {
        for (status, flag, code) in [
            (404, Flag::NoRoute, 12),
            (500, Flag::NoRoute, 14),
            (500, Flag::Malformed, 2),
            (503, Flag::NoEndpoint, 14),
            (504, Flag::Timeout, 14),
            (403, Flag::Denied, 7),
            (401, Flag::BadToken, 16),
            (400, Flag::Malformed, 13),
        ] {
            assert_eq!(grpc_code(StatusCode::from_u16(status).unwrap(), flag), code, "{status}");
        }
    }
}
