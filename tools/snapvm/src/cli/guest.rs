//! Arguments that describe a machine and its guest: `snapvm run` and `snapvm restore`.

use std::path::PathBuf;

use clap::{ArgGroup, Args, ValueEnum};

use crate::values::{self, Serial};

/// Arguments of `snapvm run`.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("guest").required(true).args(["kernel", "builtin"]))]
#[command(after_help = "\
Examples:
  snapvm run --builtin --memory 1G --cpus 2 --api-sock vm.sock
  snapvm run --builtin --write-rate 100000 --words 8 --incompressible 50 --api-sock vm.sock --serial null
  snapvm run --kernel guest.elf --memory 512M --cpus 1 --api-sock vm.sock --serial file:serial.log

The machine runs in the foreground until the guest stops or SIGINT or SIGTERM arrives; its socket is removed then.")]
pub struct RunArgs {
    /// Boot this ELF file, which needs a PVH entry note.
    #[arg(long, value_name = "ELF")]
    pub kernel: Option<PathBuf>,
    /// Command line given to the kernel.
    #[arg(long, value_name = "TEXT", default_value = "", requires = "kernel")]
    pub cmdline: String,
    /// Boot the built-in guest, which writes memory in an order that `snapvm check` can recompute.
    #[arg(long)]
    pub builtin: bool,
    /// How the built-in guest behaves.
    #[command(flatten)]
    pub builtin_args: BuiltinArgs,
    /// Memory of the guest.
    #[arg(long, value_name = "SIZE", default_value = "512M", value_parser = values::size)]
    pub memory: u64,
    /// Number of virtual processors.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub cpus: u32,
    /// How the machine is run and controlled.
    #[command(flatten)]
    pub machine: MachineArgs,
}

/// Arguments of `snapvm restore`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  snapvm restore out.vmsnap --api-sock vm2.sock
  snapvm restore out.vmsnap --api-sock vm2.sock --serial file:serial.log --paused

Memory size and processors come from the file. A host that lacks a processor feature which the guest has seen is
refused, with the feature's name.")]
pub struct RestoreArgs {
    /// The snapshot file; parents are found through it.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Leave the guest paused, until `snapvm resume`.
    #[arg(long)]
    pub paused: bool,
    /// Let the guest's clock jump to the present; by default it goes on where the snapshot left it.
    #[arg(long)]
    pub advance_clock: bool,
    /// Restore even if this host's processor lacks features that the guest has seen; the guest may crash.
    #[arg(long)]
    pub ignore_cpu_features: bool,
    /// How the machine is run and controlled.
    #[command(flatten)]
    pub machine: MachineArgs,
}

/// How the built-in guest behaves.
#[derive(Debug, Args)]
#[command(next_help_heading = "Built-in guest")]
pub struct BuiltinArgs {
    /// Memory that the guest fills and rewrites [default: three quarters of what it has].
    #[arg(long, value_name = "SIZE", value_parser = values::size)]
    pub working_set: Option<u64>,
    /// Pages that each processor writes per second [default: as many as it can].
    #[arg(long, value_name = "PAGES", value_parser = clap::value_parser!(u32).range(1..))]
    pub write_rate: Option<u32>,
    /// Words of 8 bytes written into a page at a time, 1 to 512 [default: 8].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=512))]
    pub words: Option<u32>,
    /// Percentage of content that no codec can compress, 0 to 100 [default: 30].
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(0..=100))]
    pub incompressible: Option<u8>,
    /// Number that decides the order of writes and every byte of content [default: 1].
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
}

/// How a machine is run and controlled, whether booted or restored.
#[derive(Debug, Args)]
pub struct MachineArgs {
    /// Socket to create for controlling the machine; without it nothing can be asked of the machine.
    #[arg(long, value_name = "PATH")]
    pub api_sock: Option<PathBuf>,
    /// Where the guest's serial port goes: stdio, null or file:PATH.
    #[arg(long, value_name = "WHERE", default_value = "stdio")]
    pub serial: Serial,
    /// What the guest's memory is made of.
    #[arg(long, value_enum, default_value_t)]
    pub memory_backing: Backing,
    /// Do not use transparent huge pages for the guest's memory.
    #[arg(long)]
    pub no_thp: bool,
    /// Name of the machine, kept in its snapshots.
    #[arg(long, value_name = "NAME", default_value = "")]
    pub name: String,
}

/// What the guest's memory is made of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Backing {
    /// Private anonymous memory.
    #[default]
    Anonymous,
    /// A memory file, which other processes could be given.
    Memfd,
}
