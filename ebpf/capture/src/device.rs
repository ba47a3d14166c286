//! Which device a pod's packets leave by, and where its other end is on the host.

use crate::{Error, Netns, netlink::Netlink};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressMessage},
    link::{LinkAttribute, LinkFlags, LinkLayerType, LinkMessage},
    nsid::{NsidAttribute, NsidMessage},
    route::{RouteAttribute, RouteMessage, RouteType},
};
use std::{
    collections::BTreeSet,
    io,
    net::IpAddr,
    os::fd::{AsFd as _, AsRawFd as _},
};

/// A pod's own device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Device {
    pub(crate) name: String,
    pub(crate) index: u32,
    /// The other end: its interface number, and the id by which the pod's namespace knows that one's.
    peer: Option<(u32, Option<i32>)>,
}

/// A network interface as far as we care.
struct Link {
    index: u32,
    name: String,
    loopback: bool,
    ethernet: bool,
    up: bool,
    peer: Option<u32>,
    peer_netns: Option<i32>,
}

/// Finds the pod's device: the one of its default route, else the first that is up and not `lo`.
pub(crate) fn of_pod(uid: &str, netns: &Netns) -> Result<Device, Error> {
    let look = || -> io::Result<(Vec<Link>, Option<u32>)> {
        let netlink = Netlink::open()?;
        Ok((links(&netlink)?, default_route(&netlink)?))
    };
    let (links, by_route) = netns
        .enter(look)?
        .map_err(|source| Error::system(format!("pod {uid}: read its devices and routes"), source))?;
    let found = links
        .into_iter()
        .filter(|link| !link.loopback)
        .min_by_key(|link| (Some(link.index) != by_route, !link.up, link.index));
    let unsupported = |reason: String| Error::Unsupported { uid: uid.to_owned(), reason };
    let Some(link) = found else {
        return Err(unsupported(
            "its network namespace has no device but lo; a pod of the host network?".into(),
        ));
    };
    if !link.ethernet {
        let reason = format!("its device {} has no Ethernet header, which capture relies on", link.name);
        return Err(unsupported(reason));
    }
    // A device with no other end names itself; so may one whose other end has the same number elsewhere.
    let has_peer = |peer: &u32| *peer != link.index || link.peer_netns.is_some();
    let peer = link.peer.filter(has_peer).map(|peer| (peer, link.peer_netns));
    Ok(Device { name: link.name, index: link.index, peer })
}

/// Finds the host's end of the pod's link in `node_netns`; none for a device that has no such end there
/// (macvlan, SR-IOV, a link into another namespace).
pub(crate) fn host_end(device: &Device, pod: &Netns, node_netns: &Netns) -> Result<Option<String>, Error> {
    let Some((index, peer_netns)) = device.peer else { return Ok(None) };
    let look = || -> io::Result<Option<String>> {
        let netlink = Netlink::open()?;
        let here =
            links(&netlink)?.into_iter().find(|link| link.index == index && link.peer == Some(device.index));
        let Some(link) = here else { return Ok(None) };
        // The numbers may agree by chance; the namespaces do not. No id: both ends in one namespace.
        let is_pods = match (link.peer_netns, peer_netns) {
            (Some(id), _) => netns_id(&netlink, pod)? == Some(id),
            (None, _) => pod.inode() == node_netns.inode(),
        };
        Ok(is_pods.then_some(link.name))
    };
    node_netns.enter(look)?.map_err(|source| {
        Error::system(format!("find the host's end of {} (interface {index})", device.name), source)
    })
}

/// The devices of a pod that are up and not the one that is captured, nor `lo`.
pub(crate) fn others(uid: &str, netns: &Netns) -> Result<Vec<String>, Error> {
    let captured = of_pod(uid, netns)?;
    let look = || links(&Netlink::open()?);
    let links =
        netns.enter(look)?.map_err(|source| Error::system(format!("pod {uid}: read its devices"), source))?;
    let others = links.into_iter().filter(|link| link.up && !link.loopback && link.index != captured.index);
    Ok(others.map(|link| link.name).collect())
}

