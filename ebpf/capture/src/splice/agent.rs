//! Splicing, the agent's side: switching it on and off for a node, and naming the pods that take part.

use super::btf;
use crate::{Error, Netns, layout, maps, programs};
use aya::{
    Pod,
    maps::{HashMap, MapData},
};
use std::path::Path;

/// Where the kernel programs of a load find and leave what is theirs.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Load<'a> {
    /// They are not wanted: their maps are made as small as can be.
    No,
    /// For a test of this kernel: nothing is pinned.
    Scratch { write_seq: u32 },
    /// In the directory of the pins, adopted where they are there.
    Pinned { dir: &'a Path, write_seq: u32 },
}

impl Load<'_> {
    /// For how many sockets there is to be room, if not for as many as the programs say.
    pub(crate) fn room(&self) -> Option<u32> {
        match self {
            Self::No => Some(1),
            Self::Scratch { .. } => Some(64),
            Self::Pinned { .. } => None,
        }
    }
}

/// Where the field lies that the `sk_msg` program reads.
pub(super) fn write_seq() -> Result<u32, Error> {
    btf::write_seq().map_err(|source| Error::system("read the kernel's type information", source))
}

/// Makes the maps, or adopts those that an earlier agent left, and attaches the programs to them and to the
/// cgroup. No pod takes part before it is named.
pub(crate) fn switch_on(pins: &Path, cgroup: &Path) -> Result<(), Error> {
    let dir = layout::splice(pins);
    if maps::splice_grants(&dir).is_err() || maps::splice_state(&dir).is_err() {
        // None, or another version's.
        switch_off(pins)?;
    }
    layout::make(&dir)?;
    let load = Load::Pinned { dir: &dir, write_seq: write_seq()? };
    let mut ebpf = programs::load_splice(pins, load)?;
    let mut pods = maps::splice_pods(&dir)?;
    // Each pod that is still there is named again when it is attached.
    clear(&mut pods);
    // Dropped, it would detach the program. The map holds the program, and its pin holds the map.
    std::mem::forget(programs::attach_splice_msg(&mut ebpf)?);
    let ops = programs::attach_splice_ops(&mut ebpf, cgroup)?;
    programs::pin_splice_ops(ops, &dir)
}

/// Takes everything away. What is spliced goes on by TCP, through ztunnel; bytes that wait redirected can
/// still be read, since a socket keeps its program, and so the maps, until it is closed.
pub(crate) fn switch_off(pins: &Path) -> Result<(), Error> {
    let dir = layout::splice(pins);
    if let Ok(mut pods) = maps::splice_pods(&dir) {
        // From here on nothing is redirected, whatever a ztunnel that holds the maps may grant.
        clear(&mut pods);
    }
    if let Ok(mut grants) = maps::splice_grants(&dir) {
        clear(&mut grants);
    }
    programs::detach(&layout::link(&dir, programs::SPLICE_OPS))?;
    layout::remove(&dir)
}

/// Removes every entry; one that is gone already is as good.
fn clear<K: Pod, V: Pod>(map: &mut HashMap<MapData, K, V>) {
    let keys: Vec<K> = map.keys().filter_map(Result::ok).collect();
    for key in keys {
        let _ = map.remove(&key);
    }
}

/// Lets the sockets of a pod take part from now on, where splicing is switched on.
pub(crate) fn name(pins: &Path, netns: &Netns) -> Result<(), Error> {
    let mut pods = match maps::splice_pods(&layout::splice(pins)) {
        Err(Error::NoPin { .. }) => return Ok(()),
        opened => opened?,
    };
    pods.insert(netns.cookie()?, 1, 0)
        .map_err(|error| Error::kernel("let a pod take part in splicing", &error))
}

/// Ends the splicing of what a pod sends.
pub(crate) fn unname(pins: &Path, netns: &Netns) -> Result<(), Error> {
    if let Ok(mut pods) = maps::splice_pods(&layout::splice(pins)) {
        // That it never took part is fine.
        let _ = pods.remove(&netns.cookie()?);
    }
    Ok(())
}
