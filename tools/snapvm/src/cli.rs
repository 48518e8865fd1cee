//! The command line: what can be typed, with its defaults and examples.
//!
//! Nothing is done here. Each command's arguments are one struct, documented for its `--help`; what they do is in
//! the command of the same name.

mod describe;
mod disk;
mod guest;
mod snapshot;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

pub use disk::{DiskArgs, DiskCommand, FlattenArgs};
pub use guest::{BuiltinArgs, RestoreArgs, RestoreDisks, RunArgs, ServeArgs};
pub use snapshot::SnapshotArgs;

/// Runs a KVM machine, snapshots it at the instant asked while it runs on, and brings it back.
#[derive(Debug, Parser)]
#[command(name = "snapvm", version, max_term_width = 100, after_help = EXAMPLES)]
#[command(after_long_help = EXAMPLES, propagate_version = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

const EXAMPLES: &str = "\
Examples:
  snapvm run --kernel vmlinuz --initrd initrd --cmdline console=ttyS0 --memory 256M --api-sock vm.sock
  snapvm run --builtin --memory 1G --cpus 2 --api-sock vm.sock
  snapvm snapshot --api-sock vm.sock out.vmsnap
  snapvm check out.vmsnap
  snapvm restore out.vmsnap --api-sock vm2.sock

Exit codes: 0 good; 1 no (check found differences, the snapshot was given up); 2 could not do it.
Logs go to standard error; RUST_LOG=debug shows more of them.";

/// One thing that `snapvm` does.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Boot a machine and run it in the foreground.
    Run(Box<RunArgs>),
    /// Wait for the description of a machine on the control API, then run it.
    Serve(ServeArgs),
    /// Take a snapshot of a running machine.
    Snapshot(SnapshotArgs),
    /// Hold the guest's processors until `resume`.
    #[command(after_help = "Examples:\n  snapvm pause --api-sock vm.sock")]
    Pause(ControlArgs),
    /// Let a paused guest run on.
    #[command(after_help = "Examples:\n  snapvm resume --api-sock vm.sock")]
    Resume(ControlArgs),
    /// Show what the machine is doing, with the progress or result of its latest snapshot.
    #[command(after_help = "\
Examples:
  snapvm status --api-sock vm.sock
  snapvm status --api-sock vm.sock --json | jq .snapshot.progress")]
    Status(ControlArgs),
    /// Give up the snapshot that is being written; the guest runs on.
    #[command(after_help = "\
Examples:
  snapvm cancel --api-sock vm.sock

Exit codes: 0 the snapshot was given up; 1 none was being written; 2 could not do it.")]
    Cancel(ControlArgs),
    /// Show or change how much memory the balloon takes from the guest.
    Balloon(BalloonArgs),
    /// Show the disks of a running machine, and flatten their chains.
    Disk(DiskArgs),
    /// Bring a machine back from a snapshot and run it in the foreground.
    Restore(Box<RestoreArgs>),
    /// Recompute every page of a snapshot of the built-in guest, and compare.
    #[command(after_help = "\
Examples:
  snapvm check out.vmsnap
  snapvm check out.vmsnap --json

Exit codes: 0 every page is as of the capture point; 1 pages differ; 2 could not do it.")]
    Check(CheckArgs),
    /// Tell the whole story in one process: run, snapshot, check, restore.
    Demo(DemoArgs),
    /// Write the built-in guest as an ELF file that any PVH loader boots.
    #[command(
        name = "builtin-elf",
        after_help = "\
Examples:
  snapvm builtin-elf guest.elf
  snapvm run --kernel guest.elf --memory 512M --cpus 1 --api-sock vm.sock
  qemu-system-x86_64 -m 512M -nographic -kernel guest.elf"
    )]
    BuiltinElf(BuiltinElfArgs),
}

/// Addresses a running machine.
#[derive(Debug, Args)]
pub struct ControlArgs {
    /// Socket on which the machine is controlled.
    #[arg(long, value_name = "PATH")]
    pub api_sock: PathBuf,
    /// Print one JSON object instead of text.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `snapvm balloon`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  snapvm balloon --api-sock vm.sock
  snapvm balloon --api-sock vm.sock --target 64M

The guest gives memory up when it can; the actual size follows the target.")]
pub struct BalloonArgs {
    /// How the machine is reached.
    #[command(flatten)]
    pub control: ControlArgs,
    /// Memory that the guest is asked to give up; 0 gives all back.
    #[arg(long, value_name = "SIZE", value_parser = crate::values::size)]
    pub target: Option<u64>,
}

/// Arguments of `snapvm check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// The snapshot file; parents are found through it.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Threads that decode and compare; as many as there are processors by default.
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
    /// Print one JSON object instead of text.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `snapvm demo`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  snapvm demo
  snapvm demo --memory 1G --cpus 2 --dir /tmp/demo

Without /dev/kvm the same capture engine snapshots the memory of this process instead.")]
pub struct DemoArgs {
    /// Memory of the guest.
    #[arg(long, value_name = "SIZE", default_value = "512M", value_parser = crate::values::size)]
    pub memory: u64,
    /// Number of virtual processors.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub cpus: u32,
    /// Keep the snapshot files in this directory; by default they are written to a temporary one and removed.
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// Leave KVM alone and snapshot the memory of this process.
    #[arg(long)]
    pub no_kvm: bool,
    /// Print one JSON object with the figures instead of the story.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `snapvm builtin-elf`.
#[derive(Debug, Args)]
pub struct BuiltinElfArgs {
    /// Where to write the ELF file.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Least memory of the machines that will boot the file.
    #[arg(long, value_name = "SIZE", default_value = "128M", value_parser = crate::values::size)]
    pub memory: u64,
    /// Number of virtual processors of those machines.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub cpus: u32,
    /// How the guest behaves.
    #[command(flatten)]
    pub builtin: BuiltinArgs,
}
