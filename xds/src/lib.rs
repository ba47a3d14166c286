//! The client of the control plane: discovery resources in, an immutable [`mesh::Snapshot`] out; and
//! certificates by the same connection's rules.
//!
//! ```text
//! control ──delta xDS──▶ client ─▶ session (state, no I/O) ─▶ convert ─▶ mesh::Editor ─▶ Mesh
//! ```
//!
//! It keeps what it has while control is away, it refuses a bad resource by name and keeps its last good
//! version, and it decides nothing about connections: that is `mesh`.
#![forbid(unsafe_code)]

mod backoff;
mod ca;
mod client;
mod control;
pub mod convert;
mod mesh_state;
mod session;
mod strings;

pub use ca::CaClient;
pub use client::{Options, Proxy, run};
pub use control::{Control, ControlError};
pub use mesh_state::{Connection, Mesh};
