//! Keys and certificates outlive a ztunnel in the agent's memory: this one gives what it has, the next one
//! takes it and serves at once, whether or not control is there.
//!
//! On a SEQPACKET socket: `put` with a sealed memfd, answered by `ok`; `get`, answered by `ok` with a memfd
//! or by `none`. Whatever fails is a warning: certificates can be fetched again.

use std::{
    fs::File,
    io::{self, Read, Seek, Write},
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use identity::Store;
use nix::{
    fcntl::{FcntlArg, SealFlag, fcntl},
    sys::memfd::{MFdFlags, memfd_create},
};
use tokio::time::timeout;

use crate::seqpacket::Wire;

/// The agent answers from memory; it has this long.
const PATIENCE: Duration = Duration::from_secs(2);

/// How often what has changed is given to the agent, in case this ztunnel dies.
const GIVE_EVERY: Duration = Duration::from_secs(2);

/// More than the keys of any node: 16 MiB.
const MOST: u64 = 16 << 20;

/// Why the agent and we did not understand each other.
#[derive(Debug, thiserror::Error)]
enum HandoverError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("the agent did not answer within {PATIENCE:?}")]
    Silent,
    #[error("the agent hung up")]
    HungUp,
    #[error("the agent answered {0:?}")]
    Answer(String),
    #[error("what was kept is of no use: {0}")]
    Content(#[from] identity::HandoverError),
}

/// Takes what the last ztunnel left; returns how many certificates are of use.
pub(crate) async fn take(socket: &Path, store: &Store) -> usize {
    let taken = timeout(PATIENCE, get(socket)).await.unwrap_or(Err(HandoverError::Silent));
    let taken = taken.and_then(|kept| match kept {
        Some(bytes) => Ok(store.import(&bytes)?),
        None => Ok(0),
    });
    taken.unwrap_or_else(|error| {
        tracing::warn!(socket = %socket.display(), %error, "no certificates taken over; they are fetched anew");
        0
    })
}

/// Gives what there is now.
pub(crate) async fn give(socket: &Path, store: &Store) {
    let given = timeout(PATIENCE, put(socket, &store.export())).await.unwrap_or(Err(HandoverError::Silent));
    if let Err(error) = given {
        tracing::warn!(socket = %socket.display(), %error, "the next ztunnel will have to fetch its certificates anew");
    }
}

/// Gives whatever changes, for ever: a ztunnel that is killed leaves its certificates too.
pub(crate) async fn keep(socket: PathBuf, store: Arc<Store>) {
    let mut kept: Vec<Option<String>> = Vec::new();
    loop {
        tokio::time::sleep(GIVE_EVERY).await;
        let serials: Vec<_> = store.summaries().into_iter().map(|summary| summary.serial).collect();
        if serials == kept || serials.iter().all(Option::is_none) {
            continue;
        }
        match timeout(PATIENCE, put(&socket, &store.export())).await.unwrap_or(Err(HandoverError::Silent)) {
            Ok(()) => kept = serials,
            Err(error) => tracing::debug!(%error, "the agent does not keep our certificates"),
        }
    }
}

async fn get(socket: &Path) -> Result<Option<Vec<u8>>, HandoverError> {
    let wire = Wire::connect(socket)?;
    wire.send(b"get", None).await?;
    let answer = wire.receive().await?.ok_or(HandoverError::HungUp)?;
    match (answer.bytes.as_slice(), answer.descriptors.into_iter().next()) {
        (b"none", _) => Ok(None),
        (b"ok", Some(memory)) => Ok(Some(read(memory)?)),
        (other, _) => Err(HandoverError::Answer(String::from_utf8_lossy(other).into_owned())),
    }
}

async fn put(socket: &Path, bytes: &[u8]) -> Result<(), HandoverError> {
    let memory = write(bytes)?;
    let wire = Wire::connect(socket)?;
    wire.send(b"put", Some(memory.as_fd())).await?;
    let answer = wire.receive().await?.ok_or(HandoverError::HungUp)?;
    match answer.bytes.as_slice() {
        b"ok" => Ok(()),
        other => Err(HandoverError::Answer(String::from_utf8_lossy(other).into_owned())),
    }
}

fn read(memory: OwnedFd) -> io::Result<Vec<u8>> {
    let mut file = File::from(memory);
    file.rewind()?;
    let mut bytes = Vec::new();
    file.take(MOST).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Memory that nobody can change any more, not even we.
fn write(bytes: &[u8]) -> io::Result<OwnedFd> {
    let memory = memfd_create("culvert-identities", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
    let mut file = File::from(memory);
    file.write_all(bytes)?;
    let seals =
        SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SEAL;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
    Ok(file.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_sealed_and_read_from_its_beginning() {
        let memory = write(b"keys").unwrap();
        let mut copy = File::from(memory.try_clone().unwrap());
        assert!(copy.write_all(b"others").is_err(), "sealed memory was written to");
        assert_eq!(read(memory).unwrap(), b"keys");
    }
}
