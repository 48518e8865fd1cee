//! Where a part of the guest's disk is.

use std::sync::{MutexGuard, PoisonError};

use super::Engine;
use super::state::State;
use super::table_cache::Table;
use crate::error::{Corruption, Result};
use crate::fields;
use crate::format::{ClusterSize, CompressedCluster, L1Entry, L2Entry};
use crate::storage::Storage;

/// Where some bytes of the guest's disk are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mapping {
    /// Not in this image: the layer below shows through, or zeros.
    Unallocated,
    /// They read as zeros, whatever the host cluster has that is kept for them.
    Zero { host: Option<u64>, copied: bool },
    /// At an offset of the file; if not `copied`, a snapshot may have them, too.
    Data { host: u64, copied: bool },
    /// Packed.
    Compressed(CompressedCluster),
}

/// Bytes of the guest's disk that follow one another where they are, too.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    /// Where the first byte is; host offsets are that byte's.
    pub mapping: Mapping,
    /// Bytes, at least one.
    pub len: u64,
}

impl Mapping {
    /// Returns what an entry says of a byte at `within` its cluster.
    fn of(entry: L2Entry, within: u64, cluster: ClusterSize) -> Self {
        let copied = entry.is_copied();
        let host = Some(entry.host_offset())
            .filter(|offset| *offset != 0)
            .map(|offset| offset + within);
        match (entry.compressed(cluster.bits()), host) {
            (Some(compressed), _) => Self::Compressed(compressed),
            (None, host) if entry.reads_as_zero() => Self::Zero { host, copied },
            (None, Some(host)) => Self::Data { host, copied },
            (None, None) => Self::Unallocated,
        }
    }

    /// Returns whether `next` goes on `bytes` behind this one.
    fn continues(self, next: Self, bytes: u64) -> bool {
        match self {
            Self::Unallocated => next == Self::Unallocated,
            Self::Zero { host, copied } => {
                let host = host.map(|host| host + bytes);
                next == Self::Zero { host, copied }
            }
            Self::Data { host, copied } => {
                let host = host + bytes;
                next == Self::Data { host, copied }
            }
            Self::Compressed(_) => false,
        }
    }
}

impl Engine {
    /// Returns where the bytes from `offset` on are, at most `len` of them, all mapped by one L2 table.
    pub(super) fn lookup(&self, offset: u64, len: u64) -> Result<Run> {
        let geometry = self.geometry;
        let end = offset.saturating_add(len).min(geometry.table_end(offset));
        let l1_index = geometry.l1_index(offset);
        let mut state = self.with_table(l1_index)?;
        let Some(table) = state.tables.get(l1_index) else {
            return Ok(Run {
                mapping: Mapping::Unallocated,
                len: end - offset,
            });
        };
        run_in(table, geometry.cluster, offset, end, geometry.l2_index(offset))
    }

    /// Locks the metadata with the table of an L1 index in the cache, if the image has that table.
    pub(super) fn with_table(&self, l1_index: u64) -> Result<MutexGuard<'_, State>> {
        let mut state = self.lock();
        loop {
            let entry = state.l1_entry(l1_index);
            if entry.is_unallocated() || state.tables.contains(l1_index) {
                return Ok(state);
            }
            if !state.reading.insert(l1_index) {
                state = self
                    .table_read
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            drop(state);
            let read = self.read_table(entry);
            state = self.lock();
            state.reading.remove(&l1_index);
            self.table_read.notify_all();
            let (entries, file_bytes) = read.inspect_err(|error| self.note_corruption(&mut state, error))?;
            // Nobody can have changed the table meanwhile: for that it must be in the cache.
            let table = state.judged(entry.host_offset(), entries, file_bytes);
            if table.bad_in(0..usize::MAX).is_some() {
                self.note_corruption(&mut state, &bad_entry(entry.host_offset()));
            }
            state.tables.insert(l1_index, table);
        }
    }

    /// Reads a table, and the length of the file at the time.
    fn read_table(&self, entry: L1Entry) -> Result<(Box<[L2Entry]>, u64)> {
        let cluster = self.geometry.cluster;
        let offset = entry.host_offset();
        let file_bytes = self.medium.len()?;
        if !cluster.is_aligned(offset) || offset >= file_bytes {
            return Err(Corruption::new("an l2 table is not a cluster of the file", offset).into());
        }
        let mut bytes = vec![0; cluster.len()];
        self.medium.read_at(&mut bytes, offset)?;
        Ok((fields::entries(&bytes).map(L2Entry).collect(), file_bytes))
    }
}

/// Returns the run that begins with the entry at `first`, which maps `offset`, and ends at `end` at the latest.
fn run_in(table: &Table, cluster: ClusterSize, offset: u64, end: u64, first: usize) -> Result<Run> {
    let count = usize::try_from(cluster.clusters_for(end - cluster.round_down(offset))).unwrap_or(usize::MAX);
    let last = first.saturating_add(count).min(table.entries().len());
    let last = table.bad_in(first..last).unwrap_or(last);
    let within = cluster.offset_in_cluster(offset);
    let mut entries = table.entries().get(first..last).unwrap_or_default().iter();
    let Some(entry) = entries.next() else {
        return Err(bad_entry(table.offset + first as u64 * 8));
    };
    let mapping = Mapping::of(*entry, within, cluster);
    let mut run_end = cluster.round_down(offset).saturating_add(cluster.bytes());
    for entry in entries {
        if !mapping.continues(Mapping::of(*entry, 0, cluster), run_end - offset) {
            break;
        }
        run_end = run_end.saturating_add(cluster.bytes());
    }
    Ok(Run {
        mapping,
        len: run_end.min(end) - offset,
    })
}

fn bad_entry(offset: u64) -> crate::Error {
    Corruption::new("an l2 entry maps what cannot be a data cluster", offset).into()
}
