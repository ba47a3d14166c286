//! ztunnel

fn main() {}
