//! Arguments that describe a machine and its guest: `snapvm run`, `snapvm restore` and `snapvm serve`.

use std::path::PathBuf;

use clap::{ArgGroup, Args, ValueEnum};

use vmm::CpuModel;

use crate::description::Backing;
use crate::values::devices::{Balloon, DISK, Disk, NET, Net, VSOCK, Vsock};
use crate::values::{self, Assignment, Terminal};

/// Everything that describes a machine, and so cannot stand beside a description in a file.
const DESCRIBING: [&str; 22] = [
    "kernel",
    "initrd",
    "cmdline",
    "builtin",
    "working_set",
    "write_rate",
    "words",
    "incompressible",
    "seed",
    "memory",
    "cpus",
    "cpu",
    "disks",
    "nets",
    "vsock",
    "console",
    "balloon",
    "no_rng",
    "serial",
    "memory_backing",
    "no_thp",
    "name",
];

/// Arguments of `snapvm run`.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("what").required(true).args(["kernel", "builtin", "config"]))]
#[command(after_help = "\
Examples:
  snapvm run --kernel vmlinuz --initrd initrd --cmdline console=ttyS0 --memory 256M --cpus 2 --api-sock vm.sock
  snapvm run --kernel vmlinuz --cmdline 'console=ttyS0 root=/dev/vda' --memory 1G --disk file=root.qcow2 \\
      --net tap=tap0,mac=52:54:00:12:34:56 --vsock cid=3,uds=vm.vsock --balloon free-page-reporting
  snapvm run --config machine.toml --api-sock vm.sock
  snapvm run --builtin --memory 1G --cpus 2 --api-sock vm.sock

A machine.toml has the same names: kernel = \"vmlinuz\", memory = \"1G\", [[disks]] with id, file,
format and readonly, [[nets]], [vsock], [balloon]; --no-rng is rng = false. It stands instead of
the flags, not beside them.

With --serial stdio on a terminal every key goes to the guest, Ctrl-C too; Ctrl-A x ends the
machine, Ctrl-A h lists the keys. The machine runs in the foreground until the guest stops or
SIGINT or SIGTERM arrives.")]
pub struct RunArgs {
    /// Boot this kernel: a Linux bzImage, or an ELF file with a PVH entry note.
    #[arg(long, value_name = "FILE")]
    pub kernel: Option<PathBuf>,
    /// Initial RAM disk of the kernel.
    #[arg(long, value_name = "FILE", requires = "kernel")]
    pub initrd: Option<PathBuf>,
    /// Command line given to the kernel.
    #[arg(long, value_name = "TEXT", default_value = "", requires = "kernel")]
    pub cmdline: String,
    /// Boot the built-in guest, which writes memory in an order that `snapvm check` can recompute.
    #[arg(long)]
    pub builtin: bool,
    /// Read the whole description of the machine from a TOML or JSON file.
    #[arg(long, value_name = "FILE", conflicts_with_all = DESCRIBING)]
    pub config: Option<PathBuf>,
    /// Memory of the guest.
    #[arg(long, value_name = "SIZE", default_value = "512M", value_parser = values::size)]
    pub memory: u64,
    /// Number of virtual processors.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub cpus: u32,
    /// The processor that the guest sees: host, x86-64-v2 or x86-64-v3; the latter two travel between hosts.
    #[arg(long, value_name = "MODEL", default_value_t = CpuModel::Host)]
    pub cpu: CpuModel,
    /// The guest's virtio devices.
    #[command(flatten)]
    pub devices: DeviceArgs,
    /// How the machine is run and controlled.
    #[command(flatten)]
    pub machine: MachineArgs,
    /// How the built-in guest behaves.
    #[command(flatten)]
    pub builtin_args: BuiltinArgs,
}

