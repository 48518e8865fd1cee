//! Digests of guest memory that do not depend on how it was cut and compressed (spec 8.11 to 8.16).
//!
//! The one idea: guest memory is the leaves of a binary tree per region, and the digest of a chunk
//! is a node of that tree, whatever the chunk size. Subtrees of zeros have constant digests, so
//! untouched memory costs nothing. A chunk below the leaf size has a BLAKE3 chaining value, from
//! which the leaf's digest can be computed. Here are levels and nodes; `tree` joins them to roots.

mod root;
mod tree;

use std::fmt;
use std::sync::LazyLock;

use blake3::hazmat::{HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root};

pub(crate) use root::{StateSection, root_digest};
pub(crate) use tree::MemoryDigests;

use crate::memory_map::ChunkSize;

/// A BLAKE3 digest.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// What stands in the file where a structure has no digest.
    pub(crate) const NONE: Self = Self([0; 32]);

    /// Returns the BLAKE3 digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({self})")
    }
}

impl serde::Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Bytes of a digest leaf (spec 8.11).
pub(crate) const LEAF_BYTES: usize = 16 * 1024;
/// Binary logarithm of the smallest piece of memory with a digest: 4 KiB.
const UNIT_LOG2: u8 = 12;

/// Height in the tree, counted from pieces of 4 KiB: 0 is 4 KiB, 1 is 8 KiB, 2 is a leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Level(u8);

impl Level {
    /// Level of digest leaves.
    pub(crate) const LEAF: Self = Self(2);
    /// Lowest level that a region's root may have: 2 MiB (spec 8.12).
    pub(crate) const MIN_ROOT: Self = Self(9);
    /// Highest level, above all memory that the limits allow.
    const MAX: Self = Self(48);

    /// Returns the level of the digests of chunks.
    pub(crate) fn of_chunks(chunk_size: ChunkSize) -> Self {
        Self(chunk_size.log2() - UNIT_LOG2)
    }

    /// Returns the level whose nodes cover `units` pieces of 4 KiB, a power of two.
    pub(crate) fn covering(units: u64) -> Self {
        debug_assert!(units.is_power_of_two(), "a node covers a power of two");
        Self(u8::try_from(units.trailing_zeros()).unwrap_or(Self::MAX.0))
    }

    /// Returns how many pieces of 4 KiB a node covers.
    pub(crate) fn units(self) -> u64 {
        1 << self.0
    }

    /// Returns the level above.
    pub(crate) fn above(self) -> Self {
        Self(self.0 + 1)
    }
}

/// Joins two neighbours of one level to their parent (spec 8.12, 8.13).
pub(crate) fn join(level: Level, left: &Digest, right: &Digest) -> Digest {
    match level.0 {
        0 => Digest(merge_subtrees_non_root(&left.0, &right.0, Mode::Hash)),
        1 => Digest(*merge_subtrees_root(&left.0, &right.0, Mode::Hash).as_bytes()),
        _ => {
            let mut both = [0; 64];
            let (first, second) = both.split_at_mut(32);
            first.copy_from_slice(&left.0);
            second.copy_from_slice(&right.0);
            Digest::of(&both)
        }
    }
}

/// Digests of zeros: of every level from the leaf up, and of the smaller ones by position in the leaf.
struct Zeros {
    by_level: Vec<Digest>,
    four_kib: [Digest; 4],
    eight_kib: [Digest; 2],
}

static ZEROS: LazyLock<Zeros> = LazyLock::new(|| {
    let piece = |len: usize, at: usize| {
        let mut hasher = blake3::Hasher::new();
        Digest(
            hasher
                .set_input_offset(at as u64)
                .update(&vec![0; len])
                .finalize_non_root(),
        )
    };
    let mut by_level = vec![Digest::of(&[0; LEAF_BYTES])];
    let mut level = Level::LEAF;
    while let Some(last) = by_level.last().filter(|_| level < Level::MAX) {
        by_level.push(join(level, last, last));
        level = level.above();
    }
    Zeros {
        by_level,
        four_kib: [0, 4096, 8192, 12288].map(|at| piece(4096, at)),
        eight_kib: [0, 8192].map(|at| piece(8192, at)),
    }
});

/// Returns the digest of a node of zeros that begins `unit` pieces of 4 KiB into its region.
pub(crate) fn zero_digest(level: Level, unit: u64) -> Digest {
    let nth = |digests: &[Digest], position: u64| {
        let position = usize::try_from(position).ok();
        position
            .and_then(|position| digests.get(position))
            .copied()
            .unwrap_or(Digest::NONE)
    };
    match level.0 {
        0 => nth(&ZEROS.four_kib, unit % 4),
        1 => nth(&ZEROS.eight_kib, unit % 4 / 2),
        above => nth(&ZEROS.by_level, u64::from(above - Level::LEAF.0)),
    }
}

/// Computes digests of chunks; owns the buffer for those that must be extended by zeros.
#[derive(Debug, Default)]
pub(crate) struct ChunkHasher {
    nodes: Vec<Digest>,
    extended: Vec<u8>,
}

