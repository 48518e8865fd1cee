//! What all threads of a capture share, and the rules by which they touch it.
//!
//! Locks, none held while another is taken except these, which come first and in this order:
//! `CaptureControl::capturing` (held over each discard, and by whoever keeps discards out), `gate` (phase; held
//! by the handler over each batch of faults, and by the last round of arming and the freeze to keep it out), and
//! the guard's `calls`. The others: `touched`, `wanted`, `failure`, the guard's `announced`, the bell, and those
//! in `buffers.rs`. None is ever held during a call of the sink. The handler takes neither `capturing` nor
//! `calls`: whoever discards waits for it to read.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Instant;

use snapfile::ChunkLayout;
use uffd::Residency;
use vm_memory::GuestMemoryMmap;

use crate::buffers::{BufferPool, CopyQueue};
use crate::capture::guard::Guard;
use crate::chunk_states::{ChunkState, ChunkStates};
use crate::control::CaptureControl;
use crate::error::{Error, Result};
use crate::geometry::{Geometry, Span};
use crate::histogram::Histogram;
use crate::options::CaptureOptions;
use crate::sync::{Bell, Turnstile, Waker, lock};

/// What the handler does with a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Gate {
    /// The point in time has not come: let the writer go and note the chunk.
    Arming,
    /// Copy before the write.
    Draining,
}

/// A counter that any thread may add to.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, amount: u64) {
        self.0.fetch_add(amount, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Figures for the report; they decide nothing.
#[derive(Debug)]
pub(crate) struct Counters {
    pub(crate) stall_arming: Histogram,
    pub(crate) stall: Histogram,
    pub(crate) throttled: Counter,
    pub(crate) copied_bytes: Counter,
    pub(crate) discarded_bytes: Counter,
    pub(crate) unpopulated: Counter,
    pub(crate) encoded_bytes: Counter,
}

/// A writer that waits for a chunk which another thread is copying.
#[derive(Debug)]
struct Waiter {
    chunk: u64,
    since: Instant,
}

/// The state of one capture.
#[derive(Debug)]
pub(crate) struct Engine {
    pub(crate) geometry: Geometry,
    pub(crate) states: ChunkStates,
    pub(crate) residency: Residency,
    pub(crate) pool: BufferPool,
    pub(crate) queue: CopyQueue,
    pub(crate) options: CaptureOptions,
    pub(crate) control: CaptureControl,
    pub(crate) counters: Counters,
    /// `None` where the writers are paused all the while.
    pub(crate) guard: Option<Guard>,
    /// All memory in the amounts that are protected in one call, and how many of them are taken.
    pub(crate) pieces: Vec<Span>,
    pub(crate) next_piece: AtomicUsize,
    /// Chunks that were written since they were protected.
    pub(crate) touched: Mutex<Vec<u64>>,
    pub(crate) waker: Arc<Waker>,
    /// Rings for a discard that waits: a buffer came back, a chunk that it wanted or a run was copied, or the
    /// capture is at an end.
    pub(crate) bell: Arc<Bell>,
    pub(crate) gate: Turnstile<Gate>,
    wanted: Mutex<Vec<Waiter>>,
    next_run: AtomicU64,
    failed: AtomicBool,
    failure: Mutex<Option<Error>>,
    handler_ends: AtomicBool,
    over: AtomicBool,
}

/// Shuts out the fault handler and discards; and tells or changes what is done with faults.
#[derive(Debug)]
pub(crate) struct ClosedGate<'a> {
    pub(crate) gate: MutexGuard<'a, Gate>,
    _no_discard: MutexGuard<'a, Weak<Engine>>,
}

impl Engine {
    /// For memory that is written meanwhile: registered, nothing protected yet.
    pub(crate) fn guarded(
        memory: &GuestMemoryMmap<()>,
        layout: &ChunkLayout,
        options: CaptureOptions,
    ) -> Result<Self> {
        let mut engine = Self::new(memory, layout, options, ChunkState::Unarmed)?;
        engine.guard = Some(Guard::new(&engine.geometry, engine.options.kernel)?);
        Ok(engine)
    }

    /// For memory whose writers are paused.
    pub(crate) fn unguarded(
        memory: &GuestMemoryMmap<()>,
        layout: &ChunkLayout,
        options: CaptureOptions,
    ) -> Result<Self> {
        Self::new(memory, layout, options, ChunkState::Pending)
    }

    fn new(
        memory: &GuestMemoryMmap<()>,
        layout: &ChunkLayout,
        options: CaptureOptions,
        state: ChunkState,
    ) -> Result<Self> {
        let geometry = Geometry::new(memory, layout)?;
        let waker = Arc::new(Waker::new().map_err(Error::Threads)?);
        let bell = Arc::default();
        let control = options.control.clone();
        control.begin(geometry.chunk_count(), &waker);
        Ok(Engine {
            states: ChunkStates::new(geometry.chunk_count(), state),
            residency: Residency::new(),
            pool: BufferPool::new(geometry.chunk_size(), options.buffer_bytes, &waker, &bell),
            queue: CopyQueue::default(),
            counters: Counters {
                stall_arming: Histogram::new(),
                stall: Histogram::new(),
                throttled: Counter::default(),
                copied_bytes: Counter::default(),
                discarded_bytes: Counter::default(),
                unpopulated: Counter::default(),
                encoded_bytes: Counter::default(),
            },
            pieces: geometry.pieces().collect(),
            next_piece: AtomicUsize::new(0),
            geometry,
            options,
            control,
            guard: None,
            touched: Mutex::default(),
            waker,
            bell,
            gate: Turnstile::new(Gate::Arming),
            wanted: Mutex::default(),
            next_run: AtomicU64::new(0),
            failed: AtomicBool::new(false),
            failure: Mutex::new(None),
            handler_ends: AtomicBool::new(false),
            over: AtomicBool::new(false),
        })
    }

