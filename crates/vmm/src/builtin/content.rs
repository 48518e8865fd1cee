//! What the built-in guest's pages contain: the pattern table, the loader's pages, the steps' writes.
//!
//! A page is *incompressible* (random words) or *like text* (words of a small vocabulary). The loader
//! fills every page of the working set so, then writes round 0 into it; each step after that writes a
//! stamp and some words copied from the pattern table, always at the same place of the page.

use crate::builtin::layout::{PAGE_LEN, SOURCE_SHIFT, TABLE_LEN, TABLE_STARTS, index};
use crate::builtin::parameters::Parameters;
use crate::builtin::sequence::mix;

/// A page of guest memory on the host's side.
pub(crate) type Page = [u8; PAGE_LEN];

pub(crate) const ZERO_PAGE: Page = [0; PAGE_LEN];

const VOCABULARY: [&str; 32] = [
    "the",
    "of",
    "page",
    "and",
    "to",
    "in",
    "memory",
    "is",
    "guest",
    "was",
    "for",
    "snapshot",
    "with",
    "INFO",
    "DEBUG",
    "request",
    "=",
    "status",
    "200",
    "user",
    "error",
    "null",
    "{\"id\":",
    "},",
    "GET",
    "/index.html",
    "2026-01-01T00:00:00Z",
    "0x7fff",
    "thread",
    "worker",
    "completed",
    "in_progress",
];
/// Text pages are put together from slices of the table of this many bytes.
const SLICE_LEN: usize = 256;
/// So many neighbouring pages are of one kind, since real memory is not mixed page by page.
const GROUP_PAGES: u64 = 16;

/// Makes the pattern table: random words in the first part, text in the rest.
pub(crate) fn pattern_table(parameters: &Parameters) -> Vec<u8> {
    let mut table = vec![0; index(TABLE_LEN)];
    let (random, text) = table.split_at_mut(random_len(parameters));
    fill_random(mix(parameters.seed), random);
    fill_text(mix(parameters.seed ^ 1), text);
    table
}

/// Returns the bytes of the table's incompressible part, whole words.
fn random_len(parameters: &Parameters) -> usize {
    index(TABLE_STARTS * u64::from(parameters.incompressible_percent) / 100 / 8 * 8)
}

/// Makes the content of working set pages.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Content<'a> {
    pub(crate) parameters: &'a Parameters,
    pub(crate) table: &'a [u8],
}

impl Content<'_> {
    /// Fills `page` as it was before round 0, for page `number` of the working set.
    pub(crate) fn fill(&self, number: u64, page: &mut Page) {
        if self.parameters.starts_zero {
            page.fill(0);
            return;
        }
        let seed = self.parameters.seed.rotate_left(32);
        let hash = mix(seed ^ number);
        if mix(!seed ^ (number / GROUP_PAGES)) % 100 < u64::from(self.parameters.incompressible_percent) {
            fill_random(hash, page);
            return;
        }
        let text = &self.table[random_len(self.parameters)..];
        let starts = (text.len() - SLICE_LEN) as u64;
        for (slice, out) in (0..).zip(page.chunks_exact_mut(SLICE_LEN)) {
            let start = index(mix(hash ^ slice) % starts);
            out.copy_from_slice(&text[start..start + SLICE_LEN]);
        }
    }

    /// Writes into `page` the first `words` words that `step` of `cpu` writes.
    pub(crate) fn write(&self, cpu: u32, step: u64, words: u32, page: &mut Page) {
        let never_written = self.parameters.starts_zero && step < self.parameters.pages_per_cpu;
        if words == 0 || never_written {
            return;
        }
        let at = index(self.parameters.write_offset());
        let (stamp, rest) = page[at..at + words as usize * 8].split_at_mut(8);
        stamp.copy_from_slice(&Parameters::stamp(cpu, step).to_le_bytes());
        let source = index(self.source_offset(cpu, step));
        rest.copy_from_slice(&self.table[source..source + rest.len()]);
    }

    /// Returns where in the pattern table a step finds its words, in bytes.
    pub(crate) fn source_offset(&self, cpu: u32, step: u64) -> u64 {
        let factor = self.parameters.source_factor(cpu);
        (Parameters::stamp(cpu, step).wrapping_mul(factor) >> SOURCE_SHIFT) * 8
    }
}

fn fill_random(seed: u64, out: &mut [u8]) {
    for (number, word) in (0..).zip(out.chunks_exact_mut(8)) {
        word.copy_from_slice(&mix(seed ^ number).to_le_bytes());
    }
}

fn fill_text(seed: u64, out: &mut [u8]) {
    let (mut at, mut hash) = (0, seed);
    while at < out.len() {
        hash = mix(hash);
        // The smaller of two numbers: earlier words are more frequent, as in a language.
        let word = VOCABULARY[index((hash & 31).min(hash >> 8 & 31))];
        let end = if hash >> 16 & 15 == 0 { b'\n' } else { b' ' };
        for byte in word.bytes().chain([end]).take(out.len() - at) {
            out[at] = byte;
            at += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builtin::layout::PAGE_SIZE;
    use crate::builtin::{BuiltinOptions, parameters::Room};

    fn parameters(incompressible_percent: u8) -> Parameters {
        let options = BuiltinOptions {
            incompressible_percent,
            ..BuiltinOptions::default()
        };
        Parameters::new(&options, 1, Room::flat(64 << 20), false).unwrap()
    }

    #[test]
    fn share_of_incompressible_pages_follows_the_option() {
        for percent in [0, 30, 100] {
            let parameters = parameters(percent);
            let table = pattern_table(&parameters);
            let content = Content {
                parameters: &parameters,
                table: &table,
            };
            let mut page = ZERO_PAGE;
            let random = (0..1000 * GROUP_PAGES).step_by(16).filter(|number| {
                content.fill(*number, &mut page);
                !page.is_ascii()
            });
            let (random, expected) = (random.count(), usize::from(percent) * 10);
            assert!(
                random.abs_diff(expected) < 60,
                "{random} of 1000 at {percent} percent"
            );
        }
    }

    #[test]
    fn sources_leave_room_for_a_whole_page() {
        let parameters = parameters(30);
        let content = Content {
            parameters: &parameters,
            table: &[],
        };
        let last = (0..200_000).map(|step| content.source_offset(0, step)).max();
        assert!(last.is_some_and(|last| last > TABLE_STARTS / 2 && last + PAGE_SIZE <= TABLE_LEN));
    }
}
