//! Runs a KVM machine, snapshots it while it runs, and brings it back.
//!
//! `run`, `serve` and `restore` own a machine and serve its control API; `snapshot`, `pause`, `resume`, `status`,
//! `cancel`, `balloon` and `disk` are clients of that API; `check`, `demo` and `builtin-elf` stand alone. What a snapshot is
//! belongs to the `snapshot` crate; here are only its verbs for people.
#![forbid(unsafe_code)]

mod api;
mod cli;
mod client;
mod commands;
mod description;
mod guest_meter;
mod outcome;
mod output;
mod progress;
mod report;
mod server;
mod terminal;
mod values;

use std::process::ExitCode;

use clap::Parser;
use tracing_subscriber::EnvFilter;

use cli::{Cli, Command};

fn main() -> ExitCode {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
    let result = match Cli::parse().command {
        Command::Run(args) => commands::run::run(&args),
        Command::Balloon(args) => commands::balloon::run(&args),
        Command::Restore(args) => commands::restore::run(&args),
        Command::Serve(args) => commands::run::serve(&args),
        Command::Snapshot(args) => commands::snapshot::run(&args),
        Command::Pause(args) => commands::control::pause(&args),
        Command::Resume(args) => commands::control::resume(&args),
        Command::Status(args) => commands::control::status(&args),
        Command::Cancel(args) => commands::control::cancel(&args),
        Command::Disk(args) => commands::disk::run(&args),
        Command::Check(args) => commands::check::run(&args),
        Command::Demo(args) => commands::demo::run(&args),
        Command::BuiltinElf(args) => commands::builtin_elf::run(&args),
    };
    outcome::conclude(result)
}
