//! `culvert-cni`: called by the container runtime, it says whether a pod may start. All it does is in the
//! library; here are its standard input, environment and standard output.
#![forbid(unsafe_code)]

use std::{
    io::{self, Read as _, Write as _},
    process::ExitCode,
};

use cni::plugin::{self, Call};

/// A configuration with a result of plugins has some KiB.
const MAX_INPUT: u64 = 1 << 20;

fn main() -> ExitCode {
    let environment = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    let mut call = Call { environment: environment.collect(), input: Vec::new() };
    if let Err(error) = io::stdin().take(MAX_INPUT).read_to_end(&mut call.input) {
        // What was read of it will not do, and that is told.
        eprintln!("{}: standard input cannot be read: {error}", cni::PLUGIN);
    }
    let (text, code) = match plugin::run(&call, plugin::PATIENCE) {
        Ok(text) => (text, ExitCode::SUCCESS),
        Err(failure) => (failure.json(), ExitCode::FAILURE),
    };
    match io::stdout().write_all(text.as_bytes()) {
        Ok(()) => code,
        Err(error) => {
            eprintln!("{}: standard output cannot be written: {error}", cni::PLUGIN);
            ExitCode::FAILURE
        }
    }
}
