//! The project's own chores, as `cargo xtask CHORE`.
//!
//! Builds with nothing but cargo and a linker: whatever else a chore needs, `setup` installs first. Each chore is
//! one module; `shell` runs commands and shows them, `machine` drives a `snapvm` process as a user would.
//! Exit codes: 0 all good, 1 a check said no, 2 the chore could not be done.
#![forbid(unsafe_code)]

mod apt;
mod arrows;
mod bench;
mod demo;
mod failures;
mod guests;
mod interrupt;
mod lint;
mod machine;
mod setup;
mod shell;
mod table;
mod taken;
mod test;
mod tools;
mod ubuntu;
mod vectors;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The project's own chores.
#[derive(Debug, Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    disable_help_subcommand = true
)]
struct Arguments {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Debug, Subcommand)]
enum Chore {
    /// Shows a snapshot of a running machine from beginning to end, with the real binaries.
    Demo(demo::Options),
    /// Runs every check that a change must pass: lints, all tests, the examples that are checks.
    Test(test::Options),
    /// Measures pause, guest speed, throughput and size, async beside stop, and prints tables.
    Bench(bench::Options),
    /// Checks format, clippy, documentation, crate arrows, dependencies and spelling.
    Lint,
    /// Checks the arrows between the crates against the table in docs/architecture.md.
    Deps,
    /// Regenerates the test vectors and checks that the frozen ones are unchanged.
    Vectors,
    /// Installs what the other chores need and this machine lacks; does nothing when all is there.
    Setup,
}

fn main() -> ExitCode {
    let outcome = interrupt::watch().and_then(|()| match Arguments::parse().chore {
        Chore::Demo(options) => demo::run(&options),
        Chore::Test(options) => test::run(&options),
        Chore::Bench(options) => bench::run(&options),
        Chore::Lint => lint::run(),
        Chore::Deps => arrows::run(),
        Chore::Vectors => vectors::run(),
        Chore::Setup => setup::run(setup::Need::Everything),
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::from(if error.is::<shell::SaidNo>() { 1 } else { 2 })
        }
    }
}
