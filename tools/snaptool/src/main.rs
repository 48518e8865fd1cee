//! Inspects, verifies, compares and extracts vmsnap snapshot files.
#![forbid(unsafe_code)]

fn main() {}
