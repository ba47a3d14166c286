//! The pinned maps, opened by what they are for. Each call opens the pin again: a node has hundreds of pods,
//! and nobody asks often.

use crate::{
    Error, layout,
    splice::{GrantWords, KeyWords, StateWords},
};
use abi::{Config, FlowKey};
use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray, SkStorage, SockHash};
use std::{io, path::Path};

/// A flow's key, as its words.
pub(crate) type FlowWords = [u32; 9];

fn open(dir: &Path, name: &str) -> Result<MapData, Error> {
    let path = layout::map(dir, name);
    MapData::from_pin(&path).map_err(|error| match not_found(&error) {
        true => Error::NoPin { path },
        false => Error::kernel(format!("open the map {}", path.display()), &error),
    })
}

fn not_found(error: &MapError) -> bool {
    let MapError::SyscallError(error) = error else { return false };
    error.io_error.kind() == io::ErrorKind::NotFound
}

fn typed<M: TryFrom<Map, Error = MapError>>(dir: &Path, name: &str, map: Map) -> Result<M, Error> {
    M::try_from(map).map_err(|error| {
        let what =
            format!("use the map {}, which another version of us made", layout::map(dir, name).display());
        Error::kernel(what, &error)
    })
}

/// The marks on ztunnel's sockets.
pub(crate) fn own(pins: &Path) -> Result<SkStorage<MapData, u32>, Error> {
    typed(pins, abi::OWN, Map::SkStorage(open(pins, abi::OWN)?))
}

/// The descriptor of the marks.
pub(crate) fn own_data(pins: &Path) -> Result<MapData, Error> {
    open(pins, abi::OWN)
}

/// What the kernel measures of ztunnel's sockets.
pub(crate) fn stats(pins: &Path) -> Result<SkStorage<MapData, [u64; 3]>, Error> {
    typed(pins, abi::STATS, Map::SkStorage(open(pins, abi::STATS)?))
}

/// Tells the programs which cgroup is the kubelet's; 0 for none.
pub(crate) fn write_kubelet(pins: &Path, cgroup: u64) -> Result<(), Error> {
    let mut map: Array<_, u64> = typed(pins, abi::KUBELET, Map::Array(open(pins, abi::KUBELET)?))?;
    map.set(0, cgroup, 0).map_err(|error| Error::kernel("tell the kubelet's cgroup", &error))
}

/// A pod's listeners. To user space a sockmap is an array: descriptors go in, and with values of eight
/// bytes cookies come out. (aya's own type writes four bytes where the kernel would read eight.)
pub(crate) fn slots(pod: &Path) -> Result<Array<MapData, u64>, Error> {
    typed(pod, abi::SLOTS, Map::Array(open(pod, abi::SLOTS)?))
}

/// The same, as a map of which an entry can be removed. (Of a map of sockets aya wants values of four bytes, which
/// would leave no room to read a cookie.)
pub(crate) fn slots_to_empty(pod: &Path) -> Result<HashMap<MapData, u32, u64>, Error> {
    typed(pod, abi::SLOTS, Map::HashMap(open(pod, abi::SLOTS)?))
}

/// A pod's flows that pass ztunnel by.
pub(crate) fn flows(pod: &Path) -> Result<HashMap<MapData, FlowWords, u64>, Error> {
    typed(pod, abi::FLOWS, Map::HashMap(open(pod, abi::FLOWS)?))
}

/// A pod's counters.
pub(crate) fn counters(pod: &Path) -> Result<PerCpuArray<MapData, u64>, Error> {
    typed(pod, abi::COUNTERS, Map::PerCpuArray(open(pod, abi::COUNTERS)?))
}

/// How a pod is set.
pub(crate) fn read_config(pod: &Path) -> Result<Config, Error> {
    let map: Array<_, [u64; 4]> = typed(pod, abi::CONFIG, Map::Array(open(pod, abi::CONFIG)?))?;
    let words = map
        .get(&0, 0)
        .map_err(|error| Error::kernel(format!("read the settings in {}", pod.display()), &error))?;
    Ok(Config::from_words(words))
}

/// Sets a pod, for the very next packet.
pub(crate) fn write_config(pod: &Path, config: &Config) -> Result<(), Error> {
    let mut map: Array<_, [u64; 4]> = typed(pod, abi::CONFIG, Map::Array(open(pod, abi::CONFIG)?))?;
    map.set(0, config.to_words(), 0)
        .map_err(|error| Error::kernel(format!("write the settings in {}", pod.display()), &error))
}

/// Records flows.
pub(crate) fn record_flows(pod: &Path, keys: &[FlowKey], now: u64) -> Result<(), Error> {
    let mut map = flows(pod)?;
    for key in keys {
        map.insert(key.to_words(), now, 0)
            .map_err(|error| Error::kernel("record a connection that is to live on", &error))?;
    }
    Ok(())
}

/// The sockets that may be spliced.
pub(crate) fn splice_sockets(dir: &Path) -> Result<SockHash<MapData, KeyWords>, Error> {
    typed(dir, abi::SPLICE_SOCKETS, Map::SockHash(open(dir, abi::SPLICE_SOCKETS)?))
}

/// The namespaces whose sockets may be.
pub(crate) fn splice_pods(dir: &Path) -> Result<HashMap<MapData, u64, u32>, Error> {
    typed(dir, abi::SPLICE_PODS, Map::HashMap(open(dir, abi::SPLICE_PODS)?))
}

/// The sockets that are about to be accepted.
pub(crate) fn splice_expected(dir: &Path) -> Result<HashMap<MapData, KeyWords, u32>, Error> {
    typed(dir, abi::SPLICE_EXPECTED, Map::LruHashMap(open(dir, abi::SPLICE_EXPECTED)?))
}

/// What may be redirected.
pub(crate) fn splice_grants(dir: &Path) -> Result<HashMap<MapData, KeyWords, GrantWords>, Error> {
    typed(dir, abi::SPLICE_GRANTS, Map::HashMap(open(dir, abi::SPLICE_GRANTS)?))
}

/// Which socket stands at each place.
pub(crate) fn splice_instances(dir: &Path) -> Result<HashMap<MapData, KeyWords, u32>, Error> {
    typed(dir, abi::SPLICE_INSTANCES, Map::LruHashMap(open(dir, abi::SPLICE_INSTANCES)?))
}

/// What was redirected.
pub(crate) fn splice_tally(dir: &Path) -> Result<HashMap<MapData, KeyWords, [u64; 2]>, Error> {
    typed(dir, abi::SPLICE_TALLY, Map::LruHashMap(open(dir, abi::SPLICE_TALLY)?))
}

/// What is kept on each socket.
pub(crate) fn splice_state(dir: &Path) -> Result<SkStorage<MapData, StateWords>, Error> {
    typed(dir, abi::SPLICE_STATE, Map::SkStorage(open(dir, abi::SPLICE_STATE)?))
}
