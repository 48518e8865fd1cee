//! `snaptool disk`: disk images, by the crate that gives machines their disks.
//!
//! Each command has a module of its name and returns an [`Outcome`]; where `qemu-img` has an exit code for an answer,
//! it is the same. What takes long asks [`steps`] after each piece whether an interrupt has come, and ends at a point
//! where the image is sound; what changes tables does it in the library's crash-safe order, and an interrupt waits for
//! the end.

mod check;
mod commit;
mod compare;
mod create;
mod diff;
mod flatten;
mod image;
mod info;
mod map;
mod snapshot;

use std::ops::ControlFlow;

use crate::Outcome;
use crate::cli::disk::{DiskArgs, DiskCommand};
use crate::interrupt;
use crate::progress::Progress;

/// Runs the command.
pub fn run(args: &DiskArgs) -> anyhow::Result<Outcome> {
    interrupt::install()?;
    match &args.command {
        DiskCommand::Info(args) => info::run(args),
        DiskCommand::Check(args) => check::run(args),
        DiskCommand::Repair(args) => check::run_repair(args),
        DiskCommand::Snapshot(args) => snapshot::run(&args.command),
        DiskCommand::Diff(args) => diff::run(args),
        DiskCommand::Map(args) => map::run(args),
        DiskCommand::Compare(args) => compare::run(args),
        DiskCommand::Flatten(args) => flatten::run(args),
        DiskCommand::Commit(args) => commit::run(args),
        DiskCommand::Create(args) => create::run(args),
    }
}

/// The exit code of a command that could not do its work.
pub fn failure(args: &DiskArgs) -> u8 {
    match args.command {
        DiskCommand::Check(_) | DiskCommand::Repair(_) => 1,
        _ => 2,
    }
}

/// Shows how far the work is, and stops it once an interrupt has come.
fn steps(progress: &Progress) -> impl FnMut(u64, u64) -> ControlFlow<()> {
    |done, total| {
        progress.update(done, total);
        match interrupt::check() {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        }
    }
}

/// A range of a disk for people: `0x1000-0x1fff`.
fn range(offset: u64, len_bytes: u64) -> String {
    let last = offset.saturating_add(len_bytes).saturating_sub(1);
    format!("{offset:#x}-{last:#x}")
}
