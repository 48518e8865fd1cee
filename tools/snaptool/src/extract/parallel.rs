//! Visits every chunk of a snapshot once, on all cores.
//!
//! Threads take runs of chunks in order; each has a decoder and a buffer of its own, so nothing is
//! shared but the counters.

use std::sync::atomic::{AtomicU64, Ordering};

use snapfile::{ChunkKind, ChunkNumber, ChunkRange, Decoder, Snapshot};

use crate::interrupt;
use crate::progress::Progress;

/// Chunks that a thread takes at a time.
const RUN_CHUNKS: u64 = 64;

/// Decodes the chunks whose kind is `wanted` and gives each to `visit`, from several threads.
///
/// # Errors
/// The first error of a thread: a chunk cannot be decoded, `visit` failed, or the user interrupted.
pub fn for_each_chunk(
    snapshot: &Snapshot,
    progress: &Progress,
    wanted: impl Fn(ChunkKind) -> bool + Sync,
    visit: impl Fn(ChunkRange, &[u8]) -> anyhow::Result<()> + Sync,
) -> anyhow::Result<()> {
    let job = Job {
        snapshot,
        progress,
        wanted,
        visit,
        next_chunk: AtomicU64::new(0),
        done_bytes: AtomicU64::new(0),
    };
    let threads = std::thread::available_parallelism().map_or(1, |count| count.get());
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(|| job.work())).collect();
        workers.into_iter().try_for_each(|worker| match worker.join() {
            Ok(outcome) => outcome,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    })
}

struct Job<'a, Wanted, Visit> {
    snapshot: &'a Snapshot,
    progress: &'a Progress,
    wanted: Wanted,
    visit: Visit,
    /// First chunk of the run that the next idle thread takes; past the end once a thread failed.
    next_chunk: AtomicU64,
    done_bytes: AtomicU64,
}

impl<Wanted, Visit> Job<'_, Wanted, Visit>
where
    Wanted: Fn(ChunkKind) -> bool,
    Visit: Fn(ChunkRange, &[u8]) -> anyhow::Result<()>,
{
    fn work(&self) -> anyhow::Result<()> {
        let outcome = self.work_until_done();
        if outcome.is_err() {
            self.next_chunk
                .store(self.snapshot.layout().chunk_count(), Ordering::Relaxed);
        }
        outcome
    }

    fn work_until_done(&self) -> anyhow::Result<()> {
        let chunk_count = self.snapshot.layout().chunk_count();
        let mut decoder = self.snapshot.decoder();
        let mut plain = vec![0; self.snapshot.chunk_size().bytes() as usize];
        loop {
            let first = self.next_chunk.fetch_add(RUN_CHUNKS, Ordering::Relaxed);
            if first >= chunk_count {
                return Ok(());
            }
            let mut done = 0;
            for number in first..chunk_count.min(first + RUN_CHUNKS) {
                done += self.chunk(ChunkNumber(number), &mut decoder, &mut plain)?;
            }
            let done = self.done_bytes.fetch_add(done, Ordering::Relaxed) + done;
            self.progress.update(done, self.snapshot.memory_map().len_bytes());
            interrupt::check()?;
        }
    }

    /// Visits one chunk; returns its length.
    fn chunk(&self, number: ChunkNumber, decoder: &mut Decoder<'_>, plain: &mut [u8]) -> anyhow::Result<u64> {
        let Some(range) = self.snapshot.layout().chunk(number) else {
            return Ok(0);
        };
        let Some(plain) = plain.get_mut(..range.len_bytes as usize) else {
            return Ok(0);
        };
        if (self.wanted)(decoder.chunk_entry(number)?.kind) {
            decoder.read_chunk(number, plain)?;
            (self.visit)(range, plain)?;
        }
        Ok(u64::from(range.len_bytes))
    }
}
