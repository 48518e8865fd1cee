//! The project's own chores: demo, test, bench, lint, vectors.
#![forbid(unsafe_code)]

fn main() {}
