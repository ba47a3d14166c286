//! Both ends of a tunnel in one test: pipes instead of sockets, time that leaps when nothing moves.
//!
//! [`Pipe`] is a link that chops, stalls, is cut and is reset as told; [`World`] is an authority, a
//! calling and a called node, and the wires between them. Nothing here opens a socket.
#![forbid(unsafe_code)]

mod pipe;
mod world;

pub use pipe::{Pipe, Rng, Wire, pipe};
pub use world::{Accepted, Caller, Judge, Obliging, World, run};
