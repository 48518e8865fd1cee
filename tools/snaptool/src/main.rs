//! Inspects, verifies, compares and extracts vmsnap snapshot files.
//!
//! `cli` says what may be asked; each command has a module of its name and returns an [`Outcome`].
//! This file turns outcomes and errors into exit codes: 0 good, 1 "no", 2 could not do it; where
//! qemu-img has codes of its own, `disk` has the same. A reader of our output that has seen enough
//! (a broken pipe) is no error.
#![forbid(unsafe_code)]

mod cli;
mod diff;
mod disk;
mod disks;
mod extract;
mod inspect;
mod interrupt;
mod open;
mod output;
mod progress;
mod verify;
mod vmstate;

use std::io;
use std::process::ExitCode;

use clap::Parser;
use snapfile::ParentError;

use cli::{Cli, Command};

/// The answer of a command that could do its work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Good,
    /// Damaged, or different.
    No,
    /// An answer with an exit code of its own.
    Code(u8),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let failure = match &cli.command {
        Command::Disk(args) => disk::failure(args),
        _ => 2,
    };
    match run(cli) {
        Ok(Outcome::Good) => ExitCode::SUCCESS,
        Ok(Outcome::No) => ExitCode::from(1),
        Ok(Outcome::Code(code)) => ExitCode::from(code),
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            anstream::eprintln!("snaptool: {error:#}{}", advice(&error));
            ExitCode::from(failure)
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<Outcome> {
    match cli.command {
        Command::Inspect(args) => inspect::run(&args),
        Command::Verify(args) => verify::run(&args),
        Command::Diff(args) => diff::run(&args),
        Command::Restore(args) => extract::run(&args),
        Command::Disk(args) => disk::run(&args),
    }
}

/// The clause that a file breaks, and what the user can do about a missing parent.
fn advice(error: &anyhow::Error) -> String {
    let cause = error
        .chain()
        .find_map(|cause| cause.downcast_ref::<snapfile::Error>());
    match cause {
        Some(snapfile::Error::Parent(ParentError::Missing { .. })) => {
            "; name it with --parent or --parent-dir".to_owned()
        }
        Some(cause) => cause
            .clause()
            .map(|clause| format!(" (spec {clause})"))
            .unwrap_or_default(),
        None => String::new(),
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|cause| cause.kind() == io::ErrorKind::BrokenPipe)
}
