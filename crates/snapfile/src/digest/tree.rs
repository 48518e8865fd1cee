//! Joins nodes, given from left to right, to the digests of regions (spec 8.12).
//!
//! A tree under construction is a binary counter: the stack holds at most one node per level, and
//! runs of zeros of any length are taken in steps of the largest subtree that fits.

use super::{Digest, Level, join, zero_digest};
use crate::memory_map::ChunkLayout;

/// The digests of all regions, built from the digests of all chunks in order.
#[derive(Debug)]
pub(crate) struct MemoryDigests {
    level: Level,
    /// First chunk after each region.
    region_ends: Vec<u64>,
    /// Chunks pushed so far.
    chunks: u64,
    tree: RegionTree,
    regions: Vec<Digest>,
}

impl MemoryDigests {
    /// Begins with the first chunk of the first region.
    pub(crate) fn new(layout: &ChunkLayout) -> Self {
        Self {
            level: Level::of_chunks(layout.chunk_size()),
            region_ends: layout.region_ends().collect(),
            chunks: 0,
            tree: RegionTree::default(),
            regions: Vec::new(),
        }
    }

    /// Appends a chunk that is not zero.
    pub(crate) fn push(&mut self, digest: Digest) {
        self.tree.push(self.level, digest);
        self.chunks += 1;
        self.end_region();
    }

    /// Appends `count` chunks of zeros, which may reach into further regions.
    pub(crate) fn push_zeros(&mut self, mut count: u64) {
        while count > 0 {
            let Some(end) = self.region_end() else { return };
            let step = count.min(end.saturating_sub(self.chunks).max(1));
            self.tree.push_zeros(self.level, step);
            self.chunks += step;
            count -= step;
            self.end_region();
        }
    }

    /// Returns the first chunk after the region that is not complete.
    fn region_end(&self) -> Option<u64> {
        self.region_ends.get(self.regions.len()).copied()
    }

    fn end_region(&mut self) {
        if self.region_end() == Some(self.chunks) {
            self.regions.push(std::mem::take(&mut self.tree).finish());
        }
    }

    /// Returns the digests of all regions that are complete.
    pub(crate) fn finish(self) -> Vec<Digest> {
        self.regions
    }
}

/// The digest tree of one region, built from left to right.
#[derive(Debug, Default)]
struct RegionTree {
    /// Complete subtrees, largest first.
    stack: Vec<(Level, Digest)>,
    /// Pieces of 4 KiB that have been pushed.
    units: u64,
}

impl RegionTree {
    /// Appends a node, which begins at a multiple of its size.
    fn push(&mut self, level: Level, digest: Digest) {
        debug_assert_eq!(
            self.units % level.units(),
            0,
            "nodes begin at multiples of their size"
        );
        self.units += level.units();
        let mut node = (level, digest);
        while let Some((_, left)) = self.stack.pop_if(|(top, _)| *top == node.0) {
            node = (node.0.above(), join(node.0, &left, &node.1));
        }
        self.stack.push(node);
    }

    /// Appends `count` nodes of zeros.
    fn push_zeros(&mut self, level: Level, count: u64) {
        self.push_zero_units(count * level.units());
    }

    fn push_zero_units(&mut self, mut units: u64) {
        while units > 0 {
            let fits = 1 << units.ilog2();
            let step = if self.units == 0 {
                fits
            } else {
                fits.min(1 << self.units.trailing_zeros())
            };
            let level = Level::covering(step);
            self.push(level, zero_digest(level, self.units));
            units -= step;
        }
    }

    /// Returns the digest of the region.
    fn finish(mut self) -> Digest {
        let whole = self.units.next_power_of_two().max(Level::MIN_ROOT.units());
        self.push_zero_units(whole - self.units);
        self.stack.pop().map_or(Digest::NONE, |(_, digest)| digest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::{ChunkHasher, LEAF_BYTES};
    use crate::memory_map::ChunkSize;

    /// The definition of the specification, word by word.
    fn by_definition(memory: &[u8]) -> Digest {
        let mut level: Vec<Digest> = memory
            .chunks(LEAF_BYTES)
            .map(|leaf| {
                let mut leaf = leaf.to_vec();
                leaf.resize(LEAF_BYTES, 0);
                Digest::of(&leaf)
            })
            .collect();
        let count = level.len().next_power_of_two().max(128);
        level.resize(count, Digest::of(&[0; LEAF_BYTES]));
        while level.len() > 1 {
            level = level
                .chunks(2)
                .map(|pair| Digest::of(&[pair[0].0, pair[1].0].concat()))
                .collect();
        }
        level[0]
    }

    #[test]
    fn region_digest_is_that_of_the_definition_for_every_chunk_size() {
        let pages = [1, 3, 4, 5, 31, 32, 33, 512, 513, 1030];
        for page_count in pages {
            let mut memory: Vec<u8> = (0..page_count * 4096)
                .map(|i: u32| i.to_le_bytes()[1] ^ i.to_le_bytes()[0])
                .collect();
            let third = memory.len() / 3;
            memory[third..2 * third].fill(0);
            let expected = by_definition(&memory);
            for log2 in 12..=21 {
                let size = ChunkSize::from_log2(log2).unwrap();
                let mut hasher = ChunkHasher::default();
                let mut tree = RegionTree::default();
                let level = Level::of_chunks(size);
                for (number, chunk) in memory.chunks(size.bytes() as usize).enumerate() {
                    if chunk.iter().all(|byte| *byte == 0) {
                        tree.push_zeros(level, 1);
                    } else {
                        tree.push(level, hasher.digest(size, number as u64, chunk));
                    }
                }
                assert_eq!(tree.finish(), expected, "{page_count} pages, chunks of 2^{log2}");
            }
        }
    }

    #[test]
    fn terabytes_of_zeros_are_joined_in_a_few_steps() {
        let mut tree = RegionTree::default();
        tree.push_zeros(Level(0), (1 << 34) - 1);
        assert!(tree.stack.len() < 64);
        assert_eq!(tree.finish(), zero_digest(Level(34), 0));
    }
}
