//! Guest I/O beside a plain array of bytes, alone and from many threads, with crashes and with broken media.

#![allow(clippy::cast_possible_truncation, reason = "disks of the tests are small")]

#[path = "../second_opinion/mod.rs"]
mod second_opinion;

mod crash;
mod driver;
mod faults;
mod peer;
mod shadow;
mod threads;
