//! What the balloon does on its worker's thread: reads lists of pages and gives the pages back.

use std::ops::Range;

use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use crate::balloon::{Balloon, F_PAGE_REPORTING, PAGE_BYTES};
use crate::discard::DiscardRoute;
use crate::error::{Error, Result};
use crate::event::{clear, descriptor};
use crate::queue::{Buffers, Chain, Segments, Served};
use crate::worker::{Context, QueueHandler};

/// Queue of pages that go into the balloon.
const INFLATE: usize = 0;
/// Queue of pages that the guest takes out again.
const DEFLATE: usize = 1;

/// Most pages of one request that are looked at; Linux puts 256 into one. What is beyond stays in memory.
const MAX_PAGES: u64 = 4096;
/// Most reports of one request that are looked at; Linux puts 32 into one.
const MAX_REPORTS: usize = 64;

/// The target has changed.
const CHANGED: u32 = 0;

/// The worker's side of the balloon.
#[derive(Debug)]
pub(super) struct Handler {
    balloon: Balloon,
    route: DiscardRoute,
}

impl Handler {
    pub(super) fn new(balloon: Balloon, route: DiscardRoute) -> Self {
        Self { balloon, route }
    }

    /// Gives the pages back whose numbers are listed, in as few calls as they allow.
    fn inflate(&self, memory: &GuestMemoryMmap, list: &Segments) -> Result<()> {
        let len = list.len_bytes().min(MAX_PAGES * 4) & !3;
        let mut bytes = vec![0; usize::try_from(len).unwrap_or_default()];
        list.read(memory, &mut bytes).map_err(|_| Error::Protocol {
            queue: INFLATE,
            problem: "list of pages outside guest memory",
        })?;
        let (numbers, _) = bytes.as_chunks();
        let numbers = numbers.iter().map(|number| u32::from_le_bytes(*number));
        for range in page_ranges(memory, numbers) {
            self.discard(memory, range);
        }
        Ok(())
    }

    /// Gives the pages back that the guest reports to be free: the memory of the chain itself.
    fn take_reports(&self, memory: &GuestMemoryMmap, chain: &Chain<'_>) {
        for report in chain.clone().writable().take(MAX_REPORTS) {
            let start = report.addr().0;
            let end = start.saturating_add(u64::from(report.len()));
            self.discard(memory, start..end);
        }
    }

    /// What cannot be given back stays in memory, at no harm but its size.
    fn discard(&self, memory: &GuestMemoryMmap, range: Range<u64>) {
        let len = range.end - range.start;
        if let Err(error) = self.route.discard(memory, range.start, len) {
            tracing::debug!(gpa = range.start, len, %error, "pages are not given back");
        }
    }
}

impl QueueHandler for Handler {
    fn start(&mut self, context: &mut Context) -> Result<()> {
        context.watch(descriptor(&self.balloon.shared.changed), CHANGED)
    }

    /// Serves one request at a time: each may take a while, and a pause is not to wait for a ring of them.
    fn serve(&mut self, context: &mut Context, queue: usize) -> Result<Served> {
        let reporting = context.has_feature(F_PAGE_REPORTING);
        let Some(active) = context.queues.get_mut(queue) else {
            return Ok(Served::Done);
        };
        let memory = &context.memory;
        active.disable_kicks(memory)?;
        let Some(chain) = active.pop(memory)? else {
            let more = active.enable_kicks(memory)?;
            return Ok(if more { Served::More } else { Served::Done });
        };
        let head = chain.head_index();
        match queue {
            INFLATE => self.inflate(memory, &Buffers::of(chain, queue)?.readable)?,
            // Pages come back when the guest touches them.
            DEFLATE => {}
            _ if reporting => self.take_reports(memory, &chain),
            _ => {}
        }
        active.complete(memory, head, 0)?;
        active.notify(memory, &context.interrupt)?;
        Ok(Served::More)
    }

    fn ready(&mut self, context: &mut Context, _token: u32) -> Result<()> {
        clear(&self.balloon.shared.changed);
        context.interrupt.signal_config();
        Ok(())
    }
}

/// Joins page numbers, in any order and repeated or not, to ranges of guest physical addresses; what is not
/// memory is left out.
fn page_ranges(memory: &GuestMemoryMmap, numbers: impl Iterator<Item = u32>) -> Vec<Range<u64>> {
    let mut starts: Vec<u64> = numbers
        .map(|number| u64::from(number) * PAGE_BYTES)
        .filter(|start| memory.address_in_range(GuestAddress(*start)))
        .collect();
    starts.sort_unstable();
    let mut ranges: Vec<Range<u64>> = Vec::new();
    for start in starts {
        let end = start + PAGE_BYTES;
        match ranges.last_mut() {
            Some(last) if start <= last.end => last.end = end,
            _ => ranges.push(start..end),
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// 16 pages, a hole of as many, and 16 pages again.
    fn memory() -> GuestMemoryMmap {
        let ranges = [(GuestAddress(0), 16 << 12), (GuestAddress(32 << 12), 16 << 12)];
        GuestMemoryMmap::from_ranges(&ranges).unwrap()
    }

    proptest! {
        #[test]
        fn ranges_are_the_listed_pages_that_are_memory(
            numbers in prop::collection::vec(prop_oneof![0..64_u32, Just(u32::MAX)], 0..100),
        ) {
            let ranges = page_ranges(&memory(), numbers.iter().copied());
            for pair in ranges.windows(2) {
                prop_assert!(pair[0].end < pair[1].start, "in order, joined where they meet");
            }
            let pages: BTreeSet<_> = ranges
                .into_iter()
                .flat_map(|range| range.step_by(4096))
                .map(|start| u32::try_from(start >> 12).unwrap())
                .collect();
            let listed = numbers.into_iter().filter(|page| matches!(page, 0..16 | 32..48));
            prop_assert_eq!(pages, listed.collect::<BTreeSet<_>>());
        }
    }
}
