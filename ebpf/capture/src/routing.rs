//! What a turned-round packet needs of the routing in the pod's namespace: a rule that leads it by its mark
//! to a table of ours, a default route there that says "this host", and leave for `lo` to take packets from
//! the host's own addresses. All of it harmless to every other packet.

use crate::netlink::Netlink;
use netlink_packet_core::{DefaultNla, NLA_F_NESTED};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    link::{AfSpecInet, AfSpecUnspec, LinkAttribute, LinkMessage},
    route::{RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType},
    rule::{RuleAction, RuleAttribute, RuleMessage},
};
use std::io;

const IFLA_INET_CONF: u16 = 1;
const IPV4_DEVCONF_ACCEPT_LOCAL: u16 = 23;
/// The interface number of `lo`, the same in every network namespace.
const LO: u32 = 1;
const FAMILIES: [AddressFamily; 2] = [AddressFamily::Inet, AddressFamily::Inet6];

/// Sets the routing up, in the calling thread's network namespace; what is there already stays. To be done
/// again when `lo` lost its IPv6 and got it back: the kernel takes the route along and does not return it.
pub(crate) fn set_up() -> io::Result<()> {
    let netlink = Netlink::open()?;
    for family in families() {
        netlink.ensure(RouteNetlinkMessage::NewRule(rule(family)))?;
        netlink.ensure(RouteNetlinkMessage::NewRoute(route(family)))?;
    }
    netlink.change(RouteNetlinkMessage::SetLink(accept_local(1)))
}

/// What leave `lo` has now, in the calling thread's network namespace.
pub(crate) fn accept_local_now() -> u32 {
    // Per namespace of the reading thread. Unreadable only without /proc; 0 is what a new namespace has.
    std::fs::read_to_string("/proc/sys/net/ipv4/conf/lo/accept_local")
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(0)
}

/// Takes the routing away, and gives `lo` the leave it had before.
pub(crate) fn tear_down(accept_local_before: u32) -> io::Result<()> {
    let netlink = Netlink::open()?;
    for family in families() {
        netlink.remove(RouteNetlinkMessage::DelRule(rule(family)))?;
        netlink.remove(RouteNetlinkMessage::DelRoute(route(family)))?;
    }
    netlink.change(RouteNetlinkMessage::SetLink(accept_local(accept_local_before)))
}

/// The families this kernel has: one started with `ipv6.disable=1` has no IPv6 to route.
fn families() -> impl Iterator<Item = AddressFamily> {
    let ipv6 = std::path::Path::new("/proc/net/if_inet6").exists();
    FAMILIES.into_iter().filter(move |family| ipv6 || *family == AddressFamily::Inet)
}

fn rule(family: AddressFamily) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = family;
    message.header.action = RuleAction::ToTable;
    message.attributes = vec![
        RuleAttribute::Priority(abi::TURNED_RULE_PRIORITY),
        RuleAttribute::FwMark(abi::TURNED_MARK),
        RuleAttribute::Table(abi::TURNED_TABLE),
    ];
    message
}

fn route(family: AddressFamily) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family;
    message.header.protocol = RouteProtocol::Static;
    message.header.scope =
        if family == AddressFamily::Inet { RouteScope::Host } else { RouteScope::Universe };
    message.header.kind = RouteType::Local;
    message.attributes = vec![RouteAttribute::Oif(LO), RouteAttribute::Table(abi::TURNED_TABLE)];
    message
}

fn accept_local(value: u32) -> LinkMessage {
    // By hand: the typed message cannot say 0.
    let mut setting = Vec::from(8_u16.to_ne_bytes());
    setting.extend(IPV4_DEVCONF_ACCEPT_LOCAL.to_ne_bytes());
    setting.extend(value.to_ne_bytes());
    let conf = AfSpecInet::Other(DefaultNla::new(IFLA_INET_CONF | NLA_F_NESTED, setting));
    let mut message = LinkMessage::default();
    message.header.index = LO;
    message.attributes = vec![LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet(vec![conf])])];
    message
}
