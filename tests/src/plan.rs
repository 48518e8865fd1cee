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
        /// Whether the host's kernel serves vsock, so that it writes guest memory itself.
        vhost: bool,
    },
    /// A program that is run and must succeed.
    Program {
        /// Name of the scenario.
        name: String,
        /// The program with its arguments.
        command: Vec<String>,
    },
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
