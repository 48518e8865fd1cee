//! The command line: what may be asked, and the help that says so.
//!
//! Everything here is declaration. Checks that need a file belong to the commands; the exit codes
//! (0 good, 1 "no", 2 could not do it) are applied in `main.rs`.

pub mod disk;

use std::{path::PathBuf, sync::OnceLock};

use clap::{Args, Parser, Subcommand, ValueEnum};
use serde::Serialize;

/// Inspects, verifies, compares and extracts vmsnap snapshot files.
///
/// Needs neither root nor KVM, and never writes to a snapshot file.
#[derive(Debug, Parser)]
#[command(name = "snaptool", version = version(), arg_required_else_help = true, after_help = EXIT_CODES)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

const EXIT_CODES: &str = "\
Exit codes:
  0  good
  1  no: the file is damaged, the files differ
  2  could not do it";

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show what a snapshot file contains.
    #[command(after_help = INSPECT_EXAMPLES)]
    Inspect(InspectArgs),
    /// Check a snapshot file and name everything that is damaged.
    #[command(after_help = VERIFY_EXAMPLES)]
    Verify(VerifyArgs),
    /// Compare two snapshots: guest memory, vmstate, sections, disks.
    #[command(after_help = DIFF_EXAMPLES)]
    Diff(DiffArgs),
    /// Extract memory and vmstate into plain files.
    #[command(after_help = RESTORE_EXAMPLES)]
    Restore(RestoreArgs),
    /// Work on disk images: info, check, repair, snapshots, diff, map, compare, flatten, commit.
    Disk(disk::DiskArgs),
}

/// Where the snapshots that a file refers to are looked for.
#[derive(Debug, Args)]
pub struct ParentArgs {
    /// A snapshot that may be the parent (or its parent, and so on); may be repeated.
    ///
    /// Every candidate is matched by its root digest, so a wrong one is never used.
    #[arg(long = "parent", value_name = "FILE")]
    pub files: Vec<PathBuf>,

    /// A directory in which the file named by the parent hint is looked for; may be repeated.
    ///
    /// Only the last part of the hint is used. By default the directory of FILE.
    #[arg(long = "parent-dir", value_name = "DIR")]
    pub directories: Vec<PathBuf>,
}

#[derive(Debug, Args)]
pub struct InspectArgs {
    /// The snapshot file.
    pub file: PathBuf,

    /// List the sections, with all that they tell of the capture and its origin.
    #[arg(long)]
    pub sections: bool,

    /// Print the vmstate of every part, or of the parts whose name starts with PART.
    #[arg(long, value_name = "PART", num_args = 0..=1, require_equals = true, default_missing_value = "")]
    pub vmstate: Option<String>,

    /// Print the index entry of every chunk; with --json one object per line.
    #[arg(long, conflicts_with_all = ["sections", "vmstate", "map", "picture"])]
    pub chunks: bool,

    /// Print the memory regions with the chunks of each, by kind.
    #[arg(long)]
    pub map: bool,

    /// Draw guest memory, one cell per run of chunks.
    #[arg(long, conflicts_with = "json")]
    pub picture: bool,

    /// Print one JSON object instead of text.
    #[arg(long)]
    pub json: bool,
}

const INSPECT_EXAMPLES: &str = "\
Examples:
  snaptool inspect vm.vmsnap
  snaptool inspect --picture --map vm.vmsnap
  snaptool inspect --vmstate vm.vmsnap | grep regs.rip
  snaptool inspect --vmstate=vcpu/0 --json vm.vmsnap | jq .vmstate
  snaptool inspect --chunks --json vm.vmsnap | jq -c 'select(.kind == \"data\")'

Numbers in the text form are rounded; --json has exact bytes.";

#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// The snapshot file; - reads a snapshot from standard input, front to back.
    pub file: PathBuf,

    /// Check the structures only: header, footer, index, directory, heads of the sections.
    #[arg(long, conflicts_with = "deep")]
    pub quick: bool,

    /// Also decode every chunk, recompute every digest, follow parents, and check the files of every
    /// disk: each must have its fingerprint, and the metadata of qcow2 images must be sound.
    #[arg(long)]
    pub deep: bool,

    /// Report at most this many findings one by one; the rest is counted.
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub max_findings: usize,

    #[command(flatten)]
    pub parents: ParentArgs,

    /// Print one JSON object instead of text.
    #[arg(long)]
    pub json: bool,
}

