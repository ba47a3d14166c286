//! The traffic program: what the node ring runs inside pods, on both ends of a connection.
//!
//! `app serve` answers on one port per behaviour; every other subcommand is a client that prints exactly
//! one line of JSON (`load`: one each second) and exits with 0 when all went as it should, with 1 when not.
#![deny(unsafe_code)]

use std::{ffi::OsString, iter, net::SocketAddr, path::Path, process::ExitCode, time::Duration};

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

mod collect;
mod conformance;
mod http;
mod load;
mod many;
mod outcome;
mod pages;
mod pattern;
mod protocol;
mod serve;
mod single;
mod smuggle;

/// The name by which the conformance suite calls its client.
const CLIENT: &str = "client";

/// Both ends of every connection that a test makes.
#[derive(Debug, Parser)]
#[command(name = "app", max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve until killed; prints `ready` once every port listens.
    Serve(serve::Serve),
    /// Exchange messages with an echo server and compare each byte.
    Echo(single::Echo),
    /// Send a stream to a sink, or read one from a source, compared byte by byte.
    Stream(single::Stream),
    /// Read slowly from a source: flow control from end to end.
    Slow(single::Slow),
    /// Say all, close the sending side, then read the answer: half-close.
    HalfClose(single::HalfClose),
    /// Be reset by the server, or reset it: RST in both directions.
    Rst(single::Rst),
    /// Read what a server says before it is asked.
    Banner(single::Banner),
    /// Ask the server whom it sees.
    Peer(single::Peer),
    /// Many short connections, each with one exchange; failures by kind.
    Short(many::Short),
    /// Many connections alive at once; each is tried at the start and at the end.
    Live(many::Live),
    /// One service of a shop.
    Http(http::Http),
    /// Customers who never try twice.
    Load(load::Load),
    /// The echo server of the Gateway API's conformance suite.
    EchoServer(conformance::server::Server),
    /// Its client, which is also what a copy of this program by the name `client` is.
    Client(conformance::client::Client),
    /// A collector of spans.
    Collect(collect::Collect),
    /// Frames written past the kernel's TCP, as an intruder would.
    Smuggle(smuggle::Smuggle),
}

/// Where to, and how long at most.
#[derive(Debug, Clone, Args)]
pub(crate) struct To {
    /// The server.
    #[arg(long)]
    pub(crate) to: SocketAddr,
    /// Seconds that any single step may take.
    #[arg(long, default_value_t = 10.0)]
    pub(crate) patience: f64,
}

impl To {
    pub(crate) fn patience(&self) -> Duration {
        Duration::from_secs_f64(self.patience)
    }
}

fn main() -> ExitCode {
    match run(Cli::parse_from(words()).command) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("app: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The command line. The conformance suite runs `client` inside its pods, so a copy of that name is told to be one.
fn words() -> impl Iterator<Item = OsString> {
    let mut words = std::env::args_os();
    let name = words.next().unwrap_or_default();
    let client = Path::new(&name).file_name().is_some_and(|name| name == CLIENT).then(|| CLIENT.into());
    iter::once(name).chain(client).chain(words)
}

fn run(command: Command) -> Result<bool> {
    allow_many_files()?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("start tokio")?;
    runtime.block_on(async {
        match command {
            Command::Serve(serve) => serve.run().await.map(|()| true),
            Command::Echo(client) => client.run().await,
            Command::Stream(client) => client.run().await,
            Command::Slow(client) => client.run().await,
            Command::HalfClose(client) => client.run().await,
            Command::Rst(client) => client.run().await,
            Command::Banner(client) => client.run().await,
            Command::Peer(client) => client.run().await,
            Command::Short(client) => client.run().await,
            Command::Live(client) => client.run().await,
            Command::Http(http) => http.run().await.map(|()| true),
            Command::Load(load) => load.run().await,
            Command::EchoServer(server) => server.run().await.map(|()| true),
            Command::Client(client) => client.run().await,
            Command::Collect(collector) => collector.run().await.map(|()| true),
            Command::Smuggle(intruder) => intruder.run(),
        }
    })
}

/// Ten thousand live connections need as many files.
fn allow_many_files() -> Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("ask for the limit of open files")?;
    let wanted = hard.max(65_536);
    // Raising the hard limit needs root; without it the hard limit is the best there is.
    setrlimit(Resource::RLIMIT_NOFILE, wanted, wanted)
        .or_else(|_| setrlimit(Resource::RLIMIT_NOFILE, hard, hard))
        .context("raise the limit of open files")
}

/// What a command line says, to a test.
#[cfg(test)]
fn args<T: Args>(args: &[&str]) -> T {
    #[derive(Parser)]
    struct Of<T: Args> {
        #[command(flatten)]
        args: T,
    }
    Of::parse_from([&["app"], args].concat()).args
}
