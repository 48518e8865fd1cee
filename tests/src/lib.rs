//! Shared harness of the end-to-end tests.
//!
//! The tests drive the real binaries as a user would: `snapvm` in the foreground as a child process with its socket
//! and files in a directory of its own, `snaptool` on the files it leaves.  Nothing of the machine is simulated; where
//! /dev/kvm is absent a test says so on standard error and returns.

mod guest;
pub mod nested;
pub mod plan;
mod run;
mod skip;

pub use guest::Guest;
pub use run::{Output, binary, run};
pub use skip::{has_kvm, is_root};
