//! Runs a KVM machine, snapshots it while it runs, and brings it back.
#![forbid(unsafe_code)]

fn main() {}
