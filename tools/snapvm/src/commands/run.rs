//! `snapvm run` and `snapvm serve`: boot a machine, described now or later, and run it in the foreground.

use anyhow::Context;

use super::runner;
use crate::cli::{RunArgs, ServeArgs};
use crate::outcome::Outcome;
use crate::server::{Host, boot};

/// `snapvm run`.
pub fn run(args: &RunArgs) -> anyhow::Result<Outcome> {
    let description = args.description()?;
    let description = description
        .with_absolute_paths()
        .context("resolving relative paths")?;
    let socket = runner::bind(args.machine.api_sock.as_deref())?;
    let vm = boot(description)?;
    if let Some(path) = &args.machine.api_sock {
        runner::announce(path);
    }
    runner::run_to_end(&Host::of(vm), socket)
}

/// `snapvm serve`.
pub fn serve(args: &ServeArgs) -> anyhow::Result<Outcome> {
    let socket = runner::bind(Some(&args.api_sock))?;
    eprintln!(
        "snapvm: waiting for a machine: PUT its description to /v1/machine on {}",
        args.api_sock.display()
    );
    runner::run_to_end(&Host::empty(), socket)
}
