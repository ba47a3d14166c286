//! The test bed: a small cluster made of network namespaces, on one machine, in one process's care.
//!
//! A [`World`] is a bridge (the wire), nodes plugged into it, pods plugged into their nodes the way a
//! point-to-point CNI does it, and the control plane's own place on the wire. Programs run inside it as
//! [`Process`]es, a [`Sniffer`] reads what crosses a link, and manifests are ordinary YAML in a folder.
//! Everything is named after the world's id and goes away when the world is dropped, also by a panic;
//! what a killed owner left behind is removed by [`sweep`].
//!
//! Nothing here steers traffic or implements services: an address that only the mesh knows leads nowhere
//! until the mesh is there.
#![deny(unsafe_code)]

pub mod address;
pub mod http;
pub mod job;
pub mod manifest;
pub mod mesh;
pub mod netns;
pub mod packet;
mod plumbing;
pub mod process;
pub mod report;
pub mod sniff;
pub mod teardown;
pub mod token;
pub mod wait;
pub mod waypoint;
pub mod world;

pub use job::{Finished, Job};
pub use manifest::Manifests;
pub use mesh::{Mesh, NodePrograms};
pub use netns::Netns;
pub use process::Process;
pub use sniff::{Sniffed, Sniffer};
pub use teardown::{kept, remove_world, sweep};
pub use wait::{eventually, holds_for};
pub use world::{Node, Pod, PodSpec, World};
