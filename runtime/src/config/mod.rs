//! Configuration: flags, environment and a file, resolved once, with every error reported together.
//!
//! A program writes one clap-derived struct. For each flag `--some-thing` this module adds two more
//! ways to say it, so no program has to:
//!
//! | where | form | precedence |
//! |---|---|---|
//! | command line | `--some-thing VALUE` | first |
//! | environment | `CULVERT_SOME_THING=VALUE` | second |
//! | file named by `--config` / `CULVERT_CONFIG` | `some-thing: VALUE` (YAML) | third |
//! | the struct | `default_value` | last |
//!
//! ```no_run
//! #[derive(clap::Parser)]
//! #[command(name = "program", version, about)]
//! struct Args {
//!     #[command(flatten)]
//!     common: runtime::config::Common,
//!     /// Name of the node this program serves
//!     #[arg(long, value_name = "NAME")]
//!     node: String,
//! }
//! let args: Args = runtime::config::resolve();
//! ```
//!
//! How: the command line is first parsed with every value as mere text and nothing required. Then
//! each value, wherever it comes from, is tried alone against its flag's own parser, so that one bad
//! value does not hide the next. If all are good, what environment and file said is added to the
//! command line, and clap does the rest.

mod file;
mod problem;
mod resolve;
pub mod values;

use std::{ffi::OsString, net::SocketAddr, path::PathBuf};

use clap::{CommandFactory, FromArgMatches};

pub use self::problem::{Problem, Problems};
use crate::{admin::Addresses, logging};

/// The flags that every program has.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Common")]
pub struct Common {
    /// YAML file with settings: `some-flag: value` for each `--some-flag`
    #[arg(long, value_name = "FILE", global = true)]
    pub config: Option<PathBuf>,

    /// Log levels: one (error, warn, info, debug, trace, off) or a list such as
    /// info,hbone=debug,access=off. Changed while running by POST /logging?level=… on the admin server
    #[arg(long, value_name = "LEVELS", default_value = "info", value_parser = logging::check_levels)]
    pub log_level: String,

    /// Form of the log
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t = logging::Format::Text)]
    pub log_format: logging::Format,

    /// Address of the admin server, which has no authentication: keep it on loopback
    #[arg(long, value_name = "ADDR|none", default_value = "127.0.0.1:15000", value_parser = values::listen)]
    pub admin_addr: values::Listen,

    /// Address of /metrics
    #[arg(long, value_name = "ADDR|none", default_value = "[::]:15020", value_parser = values::listen)]
    pub metrics_addr: values::Listen,

    /// Address of /healthz/ready
    #[arg(long, value_name = "ADDR|none", default_value = "[::]:15021", value_parser = values::listen)]
    pub ready_addr: values::Listen,
}

impl Common {
    /// Where the three servers of [`crate::admin`] listen.
    pub fn addresses(&self) -> Addresses {
        let of = |listen: values::Listen| -> Option<SocketAddr> { listen.0 };
        Addresses { admin: of(self.admin_addr), metrics: of(self.metrics_addr), ready: of(self.ready_addr) }
    }
}

/// Resolves the configuration of this process. Prints help, version or every problem, and exits,
/// where there is nothing to run with.
pub fn resolve<A: CommandFactory + FromArgMatches>() -> A {
    resolve_checked(|_, _| {})
}

/// As [`resolve`]; `check` adds what is wrong between values that are each right.
pub fn resolve_checked<A: CommandFactory + FromArgMatches>(check: impl FnOnce(&A, &mut Problems)) -> A {
    let environment = |name: &str| std::env::var_os(name);
    resolve_from(std::env::args_os(), &environment, check).unwrap_or_else(|stop| match stop {
        // Help and version come as errors too; clap knows where to print and how to exit.
        Stop::Clap(error) => error.exit(),
        Stop::Problems(problems) => {
            eprint!("{problems}");
            std::process::exit(2)
        }
    })
}

/// Why there is no configuration.
#[derive(Debug)]
pub enum Stop {
    /// Help or version was asked for, or the command line is not well-formed.
    Clap(clap::Error),
    Problems(Problems),
}

/// As [`resolve_checked`], from a command line (the program's name first) and an environment of
/// the caller's.
///
/// # Errors
/// With everything that is wrong.
pub fn resolve_from<A: CommandFactory + FromArgMatches>(
    command_line: impl IntoIterator<Item = OsString>,
    environment: &dyn Fn(&str) -> Option<OsString>,
    check: impl FnOnce(&A, &mut Problems),
) -> Result<A, Stop> {
    let command_line: Vec<OsString> = command_line.into_iter().collect();
    let matches = resolve::matches(A::command(), &command_line, environment)?;
    let args = A::from_arg_matches(&matches).map_err(Stop::Clap)?;
    let mut problems = Problems::default();
    check(&args, &mut problems);
    if problems.is_empty() { Ok(args) } else { Err(Stop::Problems(problems)) }
}
