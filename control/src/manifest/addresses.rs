//! The addresses of a pod: nearly always one, and then no memory of its own is worth it.

use std::{net::IpAddr, ops::Deref, slice::from_ref, sync::Arc};

/// Addresses in their order, the primary one first.
#[derive(Debug, Clone)]
pub enum Addresses {
    One(IpAddr),
    /// None, or several.
    Many(Arc<[IpAddr]>),
}

impl Deref for Addresses {
    type Target = [IpAddr];

    fn deref(&self) -> &[IpAddr] {
        match self {
            Self::One(address) => from_ref(address),
            Self::Many(addresses) => addresses,
        }
    }
}

impl Default for Addresses {
    fn default() -> Self {
        Self::Many(Arc::default())
    }
}

impl PartialEq for Addresses {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for Addresses {}

impl FromIterator<IpAddr> for Addresses {
    fn from_iter<I: IntoIterator<Item = IpAddr>>(all: I) -> Self {
        let all: Vec<IpAddr> = all.into_iter().collect();
        match all[..] {
            [one] => Self::One(one),
            _ => Self::Many(all.into()),
        }
    }
}
