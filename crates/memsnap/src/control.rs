//! A handle on a running capture for other threads: progress, cancellation and discards.
//!
//! The atomics here only inform; no decision of the capture rests on them except the cancel flag, which is
//! set once and never cleared. Discards find the capture here, if there is one: see `discard.rs`.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use crate::capture::Engine;
use crate::discard::Discards;
use crate::sync::{Turnstile, Waker};

/// Where a capture is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum CapturePhase {
    /// Not begun.
    Idle,
    /// Memory is being protected while the guest runs.
    Arming,
    /// Protected; waiting for the pause.
    Armed,
    /// The point in time has passed; chunks are on their way to the sink.
    Draining,
    /// Every chunk is in the sink.
    Done,
    /// Abandoned.
    Failed,
}

impl CapturePhase {
    fn from_u8(value: u8) -> Self {
        [Self::Idle, Self::Arming, Self::Armed, Self::Draining, Self::Done]
            .into_iter()
            .find(|phase| *phase as u8 == value)
            .unwrap_or(Self::Failed)
    }
}

/// How far a capture is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CaptureProgress {
    /// Where the capture is.
    pub phase: CapturePhase,
    /// Chunks that the sink has taken.
    pub chunks_done: u64,
    /// Chunks in all; zero before the capture begins.
    pub chunks_total: u64,
    /// Bytes of guest memory that the sink has taken, unpopulated memory included.
    pub bytes_done: u64,
    /// Writes that had to wait since the point in time.
    pub faults: u64,
}

/// Progress, cancellation and discards of one capture; clones speak of the same capture.
#[derive(Clone, Debug, Default)]
pub struct CaptureControl(Arc<State>);

#[derive(Debug, Default)]
struct State {
    cancelled: AtomicBool,
    phase: AtomicU8,
    chunks_done: AtomicU64,
    chunks_total: AtomicU64,
    bytes_done: AtomicU64,
    faults: AtomicU64,
    /// Wakes the fault handler of the capture that this control belongs to.
    waker: OnceLock<Arc<Waker>>,
    /// The capture under way. Locked over each discard, and by whoever must not be crossed by one.
    capturing: Turnstile<Weak<Engine>>,
}

impl CaptureControl {
    /// A control for a capture yet to come.
    pub fn new() -> Self {
        Self::default()
    }

    /// Abandons the capture as soon as possible; the guest runs on. Returns at once.
    pub fn cancel(&self) {
        self.0.cancelled.store(true, Ordering::SeqCst);
        if let Some(waker) = self.0.waker.get() {
            waker.notify();
        }
    }

    /// Whether [`CaptureControl::cancel`] was called.
    pub fn is_cancelled(&self) -> bool {
        self.0.cancelled.load(Ordering::SeqCst)
    }

    /// How far the capture is.
    pub fn progress(&self) -> CaptureProgress {
        CaptureProgress {
            phase: CapturePhase::from_u8(self.0.phase.load(Ordering::Relaxed)),
            chunks_done: self.0.chunks_done.load(Ordering::Relaxed),
            chunks_total: self.0.chunks_total.load(Ordering::Relaxed),
            bytes_done: self.0.bytes_done.load(Ordering::Relaxed),
            faults: self.0.faults.load(Ordering::Relaxed),
        }
    }

    /// The way to give guest memory back to the kernel that the capture survives.
    pub fn discards(&self) -> Discards {
        Discards::new(self.clone())
    }

    /// Where a discard finds the capture that it must not damage.
    pub(crate) fn capturing(&self) -> &Turnstile<Weak<Engine>> {
        &self.0.capturing
    }

    /// Ties the control to a capture. A cancel that came before is seen by the first check after.
    pub(crate) fn begin(&self, chunks_total: u64, waker: &Arc<Waker>) {
        self.0.chunks_total.store(chunks_total, Ordering::Relaxed);
        let _ = self.0.waker.set(Arc::clone(waker));
    }

    pub(crate) fn set_phase(&self, phase: CapturePhase) {
        self.0.phase.store(phase as u8, Ordering::Relaxed);
    }

    pub(crate) fn count_fault(&self) {
        self.0.faults.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts chunks that the sink has taken; returns how many it has now.
    pub(crate) fn count_done(&self, chunks: u64, bytes: u64) -> u64 {
        self.0.bytes_done.fetch_add(bytes, Ordering::Relaxed);
        self.0.chunks_done.fetch_add(chunks, Ordering::Relaxed) + chunks
    }
}
