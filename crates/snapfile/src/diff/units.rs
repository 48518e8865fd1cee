//! One snapshot's side of a comparison: digests and content of units of memory.
//!
//! A unit is a power of two of bytes, aligned within its region. Its digest is a node of the digest
//! tree: a chunk's own, or joined from the chunks that make it up. Chunks past the end of the
//! region count as zeros there, as the tree has them.

use std::ops::Range;

use crate::digest::{Digest, LEAF_BYTES, Level, join, zero_digest};
use crate::error::Result;
use crate::memory_map::{ChunkNumber, ChunkSize};
use crate::reader::{Decoder, Snapshot};

/// Binary logarithm of the bytes of a digest leaf.
const LEAF_LOG2: u8 = 14;
const _: () = assert!(LEAF_BYTES == 1 << LEAF_LOG2);

/// Returns the binary logarithm of the units in which snapshots with these chunk sizes compare.
///
/// Chunks smaller than a digest leaf have digests of a different nature than larger ones, so
/// snapshots of unequal chunk sizes meet at the leaf or above.
pub(super) fn unit_log2(before: ChunkSize, after: ChunkSize) -> u8 {
    let larger = before.max(after).log2();
    if before == after {
        larger
    } else {
        larger.max(LEAF_LOG2)
    }
}

/// Reads units of one snapshot; every thread has its own.
pub(super) struct Side<'a> {
    snapshot: &'a Snapshot,
    decoder: Decoder<'a>,
    /// Chunks in a unit, as a binary logarithm.
    unit_chunks_log2: u8,
    nodes: Vec<Digest>,
    plain: Vec<u8>,
}

impl<'a> Side<'a> {
    pub(super) fn new(snapshot: &'a Snapshot, unit_log2: u8) -> Self {
        Self {
            snapshot,
            decoder: snapshot.decoder(),
            unit_chunks_log2: unit_log2 - snapshot.chunk_size().log2(),
            nodes: Vec::new(),
            plain: Vec::new(),
        }
    }

    /// Returns the digest of the unit that begins `offset` bytes into the region.
    pub(super) fn digest(&mut self, region: usize, offset: u64) -> Result<Digest> {
        let chunk_size = self.snapshot.chunk_size();
        let mut level = Level::of_chunks(chunk_size);
        let chunks = self.snapshot.layout().region_chunks(region);
        let first = offset >> chunk_size.log2();
        self.nodes.clear();
        for index in first..first + (1 << self.unit_chunks_log2) {
            let number = chunks.start + index;
            self.nodes.push(if number < chunks.end {
                self.decoder.chunk_entry(ChunkNumber(number))?.digest
            } else {
                zero_digest(level, index * level.units())
            });
        }
        while self.nodes.len() > 1 {
            self.nodes = self
                .nodes
                .as_chunks()
                .0
                .iter()
                .map(|[left, right]| join(level, left, right))
                .collect();
            level = level.above();
        }
        Ok(self.nodes.first().copied().unwrap_or(Digest::NONE))
    }

    /// Returns the content of a range of a region that begins at a unit and ends at a unit or with
    /// the region.
    pub(super) fn read(&mut self, region: usize, bytes: Range<u64>) -> Result<&[u8]> {
        let chunk_bytes = self.snapshot.chunk_size().bytes() as usize;
        let first = self.snapshot.layout().region_chunks(region).start
            + (bytes.start >> self.snapshot.chunk_size().log2());
        self.plain
            .resize(usize::try_from(bytes.end - bytes.start).unwrap_or(0), 0);
        for (number, plain) in (first..).zip(self.plain.chunks_mut(chunk_bytes)) {
            self.decoder.read_chunk(ChunkNumber(number), plain)?;
        }
        Ok(&self.plain)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unequal_chunk_sizes_meet_at_a_digest_leaf_or_above() {
        let unit = |before, after| unit_log2(ChunkSize::new(before).unwrap(), ChunkSize::new(after).unwrap());
        assert_eq!(unit(4096, 4096), 12);
        assert_eq!(unit(4096, 8192), 14);
        assert_eq!(unit(4096, 65536), 16);
        assert_eq!(unit(1 << 21, 65536), 21);
    }
}
