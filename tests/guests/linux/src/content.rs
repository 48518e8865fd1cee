//! What is written where: every word follows from a seed, a place, a version and its position.
//!
//! All words of a unit depend on its version, so that a unit put together from two versions is recognised by any
//! word. One word in four is incompressible, which gives a codec work without wasting the guest's time.

/// Scrambles a number so that neighbours have nothing in common (the finaliser of SplitMix64).
#[must_use]
pub const fn mix(number: u64) -> u64 {
    let mut word = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// The content of one unit (a page, a block, a file) in one version.
#[derive(Debug, Clone, Copy)]
pub struct Content {
    base: u64,
}

impl Content {
    /// Returns the content of the unit at `place` in `version`.
    #[must_use]
    pub const fn new(seed: u64, place: u64, version: u64) -> Self {
        Self {
            base: mix(mix(mix(seed) ^ place) ^ version),
        }
    }

    /// Returns the word of 8 bytes at a position, counted in words.
    #[must_use]
    pub const fn word(self, position: u64) -> u64 {
        if position.is_multiple_of(4) {
            mix(self.base ^ position)
        } else {
            self.base
        }
    }

    /// Fills `bytes` from the unit's beginning.
    pub fn fill(self, bytes: &mut [u8]) {
        for (position, word) in (0..).zip(bytes.chunks_mut(8)) {
            let whole = self.word(position).to_le_bytes();
            word.copy_from_slice(&whole[..word.len()]);
        }
    }

    /// Whether `bytes` are the unit's beginning.
    #[must_use]
    pub fn matches(self, bytes: &[u8]) -> bool {
        (0..)
            .zip(bytes.chunks(8))
            .all(|(position, word)| self.word(position).to_le_bytes()[..word.len()] == *word)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_matches_its_own_version_only() {
        let mut bytes = [0; 100];
        Content::new(1, 2, 3).fill(&mut bytes);
        assert!(Content::new(1, 2, 3).matches(&bytes));
        assert!(!Content::new(1, 2, 4).matches(&bytes));
        assert!(!Content::new(1, 3, 3).matches(&bytes));
    }

    #[test]
    fn a_unit_torn_anywhere_is_recognised() {
        let (mut old, mut new) = ([0; 256], [0; 256]);
        Content::new(7, 0, 1).fill(&mut old);
        Content::new(7, 0, 2).fill(&mut new);
        for cut in [1, 8, 100, 255] {
            let torn = [&new[..cut], &old[cut..]].concat();
            assert!(!Content::new(7, 0, 1).matches(&torn), "cut at {cut}");
            assert!(!Content::new(7, 0, 2).matches(&torn), "cut at {cut}");
        }
    }
}
