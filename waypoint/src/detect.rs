//! What is spoken, where nobody has said it: by the first bytes, without holding up whoever waits for the server to
//! speak first.
//!
//! A caller that speaks at once (its first bytes come with its CONNECT) is told by them. One that is silent for a
//! moment may be waiting: a backend is dialled, and whoever speaks first says what it is. A backend that speaks first
//! speaks no HTTP.

mod hello;
mod sniff;

use std::{io, rc::Rc, time::Duration};

use bytes::BytesMut;
use hbone::Stream;
use tokio::{
    io::AsyncReadExt,
    time::{Instant, sleep, timeout, timeout_at},
};

pub(crate) use self::hello::NoHello;
use self::{
    hello::Hello,
    sniff::{PREFACE, Sniff, sniff, sniff_tls},
};
use crate::{
    arrival::{Call, Failure},
    body::Rewind,
    tcp::{self, Backend, Begun},
    worker::Worker,
};

/// A caller that has said nothing for so long may be waiting for the server.
const SILENCE: Duration = Duration::from_millis(15);
/// What has begun like HTTP and does not go on for so long is none.
const HESITATION: Duration = Duration::from_secs(1);
/// Where TLS was begun with a backend that speaks first, a caller has so long to begin its own.
const COURTESY: Duration = Duration::from_millis(100);
/// How long a caller may take to say whom it wants in TLS.
const HELLO: Duration = Duration::from_secs(10);
/// What dialling a backend came to.
pub(crate) type Dialled = Box<Result<Backend, Failure>>;

/// What was found.
pub(crate) enum Spoken {
    Http1,
    Http2,
    /// Neither; with a backend, where one is dialled already.
    Tcp(Begun<'static>, Option<Dialled>),
}

/// What a port may speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MayBe {
    /// HTTP or something else; `is_routed` if routes of requests are for it.
    Http { is_routed: bool },
    /// No HTTP, but perhaps TLS.
    Bytes,
}

/// Whether HTTP/2 is spoken on a port that speaks HTTP: there the caller speaks first.
pub(crate) async fn version(mut stream: Stream) -> io::Result<(bool, Rewind<Stream>)> {
    let mut said = BytesMut::new();
    loop {
        if stream.read_buf(&mut said).await? == 0 {
            return Ok((false, Rewind::new(said.freeze(), stream)));
        }
        let common = said.len().min(PREFACE.len());
        if said[..common] != PREFACE[..common] {
            return Ok((false, Rewind::new(said.freeze(), stream)));
        }
        if common == PREFACE.len() {
            return Ok((true, Rewind::new(said.freeze(), stream)));
        }
    }
}

/// The name of the server that a caller asks for in TLS, if it asks for one. What was read is in the stream still.
pub(crate) async fn server(mut stream: Stream) -> (Result<Option<String>, NoHello>, Rewind<Stream>) {
    let mut said = BytesMut::new();
    let found = timeout(HELLO, hello(&mut stream, &mut said)).await;
    (found.unwrap_or(Err(NoHello::Silent)), Rewind::new(said.freeze(), stream))
}

async fn hello(stream: &mut Stream, said: &mut BytesMut) -> Result<Option<String>, NoHello> {
    let mut hello = Hello::default();
    loop {
        let before = said.len();
        match stream.read_buf(said).await {
            Ok(0) | Err(_) => return Err(NoHello::Ended),
            Ok(_) => {}
        }
        if let Some(server) = hello.read(&said[before..])? {
            return Ok(server);
        }
    }
}

/// What is spoken.
pub(crate) async fn first_words(
    worker: &Rc<Worker>,
    call: &Rc<Call>,
    mut stream: Stream,
    has_bytes: bool,
    may_be: MayBe,
) -> io::Result<(Spoken, Rewind<Stream>)> {
    let mut said = BytesMut::new();
    let courtesy = Instant::now() + COURTESY;
    let patience = if has_bytes { HESITATION } else { SILENCE };
    if let Ok(sniff) = timeout(patience, listen(&mut stream, &mut said, may_be)).await {
        return Ok(found(sniff?, None, said, stream));
    }
    // It waits, perhaps for the server to speak.
    let dial = tcp::dial(worker, call, Begun::Other);
    tokio::pin!(dial);
    let mut backend: Option<Dialled> = None;
    let hesitation = sleep(HESITATION);
    tokio::pin!(hesitation);
    loop {
        // Without a backend nobody will speak first, and of who speaks no HTTP no request is waited for.
        let is_lost = may_be == MayBe::Bytes && backend.as_ref().is_some_and(|dialled| dialled.is_err());
        tokio::select! {
            biased;
            sniff = listen(&mut stream, &mut said, may_be) => return Ok(found(sniff?, backend, said, stream)),
            dialled = &mut dial, if backend.is_none() => backend = Some(Dialled::new(dialled)),
            spoke = speaks(&mut backend), if backend.as_ref().is_some_and(|dialled: &Dialled| dialled.is_ok()) => {
                spoke?;
                if may_be == MayBe::Bytes
                    && let Ok(sniff) = timeout_at(courtesy, listen(&mut stream, &mut said, may_be)).await
                {
                    return Ok(found(sniff?, backend, said, stream));
                }
                return Ok((Spoken::Tcp(Begun::Other, backend), Rewind::new(said.freeze(), stream)));
            }
            () = &mut hesitation, if is_lost || !said.is_empty() => {
                // Nobody gets round routes by saying slowly what they are for.
                let spoken = match may_be {
                    MayBe::Http { is_routed: true } => Spoken::Http1,
                    MayBe::Http { is_routed: false } | MayBe::Bytes => Spoken::Tcp(Begun::Other, backend),
                };
                return Ok((spoken, Rewind::new(said.freeze(), stream)));
            }
        }
    }
}

/// Waits until the backend has said something, or ended.
async fn speaks(backend: &mut Option<Dialled>) -> io::Result<()> {
    match backend.as_deref_mut() {
        Some(Ok(backend)) => backend.listen().await,
        Some(Err(_)) | None => std::future::pending().await,
    }
}

fn found(sniff: Sniff, backend: Option<Dialled>, said: BytesMut, stream: Stream) -> (Spoken, Rewind<Stream>) {
    let spoken = match sniff {
        Sniff::Http1 => Spoken::Http1,
        Sniff::Http2 => Spoken::Http2,
        Sniff::Tls => Spoken::Tcp(Begun::Tls(None), backend),
        Sniff::Other | Sniff::More => Spoken::Tcp(Begun::Other, backend),
    };
    (spoken, Rewind::new(said.freeze(), stream))
}

/// Reads until it is clear what is spoken. What was read is in `said`, also when this is given up.
async fn listen(stream: &mut Stream, said: &mut BytesMut, may_be: MayBe) -> io::Result<Sniff> {
    let sniff = match may_be {
        MayBe::Http { .. } => sniff,
        MayBe::Bytes => sniff_tls,
    };
    loop {
        if !said.is_empty() {
            match sniff(said) {
                Sniff::More => {}
                clear => return Ok(clear),
            }
        }
        if stream.read_buf(said).await? == 0 {
            // Who says nothing may listen all the same, where no request is to come.
            let is_gone = said.is_empty() && may_be != MayBe::Bytes;
            return if is_gone { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(Sniff::Other) };
        }
    }
}
