//! Which addresses are asked for keys, and which are not: that is settled before anything is sent there.
//!
//! Whoever may write a RequestAuthentication decides what is asked for. So control's own machine and its link (loopback,
//! its own addresses, link-local ones), Services that lead back to it, and where clouds have their metadata are not asked
//! unless an option says so, whatever name leads there.

use std::{
    io::{self, ErrorKind},
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
    /// # Errors
    /// If it cannot be told whether the address is this machine's. Then it is not to be asked, either.
    pub fn forbids(&self, ip: IpAddr) -> io::Result<bool> {
        let ip = ip.to_canonical();
        if self.allow.iter().any(|allowed| allowed.contains(&ip)) {
            return Ok(false);
        }
        for meant in unfold(ip) {
            if is_own(meant) || is_local(meant)? || self.leads_back(meant)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether it is of a Service that this machine is behind: the node would lead there what is sent to it.
    fn leads_back(&self, ip: IpAddr) -> io::Result<bool> {
        let behind = self.objects.lock().unwrap_or_else(PoisonError::into_inner).behind(ip);
        for meant in behind.into_iter().flat_map(unfold) {
            if is_own(meant) || is_local(meant)? {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// An address, and the IPv4 ones that it may stand for: whoever translates, or opens a tunnel, sends there.
fn unfold(ip: IpAddr) -> Vec<IpAddr> {
    let ip = ip.to_canonical();
    let mut meant = vec![ip];
    if let IpAddr::V6(v6) = ip {
        meant.extend(embedded(v6).into_iter().map(IpAddr::V4));
    }
    meant
}

fn embedded(v6: Ipv6Addr) -> Vec<Ipv4Addr> {
    let octets = v6.octets();
    let of = |places: [usize; 4]| Ipv4Addr::from(places.map(|place| octets[place]));
    let last = of([12, 13, 14, 15]);
    match v6.segments() {
        // NAT64 (RFC 6052), and what is compatible, mapped (RFC 4291) or translated (RFC 2765).
        [0x64, 0xff9b, 0, 0, 0, 0, ..] | [0, 0, 0, 0, 0, 0 | 0xffff, ..] | [0, 0, 0, 0, 0xffff, 0, ..] => {
            vec![last]
        }
        // 6to4 (RFC 3056).
        [0x2002, ..] => vec![of([2, 3, 4, 5])],
        // NAT64 of a network's own (RFC 8215), whose prefix has 48, 56, 64 or 96 bits: which, only its translator knows.
        [0x64, 0xff9b, 1, ..] => {
            let mut all = vec![of([6, 7, 9, 10]), of([7, 9, 10, 11]), of([9, 10, 11, 12]), last];
            // What begins with 0 is nobody's, thus read by the wrong prefix, unless there is nothing else.
            if all.iter().any(|v4| v4.octets()[0] != 0) {
                all.retain(|v4| v4.octets()[0] != 0);
            }
            all
        }
        _ => Vec::new(),
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
            v6.is_loopback()
                || v6.is_unspecified()
                || v6.is_multicast()
                || v6.is_unicast_link_local()
                || METADATA_V6.iter().any(|network| v6.segments().starts_with(network))
        }
    }
}

/// Whether an address is one of this machine's. Nothing is sent.
fn is_local(ip: IpAddr) -> io::Result<bool> {
    is_local_by(ip, |ip| UdpSocket::bind((ip, 0)).map(drop), source)
}

/// From where a connection would come.
fn source(to: IpAddr) -> io::Result<IpAddr> {
    let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0))?;
    // Of UDP that is a look at the routes.
    socket.connect((to, 9))?;
    Ok(socket.local_addr()?.ip())
}

/// A socket can be bound to what is local. Where one can be bound to anything (`ip_nonlocal_bind`), to what is for
/// documentation, too (RFC 5737, RFC 3849), what is local is whatever would be reached from itself.
///
/// # Errors
/// If that does not say it: of what goes wrong only `AddrNotAvailable` means that an address is another's.
fn is_local_by(
    ip: IpAddr,
    bind: impl Fn(IpAddr) -> io::Result<()>,
    source: impl Fn(IpAddr) -> io::Result<IpAddr>,
) -> io::Result<bool> {
    let binds = |ip| match bind(ip) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::AddrNotAvailable => Ok(false),
        Err(error) => Err(error),
    };
    let nobodys: IpAddr = match ip {
        IpAddr::V4(_) => Ipv4Addr::new(192, 0, 2, 1).into(),
        IpAddr::V6(_) => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into(),
    };
    Ok(binds(ip)? && (!binds(nobodys)? || source(ip)? == ip))
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
            ("::ffff:0:127.0.0.1", true),
            ("2002:7f00:1::", true),
            ("2002:a9fe:a9fe::1", true),
            ("64:ff9b:1::169.254.169.254", true),
            ("64:ff9b:1:7::169.254.169.254", true),
            ("64:ff9b:1:a9fe:a9:fe00::", true),
            ("64:ff9b:1:a9fe:a9:fe00:0:1", true),
            ("64:ff9b:1:a9:fe:a9fe::", true),
            ("64:ff9b:1:0:a9:fea9:fe00:0", true),
            ("64:ff9b:1::", true),
            ("100.100.100.1", false),
            ("10.0.0.1", false),
            ("192.168.1.1", false),
            ("1.1.1.1", false),
            ("::ffff:10.0.0.1", false),
            ("fd00::1", false),
            ("2606:4700::1111", false),
            ("64:ff9b::1.1.1.1", false),
            ("2002:101:101::a9fe:a9fe", false),
            ("2001:db8::169.254.169.254", false),
            ("64:ff9b:1::10.0.0.1", false),
            ("64:ff9b:1:a00:0:100::", false),
        ] {
            assert_eq!(unfold(ip(text)).into_iter().any(is_own), own, "{text}");
        }
        let guard = guard(&["127.0.0.0/8"], Objects::default());
        for (text, forbidden) in [
            ("127.0.0.1", false),
            ("::ffff:127.0.0.1", false),
            ("::1", true),
            ("169.254.169.254", true),
            ("2002:a9fe:a9fe::1", true),
        ] {
            assert_eq!(guard.forbids(ip(text)).unwrap(), forbidden, "{text}");
        }
    }

    #[test]
    fn an_address_of_this_machine_is_known_without_a_connection() {
        // From where a connection to the second would come is the first.
        for (text, local) in
            [("127.0.0.1", true), ("127.0.0.2", true), ("192.0.2.7", false), ("2001:db8::7", false)]
        {
            match is_local(ip(text)) {
                Ok(found) => assert_eq!(found, local, "{text}"),
                Err(error) => assert!(ip(text).is_ipv6(), "{text}: {error}; a machine may have no IPv6"),
            }
        }
        let (ours, theirs) = (ip("10.0.0.1"), ip("10.0.0.2"));
        // Where anything can be bound to, the routes say it.
        for (to, binds_all, local) in
            [(ours, false, true), (theirs, false, false), (ours, true, true), (theirs, true, false)]
        {
            let bind = |ip| {
                if binds_all || ip == ours { Ok(()) } else { Err(ErrorKind::AddrNotAvailable.into()) }
            };
            assert_eq!(is_local_by(to, bind, |_| Ok(ours)).unwrap(), local, "{to} {binds_all}");
        }
    }

    #[test]
    fn an_address_of_which_nothing_can_be_told_is_not_asked() {
        let (of, nobodys) = (ip("10.0.0.1"), ip("192.0.2.1"));
        let not_ours = Some(ErrorKind::AddrNotAvailable);
        let denied = Some(ErrorKind::PermissionDenied);
        let unreachable = Some(ErrorKind::NetworkUnreachable);
        // What comes of binding to it, of binding to nobody's, and of the look at the routes.
        for (own, other, routes, told) in [
            (not_ours, None, None, Ok(false)),
            (denied, not_ours, None, Err(ErrorKind::PermissionDenied)),
            (Some(ErrorKind::Unsupported), not_ours, None, Err(ErrorKind::Unsupported)),
            (None, not_ours, None, Ok(true)),
            (None, denied, None, Err(ErrorKind::PermissionDenied)),
            (None, None, None, Ok(true)),
            (None, None, unreachable, Err(ErrorKind::NetworkUnreachable)),
        ] {
            let outcome = |failed: Option<ErrorKind>| failed.map_or(Ok(()), |kind| Err(kind.into()));
            let bind = |ip| outcome(if ip == nobodys { other } else { own });
            let found = is_local_by(of, bind, |ip| outcome(routes).map(|()| ip));
            assert_eq!(found.map_err(|error| error.kind()), told, "{own:?} {other:?} {routes:?}");
        }
    }

    #[test]
    fn an_address_of_this_machine_is_not_asked_through_a_translator() {
        // Without a route there is none but loopback's.
        let Ok(IpAddr::V4(ours)) = source(ip("192.0.2.7")) else { return };
        let [a, b, c, d] = ours.octets();
        let spelt = [
            format!("::ffff:{ours}"),
            format!("64:ff9b::{ours}"),
            format!("64:ff9b:1::{ours}"),
            format!("64:ff9b:1:{a:02x}{b:02x}:{c:02x}:{d:02x}00::"),
            format!("2002:{a:02x}{b:02x}:{c:02x}{d:02x}::1"),
        ];
        for text in spelt {
            // An error forbids it, too.
            assert!(guard(&[], Objects::default()).forbids(ip(&text)).unwrap_or(true), "{text}");
        }
    }

    #[test]
    fn a_service_in_front_of_this_machine_is_not_asked() {
        // What is loopback's is local wherever this runs.
        let text = "{apiVersion: v1, kind: Service, metadata: {name: control, namespace: system}, spec: {clusterIP: 10.96.0.1, \
                    externalIPs: [198.51.100.1]}, status: {loadBalancer: {ingress: [{ip: 198.51.100.2}]}}}\n\
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
        for (text, forbidden) in [
            ("10.96.0.1", true),
            ("::ffff:10.96.0.1", true),
            ("198.51.100.1", true),
            ("198.51.100.2", true),
            ("10.96.0.2", false),
            ("10.96.0.3", false),
        ] {
            assert_eq!(strict.forbids(ip(text)).unwrap(), forbidden, "{text}");
        }
        for (text, forbidden) in [
            ("64:ff9b::10.96.0.1", true),
            ("64:ff9b::10.96.0.2", false),
            ("64:ff9b:1::10.96.0.1", true),
            ("64:ff9b:1::10.96.0.2", false),
            ("2002:a60:1::1", true),
            ("2002:a60:2::1", false),
        ] {
            // An error forbids it, too: a machine may have no IPv6.
            let found = strict.forbids(ip(text));
            assert!(found.as_ref().map_or(true, |found| *found == forbidden), "{text}: {found:?}");
        }
        let allowing = Guard { allow: [ip("10.96.0.1").into()].into(), ..strict };
        assert!(!allowing.forbids(ip("10.96.0.1")).unwrap(), "the operator says so");
    }
}
