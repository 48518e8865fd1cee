//! Which virtual address shows which guest memory: runs, sorted by virtual address.
//!
//! Several page tables add to one map. The first that maps an address decides; what later ones say
//! of it is dropped, so that runs never overlap.

use std::ops::Range;

use snapfile::MemoryRegion;

/// A run of virtual addresses that shows contiguous guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// First virtual address.
    pub virtual_address: u64,
    /// Guest physical address that it shows.
    pub guest_address: u64,
    /// Length; the last address of a run is at most `u64::MAX`.
    pub len_bytes: u64,
}

impl Run {
    /// The last virtual address; the one after it need not exist.
    fn last(&self) -> u64 {
        self.virtual_address + (self.len_bytes - 1)
    }

    /// The part of a run between two virtual addresses, both within it.
    fn between(&self, first: u64, last: u64) -> Self {
        Self {
            virtual_address: first,
            guest_address: self.guest_address + (first - self.virtual_address),
            len_bytes: last - first + 1,
        }
    }

    /// Takes `next` in if it goes on where this run ends; returns whether it did.
    pub fn extend(&mut self, next: &Self) -> bool {
        let goes_on = self.last().checked_add(1) == Some(next.virtual_address)
            && self.guest_address.checked_add(self.len_bytes) == Some(next.guest_address);
        if goes_on {
            self.len_bytes += next.len_bytes;
        }
        goes_on
    }
}

/// Runs that do not overlap, by ascending virtual address.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct AddressMap(Vec<Run>);

impl AddressMap {
    /// The runs.
    pub fn runs(&self) -> &[Run] {
        &self.0
    }

    /// Whether nothing is mapped.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the guest physical address that a virtual address shows.
    pub fn translate(&self, virtual_address: u64) -> Option<u64> {
        let after = self
            .0
            .partition_point(|run| run.virtual_address <= virtual_address);
        let run = self.0.get(after.checked_sub(1)?)?;
        let offset = virtual_address - run.virtual_address;
        (offset < run.len_bytes).then(|| run.guest_address + offset)
    }

    /// Returns the place of the run at which the kernel's map of all memory begins, if there is one.
    ///
    /// The longest run within `addresses` belongs to it; it begins with the run of the lowest guest
    /// address that is as far from its virtual address.
    pub fn linear(&self, addresses: Range<u64>) -> Option<usize> {
        let distance = |run: &Run| run.virtual_address.wrapping_sub(run.guest_address);
        let within = || {
            let runs = (0..).zip(&self.0);
            runs.filter(|(_, run)| addresses.contains(&run.virtual_address))
        };
        let (_, longest) = within().max_by_key(|(_, run)| run.len_bytes)?;
        within()
            .filter(|(_, run)| distance(run) == distance(longest))
            .min_by_key(|(_, run)| run.guest_address)
            .map(|(place, _)| place)
    }

    /// Adds runs in any order where nothing is mapped yet.
    pub fn add(&mut self, mut more: Vec<Run>) {
        more.sort_by_key(|run| run.virtual_address);
        let mut free = Vec::new();
        let mut mapped = self.0.iter().peekable();
        let mut next_free = Some(0u64);
        for run in &more {
            // Past the last address of all nothing is free.
            let Some(free_from) = next_free else { break };
            let mut first = run.virtual_address.max(free_from);
            while mapped.next_if(|mapped| mapped.last() < first).is_some() {}
            let mut ahead = mapped.clone();
            while first <= run.last() {
                let obstacle = ahead.next().filter(|mapped| mapped.virtual_address <= run.last());
                let Some(obstacle) = obstacle else {
                    free.push(run.between(first, run.last()));
                    break;
                };
                if obstacle.virtual_address > first {
                    free.push(run.between(first, obstacle.virtual_address - 1));
                }
                match obstacle.last().checked_add(1) {
                    Some(after) => first = after,
                    None => break,
                }
            }
            next_free = run.last().checked_add(1).map(|after| after.max(free_from));
        }
        self.0.append(&mut free);
        self.0.sort_by_key(|run| run.virtual_address);
        self.merge();
    }

    /// Keeps the `count` longest runs; returns how many bytes of addresses are given up.
    pub fn keep_longest(&mut self, count: usize) -> u64 {
        if self.0.len() <= count {
            return 0;
        }
        self.0.sort_by_key(|run| std::cmp::Reverse(run.len_bytes));
        let given_up = self.0.split_off(count);
        self.0.sort_by_key(|run| run.virtual_address);
        given_up.iter().map(|run| run.len_bytes).sum()
    }

    fn merge(&mut self) {
        self.0.dedup_by(|next, run| run.extend(next));
    }
}

