//! Decodes every chunk once, on all cores, into the files that want memory.
//!
//! Threads take runs of chunks in order and write at positions of their own, so nothing is shared
//! but the counter. Chunks that the index calls zero are not looked at: the files begin as holes.

use std::sync::atomic::{AtomicU64, Ordering};

use snapfile::{ChunkKind, ChunkNumber, Decoder, Snapshot};

use super::target::Target;
use crate::interrupt;
use crate::progress::Progress;

/// Chunks that a thread takes at a time.
const RUN_CHUNKS: u64 = 64;

/// Writes all of guest memory to every target.
pub fn extract(snapshot: &Snapshot, targets: &[&Target], progress: &Progress) -> anyhow::Result<()> {
    let extraction = Extraction {
        snapshot,
        targets,
        progress,
        next_chunk: AtomicU64::new(0),
        done_bytes: AtomicU64::new(0),
    };
    let threads = std::thread::available_parallelism().map_or(1, |count| count.get());
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(|| extraction.work())).collect();
        workers.into_iter().try_for_each(|worker| match worker.join() {
            Ok(outcome) => outcome,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    })
}

struct Extraction<'a> {
    snapshot: &'a Snapshot,
    targets: &'a [&'a Target],
    progress: &'a Progress,
    /// First chunk of the run that the next idle thread takes; past the end once a thread failed.
    next_chunk: AtomicU64,
    done_bytes: AtomicU64,
}

impl Extraction<'_> {
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

    /// Writes one chunk; returns its length.
    fn chunk(&self, number: ChunkNumber, decoder: &mut Decoder<'_>, plain: &mut [u8]) -> anyhow::Result<u64> {
        let Some(range) = self.snapshot.layout().chunk(number) else {
            return Ok(0);
        };
        let Some(plain) = plain.get_mut(..range.len_bytes as usize) else {
            return Ok(0);
        };
        if decoder.chunk_entry(number)?.kind != ChunkKind::Zero {
            decoder.read_chunk(number, plain)?;
            let region = self.snapshot.memory_map().regions().get(range.region);
            let start = region.map_or(0, |region| region.guest_address);
            for target in self.targets {
                target.write(range.region, range.guest_address - start, plain)?;
            }
        }
        Ok(u64::from(range.len_bytes))
    }
}