    /// Keeps the handler from serving faults and reading events, and so discards from being made.
    pub(crate) fn close_gate(&self) -> ClosedGate<'_> {
        // In this order: a discard under way needs the handler.
        let no_discard = self.control.capturing().go_first();
        ClosedGate {
            gate: self.gate.go_first(),
            _no_discard: no_discard,
        }
    }

    /// The next run that no walker has taken yet.
    pub(crate) fn next_run(&self) -> Option<Span> {
        let run = self.next_run.fetch_add(1, Ordering::Relaxed);
        (run < self.geometry.run_count()).then(|| self.geometry.run(run))
    }

    /// Counts chunks that the sink has taken; the last one lets the waiting walkers go.
    pub(crate) fn count_done(&self, chunks: u64, bytes: u64) {
        if self.control.count_done(chunks, bytes) == self.geometry.chunk_count() {
            self.queue.wake_all();
        }
    }

    /// Whether the sink has every chunk.
    pub(crate) fn all_done(&self) -> bool {
        self.control.progress().chunks_done == self.geometry.chunk_count()
    }

    /// Fills `present` with a byte per page of `span`, 0 where the page is certainly absent and so zero;
    /// returns whether any may be there. Touches nothing.
    pub(crate) fn find_present(&self, span: &Span, present: &mut Vec<u8>) -> Result<bool> {
        present.resize(span.bytes.len() / uffd::PAGE_SIZE, 0);
        let address = self.geometry.region(span.region).host_address(span.bytes.start);
        Ok(self.residency.find(address, span.bytes.len(), present)?)
    }

    /// Says that a claimed chunk has been copied, and lets those go who wait for just that. Not for the handler:
    /// it may have to read events before it can lift a protection.
    pub(crate) fn publish(&self, chunk: u64) -> Result<()> {
        if !self.states.publish(chunk) {
            return Ok(());
        }
        self.bell.ring();
        // The handler adds waiters only under this lock and only while the state is Wanted, which it no
        // longer is: all waiters of the chunk are here.
        let waiters: Vec<Waiter> = lock(&self.wanted)
            .extract_if(.., |waiter| waiter.chunk == chunk)
            .collect();
        if let Some(guard) = &self.guard {
            guard.lift(&self.geometry.chunk(chunk))?;
        }
        for waiter in waiters {
            self.counters.stall.record(waiter.since.elapsed());
        }
        Ok(())
    }

    /// Leaves a fault to the thread that is copying its chunk; `false` if that thread has finished.
    pub(crate) fn wait_for_claimer(&self, chunk: u64, since: Instant) -> bool {
        let mut wanted = lock(&self.wanted);
        let waits = self.states.want(chunk) == ChunkState::Wanted;
        if waits {
            wanted.push(Waiter { chunk, since });
        }
        waits
    }

    /// Abandons the capture; the first reason is the one that is reported.
    pub(crate) fn fail(&self, error: Error) {
        lock(&self.failure).get_or_insert(error);
        self.failed.store(true, Ordering::SeqCst);
        self.waker.notify();
        self.queue.wake_all();
        self.bell.ring();
    }

    /// Whether the capture has failed or was cancelled.
    pub(crate) fn should_stop(&self) -> bool {
        if self.control.is_cancelled() && !self.failed.load(Ordering::SeqCst) {
            self.fail(Error::Cancelled);
        }
        self.failed.load(Ordering::SeqCst)
    }

    /// Why the capture failed.
    pub(crate) fn take_failure(&self) -> Error {
        lock(&self.failure).take().unwrap_or(Error::Cancelled)
    }

    /// Gives the memory back; see [`Guard::release`].
    pub(crate) fn release(&self) {
        if let Some(guard) = &self.guard {
            guard.release();
        }
    }

    /// As `release`, and lets discards go by themselves from now on. The handler must still be reading events.
    pub(crate) fn end(&self) {
        // A discard may be waiting for walkers that will never come: every chunk is copied or the capture is
        // abandoned, so it need not wait.
        self.over.store(true, Ordering::SeqCst);
        self.bell.ring();
        let mut capturing = self.control.capturing().go_first();
        self.release();
        *capturing = Weak::new();
    }

    /// Whether the capture is at its end, so that no content is needed any more.
    pub(crate) fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }

    pub(crate) fn end_handler(&self) {
        self.handler_ends.store(true, Ordering::SeqCst);
        self.waker.notify();
    }

    pub(crate) fn handler_ends(&self) -> bool {
        self.handler_ends.load(Ordering::SeqCst)
    }
}
