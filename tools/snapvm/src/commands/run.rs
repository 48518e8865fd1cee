//! `snapvm run`: boots a machine and runs it in the foreground.

use vmm::builtin::{BuiltinOptions, WriteRate};
use vmm::{Kernel, Machine, MachineConfig, create_guest_memory};

use super::runner;
use crate::cli::{BuiltinArgs, RunArgs};
use crate::outcome::Outcome;
use crate::server::{Identity, Vm};

/// `snapvm run`.
pub fn run(args: &RunArgs) -> anyhow::Result<Outcome> {
    let socket = runner::bind(&args.machine)?;
    let config = config(args);
    let machine = Machine::boot(&config, create_guest_memory(&config)?)?;
    machine.resume()?;
    let identity = Identity {
        name: args.machine.name.clone(),
        cpus: args.cpus,
        memory_bytes: args.memory,
    };
    runner::run_to_end(Vm::new(machine, identity), socket, &args.machine)
}

fn config(args: &RunArgs) -> MachineConfig {
    let kernel = match &args.kernel {
        Some(path) => Kernel::File(path.clone()),
        None => Kernel::Builtin(builtin_options(&args.builtin_args)),
    };
    MachineConfig {
        memory_bytes: args.memory,
        cpus: args.cpus,
        serial: runner::serial_output(&args.machine.serial),
        backing: runner::backing(args.machine.memory_backing),
        transparent_huge_pages: !args.machine.no_thp,
        kernel: Some(kernel),
        cmdline: args.cmdline.clone(),
        ..MachineConfig::default()
    }
}

/// What the command line says about the built-in guest, in the guest's words.
pub fn builtin_options(args: &BuiltinArgs) -> BuiltinOptions {
    let defaults = BuiltinOptions::default();
    BuiltinOptions {
        seed: args.seed.unwrap_or(defaults.seed),
        working_set_bytes: args.working_set,
        words_per_step: args.words.unwrap_or(defaults.words_per_step),
        incompressible_percent: args.incompressible.unwrap_or(defaults.incompressible_percent),
        rate: args
            .write_rate
            .map_or(WriteRate::FlatOut, WriteRate::PagesPerSecond),
    }
}
