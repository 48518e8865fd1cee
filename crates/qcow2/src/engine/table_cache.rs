//! L2 tables in memory, and which parts of them the file does not have yet.
//!
//! A table leaves the cache only when the file has all of it. Which one leaves is decided by a clock: the oldest
//! that was not used since the hand last passed. Dirtiness is kept by parts of a table, so that a flush after a few
//! small writes writes little.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::ops::Range;

use crate::format::L2Entry;

/// Tables that are kept however little memory the cache is allowed.
const MIN_TABLES: u64 = 16;
/// Entries in the smallest part of a table that is written: a sector's.
const MIN_PART_ENTRIES: usize = 64;
/// Parts of a table that are dirty or not: the bits of a word.
const MAX_PARTS: usize = 64;

/// One L2 table.
#[derive(Debug)]
pub(super) struct Table {
    /// Where it is in the file.
    pub offset: u64,
    entries: Box<[L2Entry]>,
    /// Indexes of entries that no mapping may follow; empty but in corrupt images.
    bad: Vec<usize>,
    /// One bit for each part that the file does not have.
    dirty: u64,
    /// A flush is writing a copy of some parts.
    in_flight: bool,
    used: bool,
}

/// The parts of one table that a flush writes, as they were when it began.
#[derive(Debug)]
pub(super) struct TableParts {
    pub l1_index: u64,
    dirty: u64,
    /// Offset in the file and bytes.
    pub writes: Vec<(u64, Vec<u8>)>,
}

impl Table {
    /// Makes a table of entries that are in the file at `offset`.
    pub(super) fn clean(offset: u64, entries: Box<[L2Entry]>, bad: Vec<usize>) -> Self {
        Self {
            offset,
            entries,
            bad,
            dirty: 0,
            in_flight: false,
            used: true,
        }
    }

    pub(super) fn entries(&self) -> &[L2Entry] {
        &self.entries
    }

    /// Returns the first index of a range whose entry must not be followed.
    pub(super) fn bad_in(&self, range: Range<usize>) -> Option<usize> {
        self.bad.iter().copied().find(|index| range.contains(index))
    }

    fn part_entries(&self) -> usize {
        (self.entries.len() / MAX_PARTS).max(MIN_PART_ENTRIES)
    }

    fn all_parts(&self) -> u64 {
        let parts = self.entries.len().div_ceil(self.part_entries());
        u64::MAX >> (MAX_PARTS - parts.clamp(1, MAX_PARTS))
    }

    /// The bytes of the parts of a mask, joined where they touch.
    fn bytes_of(&self, mask: u64) -> Vec<(u64, Vec<u8>)> {
        let mut writes = Vec::new();
        let size = self.part_entries();
        let mut part = 0;
        while part < MAX_PARTS {
            let run = (mask >> part).trailing_ones() as usize;
            if run > 0 {
                let from = part * size;
                let to = (from + run * size).min(self.entries.len());
                let entries = self.entries.get(from..to).unwrap_or_default();
                let bytes = entries.iter().flat_map(|entry| entry.0.to_be_bytes()).collect();
                writes.push((self.offset + from as u64 * 8, bytes));
            }
            part += run.max(1);
        }
        writes
    }
}

/// The tables in memory, by L1 index.
#[derive(Debug)]
pub(super) struct TableCache {
    tables: HashMap<u64, Table>,
    clock: VecDeque<u64>,
    dirty: BTreeSet<u64>,
    capacity: usize,
}

impl TableCache {
    /// Makes an empty cache of about so many tables.
    pub(super) fn new(tables: u64) -> Self {
        Self {
            tables: HashMap::new(),
            clock: VecDeque::new(),
            dirty: BTreeSet::new(),
            capacity: usize::try_from(tables.max(MIN_TABLES)).unwrap_or(usize::MAX),
        }
    }

    pub(super) fn contains(&self, l1_index: u64) -> bool {
        self.tables.contains_key(&l1_index)
    }

    /// Returns a table and notes that it is used.
    pub(super) fn get(&mut self, l1_index: u64) -> Option<&Table> {
        let table = self.tables.get_mut(&l1_index)?;
        table.used = true;
        Some(table)
    }

    /// Adds a table; others leave where there are too many and the file has them.
    pub(super) fn insert(&mut self, l1_index: u64, table: Table) {
        for _ in 0..self.clock.len() {
            if self.tables.len() < self.capacity {
                break;
            }
            let Some(oldest) = self.clock.pop_front() else {
                break;
            };
            let keep = self.tables.get_mut(&oldest).is_some_and(|table| {
                let used = std::mem::take(&mut table.used);
                used || table.in_flight || table.dirty != 0
            });
            if keep {
                self.clock.push_back(oldest);
            } else {
                self.tables.remove(&oldest);
            }
        }
        if self.tables.insert(l1_index, table).is_none() {
            self.clock.push_back(l1_index);
        }
    }

