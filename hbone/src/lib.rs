//! The HBONE tunnel: HTTP/2 CONNECT streams over mutual TLS, as client and as server, and the copy
//! loops between a tunnel and a socket.
//!
//! It carries and proves; it decides nothing: who may call whom is `mesh`'s business, where sockets
//! come from the program's. Everything here runs on one thread (a `current_thread` runtime inside a
//! `LocalSet`): each worker has its own [`client::Pool`].
#![forbid(unsafe_code)]

pub mod authority;
pub mod baggage;
pub mod buffer;
mod chunk;
pub mod client;
pub mod copy;
pub mod forwarded;
mod keepalive;
pub mod server;
mod settings;
mod stream;
mod tls;
mod transport;
mod tunnel;

pub use authority::Authority;
pub use baggage::Baggage;
pub use forwarded::Forwarded;
pub use settings::Settings;
pub use stream::Stream;
pub use transport::{Link, Socket, TcpLink, Transport};
pub use tunnel::Tunnel;
