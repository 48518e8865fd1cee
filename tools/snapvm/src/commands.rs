//! What each command does; its arguments are in [`crate::cli`].

pub mod balloon;
pub mod builtin_elf;
pub mod check;
pub mod control;
pub mod demo;
pub mod disk;
pub mod restore;
pub mod run;
mod runner;
pub mod snapshot;
