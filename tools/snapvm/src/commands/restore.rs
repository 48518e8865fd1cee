//! `snapvm restore`: brings a machine back from a snapshot and runs it in the foreground.

use snapshot::{RestoreOptions, restore_with_progress};

use super::runner;
use crate::cli::RestoreArgs;
use crate::outcome::Outcome;
use crate::progress::RestoreBar;
use crate::server::{Identity, Vm};

/// `snapvm restore`.
pub fn run(args: &RestoreArgs) -> anyhow::Result<Outcome> {
    let socket = runner::bind(&args.machine)?;
    let options = RestoreOptions {
        serial: runner::serial_output(&args.machine.serial),
        backing: runner::backing(args.machine.memory_backing),
        transparent_huge_pages: !args.machine.no_thp,
        paused: args.paused,
        advance_clock: args.advance_clock,
        ignore_cpu_features: args.ignore_cpu_features,
        ..RestoreOptions::default()
    };
    let bar = RestoreBar::new();
    let (machine, report) = restore_with_progress(&args.file, &options, &|progress| bar.show(progress))?;
    bar.finish();
    tracing::info!(?report, "restored");
    let name = if args.machine.name.is_empty() {
        report.vm_name
    } else {
        args.machine.name.clone()
    };
    let identity = Identity {
        name,
        cpus: report.cpus,
        memory_bytes: report.memory_bytes,
    };
    runner::run_to_end(Vm::new(machine, identity), socket, &args.machine)
}
