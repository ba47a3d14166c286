//! What a foreign CNI plugin (Istio's) and a ztunnel have agreed on, for pods whose capture is not ours: fixed ports in
//! the pod's network namespace, a packet mark, and whom its DNS queries go on to.

use std::{
    collections::HashSet,
    fs, io,
    net::{IpAddr, TcpListener},
    sync::Arc,
};

use capture::{Role, sockdiag::Listening};
use nix::sys::stat::fstat;

/// Where the plugin's rules lead connections.
pub(crate) const PORTS: [(Role, u16); 4] = [
    (Role::Outbound, 15001),
    (Role::Inbound, 15006),
    (Role::Hbone, 15008),
    // Queries over TCP: what a pod dials, as everything else.
    (Role::Outbound, DNS_PORT),
];

/// Where the rules lead queries, over TCP and over UDP.
pub(crate) const DNS_PORT: u16 = 15053;

/// The packet mark by which the rules know a proxy's own packets.
pub(crate) const MARK: u32 = 0x539;

/// Where the resolvers of this process are named.
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Our own resolver: the rules rewrite a query's address, and of UDP nobody tells what it was. In a cluster it is that
/// of its pods.
pub(crate) fn resolver() -> Option<IpAddr> {
    fs::read_to_string(RESOLV_CONF).ok().and_then(|text| resolver_in(&text))
}

fn resolver_in(text: &str) -> Option<IpAddr> {
    let address = |line: &str| {
        let mut words = line.split_whitespace();
        (words.next()? == "nameserver").then(|| words.next()?.parse::<IpAddr>().ok()).flatten()
    };
    text.lines().find_map(address)
}

/// Whether somebody listens on one of our ports besides us: the kernel spreads what is new over both. `listening` is
/// all that listens in the pod.
pub(crate) fn is_shared(ours: &[Arc<TcpListener>], listening: &[Listening]) -> io::Result<bool> {
    let mut ports = HashSet::new();
    let mut inodes = HashSet::new();
    for listener in ours {
        ports.insert(listener.local_addr()?.port());
        inodes.insert(fstat(listener.as_ref())?.st_ino);
    }
    Ok(listening.iter().any(|other| ports.contains(&other.port) && !inodes.contains(&other.inode)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_resolver_with_an_address_is_taken() {
        let text = "search shop.svc.cluster.local\n# nameserver 10.0.0.9\nnameserver\nnameserver fd00::a\nnameserver 10.0.0.10\n";
        assert_eq!(resolver_in(text), Some("fd00::a".parse().unwrap()));
        assert_eq!(resolver_in("options ndots:5\n"), None);
    }
}
