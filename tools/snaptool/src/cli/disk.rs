//! `snaptool disk`: what may be asked of a disk image.
//!
//! Formats are stated, never guessed from content: a guest writes the content of a raw disk and could make it look
//! like an image that names any file of the host as its backing file.

mod help;

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
#[command(arg_required_else_help = true, after_help = help::EXIT_CODES)]
pub struct DiskArgs {
    #[command(subcommand)]
    pub command: DiskCommand,
}

#[derive(Debug, Subcommand)]
pub enum DiskCommand {
    /// Show an image and its backing chain.
    #[command(after_help = help::INFO_EXAMPLES)]
    Info(InfoArgs),
    /// Check the metadata of a qcow2 image: corruptions and leaks.
    #[command(after_help = help::CHECK_EXAMPLES)]
    Check(CheckArgs),
    /// Repair the metadata of a qcow2 image.
    #[command(after_help = help::REPAIR_EXAMPLES)]
    Repair(RepairArgs),
    /// List, create, apply and delete the internal snapshots of a qcow2 image.
    #[command(after_help = help::SNAPSHOT_EXAMPLES)]
    Snapshot(SnapshotArgs),
    /// Show the ranges that differ between internal snapshots, or one and the active disk.
    #[command(after_help = help::DIFF_EXAMPLES)]
    Diff(DiffArgs),
    /// Show where the content of a disk lies: layer, data or zeros, place in the file.
    #[command(after_help = help::MAP_EXAMPLES)]
    Map(MapArgs),
    /// Compare the content of two disks, with what is below them.
    #[command(after_help = help::COMPARE_EXAMPLES)]
    Compare(CompareArgs),
    /// Copy everything that is in backing files into the image, which then stands alone.
    #[command(after_help = help::FLATTEN_EXAMPLES)]
    Flatten(FlattenArgs),
    /// Write what an overlay holds into its backing file.
    #[command(after_help = help::COMMIT_EXAMPLES)]
    Commit(CommitArgs),
    /// Create a qcow2 image, empty or as an overlay.
    #[command(after_help = help::CREATE_EXAMPLES)]
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

#[derive(Debug, Args)]
pub struct CreateArgs {
    /// The new image; it must not exist.
    #[arg(value_name = "IMAGE")]
    pub path: PathBuf,

    /// The length of the disk, such as 20G; by default that of the backing file.
    #[arg(value_name = "SIZE", required_unless_present = "backing", value_parser = size)]
    pub size: Option<ByteSize>,

    /// The backing file, by a name as seen from the directory of the new image.
    #[arg(long, short = 'b', value_name = "FILE", requires = "backing_format")]
    pub backing: Option<PathBuf>,

    /// The format of the backing file, which the image then states.
    #[arg(long, short = 'F', value_name = "FORMAT")]
    pub backing_format: Option<FormatName>,

    /// Bytes of a cluster, a power of two from 512 to 2M.
    #[arg(long, value_name = "SIZE", default_value = "64K", value_parser = size)]
    pub cluster_size: ByteSize,

    /// Bits of a reference count, a power of two from 1 to 64; one bit allows no snapshots.
    #[arg(long, value_name = "BITS", default_value_t = 16)]
    pub refcount_bits: u32,

    /// Print one JSON object instead of text.
    #[arg(long)]
    pub json: bool,
}

/// Reads a size as all tools for disks do: `64K` is 64 KiB.
fn size(text: &str) -> Result<ByteSize, String> {
    let binary = match text.bytes().last() {
        Some(unit) if unit.is_ascii_alphabetic() && !unit.eq_ignore_ascii_case(&b'b') => format!("{text}iB"),
        _ => text.to_owned(),
    };
    binary.parse()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_with_one_letter_is_in_powers_of_two() {
        for (text, bytes) in [
            ("512", 512),
            ("64K", 64 << 10),
            ("64m", 64 << 20),
            ("1GiB", 1 << 30),
            ("2T", 2 << 40),
        ] {
            assert_eq!(size(text).map(|size| size.as_u64()), Ok(bytes), "{text}");
        }
        assert!(size("12parsecs").is_err());
    }
}
