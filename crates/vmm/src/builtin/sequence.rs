//! The order in which a vCPU writes the pages of its part, and its inverse.
//!
//! Steps count from zero, and `pages` steps are one *round*. In round r the page of the k-th step is
//! (first + k * stride) mod pages, where `first` and `stride` follow from the vCPU's seed and r, and
//! the stride has no common factor with the number of pages: each round writes every page once. Since
//! the stride has an inverse, the step that last wrote a page takes O(1) to compute. Round 0 stands
//! for what the loader wrote; the guest begins with round 1.

use crate::builtin::layout::STRIDES;

/// Spreads round numbers before mixing (the golden ratio in 64 bits).
pub(crate) const ROUND_FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
/// Second factor of the guest's mixing function.
pub(crate) const MIX_FACTOR: u64 = 0xd6e8_feb8_6659_fd93;

/// Returns a well mixed number for `value` (SplitMix64's output function).
pub(crate) fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(ROUND_FACTOR);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// A stride and its inverse modulo the number of pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stride {
    pub(crate) stride: u64,
    pub(crate) inverse: u64,
}

/// Chooses the strides for parts of `pages` pages, which must be 1 to 2^32.
pub(crate) fn strides(seed: u64, pages: u64) -> [Stride; STRIDES] {
    assert!(
        (1..=1 << 32).contains(&pages),
        "products of page numbers fit in 64 bits"
    );
    let mut candidate = mix(seed ^ pages);
    std::array::from_fn(|_| {
        loop {
            candidate = mix(candidate);
            let stride = candidate % pages;
            if let Some(inverse) = inverse(stride, pages) {
                return Stride { stride, inverse };
            }
        }
    })
}

/// Returns the inverse of `value` modulo `modulus`, if they have no common factor.
fn inverse(value: u64, modulus: u64) -> Option<u64> {
    let modulus_signed = i128::from(modulus);
    let (mut remainder, mut next) = (modulus_signed, i128::from(value));
    let (mut factor, mut next_factor) = (0_i128, 1_i128);
    while next != 0 {
        let quotient = remainder / next;
        (remainder, next) = (next, remainder - quotient * next);
        (factor, next_factor) = (next_factor, factor - quotient * next_factor);
    }
    (remainder == 1).then(|| u64::try_from(factor.rem_euclid(modulus_signed)).expect("below the modulus"))
}

/// One round of one vCPU.
#[derive(Clone, Copy, Debug)]
struct Round {
    first: u64,
    stride: Stride,
    pages: u64,
}

impl Round {
    fn page(&self, position: u64) -> u64 {
        (self.first + position * self.stride.stride % self.pages) % self.pages
    }

    fn position(&self, page: u64) -> u64 {
        (page + self.pages - self.first) % self.pages * self.stride.inverse % self.pages
    }
}

/// Where one vCPU stands in its sequence: `step` is the first step that is not complete.
#[derive(Clone, Debug)]
pub(crate) struct Position {
    pub(crate) step: u64,
    pages: u64,
    current: Round,
    previous: Round,
}

impl Position {
    /// Computes the position of a vCPU at `step`, which must not lie in round 0.
    pub(crate) fn new(strides: &[Stride; STRIDES], pages: u64, round_seed: u64, step: u64) -> Self {
        let number = step / pages;
        assert!(number >= 1, "the guest begins with round 1");
        let round = |number| round(strides, pages, round_seed, number);
        Self {
            step,
            pages,
            current: round(number),
            previous: round(number - 1),
        }
    }

    /// Returns the page that the current step writes.
    pub(crate) fn current_page(&self) -> u64 {
        self.current.page(self.step % self.pages)
    }

    /// Returns the last complete step that wrote `page`.
    pub(crate) fn last_step(&self, page: u64) -> u64 {
        let done = self.step % self.pages;
        let round_start = self.step - done;
        let position = self.current.position(page);
        if position < done {
            round_start + position
        } else {
            round_start - self.pages + self.previous.position(page)
        }
    }
}

/// The guest's own arithmetic (`.Lguest_round_constants`).
fn round(strides: &[Stride; STRIDES], pages: u64, round_seed: u64, number: u64) -> Round {
    let hash = number.wrapping_mul(ROUND_FACTOR).wrapping_add(round_seed);
    let hash = (hash ^ (hash >> 32)).wrapping_mul(MIX_FACTOR);
    let choice = usize::try_from((hash ^ (hash >> 32)) % STRIDES as u64).expect("below 32");
    let first = u64::try_from((u128::from(hash) * u128::from(pages)) >> 64).expect("below the pages");
    Round {
        first,
        stride: strides[choice],
        pages,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[test]
    fn every_round_writes_every_page_once() {
        for pages in [1, 2, 3, 17, 64, 1000] {
            let strides = strides(5, pages);
            for number in 0..40 {
                let round = round(&strides, pages, 99, number);
                let mut seen: Vec<u64> = (0..pages).map(|position| round.page(position)).collect();
                assert!((0..pages).all(|position| round.position(round.page(position)) == position));
                seen.sort_unstable();
                assert_eq!(
                    seen,
                    (0..pages).collect::<Vec<_>>(),
                    "{pages} pages, round {number}"
                );
            }
        }
    }

    #[test]
    fn last_step_agrees_with_a_replay() {
        for pages in [1, 2, 7, 48, 101] {
            let strides = strides(11, pages);
            let mut last = HashMap::new();
            for step in 0..pages * 5 {
                if step >= pages {
                    let position = Position::new(&strides, pages, 3, step);
                    for page in 0..pages {
                        assert_eq!(position.last_step(page), last[&page], "step {step}, page {page}");
                    }
                }
                last.insert(round(&strides, pages, 3, step / pages).page(step % pages), step);
            }
        }
    }

    #[test]
    fn numbers_with_a_common_factor_have_no_inverse() {
        assert_eq!(inverse(6, 9), None);
        assert_eq!(inverse(0, 4), None);
        assert_eq!(inverse(3, 10), Some(7));
        assert_eq!(inverse(0, 1), Some(0));
    }
}