/// Cuts a mapping down to the guest memory that exists, one run per region.
pub fn within_memory(mapping: Run, regions: &[MemoryRegion]) -> impl Iterator<Item = Run> {
    let end = mapping.guest_address.saturating_add(mapping.len_bytes);
    let first = regions.partition_point(|region| region.end() <= mapping.guest_address);
    let reached = regions
        .get(first..)
        .unwrap_or_default()
        .iter()
        .take_while(move |region| region.guest_address < end);
    reached.map(move |region| {
        let start = mapping.guest_address.max(region.guest_address);
        Run {
            virtual_address: mapping.virtual_address + (start - mapping.guest_address),
            guest_address: start,
            len_bytes: end.min(region.end()) - start,
        }
    })
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn run(virtual_address: u64, guest_address: u64, len_bytes: u64) -> Run {
        Run {
            virtual_address,
            guest_address,
            len_bytes,
        }
    }

    fn map(runs: &[Run]) -> AddressMap {
        let mut map = AddressMap::default();
        map.add(runs.to_vec());
        map
    }

    proptest! {
        /// The model is a table of 48 pages, of which each shows one guest page or none.
        #[test]
        fn a_map_is_what_a_table_of_pages_would_be(
            adds in vec(vec((0usize..40, 0u64..100, 1usize..8), 0..6), 1..5),
        ) {
            let mut model = [None; 48];
            let mut map = AddressMap::default();
            for runs in adds {
                let mut free = model;
                // Of runs that are added together, the one that begins first decides.
                let mut sorted = runs.clone();
                sorted.sort_by_key(|run| run.0);
                for (page, guest, count) in sorted {
                    for (slot, guest) in free.iter_mut().skip(page).take(count).zip(guest..) {
                        slot.get_or_insert(guest);
                    }
                }
                model = free;
                let pages = |count: usize| (count as u64) << 12;
                let add = runs.iter().map(|&(page, guest, count)| run(pages(page), guest << 12, pages(count)));
                map.add(add.collect());
            }
            for (page, guest) in (0u64..).zip(model) {
                prop_assert_eq!(map.translate(page << 12), guest.map(|guest| guest << 12));
            }
            for pair in map.runs().windows(2) {
                prop_assert!(pair[0].last() < pair[1].virtual_address);
                prop_assert!(!pair[0].clone().extend(&pair[1]), "neighbours are merged");
            }
        }
    }

    #[test]
    fn neighbours_become_one_run_if_both_addresses_go_on() {
        let joined = map(&[
            run(0x3000, 0x8000, 0x1000),
            run(0x1000, 0x6000, 0x2000),
            run(0x4000, 0, 0x1000),
        ]);
        assert_eq!(
            joined.runs(),
            [run(0x1000, 0x6000, 0x3000), run(0x4000, 0, 0x1000)]
        );
    }

    #[test]
    fn what_is_mapped_first_stays() {
        let mut map = map(&[run(0x2000, 0x10_0000, 0x1000), run(0x5000, 0x20_0000, 0x1000)]);
        map.add(vec![run(0x1000, 0, 0x6000), run(0x5000, 0x30_0000, 0x4000)]);
        assert_eq!(
            map.runs(),
            [
                run(0x1000, 0, 0x1000),
                run(0x2000, 0x10_0000, 0x1000),
                run(0x3000, 0x2000, 0x2000),
                run(0x5000, 0x20_0000, 0x1000),
                run(0x6000, 0x5000, 0x1000),
                run(0x7000, 0x30_2000, 0x2000),
            ]
        );
        assert_eq!(map.translate(0x3fff), Some(0x2fff));
        assert_eq!(map.translate(0x9000), None);
        assert_eq!(map.translate(0), None);
    }

    #[test]
    fn the_last_page_of_all_addresses_can_be_mapped() {
        let last = run(u64::MAX - 0xfff, 0x1000, 0x1000);
        let mut map = map(&[last]);
        map.add(vec![last, run(u64::MAX - 0x1fff, 0, 0x2000)]);
        assert_eq!(map.runs(), [run(u64::MAX - 0x1fff, 0, 0x2000)]);
        assert_eq!(map.translate(u64::MAX), Some(0x1fff));
    }

    #[test]
    fn the_map_of_all_memory_begins_at_its_lowest_guest_address() {
        let direct = 0xffff_8880_0000_0000;
        let image = 0xffff_ffff_8000_0000;
        let map = map(&[
            run(0x40_0000, 0, 0x20_0000),
            run(0xffff_8800_0000_0000, 0, 0x1000),
            run(direct, 0, 0x2000),
            run(direct + 0x10_0000, 0x10_0000, 0x8000),
            run(image, 0, 0x10_0000),
        ]);
        assert_eq!(map.linear(1 << 63..image), Some(2));
        assert_eq!(map.linear(0..1), None);
    }

    #[test]
    fn too_many_runs_lose_the_short_ones() {
        let mut map = map(&[
            run(0x1000, 0x9000, 0x1000),
            run(0x10_0000, 0, 0x8000),
            run(0x20_0000, 0, 0x4000),
        ]);
        assert_eq!(map.keep_longest(2), 0x1000);
        assert_eq!(map.runs(), [run(0x10_0000, 0, 0x8000), run(0x20_0000, 0, 0x4000)]);
        assert_eq!(map.keep_longest(2), 0);
    }

    #[test]
    fn mappings_beyond_memory_and_across_holes_are_cut() {
        let region = |guest_address, len_bytes| MemoryRegion {
            guest_address,
            len_bytes,
        };
        let regions = [
            region(0x1000, 0x1000),
            region(0x4000, 0x4000),
            region(0x10_0000, 0x1000),
        ];
        let cut: Vec<_> = within_memory(run(1 << 47, 0, 0x6000), &regions).collect();
        assert_eq!(
            cut,
            [
                run((1 << 47) + 0x1000, 0x1000, 0x1000),
                run((1 << 47) + 0x4000, 0x4000, 0x2000)
            ]
        );
        assert_eq!(
            within_memory(run(0, 0xfee0_0000, 0x1000), &regions).count(),
            0,
            "devices are no memory"
        );
    }
}
