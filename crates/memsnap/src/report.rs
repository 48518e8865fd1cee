//! What a capture or a restore cost.

use std::time::Duration;

use crate::histogram::Histogram;
use crate::options::KernelPath;

/// How the memory was captured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CaptureMode {
    /// The guest ran on; writes were preceded by copies.
    Async,
    /// The guest was stopped all the while.
    Stop,
}

/// How long writers waited.
///
/// Measured from the moment the handler learns of the fault until the writer is let go; the switch to
/// the handler and back, a few microseconds, is not in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StallReport {
    /// Writes that waited.
    pub count: u64,
    /// Half of them waited no longer than this, to a quarter of a power of two.
    pub p50: Duration,
    /// 99 of 100 waited no longer than this, to a quarter of a power of two.
    pub p99: Duration,
    /// The longest wait.
    pub max: Duration,
}

impl StallReport {
    pub(crate) fn of(histogram: &Histogram) -> Self {
        StallReport {
            count: histogram.count(),
            p50: histogram.percentile(50),
            p99: histogram.percentile(99),
            max: histogram.max(),
        }
    }
}

/// What a capture cost.
#[derive(Clone, Debug)]
pub struct CaptureReport {
    /// How the memory was captured.
    pub mode: CaptureMode,
    /// How unpopulated memory was covered; `None` where nothing was protected.
    pub kernel_path: Option<KernelPath>,
    /// Bytes of guest memory.
    pub memory_bytes: u64,
    /// Bytes of a chunk.
    pub chunk_bytes: u32,
    /// Chunks of guest memory.
    pub chunks: u64,
    /// Threads that walked memory and encoded.
    pub walkers: usize,
    /// From the command to the point in time.
    pub command_to_t: Duration,
    /// Protecting memory while the guest ran.
    pub arm: Duration,
    /// Passes over the chunks touched while arming, after the first pass over everything.
    pub arm_rounds: u32,
    /// Protecting, in the pause, what was still writable.
    pub freeze: Duration,
    /// Chunks that the guest had touched and that were protected again in the pause.
    pub chunks_touched_at_freeze: u64,
    /// Bytes that were protected for the first time in the pause.
    pub bytes_unarmed_at_freeze: u64,
    /// Writes that waited before the point in time.
    pub faults_arming: u64,
    /// Writes that waited after the point in time.
    pub faults_draining: u64,
    /// How long writes waited before the point in time.
    pub stall_arming: StallReport,
    /// How long writes waited after the point in time.
    pub stall: StallReport,
    /// Writes that had to wait for a copy buffer.
    pub faults_throttled: u64,
    /// Bytes copied aside because of a write or a discard.
    pub copied_bytes: u64,
    /// Bytes that were given back to the kernel during the capture, through [`crate::Discards`].
    pub discarded_bytes: u64,
    /// Most bytes of copy buffers in use at once.
    pub buffer_high_water_bytes: u64,
    /// Chunks that were zero because nothing was there, or nothing until the write that waited. They were
    /// found without touching them and without an encoder.
    pub chunks_unpopulated: u64,
    /// Bytes handed to the sink's encoders.
    pub bytes_encoded: u64,
    /// From the begin of draining until the sink had every chunk and nothing was protected.
    pub drain: Duration,
}

/// What a restore cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RestoreReport {
    /// Chunks of guest memory.
    pub chunks: u64,
    /// Bytes of guest memory.
    pub memory_bytes: u64,
    /// Chunks that were decoded and written.
    pub chunks_written: u64,
    /// Zero chunks of fresh memory that were left alone.
    pub chunks_skipped: u64,
    /// Threads that decoded.
    pub threads: usize,
    /// The whole restore.
    pub elapsed: Duration,
}
