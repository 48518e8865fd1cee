//! Watching and stopping a save from other threads.
//!
//! A [`SaveControl`] is made before the save and shared with whoever wants to look or to cancel. A cancel is
//! authoritative until the file gets its final name; after that instant the snapshot exists and a cancel comes too
//! late.
//!
//! Nothing here waits: the atomics are only read for display, and the cancel flag is that of the memory capture,
//! which is set once and never cleared.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use memsnap::CaptureControl;

use crate::error::{Error, Result};
use crate::run_switch::RunSwitch;

/// What a save is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Asked for, nothing done yet.
    Waiting,
    /// Memory is being protected while the guest runs.
    Arming,
    /// The guest is held: the capture point.
    Held,
    /// Memory is being written to the file.
    Draining,
    /// Sections and index are being written and made durable.
    Committing,
    /// Over, one way or the other.
    Finished,
}

const PHASES: [Phase; 6] = [
    Phase::Waiting,
    Phase::Arming,
    Phase::Held,
    Phase::Draining,
    Phase::Committing,
    Phase::Finished,
];

/// How far a save is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SaveProgress {
    /// What it is doing.
    pub phase: Phase,
    /// Time since the save began, in microseconds.
    pub elapsed_us: u64,
    /// Chunks of guest memory; 0 until known.
    pub chunks_total: u64,
    /// Chunks in the file.
    pub chunks_done: u64,
    /// Guest memory in the file, in bytes before compression.
    pub plain_bytes: u64,
    /// Writes of the guest that waited for a copy since the capture point.
    pub faults: u64,
    /// Length of the file so far.
    pub file_bytes: u64,
    /// All of guest memory, in bytes; 0 until known.
    pub memory_bytes: u64,
    /// All that is read of disks, to copy them or for their fingerprints, in bytes; grows until all is known.
    #[serde(default)]
    pub disk_bytes_total: u64,
    /// What of that has been read.
    #[serde(default)]
    pub disk_bytes: u64,
}

/// Handle by which other threads watch and cancel one save.
#[derive(Debug, Clone, Default)]
pub struct SaveControl {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    switch: Arc<RunSwitch>,
    capture: CaptureControl,
    phase: AtomicU8,
    began: OnceLock<Instant>,
    took: OnceLock<Duration>,
    memory_bytes: AtomicU64,
    chunks_total: AtomicU64,
    file_bytes: Arc<AtomicU64>,
    disk_bytes_total: AtomicU64,
    disk_bytes: AtomicU64,
}

impl SaveProgress {
    /// Returns the part of guest memory in the file, from 0 to 1.
    #[must_use]
    pub fn fraction(&self) -> f64 {
        if self.memory_bytes == 0 {
            0.0
        } else {
            self.plain_bytes as f64 / self.memory_bytes as f64
        }
    }
}

impl SaveControl {
    /// Makes a handle for a save of a machine that nobody else pauses or resumes meanwhile.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes a handle for a save of a machine that users pause and resume through `switch`.
    #[must_use]
    pub fn with_switch(switch: Arc<RunSwitch>) -> Self {
        Self {
            shared: Arc::new(Shared {
                switch,
                ..Shared::default()
            }),
        }
    }

    /// Gives the save up, unless its file is complete; returns at once.
    pub fn cancel(&self) {
        self.shared.capture.cancel();
    }

    /// Returns whether [`cancel`](Self::cancel) was called.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.shared.capture.is_cancelled()
    }

    /// Returns how far the save is; cheap, and never waits for it.
    #[must_use]
    pub fn progress(&self) -> SaveProgress {
        let shared = &self.shared;
        let phase = usize::from(shared.phase.load(Ordering::Relaxed));
        let elapsed = shared
            .took
            .get()
            .copied()
            .or_else(|| shared.began.get().map(Instant::elapsed));
        let capture = shared.capture.progress();
        SaveProgress {
            phase: PHASES.get(phase).copied().unwrap_or(Phase::Finished),
            elapsed_us: micros(elapsed.unwrap_or_default()),
            chunks_total: shared.chunks_total.load(Ordering::Relaxed),
            chunks_done: capture.chunks_done,
            plain_bytes: capture.bytes_done,
            faults: capture.faults,
            file_bytes: shared.file_bytes.load(Ordering::Relaxed),
            memory_bytes: shared.memory_bytes.load(Ordering::Relaxed),
            disk_bytes_total: shared.disk_bytes_total.load(Ordering::Relaxed),
            disk_bytes: shared.disk_bytes.load(Ordering::Relaxed),
        }
    }

    pub(crate) fn begin(&self) -> Instant {
        *self.shared.began.get_or_init(Instant::now)
    }

    pub(crate) fn set_total(&self, memory_bytes: u64, chunks: u64) {
        self.shared.memory_bytes.store(memory_bytes, Ordering::Relaxed);
        self.shared.chunks_total.store(chunks, Ordering::Relaxed);
    }

    /// So many bytes of disks more will be read.
    pub(crate) fn expect_disk_bytes(&self, bytes: u64) {
        self.shared.disk_bytes_total.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn add_disk_bytes(&self, bytes: u64) {
        self.shared.disk_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// The counter into which the output adds the bytes that it takes.
    pub(crate) fn file_bytes(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.shared.file_bytes)
    }

    /// Enters a phase, unless the save was cancelled.
    pub(crate) fn enter(&self, phase: Phase) -> Result<()> {
        if self.is_cancelled() && phase != Phase::Finished {
            return Err(Error::Cancelled);
        }
        self.shared.phase.store(phase as u8, Ordering::Relaxed);
        Ok(())
    }

    /// The handle that the memory capture takes.
    pub(crate) fn capture(&self) -> CaptureControl {
        self.shared.capture.clone()
    }

    pub(crate) fn finish(&self) {
        let took = self.shared.began.get().map(Instant::elapsed).unwrap_or_default();
        self.shared.took.get_or_init(|| took);
        self.shared.phase.store(Phase::Finished as u8, Ordering::Relaxed);
    }

    pub(crate) fn switch(&self) -> &RunSwitch {
        &self.shared.switch
    }
}

/// A time in whole microseconds, as reports have it.
pub(crate) fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
