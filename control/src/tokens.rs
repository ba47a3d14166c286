//! Tokens of folder mode: a node, or a waypoint, proves itself to control by a bearer token that is bound to its
//! name and to an end, under an HMAC whose key only control has.
//!
//! ```text
//! culvert-node.v1 . base64url(NODE) . END (seconds since 1970) . base64url(HMAC-SHA256 of all before)
//! ```

use std::{
    collections::BTreeSet,
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use aws_lc_rs::{hmac, rand};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};

const PREFIX: &str = "culvert-node.v1";
const KEY_BYTES: usize = 32;
/// No token of ours is longer: what is, is not looked at.
const LONGEST: usize = 1024;
/// How long a token in the state directory is good for. It is made anew at half of that.
pub const LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// Makes tokens and verifies them.
pub struct Tokens {
    key: hmac::Key,
}

/// Why a token proves nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    #[error("the token is not one of control's")]
    Malformed,
    #[error("the token was not made by this control (or with another key)")]
    Forged,
    #[error("the token of node {node} ended {ago} s ago")]
    Expired { node: String, ago: u64 },
}

/// Why a key or a token file cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum TokenFileError {
    #[error("cannot {what} {}: {source}", path.display())]
    File { what: &'static str, path: PathBuf, source: io::Error },
    #[error("{} is not a token key of {KEY_BYTES} bytes; remove it to start with a new one, which ends all tokens", path.display())]
    Key { path: PathBuf },
    #[error("no random bytes for a token key")]
    Random,
    #[error("{0:?} is not the name of a node")]
    Node(String),
}

impl Tokens {
    /// Opens `state/token.key`, or makes it (mode 0600).
    pub fn load_or_create(state: &Path) -> Result<Self, TokenFileError> {
        let path = state.join("token.key");
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let mut bytes = vec![0; KEY_BYTES];
                rand::fill(&mut bytes).map_err(|_| TokenFileError::Random)?;
                private_dir(state)?;
                write_private(&path, &bytes)?;
                bytes
            }
            Err(source) => return Err(TokenFileError::File { what: "read", path, source }),
        };
        Self::from_key(&bytes).ok_or(TokenFileError::Key { path })
    }

    /// With a key of the caller's; `None` unless it has 32 bytes.
    pub fn from_key(bytes: &[u8]) -> Option<Self> {
        (bytes.len() == KEY_BYTES).then(|| Self { key: hmac::Key::new(hmac::HMAC_SHA256, bytes) })
    }

    /// A token for `node` that is good until `end`.
    pub fn make(&self, node: &str, end: SystemTime) -> String {
        let claims = format!("{PREFIX}.{}.{}", BASE64.encode(node), seconds(end));
        let tag = hmac::sign(&self.key, claims.as_bytes());
        format!("{claims}.{}", BASE64.encode(tag.as_ref()))
    }

    /// The node that `token` proves at the time `now`. The comparison takes the same time for every
    /// token, and nothing is read from a token before it is verified.
    pub fn verify(&self, token: &str, now: SystemTime) -> Result<String, TokenError> {
        if token.len() > LONGEST {
            return Err(TokenError::Malformed);
        }
        let (claims, tag) = token.rsplit_once('.').ok_or(TokenError::Malformed)?;
        let rest = claims.strip_prefix(PREFIX).and_then(|rest| rest.strip_prefix('.'));
        let (node, end) = rest.and_then(|rest| rest.split_once('.')).ok_or(TokenError::Malformed)?;
        let tag = BASE64.decode(tag).map_err(|_| TokenError::Malformed)?;
        hmac::verify(&self.key, claims.as_bytes(), &tag).map_err(|_| TokenError::Forged)?;
        let node = BASE64.decode(node).ok().and_then(|node| String::from_utf8(node).ok());
        let node = node.ok_or(TokenError::Malformed)?;
        let end: u64 = end.parse().map_err(|_| TokenError::Malformed)?;
        let now = seconds(now);
        if now >= end { Err(TokenError::Expired { node, ago: now - end }) } else { Ok(node) }
    }

    /// Keeps one token file per node in `state/tokens/` (mode 0600), each replaced at half of its life,
    /// and removes those of other nodes.
    pub fn keep_files(
        &self,
        state: &Path,
        nodes: &BTreeSet<String>,
        now: SystemTime,
    ) -> Result<(), TokenFileError> {
        let dir = state.join("tokens");
        private_dir(&dir)?;
        for node in nodes {
            check_caller(node)?;
            let path = dir.join(node);
            if !self.is_fresh(&path, node, now) {
                write_private(&path, self.make(node, now + LIFETIME).as_bytes())?;
            }
        }
        let entries = fs::read_dir(&dir).map_err(|source| TokenFileError::File {
            what: "list",
            path: dir.clone(),
            source,
        })?;
        for entry in entries.flatten() {
            let stale = entry.file_name().to_str().is_none_or(|name| !nodes.contains(name));
            if stale {
                fs::remove_file(entry.path()).map_err(|source| TokenFileError::File {
                    what: "remove",
                    path: entry.path(),
                    source,
                })?;
            }
        }
        Ok(())
    }

    fn is_fresh(&self, path: &Path, node: &str, now: SystemTime) -> bool {
        fs::read_to_string(path)
            .is_ok_and(|token| self.verify(token.trim(), now + LIFETIME / 2).is_ok_and(|found| found == node))
    }
}

