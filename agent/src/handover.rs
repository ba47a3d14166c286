//! The place where a ztunnel leaves its keys and certificates for the next one: a sealed memfd, held
//! by the agent in memory and never read.
//!
//! On a SEQPACKET socket, one request per connection: `put` with the memfd is answered by `ok`; `get`
//! by `ok` with the memfd last put, or by `none`. Whatever else comes is answered by a reason.

use std::{
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use nix::{
    fcntl::{FcntlArg, SealFlag, fcntl},
    sys::stat::fstat,
};
use tokio::{sync::Semaphore, time::timeout};

use crate::seqpacket::{Connection, Listener};

/// Most bytes that are held: far more than the keys of any node.
const MAX_SIZE: i64 = 16 << 20;
/// A ztunnel says what it wants at once.
const PATIENCE: Duration = Duration::from_secs(2);
const MAX_CONNECTIONS: usize = 8;

type Place = Arc<Mutex<Option<Arc<OwnedFd>>>>;

/// Serves the place for ever.
pub(crate) async fn serve(listener: Listener) {
    let place = Place::default();
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(permit) = places.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok(connection) => {
                let place = place.clone();
                tokio::spawn(async move {
                    if timeout(PATIENCE, converse(&connection, &place)).await.is_err() {
                        tracing::warn!("whoever connected to the handover socket said nothing in time");
                    }
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a connection to the handover socket could not be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn converse(connection: &Connection, place: &Place) {
    let outcome = match answer(connection, place).await {
        Ok(outcome) => outcome,
        Err(reason) => {
            tracing::warn!(reason, "handover refused");
            connection.send(reason.as_bytes(), None).await
        }
    };
    if let Err(error) = outcome {
        tracing::debug!(%error, "whoever asked for a handover left before the answer");
    }
}

async fn answer(connection: &Connection, place: &Place) -> Result<std::io::Result<()>, String> {
    // The socket's mode keeps others out; this holds even where the mode was changed.
    let peer = connection.peer_uid().map_err(|error| format!("who asks cannot be told: {error}"))?;
    let own = nix::unistd::geteuid().as_raw();
    if peer != own {
        return Err(format!("user {peer} is not user {own}, whose keys these are"));
    }
    let packet = connection.receive().await.map_err(|error| error.to_string())?;
    let Some(packet) = packet else { return Ok(Ok(())) };
    match (packet.bytes.as_slice(), packet.descriptor) {
        (b"put", Some(memory)) => {
            let size = check(&memory)?;
            *place.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(memory));
            tracing::debug!(bytes = size, "holding a ztunnel's certificates");
            Ok(connection.send(b"ok", None).await)
        }
        (b"get", None) => {
            let held = place.lock().unwrap_or_else(PoisonError::into_inner).clone();
            Ok(match held {
                Some(memory) => connection.send(b"ok", Some(memory.as_fd())).await,
                None => connection.send(b"none", None).await,
            })
        }
        (b"put", None) => Err("put comes with a sealed memfd".into()),
        (other, _) => Err(format!("{:?} is neither put nor get", String::from_utf8_lossy(other))),
    }
}

/// Whether this is memory that nobody can change any more, and not too much of it; says how much.
fn check(memory: &OwnedFd) -> Result<i64, String> {
    let seals = fcntl(memory, FcntlArg::F_GET_SEALS)
        .map(SealFlag::from_bits_retain)
        .map_err(|_| "what came with put is no memfd".to_owned())?;
    let needed = SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SHRINK;
    if !seals.contains(needed) {
        return Err("the memfd is not sealed against writing, growing and shrinking".into());
    }
    let size = fstat(memory).map_err(|error| format!("the memfd cannot be looked at: {error}"))?.st_size;
    if size > MAX_SIZE {
        return Err(format!("the memfd has {size} bytes; at most {MAX_SIZE} are held"));
    }
    Ok(size)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::memfd::{MFdFlags, memfd_create};
    use std::{
        fs::File,
        io::{Read, Seek, Write},
        path::Path,
    };

    fn memory(bytes: &[u8], seals: SealFlag) -> OwnedFd {
        let memory =
            memfd_create("test", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING).expect("memory");
        let mut file = File::from(memory);
        file.write_all(bytes).expect("writes");
        fcntl(&file, FcntlArg::F_ADD_SEALS(seals)).expect("seals");
        file.into()
    }

    async fn ask(path: &Path, word: &[u8], memory: Option<&OwnedFd>) -> (String, Option<OwnedFd>) {
        let connection = Connection::connect(path).expect("connects");
        connection.send(word, memory.map(AsFd::as_fd)).await.expect("sends");
        let packet = connection.receive().await.expect("receives").expect("an answer");
        (String::from_utf8(packet.bytes).expect("text"), packet.descriptor)
    }

    #[tokio::test]
    async fn what_is_put_is_got_and_only_sealed_memory_is_taken() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("handover.sock");
        tokio::spawn(serve(Listener::bind(&path).expect("binds")));

        assert_eq!(ask(&path, b"get", None).await.0, "none");
        let all = SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SHRINK;
        assert_eq!(ask(&path, b"put", Some(&memory(b"first", all))).await.0, "ok");
        assert_eq!(ask(&path, b"put", Some(&memory(b"keys", all))).await.0, "ok");

        let open = memory(b"x", SealFlag::F_SEAL_WRITE);
        assert!(ask(&path, b"put", Some(&open)).await.0.contains("not sealed"));
        let file = OwnedFd::from(File::open("/dev/null").expect("opens"));
        assert!(ask(&path, b"put", Some(&file)).await.0.contains("no memfd"));
        let large = memory(&vec![0; MAX_SIZE as usize + 1], all);
        assert!(ask(&path, b"put", Some(&large)).await.0.contains("at most"));
        assert!(ask(&path, b"put", None).await.0.contains("sealed memfd"));
        assert!(ask(&path, b"x\n", None).await.0.contains("neither put nor get"));

        // Each new ztunnel gets it, and none of the refused replaced it.
        for _ in 0..2 {
            let (word, descriptor) = ask(&path, b"get", None).await;
            assert_eq!(word, "ok");
            let mut file = File::from(descriptor.expect("memory"));
            file.rewind().expect("rewinds");
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes).expect("reads");
            assert_eq!(bytes, b"keys");
        }
    }
}
