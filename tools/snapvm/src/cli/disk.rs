//! Arguments of `snapvm disk`.

use clap::{Args, Subcommand};

use super::ControlArgs;
use crate::values;

/// Arguments of `snapvm disk`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  snapvm disk list --api-sock vm.sock
  snapvm disk flatten --api-sock vm.sock data --rate 50M
  snapvm disk cancel --api-sock vm.sock")]
pub struct DiskArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: DiskCommand,
}

/// One thing that `snapvm disk` does.
#[derive(Debug, Subcommand)]
pub enum DiskCommand {
    /// Show the disks and the files that each consists of.
    #[command(after_help = "\
Examples:
  snapvm disk list --api-sock vm.sock
  snapvm disk list --api-sock vm.sock --json | jq '.disks[].layers | length'")]
    List(ControlArgs),
    /// Let a disk consist of one file again, while the guest runs.
    Flatten(FlattenArgs),
    /// Give up the flattening under way; the chain stays as it was.
    #[command(after_help = "\
Examples:
  snapvm disk cancel --api-sock vm.sock

Exit codes: 0 the flattening was given up; 1 none was under way; 2 could not do it.")]
    Cancel(ControlArgs),
}

/// Arguments of `snapvm disk flatten`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  snapvm disk flatten --api-sock vm.sock data
  snapvm disk flatten --api-sock vm.sock --rate 50M

Every snapshot with --disks overlay makes the chain of a disk one file longer, and reading slower.
Flattening copies what still is in the lower files into the file that is written to. The lower
files stay, for the snapshots that need them. Interrupting the command (Ctrl-C) gives it up; what
was copied stays copied, so that a second try has less to do.

Exit codes: 0 the disk consists of one file; 1 it was given up; 2 could not do it.")]
pub struct FlattenArgs {
    /// How the machine is reached.
    #[command(flatten)]
    pub control: ControlArgs,
    /// The disk; by default every disk that consists of more than one file and is written to.
    #[arg(value_name = "ID")]
    pub disk: Option<String>,
    /// Most that is copied per second; by default as much as the host gives.
    #[arg(long, value_name = "SIZE", value_parser = values::size)]
    pub rate: Option<u64>,
}
