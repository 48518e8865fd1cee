//! What the Linux suite is told, and what it says.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// What the suite is to do, and where it finds things.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Plan {
    /// Where entries are written, one JSON object per line.
    pub report: PathBuf,
    /// Directory of `snapvm` and `snaptool`.
    pub programs: PathBuf,
    /// A static `e2fsck`, where there is one.
    pub e2fsck: Option<PathBuf>,
    /// How `qemu-img` is run, where there is one: a program and its first arguments.
    pub qemu_img: Option<Vec<String>>,
    /// An empty ext4 file system for the guests' second disk.
    pub files_image: PathBuf,
    /// Directory for everything that is made; on a file system in memory.
    pub work: PathBuf,
    /// Whether only one machine may run at a time: the source is paused while a copy is looked at.
    ///
    /// An emulated processor is too slow for both.
    pub one_at_a_time: bool,
    /// What is to be shown.
    pub rounds: Vec<Round>,
}

/// One scenario.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Round {
    /// The built-in guest: snapshots under load, every page recomputed.
    Builtin {
        /// Virtual processors.
        cpus: u32,
        /// Asynchronous snapshots.
        snapshots: u32,
    },
    /// A Linux guest under every load, snapshotted and restored again and again.
    Linux {
        /// The kernel.
        kernel: PlannedKernel,
        /// Virtual processors.
        cpus: u32,
        /// Asynchronous snapshots, each of them restored.
        snapshots: u32,
        /// What the guest's disks are, and how a snapshot keeps them.
        disks: Disks,
        /// What else is asked of the machine.
        extra: Extra,
    },
    /// A Linux guest whose `snapvm` is killed in the midst of snapshots, and which is started again on its disks.
    Killed {
        /// The kernel.
        kernel: PlannedKernel,
        /// What the guest's disks are, and how a snapshot keeps them.
        disks: Disks,
        /// Snapshots in whose midst it is killed, each at another moment.
        kills: u32,
    },
    /// A program that is run and must succeed.
    Program {
        /// Name of the scenario.
        name: String,
        /// The program with its arguments.
        command: Vec<String>,
    },
}

/// What the disks of a Linux guest are, and how a snapshot keeps them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Disks {
    /// Raw files, which are copied.
    RawCopied,
    /// Raw files, frozen under a first overlay; then overlays on overlays.
    RawOverlaid,
    /// qcow2 images, frozen under overlays.
    Qcow2Overlaid,
    /// qcow2 images with an internal snapshot each.
    Qcow2Internal,
}

/// What is asked of a Linux machine besides disks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Extra {
    /// Nothing.
    Nothing,
    /// The host's kernel serves vsock, so that it writes guest memory itself.
    Vhost,
    /// A network interface, a console device and a balloon.
    Devices,
}

/// A kernel that the suite boots.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PlannedKernel {
    /// Name for reports.
    pub name: String,
    /// The image.
    pub image: PathBuf,
    /// The initramfs with the test guest and this kernel's modules.
    pub initrd: PathBuf,
    /// Whether it knows the generation id of virtual machines.
    pub knows_generation_id: bool,
}

/// What the suite says.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "entry", rename_all = "snake_case")]
pub enum Entry {
    /// A step of a scenario was taken.
    Step(Step),
    /// A log of something that went wrong.
    Log {
        /// Name of the file to keep it in.
        name: String,
        /// Its end.
        text: String,
    },
    /// The suite has come to its end.
    Finished,
}

/// One step of a scenario.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Step {
    /// The scenario.
    pub scenario: String,
    /// The step.
    pub step: String,
    /// Why it failed; nothing when it went well.
    pub error: Option<String>,
    /// How long it took.
    pub seconds: f64,
    /// What was measured; times in milliseconds have names that end in `_ms`.
    pub figures: BTreeMap<String, f64>,
    /// What was seen in words, such as the path that the kernel made possible.
    pub facts: BTreeMap<String, String>,
}
