//! Which addresses are asked for keys, and which are not: that is settled before anything is sent there.
//!
//! Whoever may write a RequestAuthentication decides what is asked for. So control's own machine and its link (loopback,
//! its own addresses, link-local ones), Services that lead back to it, and where clouds have their metadata are not asked
//! unless an option says so, whatever name leads there.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket},
    sync::{Arc, Mutex, PoisonError},
};

use ipnet::IpNet;

use crate::objects::Objects;

/// Says which.
#[derive(Clone)]
pub(super) struct Guard {
    /// What operators let through.
    pub allow: Arc<[IpNet]>,
    /// By them it is known where a Service leads.
    pub objects: Arc<Mutex<Objects>>,
}

impl Guard {
    pub fn forbids(&self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        let is_allowed = self.allow.iter().any(|allowed| allowed.contains(&ip));
        !is_allowed && (is_own(ip) || is_local(ip) || self.leads_back(ip))
    }

    /// Whether it is of a Service that this machine is behind: the node would lead there what is sent to it.
    fn leads_back(&self, ip: IpAddr) -> bool {
        let behind = self.objects.lock().unwrap_or_else(PoisonError::into_inner).behind(ip);
        behind.into_iter().any(|endpoint| is_own(endpoint) || is_local(endpoint))
    }
}

/// Where clouds have their metadata, beside 169.254.169.254: Alibaba's, Azure's wire server, Oracle's.
const METADATA_V4: [Ipv4Addr; 3] =
    [Ipv4Addr::new(100, 100, 100, 200), Ipv4Addr::new(168, 63, 129, 16), Ipv4Addr::new(192, 0, 0, 192)];
/// Amazon's (with its DNS and time beside it) and Google's: what begins so.
const METADATA_V6: [[u16; 7]; 2] = [[0xfd00, 0xec2, 0, 0, 0, 0, 0], [0xfd20, 0xce, 0, 0, 0, 0, 0]];

/// Whether an address is of any machine's own or its link, nobody's, or where a cloud has its metadata.
fn is_own(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => {
            let nobody = v4.octets()[0] == 0 || v4.is_broadcast() || v4.is_multicast();
            nobody || v4.is_loopback() || v4.is_link_local() || METADATA_V4.contains(&v4)
        }
        IpAddr::V6(v6) => {
            // Of a v4 address within (RFC 6052, RFC 4291): what it stands for.
            let [.., a, b, c, d] = v6.octets();
            let translated =
                matches!(v6.segments(), [0x64, 0xff9b, 0, 0, 0, 0, _, _] | [0, 0, 0, 0, 0, 0, _, _]);
            let inner = Ipv4Addr::new(a, b, c, d);
            v6.is_loopback()
                || v6.is_unspecified()
                || v6.is_multicast()
                || v6.is_unicast_link_local()
                || METADATA_V6.iter().any(|network| v6.segments().starts_with(network))
                || (translated && is_own(IpAddr::V4(inner)))
        }
    }
}

/// Whether an address is one of this machine's. Nothing is sent.
fn is_local(ip: IpAddr) -> bool {
    let binds = |ip| UdpSocket::bind((ip, 0)).is_ok();
    let source = |to: IpAddr| {
        let any: IpAddr =
            if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let socket = UdpSocket::bind((any, 0)).ok()?;
        // Of UDP that is a look at the routes.
        socket.connect((to, 9)).ok()?;
        Some(socket.local_addr().ok()?.ip())
    };
    is_local_by(ip, binds, source)
}

