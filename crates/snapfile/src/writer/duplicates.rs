//! Data chunks by digest, in bounded memory.
//!
//! A direct-mapped table: a digest has one slot, and the newest chunk wins it. It holds chunk
//! numbers only; whether a chunk found there is equal is decided by the digest in the index. So a
//! collision costs a missed duplicate, never a wrong one.

use crate::digest::Digest;
use crate::memory_map::ChunkNumber;

/// Most slots, 8 bytes each.
const MAX_SLOTS: u64 = 1 << 20;

/// A table from digest to the chunk that last had it.
#[derive(Debug)]
pub(super) struct Duplicates {
    /// Chunk number plus one, or 0.
    slots: Vec<u64>,
}

impl Duplicates {
    /// Makes a table for a snapshot of `chunk_count` chunks.
    pub(super) fn new(chunk_count: u64) -> Self {
        let slots = chunk_count
            .saturating_mul(2)
            .clamp(1, MAX_SLOTS)
            .next_power_of_two();
        Self {
            slots: vec![0; usize::try_from(slots).unwrap_or(1)],
        }
    }

    /// Returns a chunk that may have this digest.
    pub(super) fn candidate(&self, digest: &Digest) -> Option<ChunkNumber> {
        let slot = self.slots.get(self.slot(digest))?;
        slot.checked_sub(1).map(ChunkNumber)
    }

    /// Notes a data chunk.
    pub(super) fn insert(&mut self, digest: &Digest, chunk: ChunkNumber) {
        let slot = self.slot(digest);
        if let Some(slot) = self.slots.get_mut(slot) {
            *slot = chunk.0 + 1;
        }
    }

    fn slot(&self, digest: &Digest) -> usize {
        let [a, b, c, d, e, f, g, h, ..] = digest.0;
        let hash = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
        usize::try_from(hash & (self.slots.len() as u64 - 1)).unwrap_or(0)
    }
}
