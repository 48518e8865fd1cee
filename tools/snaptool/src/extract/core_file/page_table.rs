//! Follows the page tables of long mode: 4 or 5 levels, pages of 4 KiB, 2 MiB and 1 GiB.
//!
//! Kernels live in the upper half of the address space, in every process the same; the lower half
//! is another one in each process and is followed only if asked for. Page tables belong to the guest, so
//! they may lead in circles or out of memory: a table that was followed at the same address before
//! is not followed again, and [`Limits`] bound the rest.

use std::collections::HashSet;
use std::ops::Range;

use snapfile::{MemoryRegion, PAGE_SIZE, Snapshot};

use super::address_map::{AddressMap, Run, within_memory};
use super::guest_pages::GuestPages;
use super::vcpu::{ADDRESS_MASK, Paging};

const ENTRIES: u64 = 512;
const PRESENT: u64 = 1;
/// In a table of level 2 or 3: the entry maps a page of 2 MiB or 1 GiB.
const LARGE: u64 = 1 << 7;

/// What is spent at most on page tables.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Tables that are read, all roots together.
    pub tables: u64,
    /// Runs that are collected from one root, before they are sorted and merged.
    pub runs: usize,
}

impl Limits {
    /// Enough to map all of a guest's memory twice by 4 KiB pages, and 64 GiB of addresses besides.
    pub fn for_memory(len_bytes: u64) -> Self {
        Self {
            tables: 2 * (len_bytes / (ENTRIES * PAGE_SIZE)) + (1 << 16),
            runs: 1 << 20,
        }
    }
}

/// A half of the address space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Half {
    /// Programs live here.
    Lower,
    /// The kernel lives here.
    Upper,
}

/// Follows page tables, one root after the other, into one map.
#[derive(Debug)]
pub struct Walk<'a> {
    pages: GuestPages<'a>,
    regions: &'a [MemoryRegion],
    /// Tables that were followed: address, level, and the virtual address that they begin at.
    followed: HashSet<(u64, u32, u64)>,
    tables_left: u64,
    max_runs: usize,
    runs: Vec<Run>,
    map: AddressMap,
    is_complete: bool,
}

impl<'a> Walk<'a> {
    /// Begins with an empty map.
    pub fn new(snapshot: &'a Snapshot, limits: Limits) -> Self {
        Self {
            pages: GuestPages::new(snapshot),
            regions: snapshot.memory_map().regions(),
            followed: HashSet::new(),
            tables_left: limits.tables,
            max_runs: limits.runs,
            runs: Vec::new(),
            map: AddressMap::default(),
            is_complete: true,
        }
    }

    /// Adds what one root maps in a half and no earlier root does.
    ///
    /// # Errors
    /// A chunk that holds a table cannot be decoded.
    pub fn follow(&mut self, paging: Paging, half: Half) -> anyhow::Result<()> {
        let Paging { root, levels } = paging;
        match half {
            Half::Lower => self.table(root, levels, 0, 0..ENTRIES / 2)?,
            Half::Upper => {
                let base = u64::MAX << (shift(levels) + 9);
                // The last entry has the kernel's code: what comes first has room left.
                let last = ENTRIES - 1;
                self.table(root, levels, base, last..ENTRIES)?;
                self.table(root, levels, base, ENTRIES / 2..last)?;
            }
        }
        self.map.add(std::mem::take(&mut self.runs));
        Ok(())
    }

    /// What was found so far.
    pub fn map(&self) -> &AddressMap {
        &self.map
    }

    /// Ends the walk: the map, and whether no limit was reached.
    pub fn finish(self) -> (AddressMap, bool) {
        (self.map, self.is_complete)
    }

    fn table(&mut self, table: u64, level: u32, base: u64, slots: Range<u64>) -> anyhow::Result<()> {
        if !self.followed.insert((table, level, base | slots.start)) {
            return Ok(());
        }
        let Some(tables_left) = self.tables_left.checked_sub(1) else {
            self.is_complete = false;
            return Ok(());
        };
        self.tables_left = tables_left;
        let Some(page) = self.pages.page(table)? else {
            return Ok(());
        };
        let page = *page;
        let (entries, _) = page.as_chunks::<8>();
        for (slot, entry) in (0u64..).zip(entries).filter(|(slot, _)| slots.contains(slot)) {
            let entry = u64::from_le_bytes(*entry);
            if entry & PRESENT == 0 {
                continue;
            }
            let address = base | slot << shift(level);
            let is_page = level == 1 || (level <= 3 && entry & LARGE != 0);
            if is_page {
                self.add_page(address, entry & ADDRESS_MASK, 1 << shift(level));
            } else if entry & LARGE == 0 {
                self.table(entry & ADDRESS_MASK, level - 1, address, 0..ENTRIES)?;
            }
        }
        Ok(())
    }

    fn add_page(&mut self, virtual_address: u64, target: u64, len_bytes: u64) {
        let page = Run {
            virtual_address,
            guest_address: target & !(len_bytes - 1),
            len_bytes,
        };
        for run in within_memory(page, self.regions) {
            if self.runs.last_mut().is_some_and(|before| before.extend(&run)) {
                continue;
            }
            if self.runs.len() >= self.max_runs {
                self.is_complete = false;
                return;
            }
            self.runs.push(run);
        }
    }
}

/// Bits of an address below those that select an entry in a table of this level.
fn shift(level: u32) -> u32 {
    12 + 9 * (level - 1)
}