/// A socket can be bound to what is local. Where one can be bound to anything (`ip_nonlocal_bind`), to what is for
/// documentation, too (RFC 5737, RFC 3849), what is local is whatever would be reached from itself.
fn is_local_by(
    ip: IpAddr,
    binds: impl Fn(IpAddr) -> bool,
    source: impl Fn(IpAddr) -> Option<IpAddr>,
) -> bool {
    let nobodys: IpAddr = match ip {
        IpAddr::V4(_) => Ipv4Addr::new(192, 0, 2, 1).into(),
        IpAddr::V6(_) => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into(),
    };
    binds(ip) && (!binds(nobodys) || source(ip) == Some(ip))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::manifest::parse;

    fn guard(allow: &[&str], objects: Objects) -> Guard {
        let allow = allow.iter().map(|text| text.parse().unwrap()).collect();
        Guard { allow, objects: Arc::new(Mutex::new(objects)) }
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn this_machine_and_its_link_are_not_asked_in_any_spelling() {
        for (text, own) in [
            ("127.0.0.1", true),
            ("127.8.8.8", true),
            ("0.0.0.0", true),
            ("0.1.2.3", true),
            ("169.254.169.254", true),
            ("224.0.0.1", true),
            ("255.255.255.255", true),
            ("::1", true),
            ("::", true),
            ("::ffff:127.0.0.1", true),
            ("::127.0.0.1", true),
            ("64:ff9b::169.254.169.254", true),
            ("fe80::1", true),
            ("ff02::1", true),
            ("fd00:ec2::254", true),
            ("fd00:ec2::23", true),
            ("fd20:ce::254", true),
            ("100.100.100.200", true),
            ("168.63.129.16", true),
            ("192.0.0.192", true),
            ("::ffff:100.100.100.200", true),
            ("64:ff9b::168.63.129.16", true),
            ("100.100.100.1", false),
            ("10.0.0.1", false),
            ("192.168.1.1", false),
            ("1.1.1.1", false),
            ("::ffff:10.0.0.1", false),
            ("fd00::1", false),
            ("2606:4700::1111", false),
            ("64:ff9b::1.1.1.1", false),
        ] {
            assert_eq!(is_own(ip(text).to_canonical()), own, "{text}");
        }
        let guard = guard(&["127.0.0.0/8"], Objects::default());
        assert!(!guard.forbids(ip("127.0.0.1")) && !guard.forbids(ip("::ffff:127.0.0.1")));
        assert!(guard.forbids(ip("::1")) && guard.forbids(ip("169.254.169.254")));
    }

    #[test]
    fn an_address_of_this_machine_is_known_without_a_connection() {
        // From where a connection to the second would come is the first.
        for (text, local) in
            [("127.0.0.1", true), ("127.0.0.2", true), ("192.0.2.7", false), ("2001:db8::7", false)]
        {
            assert_eq!(is_local(ip(text)), local, "{text}");
        }
        let (ours, theirs) = (ip("10.0.0.1"), ip("10.0.0.2"));
        // Where anything can be bound to, the routes say it.
        for (to, binds_all, local) in
            [(ours, false, true), (theirs, false, false), (ours, true, true), (theirs, true, false)]
        {
            let found = is_local_by(to, |ip| binds_all || ip == ours, |_| Some(ours));
            assert_eq!(found, local, "{to} {binds_all}");
        }
    }

    #[test]
    fn a_service_in_front_of_this_machine_is_not_asked() {
        // What is loopback's is local wherever this runs.
        let text = "{apiVersion: v1, kind: Service, metadata: {name: control, namespace: system}, spec: {clusterIP: 10.96.0.1}}\n\
                    ---\n\
                    {apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: c, namespace: system, labels: \
                    {kubernetes.io/service-name: control}}, addressType: IPv4, endpoints: [{addresses: [127.0.0.9]}]}\n\
                    ---\n\
                    {apiVersion: v1, kind: Service, metadata: {name: keys, namespace: shop}, spec: {clusterIP: 10.96.0.2}}\n\
                    ---\n\
                    {apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: k, namespace: shop, labels: \
                    {kubernetes.io/service-name: keys}}, addressType: IPv4, endpoints: [{addresses: [192.0.2.7]}]}\n";
        let parsed = parse(Path::new("a"), text);
        assert!(parsed.problems.is_empty(), "{:?}", parsed.problems);
        let mut objects = Objects::default();
        objects.apply(Path::new("a"), parsed);
        let strict = guard(&[], objects);
        assert!(strict.forbids(ip("10.96.0.1")) && strict.forbids(ip("::ffff:10.96.0.1")));
        assert!(!strict.forbids(ip("10.96.0.2")) && !strict.forbids(ip("10.96.0.3")));
        let allowing = Guard { allow: [ip("10.96.0.1").into()].into(), ..strict };
        assert!(!allowing.forbids(ip("10.96.0.1")), "the operator says so");
    }
}
