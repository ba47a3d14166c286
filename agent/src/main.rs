//! agent

fn main() {}
