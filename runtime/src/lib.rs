//! What every program of the mesh needs and none should write twice: configuration, logs, metrics,
//! the admin servers, readiness, drain, and the one record that is kept of each connection.
//!
//! It knows nothing of tunnels, policies or the kernel; programs hand it facts.
#![forbid(unsafe_code)]

pub mod admin;
pub mod config;
pub mod drain;
pub mod logging;
pub mod metrics;
pub mod proxy;
pub mod readiness;
pub mod record;

/// The version of this build, as reported by `--version`, `culvert_build_info` and to control.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
