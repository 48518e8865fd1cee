//! What a save or a restore cost: the figures for people, for JSON and for the statistics section of the file.
//!
//! Times are whole microseconds and sizes are bytes, so that a figure means the same in every encoding. The
//! [`Statistics`] are what is known before the file is complete and are stored in it; the [`SaveReport`] adds what
//! only the finished file can tell.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use memsnap::{CaptureReport, StallReport};
use snapfile::{ChunkCounts, Summary};

use crate::control::micros;
use crate::disk::{DisksMode, KeptDisk, PointFigures};

/// Whether the guest runs while its memory is written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SaveMode {
    /// The guest runs on; memory is copied before it changes.
    #[default]
    Async,
    /// The guest is held until all is written.
    Stop,
}

/// What a complete snapshot cost, and what it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SaveReport {
    /// Identity of the guest state, in hexadecimal.
    pub root_digest: String,
    /// Length of the file.
    pub file_bytes: u64,
    /// Bytes of encoded chunks in it.
    pub stored_bytes: u64,
    /// Chunks by the way they are stored.
    pub chunks: StoredChunks,
    /// Making the file durable and giving it its name.
    pub commit_us: u64,
    /// From the command until the file had its name.
    pub total_us: u64,
    /// What is also stored in the file.
    pub statistics: Statistics,
    /// What was done with each disk, in the order of the guest.
    pub disks: Vec<SavedDisk>,
}

/// What a snapshot did with a disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedDisk {
    /// Name of the disk.
    pub id: String,
    /// How its content is kept.
    pub mode: DisksMode,
    /// The frozen image, the image with the internal snapshot, or the copy; nothing if it was only recorded.
    pub file: Option<PathBuf>,
    /// Id of the internal snapshot, if there is one.
    pub internal: Option<String>,
    /// Files that the disk consists of now; a long chain makes reading slow.
    pub depth: usize,
}

/// Chunks by the way they are stored.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredChunks {
    /// All zero; nothing is stored.
    pub zero: u64,
    /// One repeated pattern.
    pub fill: u64,
    /// Stored plain.
    pub raw: u64,
    /// Compressed with Zstandard.
    pub zstd: u64,
    /// Compressed with LZ4.
    pub lz4: u64,
    /// Equal to another chunk of the file.
    pub duplicate: u64,
    /// Equal to the parent's chunk.
    pub parent: u64,
}

/// What a snapshot cost, as far as it is known before its file is complete.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Statistics {
    /// Whether the guest ran meanwhile.
    pub mode: SaveMode,
    /// Whether a user had paused the guest before.
    pub was_paused: bool,
    /// From the command to the instant that the snapshot shows.
    pub command_to_capture_point_us: u64,
    /// How long the guest was held for the snapshot; 0 if a user had paused it.
    pub downtime_us: u64,
    /// Before the downtime: letting the devices complete their requests, while the vCPUs ran.
    #[serde(default)]
    pub drain_us: u64,
    /// Of the downtime: parking the vCPUs.
    pub park_us: u64,
    /// Of the downtime: saving the state of vCPUs and devices.
    pub state_us: u64,
    /// Of the downtime: protecting the memory that the guest had just touched.
    pub freeze_us: u64,
    /// Of the downtime: letting the vCPUs run again.
    pub resume_us: u64,
    /// What the memory capture cost.
    pub capture: CaptureFigures,
    /// What the disks cost.
    #[serde(default)]
    pub disks: DiskFigures,
}

/// What the disks cost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DiskFigures {
    /// Disks whose content is kept, in any mode but `none`.
    pub count: u64,
    /// Creating overlays and files for copies, before the capture point.
    pub prepare_us: u64,
    /// Of the downtime: switching all disks to their overlays.
    pub switch_us: u64,
    /// Of the downtime: creating all internal snapshots.
    pub internal_us: u64,
    /// From the capture point until the last frozen image was durable.
    pub settle_us: u64,
    /// Length of the layers that were read for their fingerprints.
    pub fingerprint_bytes: u64,
    /// From the capture point until all layers had a fingerprint.
    pub fingerprint_us: u64,
    /// Longest time, from the capture point, that a disk took no requests while it was copied.
    pub hold_us: u64,
    /// From the capture point until every copy was durable and had its fingerprint.
    pub copy_us: u64,
    /// Length of the disks that were copied, holes included.
    pub bytes: u64,
}

/// What a memory capture cost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaptureFigures {
    /// How unpopulated memory was covered; absent where nothing was protected.
    pub kernel_path: Option<String>,
    /// Guest memory.
    pub memory_bytes: u64,
    /// Guest memory per chunk.
    pub chunk_bytes: u64,
    /// Chunks of guest memory.
    pub chunks: u64,
    /// Threads that walked memory and encoded.
    pub walkers: u64,
    /// Protecting memory while the guest ran.
    pub arm_us: u64,
    /// Passes over touched chunks after the first pass over everything.
    pub arm_rounds: u64,
    /// Chunks protected again while the guest was held.
    pub chunks_touched_at_freeze: u64,
    /// Bytes protected for the first time while the guest was held.
    pub bytes_unarmed_at_freeze: u64,
    /// Writes that waited before the capture point.
    pub faults_arming: u64,
    /// Writes that waited after the capture point.
    pub faults_draining: u64,
    /// How long writes waited before the capture point.
    pub stall_arming: StallFigures,
    /// How long writes waited after the capture point.
    pub stall_draining: StallFigures,
    /// Writes that had to wait for a copy buffer.
    pub faults_throttled: u64,
    /// Memory copied aside because of a write or a discard.
    pub copied_bytes: u64,
    /// Memory that the guest gave back during the capture.
    #[serde(default)]
    pub discarded_bytes: u64,
    /// Most copy buffers in use at once.
    pub buffer_high_water_bytes: u64,
    /// Chunks found to be unpopulated without touching them.
    pub chunks_unpopulated: u64,
    /// Memory handed to the encoders.
    pub encoded_bytes: u64,
    /// From the capture point until every chunk was in the file.
    pub drain_us: u64,
}

