//! `snaptool disk`: what may be asked of a disk image.
//!
//! Formats are stated, never guessed from content: a guest writes the content of a raw disk and could make it look
//! like an image that names any file of the host as its backing file.

use std::path::PathBuf;

use bytesize::ByteSize;
use clap::{Args, Subcommand, ValueEnum};

/// A disk image and what it takes to open it.
#[derive(Debug, Clone, Args)]
pub struct ImageArgs {
    /// The image.
    #[arg(value_name = "IMAGE")]
    pub path: PathBuf,

    /// The format; by default that of the name: .qcow2, or .raw and .img.
    #[arg(long, short = 'f', value_name = "FORMAT")]
    pub format: Option<FormatName>,
}

/// A format by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum FormatName {
    /// The bytes of the file are those of the disk.
    Raw,
    /// qcow2, version 2 or 3.
    Qcow2,
}

/// Works on disk images: qcow2, and raw files where they can take part.
#[derive(Debug, Args)]
#[command(arg_required_else_help = true, after_help = EXIT_CODES)]
pub struct DiskArgs {
    #[command(subcommand)]
    pub command: DiskCommand,
}

const EXIT_CODES: &str = "\
Exit codes:
  check:    0 clean, 1 could not do it, 2 corruptions, 3 leaks only, 63 the format has nothing to check
  compare:  0 the same, 1 different, 2 could not do it
  diff:     0 the same, 1 different, 2 could not do it
  others:   0 done, 2 could not do it

An image that a machine runs on is locked and refused, as it is by qemu-img; info, check, map, diff and
compare read it nevertheless with --force-share, but what they see may be half written.";

#[derive(Debug, Subcommand)]
pub enum DiskCommand {
    /// Show an image and its backing chain.
    #[command(after_help = INFO_EXAMPLES)]
    Info(InfoArgs),
    /// Check the metadata of a qcow2 image: corruptions and leaks.
    #[command(after_help = CHECK_EXAMPLES)]
    Check(CheckArgs),
    /// Repair the metadata of a qcow2 image.
    #[command(after_help = REPAIR_EXAMPLES)]
    Repair(RepairArgs),
    /// List, create, apply and delete the internal snapshots of a qcow2 image.
    #[command(after_help = SNAPSHOT_EXAMPLES)]
    Snapshot(SnapshotArgs),
    /// Show the ranges that differ between internal snapshots, or one and the active disk.
    #[command(after_help = DIFF_EXAMPLES)]
    Diff(DiffArgs),
    /// Show where the content of a disk lies: layer, data or zeros, place in the file.
    #[command(after_help = MAP_EXAMPLES)]
    Map(MapArgs),
    /// Compare the content of two disks, with what is below them.
    #[command(after_help = COMPARE_EXAMPLES)]
    Compare(CompareArgs),
    /// Copy everything that is in backing files into the image, which then stands alone.
    #[command(after_help = FLATTEN_EXAMPLES)]
    Flatten(FlattenArgs),
    /// Write what an overlay holds into its backing file.
    #[command(after_help = COMMIT_EXAMPLES)]
    Commit(CommitArgs),
    /// Create a qcow2 image, empty or as an overlay.
    #[command(after_help = CREATE_EXAMPLES)]
    Create(CreateArgs),
}

#[derive(Debug, Args)]
pub struct InfoArgs {
    #[command(flatten)]
    pub image: ImageArgs,

    /// Read the image even if a machine writes it.
    #[arg(long, short = 'U')]
    pub force_share: bool,

    /// Print one JSON object instead of text.
    #[arg(long)]
    pub json: bool,
}

const INFO_EXAMPLES: &str = "\
Examples:
  snaptool disk info data.qcow2
  snaptool disk info --force-share --json data.qcow2 | jq '.layers[].file'";

#[derive(Debug, Args)]
pub struct CheckArgs {
    #[command(flatten)]
    pub image: ImageArgs,

    /// Repair what is found, as `disk repair` does.
    #[arg(long, value_name = "WHAT", conflicts_with = "force_share")]
    pub repair: Option<RepairWhat>,

    /// Report at most this many findings one by one; the rest is counted.
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub max_findings: usize,

    /// Read the image even if a machine writes it.
    #[arg(long, short = 'U')]
    pub force_share: bool,

    /// Print one JSON object instead of text.
    #[arg(long)]
    pub json: bool,
}

