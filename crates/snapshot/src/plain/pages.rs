//! Which page a step writes, with what, and so what a page must contain after so many steps.

/// Bytes of a page.
pub(super) const PAGE_BYTES: usize = 4096;
/// Odd, so that multiples of it visit every page of a power of two.
const STRIDE: u64 = 0x9e37_79b9_7f4a_7c15;

/// The page of its writer's `pages` that a step writes.
pub(super) fn page_of_step(step: u64, pages: u64) -> u64 {
    step.wrapping_mul(STRIDE) & (pages - 1)
}

/// What step number `step` writes into its page; never all zero.
pub(super) fn content(step: u64) -> [u8; PAGE_BYTES] {
    let mut page = [0; PAGE_BYTES];
    for (word, bytes) in (0_u64..).zip(page.as_chunks_mut().0) {
        // Each value four times: content that a codec can make something of.
        *bytes = step
            .wrapping_add(1)
            .wrapping_add(word / 4)
            .wrapping_mul(STRIDE)
            .to_le_bytes();
    }
    page
}

/// What a page must contain when the writers have done so many steps.
pub(super) fn expected(number: u64, pages: u64, steps: &[u64]) -> [u8; PAGE_BYTES] {
    let steps = usize::try_from(number / pages)
        .ok()
        .and_then(|writer| steps.get(writer))
        .copied();
    match last_step(number % pages, pages, steps.unwrap_or(0)) {
        Some(step) => content(step),
        None => [0; PAGE_BYTES],
    }
}

/// The last of the first `steps` steps that wrote the page.
fn last_step(page: u64, pages: u64, steps: u64) -> Option<u64> {
    let first = page.wrapping_mul(inverse(STRIDE)) & (pages - 1);
    let last = steps.checked_sub(1)?;
    Some(last - (last.checked_sub(first)? & (pages - 1)))
}

/// The inverse of an odd number modulo two to the 64th, by Newton's iteration.
fn inverse(odd: u64) -> u64 {
    (0..5).fold(odd, |guess, _| {
        guess.wrapping_mul(2_u64.wrapping_sub(odd.wrapping_mul(guess)))
    })
}

/// Pages of each writer: the largest power of two that fits.
pub(super) fn pages_per_writer(memory_bytes: u64, writers: usize) -> Option<u64> {
    let pages = (memory_bytes / PAGE_BYTES as u64).checked_div(writers as u64)?;
    pages.checked_ilog2().map(|log2| 1 << log2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_step_is_the_one_that_playing_all_steps_finds() {
        let pages = 8;
        for steps in 0..30 {
            let mut played = [None; 8];
            for step in 0..steps {
                played[usize::try_from(page_of_step(step, pages)).unwrap()] = Some(step);
            }
            let computed: Vec<_> = (0..pages).map(|page| last_step(page, pages, steps)).collect();
            assert_eq!(computed, played, "after {steps} steps");
        }
    }

    #[test]
    fn a_page_beyond_the_writers_is_zero() {
        assert_eq!(expected(8, 4, &[100, 100]), [0; PAGE_BYTES]);
        assert_ne!(expected(7, 4, &[100, 100]), [0; PAGE_BYTES]);
        assert_eq!(expected(7, 4, &[100, 0]), [0; PAGE_BYTES]);
    }

    #[test]
    fn writers_share_memory_in_powers_of_two() {
        assert_eq!(pages_per_writer(32 << 20, 3), Some(2048));
        assert_eq!(pages_per_writer(4096, 2), None);
        assert_eq!(pages_per_writer(4096, 0), None);
    }
}
