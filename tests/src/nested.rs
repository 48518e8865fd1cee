//! Running the Linux suite where a guest finds real virtualisation.
//!
//! On hardware the suite runs right here. On a machine whose `/dev/kvm` cannot run an unmodified kernel it runs inside
//! an *outer* Debian kernel under QEMU, which emulates AMD's nested paging in software; what the suite boots there is
//! the *inner* kernel. Either way the suite is the same static program, told by a [`Plan`](crate::plan::Plan) what to
//! do, and its entries come back one by one as they are made.
//!
//! `kernel` finds what `cargo xtask setup` has fetched, `archive` writes initramfs archives, `programs` builds the
//! static programs, `qemu_img` bundles a judge of disk images, `workshop` puts all of it together, `outer` runs QEMU, `ran` judges what came back.

mod archive;
mod kernel;
mod outer;
mod programs;
mod qemu_img;
mod ran;
mod workshop;

pub use ran::Ran;
pub use workshop::{Missing, Wanted, has_hardware_kvm, run};