const VERIFY_EXAMPLES: &str = "\
Examples:
  snaptool verify vm.vmsnap
  snaptool verify --deep --parent base.vmsnap vm.vmsnap
  ssh host cat vm.vmsnap | snaptool verify -

The default reads every byte of the file once and checks every checksum. A damaged file is
reported structure by structure: offset, clause of the format specification, guest memory lost.";

#[derive(Debug, Args)]
pub struct DiffArgs {
    /// The first snapshot, \"before\".
    #[arg(value_name = "A")]
    pub before: PathBuf,

    /// The second snapshot, \"after\".
    #[arg(value_name = "B")]
    pub after: PathBuf,

    /// Name differing memory by whole chunks, from the digests alone; nothing is decoded.
    #[arg(long)]
    pub by_chunk: bool,

    /// Leave out the content of disks; their fingerprints are compared anyway.
    #[arg(long)]
    pub no_disks: bool,

    /// Print at most this many address ranges, and fields per section (0: all).
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub limit: usize,

    #[command(flatten)]
    pub parents: ParentArgs,

    /// Print one JSON object instead of text; it is not cut by --limit.
    #[arg(long)]
    pub json: bool,
}

const DIFF_EXAMPLES: &str = "\
Examples:
  snaptool diff before.vmsnap after.vmsnap
  snaptool diff --limit 0 before.vmsnap after.vmsnap | grep '^memory:'
  snaptool diff --by-chunk --json before.vmsnap after.vmsnap | jq .memory.differing_bytes

Exit code 0: the same guest state; 1: they differ.
Equal memory is recognised by digest and never decoded, whatever the chunk sizes. Disks are read only
where their fingerprints differ, and there only what is not in layers that both share.";

#[derive(Debug, Args)]
#[group(id = "output", required = true, multiple = true, args = ["memory", "elf_core", "vmstate"])]
pub struct RestoreArgs {
    /// The snapshot file.
    pub file: PathBuf,

    /// Write guest memory: the offset in the file is the guest physical address; what is zero or
    /// no memory is left as a hole.
    #[arg(long, value_name = "FILE")]
    pub memory: Option<PathBuf>,

    /// Write an ELF core of memory and vCPU registers for gdb, drgn, crash and the like.
    #[arg(long, value_name = "FILE")]
    pub elf_core: Option<PathBuf>,

    /// The addresses of the core's segments; by default virtual if the guest's kernel has any.
    #[arg(long, value_name = "KIND", requires = "elf_core")]
    pub addresses: Option<Addresses>,

    /// Add the virtual addresses of the program that this vCPU runs: the lower half.
    #[arg(long, value_name = "VCPU", requires = "elf_core")]
    pub program: Option<u32>,

    /// Write the vmstate as JSON; - is standard output.
    #[arg(long, value_name = "FILE")]
    pub vmstate: Option<PathBuf>,

    #[command(flatten)]
    pub parents: ParentArgs,

    /// Print one JSON object instead of text.
    #[arg(long)]
    pub json: bool,
}

/// By which addresses a debugger finds memory in a core.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Addresses {
    /// Virtual addresses of the kernel: the upper half of the address space, as the page tables
    /// of the vCPUs map it. Physical address P is at 0x8000000000000000 + P.
    Virtual,
    /// Guest physical addresses.
    Physical,
}

const RESTORE_EXAMPLES: &str = "\
Examples:
  snaptool restore vm.vmsnap --memory mem.raw
  snaptool restore vm.vmsnap --elf-core vm.core && gdb -c vm.core -ex 'info threads'
  drgn -c vm.core -s vmlinux
  crash vmlinux vm.core
  snaptool restore vm.vmsnap --vmstate - | jq '.parts[\"vcpu/0\"].state.regs'

Files appear under their names only when complete (mode 0600); existing ones are replaced.
A core has one thread per vCPU. That of a Linux guest also has the kernel's VMCOREINFO, found in
memory, which tells drgn and crash where the kernel is; with gdb, add the KASLR offset that is
printed: add-symbol-file vmlinux -o OFFSET.";

fn version() -> &'static str {
    static VERSION: OnceLock<String> = OnceLock::new();
    VERSION.get_or_init(|| {
        let (major, minor) = snapfile::FORMAT_VERSION;
        format!(
            "{} (reads snapshot formats {major}.x; knows {major}.{minor})",
            env!("CARGO_PKG_VERSION")
        )
    })
}
