//! The pages over HTTP/2 with prior knowledge: `GET /N`, and as gRPC a method that returns the same, besides the health
//! protocol that the kubelet's probes speak (grpc.health.v1).

use std::{io, rc::Rc};

use bytes::{BufMut, Bytes, BytesMut};
use h2::{RecvStream, client::SendRequest, server::SendResponse};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use tokio::{net::TcpStream, sync::watch};

use crate::http as web;

/// What the kubelet asks: its answer is one field, `status = SERVING`.
const HEALTH: &str = "/grpc.health.v1.Health/Check";
const SERVING: &[u8] = &[8, 1];
/// A message of eight bytes, the size of the page; the answer's message is the page.
const GET: &str = "/app.Pages/Get";
/// Before each message of gRPC: not compressed, and its length.
const PREFIX: usize = 5;

/// Serves one connection; once we leave, what is asked is answered and nothing more is taken.
pub(crate) async fn serve(
    stream: TcpStream,
    page: Rc<str>,
    mut leaving: watch::Receiver<bool>,
) -> Result<(), h2::Error> {
    let mut connection = h2::server::handshake(stream).await?;
    let mut told = *leaving.borrow_and_update();
    if told {
        connection.graceful_shutdown();
    }
    loop {
        tokio::select! {
            request = connection.accept() => {
                let Some(request) = request else { return Ok(()) };
                let (request, respond) = request?;
                drop(tokio::task::spawn_local(answer(request, respond, page.clone())));
            }
            Ok(()) = leaving.changed(), if !told => {
                told = true;
                connection.graceful_shutdown();
            }
        }
    }
}

async fn answer(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    page: Rc<str>,
) -> Result<(), h2::Error> {
    let (parts, body) = request.into_parts();
    if parts.method == Method::GET {
        let Some(size) = asked(parts.uri.path()) else {
            return respond.send_response(status(StatusCode::NOT_FOUND), true).map(drop);
        };
        let mut stream = respond.send_response(status(StatusCode::OK), false)?;
        return send(&mut stream, web::body(&page, size).into(), true).await;
    }
    let asked = read(body).await?;
    let message = match parts.uri.path() {
        HEALTH => Ok(SERVING.to_vec()),
        GET => page_asked(&asked).map(|size| web::body(&page, size)).ok_or("3"),
        _ => Err("12"),
    };
    let mut response = status(StatusCode::OK);
    response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    let mut stream = respond.send_response(response, false)?;
    let code = match message {
        Ok(message) => {
            send(&mut stream, framed(&message), false).await?;
            "0"
        }
        Err(code) => code,
    };
    let trailers = HeaderMap::from_iter([(
        http::HeaderName::from_static("grpc-status"),
        HeaderValue::from_static(code),
    )]);
    stream.send_trailers(trailers)
}

/// Asks over HTTP/2 for a page of `size` bytes, and compares it. Its first line.
pub(crate) async fn get(client: &SendRequest<Bytes>, host: &str, size: u64) -> io::Result<String> {
    let request = Request::get(format!("http://{host}/{size}")).body(()).map_err(io::Error::other)?;
    let (status, body, _) = exchange(client, request, None).await?;
    if status != StatusCode::OK {
        return Err(wrong(format!("the status is {status}")));
    }
    web::compare(&body, size)
}

/// Asks by gRPC for a page of `size` bytes, and compares it. Its first line.
pub(crate) async fn call(client: &SendRequest<Bytes>, host: &str, size: u64) -> io::Result<String> {
    let request = Request::post(format!("http://{host}{GET}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .map_err(io::Error::other)?;
    let (status, body, trailers) = exchange(client, request, Some(framed(&size.to_be_bytes()))).await?;
    let code = trailers.as_ref().and_then(|trailers| trailers.get("grpc-status"));
    if status != StatusCode::OK || code.is_none_or(|code| code != "0") {
        return Err(wrong(format!("the status is {status}, of gRPC {code:?}")));
    }
    let message = body.get(PREFIX..).ok_or_else(|| wrong("no message".to_owned()))?;
    web::compare(message, size)
}

async fn exchange(
    client: &SendRequest<Bytes>,
    request: Request<()>,
    message: Option<Bytes>,
) -> io::Result<(StatusCode, Vec<u8>, Option<HeaderMap>)> {
    let mut client = client.clone().ready().await.map_err(failed)?;
    let (response, mut stream) = client.send_request(request, message.is_none()).map_err(failed)?;
    if let Some(message) = message {
        send(&mut stream, message, true).await.map_err(failed)?;
    }
    let (parts, mut body) = response.await.map_err(failed)?.into_parts();
    let mut bytes = Vec::new();
    while let Some(chunk) = body.data().await {
        let chunk = chunk.map_err(failed)?;
        body.flow_control().release_capacity(chunk.len()).map_err(failed)?;
        bytes.extend_from_slice(&chunk);
    }
    Ok((parts.status, bytes, body.trailers().await.map_err(failed)?))
}

/// Sends all, as fast as the other side takes it.
async fn send(stream: &mut h2::SendStream<Bytes>, mut bytes: Bytes, end: bool) -> Result<(), h2::Error> {
    loop {
        stream.reserve_capacity(bytes.len());
        if bytes.is_empty() || stream.capacity() >= bytes.len() {
            return stream.send_data(bytes, end);
        }
        match std::future::poll_fn(|context| stream.poll_capacity(context)).await {
            Some(room) => {
                let room = room?.min(bytes.len());
                let last = room == bytes.len();
                stream.send_data(bytes.split_to(room), end && last)?;
                if last {
                    return Ok(());
                }
            }
            // Nobody wants it any more.
            None => return Ok(()),
        }
    }
}

async fn read(mut body: RecvStream) -> Result<Vec<u8>, h2::Error> {
    let mut bytes = Vec::new();
    while let Some(chunk) = body.data().await {
        let chunk = chunk?;
        body.flow_control().release_capacity(chunk.len())?;
        // A request is a few bytes; what is more is not kept.
        if bytes.len() < 1024 {
            bytes.extend_from_slice(&chunk);
        }
    }
    Ok(bytes)
}

fn framed(message: &[u8]) -> Bytes {
    let mut bytes = BytesMut::with_capacity(PREFIX + message.len());
    bytes.put_u8(0);
    bytes.put_u32(message.len() as u32);
    bytes.put_slice(message);
    bytes.freeze()
}

fn page_asked(framed: &[u8]) -> Option<u64> {
    let size = u64::from_be_bytes(framed.get(PREFIX..)?.try_into().ok()?);
    (size <= web::MOST_BYTES).then_some(size)
}

fn asked(path: &str) -> Option<u64> {
    web::size(path.strip_prefix('/')?)
}

fn status(status: StatusCode) -> Response<()> {
    let mut response = Response::new(());
    *response.status_mut() = status;
    response
}

fn wrong(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// What the connection died of, where it did.
fn failed(error: h2::Error) -> io::Error {
    if error.is_io() {
        error.into_io().unwrap_or_else(|| io::ErrorKind::Other.into())
    } else {
        io::Error::other(error)
    }
}
