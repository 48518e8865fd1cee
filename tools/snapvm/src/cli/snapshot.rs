//! Arguments of `snapvm snapshot`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use crate::api::{Codec, Disks, Mode, OnPressure};
use crate::values::{self, Assignment, Label};

/// Arguments of `snapvm snapshot`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  snapvm snapshot --api-sock vm.sock out.vmsnap
  snapvm snapshot --api-sock vm.sock out.vmsnap --codec lz4 --label why=nightly --json
  snapvm snapshot --api-sock vm.sock second.vmsnap --parent out.vmsnap
  snapvm snapshot --api-sock vm.sock out.vmsnap --mode stop
  snapvm snapshot --api-sock vm.sock out.vmsnap --disks overlay --frozen data=/images/data.monday.qcow2

With --disks overlay the image of a disk d.qcow2 is renamed FILE.ID.qcow2, in its own directory,
and belongs to the snapshot from then on; the machine goes on in a new overlay over it, which has
the name d.qcow2: that name always is the live disk. A raw disk d.raw keeps its name as the frozen
image, and the live disk is d.raw.qcow2. No disk is copied, and the guest is not held longer for a
larger one. With --disks internal each qcow2 image gets an internal snapshot. With --disks copy
raw disks are copied to FILE.ID.raw.

Interrupting the command (Ctrl-C) gives up the snapshot. Whatever happens to a snapshot, the guest
runs on and nothing incomplete is left under the name of the file.

Exit codes: 0 the file is complete; 1 the snapshot was given up (cancelled, or pressure with
--on-pressure fail); 2 could not do it.")]
pub struct SnapshotArgs {
    /// Socket on which the machine is controlled.
    #[arg(long, value_name = "PATH")]
    pub api_sock: PathBuf,
    /// The file to write; an existing one is replaced once the new one is complete.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Keep the guest running while its memory is written (async), or stopped until all is written (stop).
    #[arg(long, value_enum, default_value_t)]
    pub mode: Mode,
    /// How chunks of memory are compressed.
    #[arg(long, value_enum, default_value_t)]
    pub codec: Codec,
    /// Level of zstd, from fast negative ones to 19.
    #[arg(long, value_name = "N", default_value_t = 1, allow_negative_numbers = true,
          value_parser = clap::value_parser!(i32).range(-50..=19))]
    pub level: i32,
    /// Bytes of memory per chunk, a power of two from 4K to 2M.
    #[arg(long, value_name = "SIZE", default_value = "64K", value_parser = values::size)]
    pub chunk: u64,
    /// When the guest writes faster than the file takes it: let the guest wait, or give up the snapshot.
    #[arg(long, value_enum, default_value_t)]
    pub on_pressure: OnPressure,
    /// Memory for copies of chunks that the guest is about to change.
    #[arg(long, value_name = "SIZE", default_value = "64M", value_parser = values::size)]
    pub buffer: u64,
    /// Longest wait of one write of the guest before the pressure policy decides.
    #[arg(long, value_name = "TIME", default_value = "100ms", value_parser = values::duration)]
    pub max_stall: Duration,
    /// Longest time from the command to the instant that the snapshot shows; 0 protects memory inside the pause.
    #[arg(long, value_name = "TIME", default_value = "250ms", value_parser = values::duration)]
    pub max_arm: Duration,
    /// How the disks that the guest can write are kept as of the same instant.
    #[arg(long, value_enum, default_value_t)]
    pub disks: Disks,
    /// Name of a disk's frozen image, on the file system of the disk; repeatable.
    #[arg(long = "frozen", value_name = "ID=FILE")]
    pub frozen: Vec<Assignment>,
    /// Store only what differs from this snapshot, which stays needed for reading.
    #[arg(long, value_name = "FILE")]
    pub parent: Option<PathBuf>,
    /// Free-form label kept in the file; repeatable.
    #[arg(long = "label", value_name = "KEY=VALUE")]
    pub labels: Vec<Label>,
    /// Print one JSON object instead of text.
    #[arg(long)]
    pub json: bool,
}
