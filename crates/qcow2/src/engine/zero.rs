//! Discarding and writing zeros: whole clusters change their mapping, parts of clusters are written.
//!
//! Version 3 says in the mapping that a cluster reads as zeros. Version 2 can only unmap it, which is the same
//! where nothing lies below; over a backing file it writes zeros, and does not discard.

use super::Engine;
use super::lookup::Mapping;
use super::state::State;
use crate::error::Result;
use crate::format::{COPIED, L2Entry, ZERO};

/// Most bytes of zeros that are written at once.
const ZEROS_BYTES: u64 = 1 << 20;

/// What happens to the host clusters of a range that is to read as zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Room {
    /// They are given back.
    Free,
    /// Those that are nobody else's stay for the data to come.
    Keep,
}

impl Engine {
    /// Gives back the clusters of a range; its whole clusters then read as zeros, the rest stays as it is.
    pub(crate) fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.begin_change(offset, len)?;
        if !self.geometry.zero_flag && self.backing().is_some() {
            return Ok(());
        }
        let start = self.geometry.cluster.round_up(offset);
        let end = self.geometry.whole_clusters_end(offset + len);
        self.zero_clusters(start, end, Room::Free)
    }

    /// Makes a range read as zeros; with `may_unmap` its clusters are given back.
    pub(crate) fn write_zeroes(&self, offset: u64, len: u64, may_unmap: bool) -> Result<()> {
        self.begin_change(offset, len)?;
        let end = offset + len;
        let whole_start = self.geometry.cluster.round_up(offset);
        let whole_end = self.geometry.whole_clusters_end(end);
        if whole_start >= whole_end || (!self.geometry.zero_flag && self.backing().is_some()) {
            return self.write_zeros(offset, end);
        }
        self.write_zeros(offset, whole_start)?;
        let room = if may_unmap { Room::Free } else { Room::Keep };
        self.zero_clusters(whole_start, whole_end, room)?;
        self.write_zeros(whole_end.min(end), end)
    }

    /// Changes the mapping of whole clusters, table by table.
    fn zero_clusters(&self, start: u64, end: u64, room: Room) -> Result<()> {
        let mut from = start;
        while from < end {
            self.relieve()?;
            let to = end.min(self.geometry.table_end(from));
            let _exclusive = self.ranges.exclusive(from..to);
            self.zero_table(from, to, room)?;
            from = to;
        }
        Ok(())
    }

    /// Changes the mapping of whole clusters of one table, which the caller has locked.
    fn zero_table(&self, start: u64, end: u64, room: Room) -> Result<()> {
        let cluster = self.geometry.cluster;
        let l1_index = self.geometry.l1_index(start);
        let first = self.geometry.l2_index(start);
        let last =
            first.saturating_add(usize::try_from(cluster.clusters_for(end - start)).unwrap_or(usize::MAX));
        let covered = self.backing().is_some();
        let mut state = self.with_table(l1_index)?;
        if !covered && state.tables.get(l1_index).is_none() {
            return Ok(());
        }
        for index in first..last {
            let table = state.tables.get(l1_index);
            if table.is_some_and(|table| table.bad_in(index..index + 1).is_some()) {
                continue;
            }
            let old = table
                .and_then(|table| table.entries().get(index))
                .copied()
                .unwrap_or_default();
            let new = self.zeroed(old, covered, room);
            if new != old {
                state.own_table(l1_index)?;
                state.tables.set(l1_index, index, new);
                self.free_replaced(&mut state, old, new);
            }
        }
        Ok(())
    }

    /// Returns the entry that makes a cluster read as zeros.
    fn zeroed(&self, old: L2Entry, covered: bool, room: Room) -> L2Entry {
        if !self.geometry.zero_flag || (old.is_unallocated() && !covered) {
            return L2Entry::default();
        }
        let has_room = !old.is_compressed() && old.host_offset() != 0 && old.is_copied();
        match room {
            Room::Keep if has_room => L2Entry(old.host_offset() | COPIED | ZERO),
            Room::Keep | Room::Free if covered || old == L2Entry::zero() => L2Entry::zero(),
            // Nothing lies below: unmapped is the same as zero, and needs no table to say so.
            Room::Keep | Room::Free => L2Entry::default(),
        }
    }

    /// Notes which clusters lose a reference when one entry replaces another.
    fn free_replaced(&self, state: &mut State, old: L2Entry, new: L2Entry) {
        match old.compressed(self.geometry.cluster.bits()) {
            Some(compressed) => state.free_compressed_later(compressed),
            None if old.host_offset() != 0 && new.host_offset() == 0 => state.free_later(old.host_offset()),
            None => {}
        }
    }

    /// Writes zeros where there may be anything else.
    fn write_zeros(&self, start: u64, end: u64) -> Result<()> {
        let zeros = vec![0; usize::try_from(ZEROS_BYTES.min(end.saturating_sub(start))).unwrap_or(0)];
        let mut from = start;
        while from < end {
            let to = end.min(self.geometry.table_end(from));
            let _exclusive = self
                .ranges
                .exclusive(self.geometry.clusters_around(from, to - from));
            while from < to {
                let run = self.lookup(from, ZEROS_BYTES.min(to - from))?;
                let (is_zero, len) = match (run.mapping, self.backing()) {
                    (Mapping::Zero { .. }, _) | (Mapping::Unallocated, None) => (true, run.len),
                    (Mapping::Unallocated, Some(backing)) => {
                        let (data, len) = backing.holds_data(from, run.len)?;
                        (!data, len.clamp(1, run.len))
                    }
                    _ => (false, run.len),
                };
                if !is_zero {
                    let len = usize::try_from(len).unwrap_or(usize::MAX);
                    self.write_locked(zeros.get(..len).unwrap_or(&zeros), from)?;
                }
                from += len;
            }
        }
        Ok(())
    }
}
