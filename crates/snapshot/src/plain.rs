//! Memory of this process whose writer threads stand in for a guest: no KVM, same engine, same oracle idea.
//!
//! Every writer owns a part of memory, a power of two of pages, and rewrites its pages in an order given by its step
//! counter alone. A page and its step are finished together before a pause takes effect, so the counters saved at
//! the capture point say what every page must contain.

mod pages;

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use serde::{Deserialize, Serialize};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use snapfile::{ChunkNumber, Snapshot};
use vmm::{Backing, StateError, StatePart, create_guest_memory_for, memory_ranges};

use crate::check::CheckReport;
use crate::error::{Error, Result};
use crate::restore::open;
use crate::sections::read_parts;
use crate::subject::Subject;
use pages::{PAGE_BYTES, content, expected, page_of_step, pages_per_writer};

/// The state part that holds the step counters.
const WRITERS: &str = "writers";

/// Most writers, so that a file cannot ask for any number of threads.
const MAX_WRITERS: usize = 256;

/// Memory with threads that write it.
#[derive(Debug)]
pub struct PlainMemory {
    memory: GuestMemoryMmap,
    shared: Arc<Shared>,
    writers: Vec<JoinHandle<()>>,
}

/// What the writers share with their owner. The mutex guards the gate at which they stop; the counters are each
/// written by one writer and read by anybody.
#[derive(Debug)]
struct Shared {
    gate: Mutex<Gate>,
    changed: Condvar,
    /// Set with the gate; lets a writer pass without the lock.
    attention: AtomicBool,
    steps: Vec<AtomicU64>,
    longest_gap_ns: AtomicU64,
}

#[derive(Debug, Default)]
struct Gate {
    paused: bool,
    ended: bool,
    waiting: usize,
}

/// The writers' step counters, as stored in a file.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct WriterSteps {
    steps: Vec<u64>,
}

impl PlainMemory {
    /// Maps zero memory for so many writers; they wait until [`Subject::resume`].
    ///
    /// # Errors
    /// The memory cannot be mapped, or is too small for a page for each writer.
    pub fn new(memory_bytes: u64, writers: usize) -> Result<Self> {
        let memory = create_guest_memory_for(&memory_ranges(memory_bytes), Backing::Anonymous, true)?;
        Self::start(memory, memory_bytes, vec![0; writers])
    }

    /// Makes memory and writers of a snapshot, paused as they were at the capture point.
    ///
    /// # Errors
    /// The file cannot be read, or does not show such memory.
    pub fn restore(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let snapshot = open(path)?;
        let steps = read_steps(&snapshot)?;
        let memory_bytes = snapshot.memory_map().len_bytes();
        let memory = create_guest_memory_for(&memory_ranges(memory_bytes), Backing::Anonymous, true)?;
        memsnap::restore_eager(&memory, &snapshot, 0, &|_| {})?;
        Self::start(memory, memory_bytes, steps.steps)
    }

    fn start(memory: GuestMemoryMmap, memory_bytes: u64, steps: Vec<u64>) -> Result<Self> {
        let count = steps.len();
        if count > MAX_WRITERS {
            return Err(unsuitable("more than 256 writers"));
        }
        let pages =
            pages_per_writer(memory_bytes, count).ok_or_else(|| unsuitable("no page for each writer"))?;
        let shared = Arc::new(Shared {
            gate: Mutex::new(Gate {
                paused: true,
                ..Gate::default()
            }),
            changed: Condvar::new(),
            attention: AtomicBool::new(true),
            steps: steps.into_iter().map(AtomicU64::new).collect(),
            longest_gap_ns: AtomicU64::new(0),
        });
        let spawn = |writer: usize| {
            let (memory, shared) = (memory.clone(), Arc::clone(&shared));
            thread::spawn(move || write_pages(&memory, &shared, writer, pages))
        };
        let writers = (0..count).map(spawn).collect();
        Ok(Self {
            memory,
            shared,
            writers,
        })
    }

    /// Returns how many pages all writers together have written.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.shared
            .steps
            .iter()
            .map(|steps| steps.load(Ordering::Relaxed))
            .sum()
    }

    /// Returns the longest time between two steps of a writer since the last call, in microseconds.
    #[must_use]
    pub fn take_longest_gap_us(&self) -> u64 {
        self.shared.longest_gap_ns.swap(0, Ordering::Relaxed) / 1000
    }

    /// Recomputes every page of a snapshot of such memory and compares.
    ///
    /// # Errors
    /// The file cannot be read, or does not show such memory.
    pub fn check(path: impl AsRef<Path>) -> Result<CheckReport> {
        let path = path.as_ref();
        let snapshot = open(path)?;
        let steps = read_steps(&snapshot)?.steps;
        let pages = pages_per_writer(snapshot.memory_map().len_bytes(), steps.len())
            .ok_or_else(|| unsuitable("no page for each writer"))?;
        let mut report = CheckReport {
            pages_checked: 0,
            pages_excluded: 0,
            mismatch_count: 0,
            mismatches: Vec::new(),
            steps: steps.clone(),
        };
        let mut decoder = snapshot.decoder();
        let mut chunk = Vec::new();
        let mut number = 0;
        for chunk_number in (0..snapshot.layout().chunk_count()).map(ChunkNumber) {
            let Some(range) = snapshot.layout().chunk(chunk_number) else {
                break;
            };
            chunk.resize(range.len_bytes as usize, 0);
            let failed = Error::read(path);
            decoder.read_chunk(chunk_number, &mut chunk).map_err(failed)?;
            for page in chunk.as_chunks::<PAGE_BYTES>().0 {
                report.pages_checked += 1;
                if *page != expected(number, pages, &steps) {
                    report.mismatch_count += 1;
                    report
                        .mismatches
                        .push(format!("page {number} is not as of the capture point"));
                }
                number += 1;
            }
        }
        report.mismatches.truncate(64);
        Ok(report)
    }
}