    /// Adds a table of zeros that is nowhere in the file yet.
    pub(super) fn insert_new(&mut self, l1_index: u64, offset: u64, entries: usize) {
        let entries = vec![L2Entry::default(); entries].into_boxed_slice();
        self.insert(l1_index, Table::clean(offset, entries, Vec::new()));
        self.mark_all(l1_index);
    }

    /// Gives a table another place, where nothing of it is in the file yet.
    pub(super) fn relocate(&mut self, l1_index: u64, offset: u64) {
        if let Some(table) = self.tables.get_mut(&l1_index) {
            table.offset = offset;
        }
        self.mark_all(l1_index);
    }

    /// Changes one entry.
    pub(super) fn set(&mut self, l1_index: u64, l2_index: usize, entry: L2Entry) {
        let Some(table) = self.tables.get_mut(&l1_index) else {
            return;
        };
        let part = l2_index / table.part_entries();
        if let Some(place) = table.entries.get_mut(l2_index) {
            *place = entry;
            table.dirty |= 1 << part;
            self.dirty.insert(l1_index);
        }
    }

    fn mark_all(&mut self, l1_index: u64) {
        if let Some(table) = self.tables.get_mut(&l1_index) {
            table.dirty = table.all_parts();
            self.dirty.insert(l1_index);
        }
    }

    /// Returns whether so much of the cache is dirty that it should be written.
    pub(super) fn is_strained(&self) -> bool {
        self.dirty.len() * 2 > self.capacity
    }

    pub(super) fn is_clean(&self) -> bool {
        self.dirty.is_empty()
    }

    /// Takes a copy of everything dirty; the tables stay in memory until [`written`](Self::written).
    pub(super) fn take_dirty(&mut self) -> Vec<TableParts> {
        let mut taken = Vec::with_capacity(self.dirty.len());
        for l1_index in std::mem::take(&mut self.dirty) {
            if let Some(table) = self.tables.get_mut(&l1_index) {
                let dirty = std::mem::take(&mut table.dirty);
                table.in_flight = true;
                let writes = table.bytes_of(dirty);
                taken.push(TableParts {
                    l1_index,
                    dirty,
                    writes,
                });
            }
        }
        taken
    }

    /// Notes that what was taken is in the file.
    pub(super) fn written(&mut self, taken: &[TableParts]) {
        for parts in taken {
            if let Some(table) = self.tables.get_mut(&parts.l1_index) {
                table.in_flight = false;
            }
        }
    }

    /// Takes back what could not be written: it is dirty again.
    pub(super) fn put_back(&mut self, taken: &[TableParts]) {
        for parts in taken {
            if let Some(table) = self.tables.get_mut(&parts.l1_index) {
                table.in_flight = false;
                table.dirty |= parts.dirty;
                self.dirty.insert(parts.l1_index);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(offset: u64, entries: usize) -> Table {
        Table::clean(
            offset,
            vec![L2Entry::default(); entries].into_boxed_slice(),
            Vec::new(),
        )
    }

    #[test]
    fn only_the_parts_that_changed_are_written() {
        let mut cache = TableCache::new(16);
        cache.insert(7, table(0x10000, 8192));
        cache.set(7, 0, L2Entry(1));
        cache.set(7, 127, L2Entry(2));
        cache.set(7, 128, L2Entry(3));
        cache.set(7, 8191, L2Entry(4));
        let taken = cache.take_dirty();
        let places: Vec<_> = taken[0]
            .writes
            .iter()
            .map(|(offset, bytes)| (*offset, bytes.len()))
            .collect();
        assert_eq!(places, [(0x10000, 2048), (0x10000 + 63 * 1024, 1024)]);
        assert_eq!(taken[0].writes[0].1[127 * 8 + 7], 2);
        assert!(cache.is_clean());
        cache.put_back(&taken);
        assert_eq!(cache.take_dirty()[0].writes, taken[0].writes);
    }

    #[test]
    fn a_new_table_of_the_smallest_clusters_is_written_whole() {
        let mut cache = TableCache::new(16);
        cache.insert_new(0, 512, 64);
        assert_eq!(cache.take_dirty()[0].writes, [(512, vec![0; 512])]);
    }

    #[test]
    fn a_table_that_the_file_does_not_have_stays() {
        let mut cache = TableCache::new(16);
        cache.insert_new(0, 512, 64);
        for l1_index in 1..100 {
            cache.insert(l1_index, table(512 * l1_index, 64));
        }
        assert!(cache.contains(0));
        assert_eq!(cache.tables.len(), 16);
        let taken = cache.take_dirty();
        for l1_index in 100..200 {
            cache.insert(l1_index, table(512 * l1_index, 64));
        }
        assert!(cache.contains(0), "it is being written");
        cache.written(&taken);
        for l1_index in 200..300 {
            cache.insert(l1_index, table(512 * l1_index, 64));
        }
        assert!(!cache.contains(0));
        assert_eq!(cache.clock.len(), cache.tables.len());
    }
}