/// How long writes of the guest waited.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StallFigures {
    /// Writes that waited.
    pub count: u64,
    /// Half of them waited no longer than this.
    pub p50_us: u64,
    /// 99 of 100 waited no longer than this.
    pub p99_us: u64,
    /// The longest wait.
    pub max_us: u64,
}

/// What a restore cost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoreReport {
    /// Name of the machine when it was saved; may be empty.
    pub vm_name: String,
    /// Number of virtual processors.
    pub cpus: u32,
    /// Guest memory.
    pub memory_bytes: u64,
    /// Opening the file and its parents, and reading the machine's state.
    pub open_us: u64,
    /// Making and checking working copies of the disks.
    pub disks_us: u64,
    /// Filling guest memory.
    pub memory_us: u64,
    /// Creating the machine and giving it its state.
    pub machine_us: u64,
    /// From the command until the machine can run.
    pub total_us: u64,
}

impl SaveReport {
    pub(crate) fn new(
        statistics: Statistics,
        disks: Vec<SavedDisk>,
        summary: &Summary,
        commit: Duration,
        total: Duration,
    ) -> Self {
        Self {
            root_digest: summary.root_digest.to_string(),
            file_bytes: summary.file_len,
            stored_bytes: summary.stored_bytes,
            chunks: summary.chunks.into(),
            commit_us: micros(commit),
            total_us: micros(total),
            statistics,
            disks,
        }
    }
}

impl SavedDisk {
    pub(crate) fn of(disk: &KeptDisk) -> Self {
        Self {
            id: disk.entry.id.clone(),
            mode: disk.entry.mode,
            file: disk.file.clone(),
            internal: disk.entry.internal.as_ref().map(|internal| internal.id.clone()),
            depth: disk.depth,
        }
    }
}

impl DiskFigures {
    pub(crate) fn of(disks: &[KeptDisk], point: &PointFigures) -> Self {
        let mut figures = Self {
            prepare_us: micros(point.prepare),
            switch_us: micros(point.switch),
            internal_us: micros(point.internal),
            ..Self::default()
        };
        for disk in disks {
            let times = &disk.times;
            figures.count += u64::from(disk.entry.mode != DisksMode::None);
            figures.settle_us = figures.settle_us.max(micros(times.settle));
            figures.fingerprint_bytes += times.fingerprint_bytes;
            figures.fingerprint_us = figures.fingerprint_us.max(micros(times.fingerprint));
            figures.hold_us = figures.hold_us.max(micros(times.hold));
            figures.copy_us = figures.copy_us.max(micros(times.copy));
            figures.bytes += times.copied_bytes;
        }
        figures
    }
}

impl From<ChunkCounts> for StoredChunks {
    fn from(counts: ChunkCounts) -> Self {
        let ChunkCounts {
            zero,
            fill,
            raw,
            zstd,
            lz4,
            duplicate,
            parent,
        } = counts;
        Self {
            zero,
            fill,
            raw,
            zstd,
            lz4,
            duplicate,
            parent,
        }
    }
}

impl From<&CaptureReport> for CaptureFigures {
    fn from(report: &CaptureReport) -> Self {
        Self {
            kernel_path: report.kernel_path.map(|path| kernel_path_name(path).to_owned()),
            memory_bytes: report.memory_bytes,
            chunk_bytes: u64::from(report.chunk_bytes),
            chunks: report.chunks,
            walkers: report.walkers as u64,
            arm_us: micros(report.arm),
            arm_rounds: u64::from(report.arm_rounds),
            chunks_touched_at_freeze: report.chunks_touched_at_freeze,
            bytes_unarmed_at_freeze: report.bytes_unarmed_at_freeze,
            faults_arming: report.faults_arming,
            faults_draining: report.faults_draining,
            stall_arming: (&report.stall_arming).into(),
            stall_draining: (&report.stall).into(),
            faults_throttled: report.faults_throttled,
            copied_bytes: report.copied_bytes,
            discarded_bytes: report.discarded_bytes,
            buffer_high_water_bytes: report.buffer_high_water_bytes,
            chunks_unpopulated: report.chunks_unpopulated,
            encoded_bytes: report.bytes_encoded,
            drain_us: micros(report.drain),
        }
    }
}

impl From<&StallReport> for StallFigures {
    fn from(report: &StallReport) -> Self {
        Self {
            count: report.count,
            p50_us: micros(report.p50),
            p99_us: micros(report.p99),
            max_us: micros(report.max),
        }
    }
}

fn kernel_path_name(path: memsnap::KernelPath) -> &'static str {
    match path {
        memsnap::KernelPath::Auto => "auto",
        memsnap::KernelPath::WpUnpopulated => "wp-unpopulated",
        memsnap::KernelPath::PopulateFirst => "populate-first",
    }
}