const CHECK_EXAMPLES: &str = "\
Examples:
  snaptool disk check data.qcow2
  snaptool disk check --json data.qcow2 | jq .leaks
  snaptool disk check --repair leaks data.qcow2

The exit codes are those of qemu-img check: 0 clean, 1 could not do it, 2 corruptions, 3 leaks only,
63 for a format that has nothing to check. With --repair they are for the image as it is afterwards.
Leaks waste room and harm nothing; corruptions must be repaired before the image is written again.";

/// What is repaired.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RepairWhat {
    /// Clusters that nothing uses become free.
    Leaks,
    /// Leaks, and reference counts and flags that are wrong.
    All,
}

#[derive(Debug, Args)]
pub struct RepairArgs {
    #[command(flatten)]
    pub image: ImageArgs,

    /// What is repaired.
    #[arg(long, value_name = "WHAT", default_value = "all")]
    pub what: RepairWhat,

    /// Print one JSON object instead of text.
    #[arg(long)]
    pub json: bool,
}

const REPAIR_EXAMPLES: &str = "\
Examples:
  snaptool disk repair data.qcow2
  snaptool disk repair --what leaks data.qcow2

Exit codes as those of `disk check`, for the image as it is afterwards. An interrupt or a crash leaves the image
as it was before or repaired.";

#[derive(Debug, Args)]
#[command(arg_required_else_help = true)]
pub struct SnapshotArgs {
    #[command(subcommand)]
    pub command: SnapshotCommand,
}

#[derive(Debug, Subcommand)]
pub enum SnapshotCommand {
    /// List the snapshots.
    List {
        #[command(flatten)]
        image: ImageArgs,

        /// Read the image even if a machine writes it.
        #[arg(long, short = 'U')]
        force_share: bool,

        /// Add the fingerprint of each snapshot, which needs its tables to be read.
        #[arg(long)]
        fingerprint: bool,

        /// Print one JSON object instead of text.
        #[arg(long)]
        json: bool,
    },
    /// Create a snapshot of the disk as it is.
    Create {
        /// Its name.
        name: String,

        #[command(flatten)]
        image: ImageArgs,

        /// Print one JSON object instead of text.
        #[arg(long)]
        json: bool,
    },
    /// Make the disk what it was; what it holds now is lost unless a snapshot has it.
    Apply {
        /// Id or name of the snapshot; an id comes first.
        snapshot: String,

        #[command(flatten)]
        image: ImageArgs,
    },
    /// Delete a snapshot.
    Delete {
        /// Id or name of the snapshot; an id comes first.
        snapshot: String,

        #[command(flatten)]
        image: ImageArgs,
    },
}

const SNAPSHOT_EXAMPLES: &str = "\
Examples:
  snaptool disk snapshot list data.qcow2
  snaptool disk snapshot create before-upgrade data.qcow2
  snaptool disk snapshot apply before-upgrade data.qcow2
  snaptool disk snapshot delete 1 data.qcow2

A crash or an interrupt at any time leaves the image before or after the change, at worst with leaked clusters.
The snapshot file of a machine names the internal snapshots it needs: deleting one makes it unrestorable.";

#[derive(Debug, Args)]
pub struct DiffArgs {
    #[command(flatten)]
    pub image: ImageArgs,

    /// The snapshot, by id or name, that is \"before\".
    #[arg(value_name = "BEFORE")]
    pub before: String,

    /// The snapshot that is \"after\"; by default the disk as it is now.
    #[arg(value_name = "AFTER")]
    pub after: Option<String>,

    /// Print at most this many ranges (0: all).
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub limit: usize,

    /// Read the image even if a machine writes it.
    #[arg(long, short = 'U')]
    pub force_share: bool,

    /// Print one JSON object instead of text; it is not cut by --limit.
    #[arg(long)]
    pub json: bool,
}

const DIFF_EXAMPLES: &str = "\
Examples:
  snaptool disk diff data.qcow2 before-upgrade
  snaptool disk diff --limit 0 data.qcow2 1 2
  snaptool disk diff --json data.qcow2 1 | jq .differing_bytes

Tables and clusters that both share are equal and not read; the rest is compared byte by byte.";

#[derive(Debug, Args)]
pub struct MapArgs {
    #[command(flatten)]
    pub image: ImageArgs,

    /// Read the image even if a machine writes it.
    #[arg(long, short = 'U')]
    pub force_share: bool,

