//! Shows that two descriptions of all chunks agree without holding either of them.
//!
//! The frames describe the chunks in the order of the capture, the index in that of their numbers.
//! A fingerprint is a sum over descriptions, so the order does not matter: equal descriptions have
//! equal sums, and accidents that leave a 128-bit sum of digests equal do not happen. The index
//! describes every chunk exactly once by its form; so do the frames if the fingerprints are equal.
//!
//! Zero chunks come in runs of any length. Of them the count, the sum of their numbers and the sum
//! of the squares are kept, which have closed forms.

use crate::chunk::{ChunkEntry, ChunkKind};
use crate::digest::Digest;

/// A sum over descriptions of chunks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Fingerprint {
    described: u128,
    zeros: u128,
    zero_numbers: u128,
    zero_squares: u128,
}

impl Fingerprint {
    /// Adds the description of one chunk.
    pub(super) fn add(&mut self, chunk: u64, entry: &ChunkEntry) {
        if entry.kind == ChunkKind::Zero {
            return self.add_zeros(chunk, 1);
        }
        let mut record = [0; 56];
        let (number, description) = record.split_at_mut(8);
        number.copy_from_slice(&chunk.to_le_bytes());
        description.copy_from_slice(&entry.to_index().encode());
        let [low @ .., _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _] = Digest::of(&record).0;
        self.described = self.described.wrapping_add(u128::from_le_bytes(low));
    }

    /// Adds a run of zero chunks.
    pub(super) fn add_zeros(&mut self, first: u64, count: u64) {
        let (first, end) = (u128::from(first), u128::from(first) + u128::from(count));
        self.zeros = self.zeros.wrapping_add(end - first);
        self.zero_numbers = self.zero_numbers.wrapping_add(sum_below(end) - sum_below(first));
        self.zero_squares = self
            .zero_squares
            .wrapping_add(squares_below(end) - squares_below(first));
    }

    /// Adds all that `other` describes.
    pub(super) fn merge(&mut self, other: &Self) {
        self.described = self.described.wrapping_add(other.described);
        self.zeros = self.zeros.wrapping_add(other.zeros);
        self.zero_numbers = self.zero_numbers.wrapping_add(other.zero_numbers);
        self.zero_squares = self.zero_squares.wrapping_add(other.zero_squares);
    }
}

/// Sum of the numbers below `n`; chunk numbers are below 2^34, so nothing overflows.
fn sum_below(n: u128) -> u128 {
    n * n.saturating_sub(1) / 2
}

/// Sum of the squares of the numbers below `n`.
fn squares_below(n: u128) -> u128 {
    n.saturating_sub(1) * n * (2 * n).saturating_sub(1) / 6
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(location: u64) -> ChunkEntry {
        ChunkEntry {
            kind: ChunkKind::Zstd,
            location,
            stored_len: 9,
            digest: Digest([1; 32]),
        }
    }

    fn fingerprint(chunks: &[(u64, ChunkEntry)], zeros: &[(u64, u64)]) -> Fingerprint {
        let mut sum = Fingerprint::default();
        chunks.iter().for_each(|(chunk, entry)| sum.add(*chunk, entry));
        zeros
            .iter()
            .for_each(|(first, count)| sum.add_zeros(*first, *count));
        sum
    }

    #[test]
    fn order_and_the_cutting_of_runs_do_not_matter() {
        let one = fingerprint(&[(0, data(8)), (5, data(16))], &[(1, 4), (6, 100)]);
        let other = fingerprint(
            &[(5, data(16)), (0, data(8))],
            &[(50, 56), (6, 44), (1, 1), (2, 3)],
        );
        assert_eq!(one, other);
    }

    #[test]
    fn exchanged_doubled_and_moved_descriptions_are_seen() {
        let base = fingerprint(&[(0, data(8)), (1, data(16))], &[(2, 4)]);
        assert_ne!(base, fingerprint(&[(0, data(16)), (1, data(8))], &[(2, 4)]));
        assert_ne!(base, fingerprint(&[(0, data(8)), (0, data(8))], &[(2, 4)]));
        assert_ne!(base, fingerprint(&[(0, data(8)), (1, data(16))], &[(3, 4)]));
        // The same count and the same sum of numbers: 2+3+4+5 = 1+3+4+6.
        assert_ne!(
            base,
            fingerprint(&[(0, data(8)), (1, data(16))], &[(1, 1), (3, 2), (6, 1)])
        );
    }

    #[test]
    fn sums_have_their_closed_forms() {
        for n in 0..50u128 {
            assert_eq!(sum_below(n), (0..n).sum());
            assert_eq!(squares_below(n), (0..n).map(|k| k * k).sum());
        }
    }
}