/// The guest's virtio devices.
#[derive(Debug, Args)]
#[command(next_help_heading = "Devices")]
pub struct DeviceArgs {
    /// Add a disk; repeatable. Names are disk0, disk1 and so on unless given. The format is qcow2 for a file named
    /// .qcow2, and raw for .raw and .img. cache=none passes by the host's page cache. on-full=pause pauses the machine
    /// when the host has no room for a write, instead of reporting an error to the guest.
    #[arg(long = "disk", value_name = DISK)]
    pub disks: Vec<Disk>,
    /// Add a network interface on a tap of the host; repeatable. Names are net0, net1 and so on unless given.
    #[arg(long = "net", value_name = NET)]
    pub nets: Vec<Net>,
    /// Add a socket device; host programs reach it by the Unix socket, or by the kernel's vhost.
    #[arg(long, value_name = VSOCK)]
    pub vsock: Option<Vsock>,
    /// Add a console device that goes to stdio, null or file:PATH.
    #[arg(long, value_name = "WHERE")]
    pub console: Option<Terminal>,
    /// Add a balloon, which gives memory back that the guest does not need.
    #[arg(long, value_name = "free-page-reporting,target=SIZE", num_args = 0..=1, default_missing_value = "")]
    pub balloon: Option<Balloon>,
    /// Leave out the entropy device.
    #[arg(long)]
    pub no_rng: bool,
}

/// Arguments of `snapvm restore`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  snapvm restore out.vmsnap --api-sock vm2.sock
  snapvm restore out.vmsnap --api-sock vm2.sock --serial file:serial.log --paused
  snapvm restore out.vmsnap --disk disk0=second.qcow2 --net net0=tap1 --vsock-uds second.vsock
  snapvm restore out.vmsnap --disks in-place

Memory size, processors and devices come from the file. Each disk gets a new overlay over its
frozen image or internal snapshot, or a working copy of its copy, so that the file can be restored
again: a temporary one, or where --disk says. A disk whose images are missing or were changed is
refused. Disks that the guest only reads, taps and sockets are those that the file names unless
others are given: restore only files that you trust. A host that lacks a processor feature which
the guest has seen is refused, with the feature's name.")]
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
    /// Put a disk's overlay or working copy here, where nothing may be yet; if the disk was only recorded, use this file.
    #[arg(long = "disk", value_name = "ID=FILE")]
    pub disk: Vec<Assignment>,
    /// Give the guest overlays of its own, or apply internal snapshots and go on in the images: what they hold now is lost.
    #[arg(long, value_enum, default_value_t)]
    pub disks: RestoreDisks,
    /// Compare the content of all images with the snapshot, even if their length and time have not changed.
    #[arg(long)]
    pub check_disks: bool,
    /// Connect a network interface to this tap.
    #[arg(long = "net", value_name = "ID=TAP")]
    pub nets: Vec<Assignment>,
    /// Unix socket of the socket device.
    #[arg(long, value_name = "PATH")]
    pub vsock_uds: Option<PathBuf>,
    /// Context id of the socket device.
    #[arg(long, value_name = "N")]
    pub vsock_cid: Option<u32>,
    /// Where the console device goes: stdio, null or file:PATH.
    #[arg(long, value_name = "WHERE")]
    pub console: Option<Terminal>,
    /// How the machine is run and controlled.
    #[command(flatten)]
    pub machine: MachineArgs,
}

/// What a restored guest writes to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum RestoreDisks {
    /// Overlays and working copies of its own.
    #[default]
    Overlay,
    /// The images with the internal snapshots.
    InPlace,
}

/// Arguments of `snapvm serve`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  snapvm serve --api-sock vm.sock &
  curl --unix-socket vm.sock -X PUT http://vm/v1/machine -d @machine.json
  snapvm status --api-sock vm.sock

The description is that of `snapvm run --config`, as JSON and with absolute paths. One machine per
process; the process ends with it, or by SIGINT, SIGTERM or PUT /v1/shutdown.")]
pub struct ServeArgs {
    /// Socket to create for describing and controlling the machine.
    #[arg(long, value_name = "PATH")]
    pub api_sock: PathBuf,
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
#[command(next_help_heading = None)]
pub struct MachineArgs {
    /// Socket to create for controlling the machine; without it nothing can be asked of the machine.
    #[arg(long, value_name = "PATH")]
    pub api_sock: Option<PathBuf>,
    /// Where the guest's serial port goes: stdio, null or file:PATH.
    #[arg(long, value_name = "WHERE", default_value_t = Terminal::Stdio)]
    pub serial: Terminal,
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
