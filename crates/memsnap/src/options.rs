//! What the caller of a capture decides.

use std::num::NonZero;
use std::thread;
use std::time::Duration;

use crate::control::CaptureControl;

/// What happens to a write that faults while every copy buffer is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pressure {
    /// The writer waits for a buffer, at most [`CaptureOptions::max_stall`].
    Throttle,
    /// The capture is abandoned at once.
    Fail,
}

/// How memory that is not populated comes to be covered by write protection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KernelPath {
    /// The best that the running kernel offers.
    Auto,
    /// The kernel protects pages that are not there (Linux 6.4).
    WpUnpopulated,
    /// Anonymous memory is populated by reading before it is protected (Linux 5.14).
    PopulateFirst,
}

/// Settings of a capture. The defaults suit a virtual machine that should not notice.
#[derive(Clone, Debug)]
pub struct CaptureOptions {
    /// Longest time spent on protecting memory while the guest runs; what is left then is protected in
    /// the pause. Zero protects everything in the pause.
    pub max_arm: Duration,
    /// Longest time that a write may wait for a copy buffer before the capture is abandoned.
    pub max_stall: Duration,
    /// Bound on the memory used for chunks that were copied before a write; at least one chunk.
    pub buffer_bytes: u64,
    /// What happens when that bound is reached.
    pub on_pressure: Pressure,
    /// Threads that walk memory and encode; zero means one per core.
    pub walkers: usize,
    /// How unpopulated memory is covered; anything but [`KernelPath::Auto`] is meant for tests.
    pub kernel: KernelPath,
    /// Progress, cancellation and discards; keep a clone. A control belongs to one capture.
    pub control: CaptureControl,
}

impl Default for CaptureOptions {
    fn default() -> Self {
        CaptureOptions {
            max_arm: Duration::from_millis(250),
            max_stall: Duration::from_millis(100),
            buffer_bytes: 64 << 20,
            on_pressure: Pressure::Throttle,
            walkers: 0,
            kernel: KernelPath::Auto,
            control: CaptureControl::new(),
        }
    }
}

impl CaptureOptions {
    /// The number of walkers, with zero resolved to the number of cores.
    pub(crate) fn walker_count(&self) -> usize {
        match self.walkers {
            0 => thread::available_parallelism().map_or(1, NonZero::get),
            count => count,
        }
    }
}
