//! Reads and writes vmsnap snapshot files: page-indexed, compressed, verifiable.
#![forbid(unsafe_code)]
