//! Where things are pinned.
//!
//! ```text
//! <pins>/own  stats  kubelet  stats_link  shared by the node's pods
//! <pins>/splice/sockets grants link_…     splicing, where it is switched on
//! <pins>/pods/<uid>/slots flows …         a pod's maps
//! <pins>/pods/<uid>/link_egress …         a pod's links, which hold its programs
//! ```

use crate::Error;
use std::{
    fmt::Write as _,
    fs, io,
    path::{Path, PathBuf},
};

/// The maps that all pods share: their names, and their pins'.
pub(crate) const SHARED: [(&str, &str); 3] =
    [(abi::OWN, "own"), (abi::STATS, "stats"), (abi::KUBELET, "kubelet")];
/// The maps of one pod.
pub(crate) const PER_POD: [(&str, &str); 6] = [
    (abi::CONFIG, "config"),
    (abi::SLOTS, "slots"),
    (abi::FLOWS, "flows"),
    (abi::COUNTERS, "counters"),
    (abi::REUSE, "reuse"),
    (abi::PROBES, "probes"),
];
/// The maps of splicing, shared by all pods.
pub(crate) const SPLICE: [(&str, &str); 7] = [
    (abi::SPLICE_SOCKETS, "sockets"),
    (abi::SPLICE_PODS, "pods"),
    (abi::SPLICE_EXPECTED, "expected"),
    (abi::SPLICE_GRANTS, "grants"),
    (abi::SPLICE_INSTANCES, "instances"),
    (abi::SPLICE_TALLY, "tally"),
    (abi::SPLICE_STATE, "state"),
];
/// The link of the node's `sock_ops` program.
pub(crate) const STATS_LINK: &str = "stats_link";

const PODS: &str = "pods";
const LINK: &str = "link_";

/// The directory of one pod.
pub(crate) fn pod(pins: &Path, uid: &str) -> Result<PathBuf, Error> {
    Ok(pins.join(PODS).join(escape(uid)?))
}

/// The directory of splicing.
pub(crate) fn splice(pins: &Path) -> PathBuf {
    pins.join("splice")
}

/// The pin of one of a pod's links.
pub(crate) fn link(pod: &Path, program: &str) -> PathBuf {
    pod.join(format!("{LINK}{program}"))
}

/// The pin of a map that a directory of ours must hold.
pub(crate) fn map(dir: &Path, name: &str) -> PathBuf {
    let pin = SHARED.iter().chain(&PER_POD).chain(&SPLICE).find(|(map, _)| *map == name);
    dir.join(pin.map_or(name, |(_, pin)| pin))
}

/// Makes a directory, and those above it, in bpffs.
pub(crate) fn make(dir: &Path) -> Result<(), Error> {
    fs::create_dir_all(dir)
        .map_err(|source| Error::system(format!("make {} (is bpffs mounted there?)", dir.display()), source))
}

/// The ids of the pods that have a directory.
pub(crate) fn pods(pins: &Path) -> Result<Vec<String>, Error> {
    let dir = pins.join(PODS);
    let entries = match fs::read_dir(&dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(|source| Error::system(format!("list {}", dir.display()), source))?,
    };
    let mut uids: Vec<String> =
        entries.filter_map(|entry| unescape(entry.ok()?.file_name().to_str()?)).collect();
    uids.sort();
    Ok(uids)
}

/// Removes a directory of ours with everything in it, links first; that it is gone already is success.
pub(crate) fn remove(dir: &Path) -> Result<(), Error> {
    let failed = |path: &Path, source| Error::system(format!("remove {}", path.display()), source);
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(|source| Error::system(format!("list {}", dir.display()), source))?,
    };
    let mut pins: Vec<PathBuf> = entries.filter_map(|entry| entry.ok().map(|entry| entry.path())).collect();
    pins.sort_by_key(|pin| !pin.file_name().is_some_and(|name| name.to_string_lossy().starts_with(LINK)));
    for pin in pins {
        fs::remove_file(&pin).map_err(|source| failed(&pin, source))?;
    }
    fs::remove_dir(dir).map_err(|source| failed(dir, source))
}

/// A pod's id as a file name. bpffs refuses dots, which the ids of folder mode have.
fn escape(uid: &str) -> Result<String, Error> {
    let fits = !uid.is_empty() && uid.len() <= 80;
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-';
    if !fits || !uid.chars().all(|c| plain(c) || matches!(c, '.' | '_' | ':')) {
        let reason = "its id is not 1 to 80 of letters, digits and -._:".to_owned();
        return Err(Error::Unsupported { uid: uid.to_owned(), reason });
    }
    Ok(uid.chars().fold(String::new(), |mut name, c| {
        if plain(c) {
            name.push(c);
        } else {
            // Writing to a string cannot fail.
            let _ = write!(name, "_{:02x}", u32::from(c));
        }
        name
    }))
}

fn unescape(name: &str) -> Option<String> {
    let mut parts = name.split('_');
    let mut uid = parts.next()?.to_owned();
    for part in parts {
        let (code, rest) = part.split_at_checked(2)?;
        uid.push(char::from(u8::from_str_radix(code, 16).ok()?));
        uid.push_str(rest);
    }
    Some(uid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_survive_as_file_names() {
        for uid in ["0b6f0b1c-8a3e-4d2f-9b1a-2c3d4e5f6071", "shop.cart-0", "a_b.c__d", "_", "."] {
            let name = escape(uid).unwrap();
            assert!(!name.contains('.'), "{name}");
            assert_eq!(unescape(&name).as_deref(), Some(uid));
        }
        assert_ne!(escape("a_2eb").unwrap(), escape("a.b").unwrap());
    }

    #[test]
    fn ids_cannot_leave_their_directory() {
        for uid in ["", "..", "a/b", "../own", "a\0b", &"x".repeat(81)] {
            let escaped = escape(uid);
            assert!(escaped.is_err() || !escaped.unwrap().contains(['/', '.']), "{uid:?}");
        }
    }
}