    /// Print a JSON array, with the fields of `qemu-img map --output=json`.
    #[arg(long)]
    pub json: bool,
}

const MAP_EXAMPLES: &str = "\
Examples:
  snaptool disk map data.qcow2
  snaptool disk map --json data.qcow2 | jq '[.[] | select(.data) | .length] | add'";

#[derive(Debug, Args)]
pub struct CompareArgs {
    /// The first image.
    #[arg(value_name = "A")]
    pub first: PathBuf,

    /// The second image.
    #[arg(value_name = "B")]
    pub second: PathBuf,

    /// The format of A; by default that of its name: .qcow2, or .raw and .img.
    #[arg(long, short = 'f', value_name = "FORMAT")]
    pub format: Option<FormatName>,

    /// The format of B; likewise.
    #[arg(long, short = 'F', value_name = "FORMAT")]
    pub second_format: Option<FormatName>,

    /// Lengths that differ are a difference, whatever the rest holds.
    #[arg(long, short = 's')]
    pub strict: bool,

    /// Read the images even if machines write them.
    #[arg(long, short = 'U')]
    pub force_share: bool,

    /// Print one JSON object instead of text.
    #[arg(long)]
    pub json: bool,
}

const COMPARE_EXAMPLES: &str = "\
Examples:
  snaptool disk compare data.qcow2 copy.raw
  snaptool disk compare -f raw disk1 -F qcow2 disk2

Exit code 0: the same; 1: different; 2: could not do it. Where one disk is longer, the rest must be
zeros; with --strict the lengths must be equal.";

#[derive(Debug, Args)]
pub struct FlattenArgs {
    #[command(flatten)]
    pub image: ImageArgs,

    /// Copy at most this much per second, such as 100M.
    #[arg(long, value_name = "SIZE")]
    pub rate: Option<ByteSize>,

    /// Print one JSON object instead of text.
    #[arg(long)]
    pub json: bool,
}

const FLATTEN_EXAMPLES: &str = "\
Examples:
  snaptool disk flatten data.qcow2
  snaptool disk flatten --rate 100M data.qcow2

Backing files are read only and stay as they are. An interrupted run leaves a sound image that still needs them;
the next run goes on where it ended. The disk of a running machine is flattened by `snapvm disk flatten`.";

#[derive(Debug, Args)]
pub struct CommitArgs {
    #[command(flatten)]
    pub image: ImageArgs,

    /// Commit although a snapshot file that still exists needs the backing file as it is.
    #[arg(long)]
    pub force: bool,

    /// Print one JSON object instead of text.
    #[arg(long)]
    pub json: bool,
}

const COMMIT_EXAMPLES: &str = "\
Examples:
  snaptool disk commit data.qcow2

The overlay stays as it is, so that an interrupt or a crash loses nothing: the next run writes everything again.
Every other overlay on the same backing file loses its base, and a snapshot file that needs it can no longer be
restored: where the image names such a snapshot, and it exists, the command refuses.";

#[derive(Debug, Args)]
pub struct CreateArgs {
    /// The new image; it must not exist.
    #[arg(value_name = "IMAGE")]
    pub path: PathBuf,

    /// The length of the disk, such as 20G; by default that of the backing file.
    #[arg(value_name = "SIZE", required_unless_present = "backing")]
    pub size: Option<ByteSize>,

    /// The backing file, by a name as seen from the directory of the new image.
    #[arg(long, short = 'b', value_name = "FILE", requires = "backing_format")]
    pub backing: Option<PathBuf>,

    /// The format of the backing file, which the image then states.
    #[arg(long, short = 'F', value_name = "FORMAT")]
    pub backing_format: Option<FormatName>,

    /// Bytes of a cluster, a power of two from 512 to 2M.
    #[arg(long, value_name = "SIZE", default_value = "64KiB")]
    pub cluster_size: ByteSize,

    /// Bits of a reference count, a power of two from 1 to 64; one bit allows no snapshots.
    #[arg(long, value_name = "BITS", default_value_t = 16)]
    pub refcount_bits: u32,

    /// Print one JSON object instead of text.
    #[arg(long)]
    pub json: bool,
}

const CREATE_EXAMPLES: &str = "\
Examples:
  snaptool disk create data.qcow2 20G
  snaptool disk create -b base.raw -F raw data.qcow2";
