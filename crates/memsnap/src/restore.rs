//! Eager restore: all cores decode, chunk by chunk, into guest memory.
//!
//! Fresh memory is zero already, so a zero chunk is written only where something is there; that is found
//! out without touching it, as when capturing. (A lazy restore will take the same decoders, but let faults
//! choose the order.)

use std::num::NonZero;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use snapfile::{ChunkKind, ChunkNumber, Decoder, Snapshot};
use uffd::Residency;
use vm_memory::GuestMemoryMmap;

use crate::error::{Error, Result};
use crate::geometry::Geometry;
use crate::report::RestoreReport;
use crate::sync::{lock, panic_message};

/// Chunks that a thread takes at a time.
const BATCH: u64 = 16;

/// How far a restore is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RestoreProgress {
    /// Chunks that are in memory.
    pub chunks_done: u64,
    /// Chunks in all.
    pub chunks_total: u64,
}

/// Fills guest memory from `snapshot` on `threads` threads (zero means one per core), and calls `progress`
/// now and then from any of them. Nobody else may use the memory meanwhile.
///
/// # Errors
/// [`Error::MemoryMap`] where the snapshot is of other memory, [`Error::Source`] where it cannot be read,
/// [`Error::Panicked`]. The memory is then filled in part.
pub fn restore_eager(
    memory: &GuestMemoryMmap<()>,
    snapshot: &Snapshot,
    threads: usize,
    progress: &(dyn Fn(RestoreProgress) + Sync),
) -> Result<RestoreReport> {
    let begun = Instant::now();
    let geometry = Geometry::new(memory, snapshot.layout())?;
    let threads = if threads == 0 {
        thread::available_parallelism().map_or(1, NonZero::get)
    } else {
        threads
    };
    let restore = Restore {
        geometry: &geometry,
        snapshot,
        progress,
        residency: Residency::new(),
        next: AtomicU64::new(0),
        done: AtomicU64::new(0),
        skipped: AtomicU64::new(0),
        failed: AtomicBool::new(false),
        failure: Mutex::new(None),
    };
    thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(|| restore.run());
        }
        restore.run();
    });
    if let Some(error) = lock(&restore.failure).take() {
        return Err(error);
    }
    let (chunks, skipped) = (geometry.chunk_count(), restore.skipped.into_inner());
    Ok(RestoreReport {
        chunks,
        memory_bytes: geometry.len_bytes(),
        chunks_written: chunks - skipped,
        chunks_skipped: skipped,
        threads,
        elapsed: begun.elapsed(),
    })
}

/// What the threads of a restore share.
struct Restore<'a> {
    geometry: &'a Geometry,
    snapshot: &'a Snapshot,
    progress: &'a (dyn Fn(RestoreProgress) + Sync),
    residency: Residency,
    next: AtomicU64,
    done: AtomicU64,
    skipped: AtomicU64,
    failed: AtomicBool,
    failure: Mutex<Option<Error>>,
}

impl Restore<'_> {
    /// One thread's share; the first failure of any is kept and ends all.
    fn run(&self) {
        let outcome = match catch_unwind(AssertUnwindSafe(|| self.fill())) {
            Ok(outcome) => outcome,
            Err(payload) => Err(Error::Panicked {
                thread: "restore thread",
                message: panic_message(&*payload),
            }),
        };
        if let Err(error) = outcome {
            lock(&self.failure).get_or_insert(error);
            self.failed.store(true, Ordering::Relaxed);
        }
    }

    fn fill(&self) -> Result<()> {
        let mut decoder = self.snapshot.decoder();
        let mut plain = vec![0; self.geometry.chunk_size()];
        let mut present = vec![0; self.geometry.chunk_size() / uffd::PAGE_SIZE];
        let chunks_total = self.geometry.chunk_count();
        while !self.failed.load(Ordering::Relaxed) {
            let start = self.next.fetch_add(BATCH, Ordering::Relaxed);
            if start >= chunks_total {
                break;
            }
            let chunks = start..chunks_total.min(start + BATCH);
            let count = chunks.end - chunks.start;
            for chunk in chunks {
                self.fill_chunk(&mut decoder, chunk, &mut plain, &mut present)?;
            }
            let chunks_done = self.done.fetch_add(count, Ordering::Relaxed) + count;
            (self.progress)(RestoreProgress {
                chunks_done,
                chunks_total,
            });
        }
        Ok(())
    }

    fn fill_chunk(
        &self,
        decoder: &mut Decoder<'_>,
        chunk: u64,
        plain: &mut [u8],
        present: &mut [u8],
    ) -> Result<()> {
        let (span, number) = (self.geometry.chunk(chunk), ChunkNumber(chunk));
        let region = self.geometry.region(span.region);
        let entry = self.snapshot.chunk_entry(number).map_err(Error::Source)?;
        if entry.kind == ChunkKind::Zero {
            let address = region.host_address(span.bytes.start);
            if !self.residency.find(address, span.bytes.len(), present)? {
                self.skipped.fetch_add(1, Ordering::Relaxed);
                return Ok(());
            }
        }
        let plain = &mut plain[..span.bytes.len()];
        decoder.read_chunk(number, plain).map_err(Error::Source)?;
        region.write(span.bytes.start, plain);
        Ok(())
    }
}
