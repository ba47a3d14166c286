//! A caller's connection that speaks HTTP: served request by request, and taken over where both ends agree to speak
//! something else (Upgrade).

use std::{
    cell::RefCell,
    future::{Future, poll_fn},
    pin::{Pin, pin},
    rc::Rc,
    task::Poll,
    time::Duration,
};

use ::http::{HeaderValue, StatusCode, header::CONNECTION};
use hbone::Stream;
use hyper::{
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, copy_bidirectional};

use crate::{
    arrival::Call,
    body::Rewind,
    head,
    lent::lend,
    request::{self, Version},
    upstream::Io,
    worker::Worker,
};

/// The longest head of a request in HTTP/1, in bytes; of HTTP/2 the same.
const MOST_HEAD: usize = 64 << 10;
/// Headers of a request.
const MOST_HEADERS: usize = 128;
/// Requests that one HTTP/2 connection may have at a time.
const STREAMS: u32 = 1000;
/// Windows of HTTP/2 towards the caller: of a stream, of a connection.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;
/// Bytes of an answer that may wait for a slow caller, of each stream.
const SEND_BUFFER: usize = 256 << 10;
/// How long a caller may take to close its side once we have closed ours; bytes it may still say.
const LINGER: Duration = Duration::from_secs(5);
const LINGER_BYTES: usize = 1 << 20;
/// How long a caller's idle HTTP/1 connection is kept once we drain: what it asks in that time is answered, and it is told
/// to close. One that were closed at once might be used in that very moment.
const LAST_REQUEST: Duration = Duration::from_secs(10);

/// Where a request leaves the backend's end of a connection that is to speak something else from now on.
pub(crate) type Handover = Rc<RefCell<Option<Rewind<Io>>>>;

/// Serves HTTP/1.
pub(crate) async fn one(worker: &Rc<Worker>, call: &Rc<Call>, stream: Rewind<Stream>) {
    let handover = Handover::default();
    let service = {
        let (worker, call, handover) = (worker.clone(), call.clone(), handover.clone());
        service_fn(move |request| {
            let drain = worker.shared.drain.clone();
            let answer =
                request::answer(worker.clone(), call.clone(), Version::One, Some(handover.clone()), request);
            Box::pin(async move {
                let mut answer = answer.await;
                if let Ok(answer) = &mut answer
                    && drain.is_started()
                    && answer.status() != StatusCode::SWITCHING_PROTOCOLS
                {
                    answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
                }
                answer
            })
        })
    };
    let (stream, timer) = head::watched(stream, worker.shared.settings.head_timeout);
    let mut connection = http1::Builder::new()
        .timer(timer)
        .header_read_timeout(worker.shared.settings.http_idle)
        .half_close(true)
        .max_buf_size(MOST_HEAD)
        .max_headers(MOST_HEADERS)
        .serve_connection(TokioIo::new(stream), service);
    let mut draining = pin!(async {
        worker.shared.drain.started().await;
        tokio::time::sleep(LAST_REQUEST).await;
    });
    let mut is_draining = false;
    let served = poll_fn(|cx| {
        if !is_draining && draining.as_mut().poll(cx).is_ready() {
            is_draining = true;
            Pin::new(&mut connection).graceful_shutdown();
        }
        connection.poll_without_shutdown(cx)
    })
    .await;
    match served {
        Ok(()) => {}
        // What is no HTTP was answered 400, which is to arrive.
        Err(error) if error.is_parse() => {}
        // Dropping it resets what is left, and takes what is not sent yet along: the tunnel has its turn first.
        Err(_) => return tokio::task::yield_now().await,
    }
    let parts = connection.into_parts();
    let caller = Rewind::new(parts.read_buf, parts.io.into_inner().into_inner());
    let backend = handover.borrow_mut().take();
    match backend {
        Some(backend) => speak_on(caller, backend).await,
        None => linger(caller).await,
    }
}

/// Both ends speak something else from now on.
async fn speak_on(mut caller: Rewind<Rewind<Stream>>, mut backend: Rewind<Io>) {
    // An end without order is a reset to both.
    let _ = copy_bidirectional(&mut caller, &mut backend).await;
}

/// Closes our side, and waits for the caller's: a stream that is dropped before is reset, and a reset may overtake the
/// end of an answer.
async fn linger(mut caller: impl AsyncRead + AsyncWrite + Unpin) {
    let closing = async {
        caller.shutdown().await?;
        // On the heap: few linger, and every connection would have the room for it.
        let mut buffer = vec![0; 4096];
        let mut heard = 0;
        while heard < LINGER_BYTES {
            match caller.read(&mut buffer).await? {
                0 => break,
                count => heard += count,
            }
        }
        Ok::<_, std::io::Error>(())
    };
    // Whoever does not close is reset.
    let _ = tokio::time::timeout(LINGER, closing).await;
}

/// Serves HTTP/2.
pub(crate) async fn two(worker: &Rc<Worker>, call: &Rc<Call>, mut stream: Rewind<Stream>) {
    let service = {
        let (worker, call) = (worker.clone(), call.clone());
        service_fn(move |request| request::answer(worker.clone(), call.clone(), Version::Two, None, request))
    };
    stream.inner_mut().gather();
    let (lent, stream) = lend(stream);
    let connection = http2::Builder::new(LocalExecutor)
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(MOST_HEAD as u32)
        .max_send_buf_size(SEND_BUFFER)
        .serve_connection(TokioIo::new(lent), service);
    let mut connection = pin!(connection);
    let mut draining = pin!(worker.shared.drain.started());
    let mut is_draining = false;
    let served = poll_fn(|cx| {
        if !is_draining && draining.as_mut().poll(cx).is_ready() {
            is_draining = true;
            connection.as_mut().graceful_shutdown();
        }
        let served = connection.as_mut().poll(cx);
        // Whatever frames it has written travel together; without room for them it is polled again once there is some.
        match stream.with(|stream| stream.inner_mut().poll_send(cx)) {
            Poll::Ready(Err(_)) if served.is_pending() => Poll::Ready(Ok(())),
            _ => served,
        }
    })
    .await;
    match served {
        Ok(()) => linger(stream).await,
        Err(error) => tracing::debug!(caller = %call.claims.caller, %error, "HTTP/2 of a caller ended"),
    }
}

/// Runs what hyper spawns on this worker's own thread.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LocalExecutor;

impl<F: Future + 'static> hyper::rt::Executor<F> for LocalExecutor {
    fn execute(&self, future: F) {
        drop(tokio::task::spawn_local(async move { drop(future.await) }));
    }
}
