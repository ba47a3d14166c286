//! Addresses and ports as they stand in a packet: in network byte order, and typed, so that neither
//! order nor kind can be mixed up. IPv4 and IPv6 share one type: IPv4 is kept as `::ffff:a.b.c.d`.

use core::net::{IpAddr, Ipv6Addr, SocketAddr};

/// An IP address in network byte order.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Address(pub [u32; 4]);

impl Address {
    /// From the four bytes of an IPv4 header, read as they stand.
    #[inline(always)]
    pub const fn from_v4_be(word: u32) -> Self {
        Self([0, 0, 0xffff_u32.to_be(), word])
    }

    /// From the sixteen bytes of an IPv6 header, read as they stand.
    #[inline(always)]
    pub const fn from_v6_be(words: [u32; 4]) -> Self {
        Self(words)
    }

    /// The sixteen bytes, as IPv6 writes them.
    #[inline(always)]
    pub const fn octets(&self) -> [u8; 16] {
        let [w, x, y, z] = self.0;
        let ([a, b, c, d], [e, f, g, h]) = (w.to_ne_bytes(), x.to_ne_bytes());
        let ([i, j, k, l], [m, n, o, p]) = (y.to_ne_bytes(), z.to_ne_bytes());
        [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]
    }

    /// Whether this is an IPv4 address.
    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        self.0[0] == 0 && self.0[1] == 0 && self.0[2] == 0xffff_u32.to_be()
    }

    /// Whether a packet to this address stays on the link or the host: loopback, link-local, multicast,
    /// broadcast. The mesh has no business with it.
    #[inline(always)]
    pub const fn is_local_scope(&self) -> bool {
        let last = u32::from_be(self.0[3]);
        if self.is_v4() {
            let top = last >> 24;
            // Above multicast only broadcast: out of 240.0.0.0/4 come the automatic addresses of hosts.
            return top == 127 || last >> 16 == 0xa9fe || top >> 4 == 0xe || last == u32::MAX;
        }
        let first = u32::from_be(self.0[0]);
        let loopback = self.0[0] == 0 && self.0[1] == 0 && self.0[2] == 0 && last == 1;
        loopback || first & 0xffc0_0000 == 0xfe80_0000 || first >> 24 == 0xff
    }

    /// Whether a resolver may be asked at this address through the pod's device. Besides everything that is not
    /// [`Self::is_local_scope`] these are the link-local ones of IPv4: a resolver that each node keeps for itself
    /// is commonly there (169.254.20.10, 169.254.169.253).
    #[inline(always)]
    pub const fn may_resolve(&self) -> bool {
        self.is_v4() && u32::from_be(self.0[3]) >> 16 == 0xa9fe || !self.is_local_scope()
    }
}

impl From<IpAddr> for Address {
    fn from(ip: IpAddr) -> Self {
        let bytes = match ip {
            IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
            IpAddr::V6(ip) => ip.octets(),
        };
        let word = |i: usize| u32::from_ne_bytes([bytes[i], bytes[i + 1], bytes[i + 2], bytes[i + 3]]);
        Self([word(0), word(4), word(8), word(12)])
    }
}

impl From<Address> for IpAddr {
    fn from(address: Address) -> Self {
        Ipv6Addr::from(address.octets()).to_canonical()
    }
}

/// A port in network byte order.
#[repr(transparent)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Port(u16);

impl Port {
    /// From the two bytes of a TCP header, read as they stand.
    #[inline(always)]
    pub const fn from_be(be: u16) -> Self {
        Self(be)
    }

    /// From a number.
    #[inline(always)]
    pub const fn new(port: u16) -> Self {
        Self(port.to_be())
    }

    /// The number.
    #[inline(always)]
    pub const fn get(self) -> u16 {
        u16::from_be(self.0)
    }

    /// The two bytes as they stand in a header.
    #[inline(always)]
    pub const fn to_be(self) -> u16 {
        self.0
    }
}

/// An address and a port, as [`crate::FlowKey`] wants them.
pub(crate) fn split(at: SocketAddr) -> (Address, Port) {
    (at.ip().into(), Port::new(at.port()))
}

const _: () = {
    assert!(size_of::<Address>() == 16 && align_of::<Address>() == 4);
    assert!(size_of::<Port>() == 2 && align_of::<Port>() == 2);
};

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;

    fn address(text: &str) -> Address {
        text.parse::<IpAddr>().unwrap().into()
    }

    #[test]
    fn both_families_survive_the_round_trip() {
        for text in ["10.1.2.3", "255.255.255.255", "2001:db8::7", "::1", "fe80::1"] {
            assert_eq!(IpAddr::from(address(text)), text.parse::<IpAddr>().unwrap());
        }
    }

    #[test]
    fn header_bytes_and_parsed_addresses_agree() {
        assert_eq!(Address::from_v4_be(u32::from_ne_bytes([10, 1, 2, 3])), address("10.1.2.3"));
        let words = [[0x20, 1, 0x0d, 0xb8], [0; 4], [0; 4], [0, 0, 0, 7]].map(u32::from_ne_bytes);
        assert_eq!(Address::from_v6_be(words), address("2001:db8::7"));
        assert_eq!(Port::new(443).to_be(), u16::from_ne_bytes([1, 0xbb]));
        assert_eq!(Port::from_be(u16::from_ne_bytes([1, 0xbb])).get(), 443);
    }

    #[test]
    fn resolvers_are_sought_on_the_link_too() {
        for text in ["10.96.0.10", "169.254.20.10", "fd00::a", "2001:db8::53"] {
            assert!(address(text).may_resolve(), "{text}");
        }
        for text in ["127.0.0.53", "::1", "224.0.0.251", "255.255.255.255", "ff02::fb", "fe80::1"] {
            assert!(!address(text).may_resolve(), "{text}");
        }
    }

    #[test]
    fn scope() {
        for text in [
            "127.0.0.1",
            "169.254.169.254",
            "224.0.0.1",
            "255.255.255.255",
            "::1",
            "fe80::1",
            "febf::1",
            "ff02::1",
        ] {
            assert!(address(text).is_local_scope(), "{text}");
        }
        for text in [
            "10.0.0.1",
            "169.253.0.1",
            "192.0.2.1",
            "223.255.0.1",
            "240.240.0.1",
            "255.255.255.254",
            "2001:db8::1",
            "fec0::1",
            "::2",
            "fd00::1",
        ] {
            assert!(!address(text).is_local_scope(), "{text}");
        }
    }
}
