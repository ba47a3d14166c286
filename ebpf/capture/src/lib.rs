//! Capture: loads, attaches, pins, adopts and measures the kernel programs, and gives ztunnel what it
//! needs of them. The only crate that names aya.
//!
//! Two sides use it. The agent opens a [`Node`], attaches a [`Pod`] at a time and steers its [`Mode`].
//! ztunnel opens the [`Pins`] that the agent left, marks its sockets as its own and puts its listeners
//! into a pod's [`PodSlots`]. Neither side decides here what is captured: that is the agent's business;
//! nor what happens to a connection: that is ztunnel's.

mod counters;
mod device;
mod error;
mod klog;
mod layout;
mod maps;
mod netlink;
mod netns;
mod node;
mod pins;
mod pod;
mod probe;
mod programs;
mod routing;
pub mod sockdiag;
pub mod splice;
mod sys;

pub use abi::{PROBE_PORT, PROBE_V4, PROBE_V6};
pub use counters::Counters;
pub use error::Error;
pub use netns::Netns;
pub use node::{Node, NodeOptions, Target};
pub use pins::{Pins, PodSlots, Role, TcpStats, socket_cookie};
pub use pod::{Measured, Mode, Pod};
pub use splice::{AppSocket, Splices};
pub use sys::unsent;