/// A node's name becomes a file name, so it is held to what Kubernetes allows (RFC 1123).
pub fn check_node(node: &str) -> Result<(), TokenFileError> {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte);
    let edge = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = node.as_bytes();
    if bytes.len() <= 253
        && bytes.iter().all(|&byte| allowed(byte))
        && edge(bytes.first())
        && edge(bytes.last())
    {
        Ok(())
    } else {
        Err(TokenFileError::Node(node.to_owned()))
    }
}

/// A node, or a waypoint by the name that [`waypoint`] gives it.
fn check_caller(name: &str) -> Result<(), TokenFileError> {
    match as_waypoint(name) {
        Some((namespace, pod)) => check_node(namespace).and_then(|()| check_node(pod)),
        None => check_node(name),
    }
    .map_err(|_| TokenFileError::Node(name.to_owned()))
}

/// What a waypoint's pod is called where callers are named: no node has such a name.
pub fn waypoint(namespace: &str, pod: &str) -> String {
    format!("{namespace}@{pod}")
}

/// The namespace and the pod of a waypoint that is called so; `None` of a node.
pub fn as_waypoint(caller: &str) -> Option<(&str, &str)> {
    caller.split_once('@')
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn private_dir(path: &Path) -> Result<(), TokenFileError> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|source| TokenFileError::File {
        what: "create",
        path: path.to_owned(),
        source,
    })
}

/// Writes a file that only its owner may read, whole or not at all.
pub fn write_private(path: &Path, content: &[u8]) -> Result<(), TokenFileError> {
    let mut temporary = path.as_os_str().to_owned();
    // A node's name has no underscore: no token is overwritten by another's temporary file.
    temporary.push("_new");
    let temporary = PathBuf::from(temporary);
    let write = || {
        // A leftover may have any mode: the mode below counts only for a new file.
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    write().map_err(|source| TokenFileError::File { what: "write", path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn tokens() -> Tokens {
        Tokens::from_key(&[7; KEY_BYTES]).unwrap()
    }

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn a_token_proves_its_node_until_its_end() {
        let token = tokens().make("node-a", at(100));
        assert_eq!(tokens().verify(&token, at(99)), Ok("node-a".to_owned()));
        assert_eq!(
            tokens().verify(&token, at(100)),
            Err(TokenError::Expired { node: "node-a".into(), ago: 0 })
        );
    }

    #[test]
    fn whatever_is_changed_the_token_is_refused() {
        let token = tokens().make("node-a", at(100));
        let other = Tokens::from_key(&[8; KEY_BYTES]).unwrap();
        assert_eq!(other.verify(&token, at(1)), Err(TokenError::Forged));
        // The node and the end of one token under the tag of another.
        let tag = token.rsplit_once('.').unwrap().1;
        for claims in [
            format!("{PREFIX}.{}.100", BASE64.encode("node-b")),
            format!("{PREFIX}.{}.900", BASE64.encode("node-a")),
        ] {
            assert_eq!(tokens().verify(&format!("{claims}.{tag}"), at(1)), Err(TokenError::Forged));
        }
        for end in 0..token.len() {
            assert!(tokens().verify(&token[..end], at(1)).is_err(), "{end}");
        }
        let mut bytes = token.clone().into_bytes();
        for index in 0..bytes.len() {
            bytes[index] ^= 1;
            if let Ok(changed) = std::str::from_utf8(&bytes) {
                assert!(tokens().verify(changed, at(1)).is_err(), "{index}");
            }
            bytes[index] ^= 1;
        }
        assert_eq!(tokens().verify(&"a".repeat(LONGEST + 1), at(1)), Err(TokenError::Malformed));
    }

    #[test]
    fn the_key_and_the_files_are_private_and_last() {
        let state = tempfile::tempdir().unwrap();
        let tokens = Tokens::load_or_create(state.path()).unwrap();
        let nodes = BTreeSet::from(["a".to_owned(), "b.example".to_owned()]);
        let now = at(1_000_000);
        tokens.keep_files(state.path(), &nodes, now).unwrap();
        let file = state.path().join("tokens/a");
        let first = fs::read_to_string(&file).unwrap();
        for path in [&file, &state.path().join("token.key")] {
            assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600);
        }
        // Another start with the same key; not yet half-way.
        let tokens = Tokens::load_or_create(state.path()).unwrap();
        tokens.keep_files(state.path(), &nodes, now + LIFETIME / 3).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), first);
        tokens.keep_files(state.path(), &nodes, now + LIFETIME / 2).unwrap();
        assert_ne!(fs::read_to_string(&file).unwrap(), first);
        // A node that is gone has no token any more.
        tokens.keep_files(state.path(), &BTreeSet::from(["b.example".to_owned()]), now).unwrap();
        assert!(!file.exists() && state.path().join("tokens/b.example").exists());
    }

    #[test]
    fn a_name_that_leads_out_of_the_directory_is_no_node() {
        for name in ["", "..", "../x", "a/b", "A", "-a", "a-", "a_b", &"a".repeat(254)] {
            assert!(check_node(name).is_err(), "{name}");
        }
        assert!(check_node("ip-10-0-0-1.eu.internal").is_ok());
        assert!(check_node(&waypoint("shop", "wp-1")).is_err(), "no node is called so");
        assert!(check_caller(&waypoint("shop", "wp-1")).is_ok());
        for name in ["a@", "@a", "a@..", "a@b@c", "../@a"] {
            assert!(check_caller(name).is_err(), "{name}");
        }
    }
}