impl Drop for PlainMemory {
    fn drop(&mut self) {
        drop(self.shared.set(|gate| gate.ended = true));
        for writer in self.writers.drain(..) {
            // A writer that panicked has said so; there is nobody else to tell.
            let _ = writer.join();
        }
    }
}

impl Subject for PlainMemory {
    type State = WriterSteps;

    fn memory(&self) -> &GuestMemoryMmap {
        &self.memory
    }

    fn is_running(&self) -> bool {
        !self
            .shared
            .gate
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .paused
    }

    fn pause(&self) -> std::result::Result<(), vmm::Error> {
        let gate = self.shared.set(|gate| gate.paused = true);
        let busy = |gate: &mut Gate| gate.waiting < self.writers.len();
        drop(self.shared.changed.wait_while(gate, busy));
        Ok(())
    }

    fn resume(&self) -> std::result::Result<(), vmm::Error> {
        drop(self.shared.set(|gate| gate.paused = false));
        Ok(())
    }

    fn save_state(&self) -> std::result::Result<WriterSteps, vmm::Error> {
        let steps = self
            .shared
            .steps
            .iter()
            .map(|steps| steps.load(Ordering::Relaxed));
        Ok(WriterSteps {
            steps: steps.collect(),
        })
    }

    fn encode(state: &WriterSteps) -> std::result::Result<Vec<StatePart>, StateError> {
        let mut cbor = Vec::new();
        ciborium::into_writer(state, &mut cbor).expect("numbers are encoded into memory");
        Ok(vec![StatePart {
            name: WRITERS.to_owned(),
            version: 1,
            cbor,
        }])
    }
}

impl Shared {
    /// Changes the gate and tells everybody.
    fn set(&self, change: impl FnOnce(&mut Gate)) -> std::sync::MutexGuard<'_, Gate> {
        let mut gate = self.gate.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut gate);
        self.attention.store(gate.paused || gate.ended, Ordering::Relaxed);
        self.changed.notify_all();
        gate
    }

    /// Waits while the gate is closed; returns whether to go on.
    fn pass(&self) -> bool {
        let mut gate = self.gate.lock().unwrap_or_else(PoisonError::into_inner);
        gate.waiting += 1;
        self.changed.notify_all();
        let mut gate = self
            .changed
            .wait_while(gate, |gate| gate.paused && !gate.ended)
            .unwrap_or_else(PoisonError::into_inner);
        gate.waiting -= 1;
        !gate.ended
    }
}

/// The life of one writer.
fn write_pages(memory: &GuestMemoryMmap, shared: &Shared, writer: usize, pages: u64) {
    let counter = &shared.steps[writer];
    let mut step = counter.load(Ordering::Relaxed);
    let mut last = Instant::now();
    loop {
        if shared.attention.load(Ordering::Relaxed) && !shared.pass() {
            return;
        }
        let number = writer as u64 * pages + page_of_step(step, pages);
        let address = guest_address(memory, number);
        memory
            .write_slice(&content(step), address)
            .expect("the writers' pages are in memory");
        step += 1;
        counter.store(step, Ordering::Relaxed);
        let now = Instant::now();
        let gap = u64::try_from((now - last).as_nanos()).unwrap_or(u64::MAX);
        shared.longest_gap_ns.fetch_max(gap, Ordering::Relaxed);
        last = now;
    }
}

/// Where a page lies, holes between regions left out.
fn guest_address(memory: &GuestMemoryMmap, number: u64) -> GuestAddress {
    let mut rest = number * PAGE_BYTES as u64;
    for region in memory.iter() {
        if rest < region.len() {
            return GuestAddress(region.start_addr().0 + rest);
        }
        rest -= region.len();
    }
    unreachable!("page {number} is one of the writers' and these are in memory")
}

fn read_steps(snapshot: &Snapshot) -> Result<WriterSteps> {
    let parts = read_parts(snapshot)?;
    let part = parts
        .iter()
        .find(|part| part.name == WRITERS)
        .ok_or_else(|| unsuitable("missing"))?;
    ciborium::from_reader(part.cbor.as_slice()).map_err(|error| unsuitable(&error.to_string()))
}

fn unsuitable(problem: &str) -> Error {
    Error::Section {
        name: WRITERS.to_owned(),
        problem: problem.to_owned(),
    }
}