impl ChunkHasher {
    /// Returns the digest of a chunk that begins `chunk_in_region` chunks into its region (spec 8.13).
    ///
    /// `plain` is at most one chunk; the rest of the chunk is taken as zeros.
    pub(crate) fn digest(&mut self, chunk_size: ChunkSize, chunk_in_region: u64, plain: &[u8]) -> Digest {
        let level = Level::of_chunks(chunk_size);
        if level < Level::LEAF {
            return self.small_digest(chunk_size, chunk_in_region, plain);
        }
        self.nodes.clear();
        for leaf in plain.chunks(LEAF_BYTES) {
            let digest = if leaf.len() == LEAF_BYTES {
                Digest::of(leaf)
            } else {
                self.extended.clear();
                self.extended.extend_from_slice(leaf);
                self.extended.resize(LEAF_BYTES, 0);
                Digest::of(&self.extended)
            };
            self.nodes.push(digest);
        }
        let mut at = Level::LEAF;
        while at < level {
            self.join_level(at);
            at = at.above();
        }
        self.nodes
            .first()
            .copied()
            .unwrap_or_else(|| zero_digest(level, 0))
    }

    /// Replaces the nodes of one level by those of the level above.
    fn join_level(&mut self, level: Level) {
        let mut joined = 0;
        for pair in 0..self.nodes.len().div_ceil(2) {
            let left = self.nodes.get(2 * pair).copied().unwrap_or(Digest::NONE);
            let right = self
                .nodes
                .get(2 * pair + 1)
                .copied()
                .unwrap_or_else(|| zero_digest(level, 0));
            if let Some(slot) = self.nodes.get_mut(pair) {
                *slot = join(level, &left, &right);
            }
            joined = pair + 1;
        }
        self.nodes.truncate(joined);
    }

    fn small_digest(&mut self, chunk_size: ChunkSize, chunk_in_region: u64, plain: &[u8]) -> Digest {
        let len = u64::from(chunk_size.bytes());
        let at = chunk_in_region % (LEAF_BYTES as u64 / len) * len;
        let mut hasher = blake3::Hasher::new();
        hasher.set_input_offset(at);
        hasher.update(plain);
        if (plain.len() as u64) < len {
            self.extended.clear();
            self.extended
                .resize(usize::try_from(len).unwrap_or(LEAF_BYTES) - plain.len(), 0);
            hasher.update(&self.extended);
        }
        Digest(hasher.finalize_non_root())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk_size(bytes: u32) -> ChunkSize {
        ChunkSize::new(bytes).unwrap()
    }

    fn content(len: usize) -> Vec<u8> {
        (0..len).map(|i| u8::try_from(i * i % 251).unwrap()).collect()
    }

    #[test]
    fn small_chunks_join_to_the_digest_of_their_leaf() {
        let leaf = content(LEAF_BYTES);
        let mut hasher = ChunkHasher::default();
        let mut quarter = |i: usize| hasher.digest(chunk_size(4096), 8 + i as u64, &leaf[i * 4096..][..4096]);
        let quarters = [quarter(0), quarter(1), quarter(2), quarter(3)];
        let mut half = |i: usize| hasher.digest(chunk_size(8192), 6 + i as u64, &leaf[i * 8192..][..8192]);
        let halves = [half(0), half(1)];
        assert_eq!(join(Level(0), &quarters[0], &quarters[1]), halves[0]);
        assert_eq!(join(Level(0), &quarters[2], &quarters[3]), halves[1]);
        assert_eq!(join(Level(1), &halves[0], &halves[1]), Digest::of(&leaf));
    }

    #[test]
    fn short_chunks_are_extended_by_zeros() {
        let mut hasher = ChunkHasher::default();
        for (size, len) in [(8192, 4096), (16384, 4096), (65536, 20480), (1 << 21, 36864)] {
            let plain = content(len);
            let mut extended = plain.clone();
            extended.resize(size as usize, 0);
            let short = hasher.digest(chunk_size(size), 3, &plain);
            assert_eq!(short, hasher.digest(chunk_size(size), 3, &extended), "{size}");
        }
    }

    #[test]
    fn zero_digests_equal_the_digests_of_zeros() {
        let mut hasher = ChunkHasher::default();
        for log2 in 12..=21 {
            let size = ChunkSize::from_log2(log2).unwrap();
            for chunk in 0..5 {
                let level = Level::of_chunks(size);
                let zeros = hasher.digest(size, chunk, &vec![0; size.bytes() as usize]);
                assert_eq!(zeros, zero_digest(level, chunk * level.units()), "{log2} {chunk}");
            }
        }
    }

    #[test]
    fn zero_digests_equal_those_of_the_specification() {
        let spec = include_str!("../../../fmt-spec/snapfile-v1.md");
        for (level, unit) in [
            (0, 0),
            (0, 1),
            (0, 2),
            (0, 3),
            (1, 0),
            (1, 2),
            (2, 0),
            (4, 0),
            (9, 0),
        ] {
            let digest = zero_digest(Level(level), unit).to_string();
            assert!(spec.contains(&digest), "level {level} unit {unit}: {digest}");
        }
    }
}