/// Every address that the calling thread's network namespace has as its own.
pub(crate) fn addresses() -> io::Result<BTreeSet<IpAddr>> {
    let netlink = Netlink::open()?;
    let answers = netlink.dump(RouteNetlinkMessage::GetAddress(AddressMessage::default()))?;
    let attributes = answers.into_iter().flat_map(|answer| match answer {
        RouteNetlinkMessage::NewAddress(address) => address.attributes,
        _ => Vec::new(),
    });
    Ok(attributes
        .filter_map(|attribute| match attribute {
            AddressAttribute::Local(ip) | AddressAttribute::Address(ip) => Some(ip),
            _ => None,
        })
        .collect())
}

/// Whether the calling thread's network namespace has a default route, of IPv4 and of IPv6.
pub(crate) fn default_routes() -> io::Result<(bool, bool)> {
    let netlink = Netlink::open()?;
    let has = |family| Ok::<_, io::Error>(default_route_of(&netlink, family)?.is_some());
    Ok((has(AddressFamily::Inet)?, has(AddressFamily::Inet6)?))
}

fn default_route(netlink: &Netlink) -> io::Result<Option<u32>> {
    match default_route_of(netlink, AddressFamily::Inet)? {
        Some(device) => Ok(Some(device)),
        None => default_route_of(netlink, AddressFamily::Inet6),
    }
}

/// The device of the default route of the main tables; an unreachable one counts for none.
fn default_route_of(netlink: &Netlink, family: AddressFamily) -> io::Result<Option<u32>> {
    let mut question = RouteMessage::default();
    question.header.address_family = family;
    let answers = netlink.dump(RouteNetlinkMessage::GetRoute(question))?;
    Ok(answers.into_iter().find_map(|answer| {
        let RouteNetlinkMessage::NewRoute(route) = answer else { return None };
        let to_all = route.header.destination_prefix_length == 0
            && route.header.kind == RouteType::Unicast
            && route.header.address_family == family;
        let device = route.attributes.iter().find_map(|attribute| match attribute {
            RouteAttribute::Oif(device) => Some(*device),
            RouteAttribute::MultiPath(hops) => hops.first().map(|hop| hop.interface_index),
            _ => None,
        });
        device.filter(|_| to_all)
    }))
}

fn links(netlink: &Netlink) -> io::Result<Vec<Link>> {
    let answers = netlink.dump(RouteNetlinkMessage::GetLink(LinkMessage::default()))?;
    let messages = answers.into_iter().filter_map(|answer| match answer {
        RouteNetlinkMessage::NewLink(link) => Some(link),
        _ => None,
    });
    Ok(messages.map(link).collect())
}

fn link(message: LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        loopback: message.header.flags.contains(LinkFlags::Loopback),
        ethernet: message.header.link_layer_type == LinkLayerType::Ether,
        up: message.header.flags.contains(LinkFlags::Up),
        peer: None,
        peer_netns: None,
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Link(peer) => link.peer = Some(peer),
            LinkAttribute::LinkNetNsId(id) => link.peer_netns = Some(id),
            _ => {}
        }
    }
    link
}

/// The id by which the socket's namespace knows another one.
fn netns_id(netlink: &Netlink, of: &Netns) -> io::Result<Option<i32>> {
    let mut question = NsidMessage::default();
    let fd = of.as_fd().as_raw_fd();
    question.attributes = vec![NsidAttribute::Fd(fd as u32)];
    let answers = netlink.get(RouteNetlinkMessage::GetNsId(question))?;
    let id = answers.into_iter().find_map(|answer| match answer {
        RouteNetlinkMessage::NewNsId(message) => {
            message.attributes.into_iter().find_map(|attribute| match attribute {
                NsidAttribute::Id(id) => Some(id),
                _ => None,
            })
        }
        _ => None,
    });
    Ok(id.filter(|id| *id >= 0))
}
