//! Foreign peers: of our HBONE Envoy and curl, with certificates from our own authority; of our waypoint clients and
//! servers of others.
//!
//! This crate fetches and configures programs that others wrote, and makes the hostile clients that the
//! tests set on ztunnel. The tests are in `tests/`; they need root. It decides nothing about the mesh.
#![forbid(unsafe_code)]

pub mod apps;
pub mod behind;
pub mod broken;
pub mod curl;
pub mod envoy;
pub mod frames;
pub mod hostile;
pub mod httpwg;
pub mod nginx;
pub mod pki;
pub mod python;
pub mod recorder;
pub mod scene;
mod tools;

pub use curl::ensure_curl;
pub use envoy::ensure_envoy;
pub use httpwg::ensure_httpwg;
