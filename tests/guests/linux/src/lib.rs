//! What the Linux test guest and those who watch it have to agree on.
//!
//! The guest is an oracle: every byte that it writes anywhere follows from a seed and a counter, so that it can check
//! itself at any time, and so can a program that finds its disk in a snapshot. [`content`] is that rule, [`disk`] the
//! layout of the counter disk, [`stream`] what the host sends by vsock, [`status`] what the guest says of itself every
//! other second on its console. The program (`main.rs`) is the guest's init.
#![forbid(unsafe_code)]

pub mod content;
pub mod disk;
pub mod status;
pub mod stream;
