//! Internal snapshots in images that QEMU's tools make, change and judge in turn with this crate.

#[path = "../second_opinion/mod.rs"]
mod second_opinion;

mod content;
mod crash;
mod interleaved;
mod machine_state;
mod sizes;
mod table;
