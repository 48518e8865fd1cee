//! What the operations share: the refcounts of the whole image in memory, and the write orders.

use std::sync::Arc;

use super::freed::Freed;
use crate::error::{Corruption, Error, Result};
use crate::fields;
use crate::format::{self, ClusterSize, HostCluster, L1Entry, L2Entry};
use crate::metadata::Metadata;
use crate::refcount::{DirtyRefcounts, Refcounts};
use crate::snapshot_table::{SnapshotEntry, table_bytes, table_len_bytes};
use crate::storage::Storage;
use crate::walk;

/// Bytes of refcount blocks kept in memory: twice those of 4 TiB in clusters of 64 KiB with refcounts of 16 bits.
const MAX_LOADED_BYTES: u64 = 256 << 20;
/// Autoclear features that stay true when snapshots come and go.
const KNOWN_AUTOCLEAR: u64 = format::AUTOCLEAR_BITMAPS | format::AUTOCLEAR_RAW_EXTERNAL;

#[cfg(test)]
thread_local! {
    /// [`MAX_LOADED_BYTES`] for the operations of this thread.
    pub(super) static LOADED_BYTES: std::cell::Cell<u64> = const { std::cell::Cell::new(MAX_LOADED_BYTES) };
}

/// One operation on the snapshots of an image.
#[derive(Debug)]
pub(super) struct Work {
    pub(super) storage: Arc<dyn Storage>,
    pub(super) cluster: ClusterSize,
    pub(super) refcounts: Refcounts,
    pub(super) freed: Freed,
    pub(super) max_loaded_bytes: u64,
}

impl Work {
    /// Begins: nothing is written, and an image that must be repaired first is refused.
    pub(super) fn begin(metadata: &Metadata) -> Result<Self> {
        metadata.ensure_writable()?;
        let storage = Arc::clone(metadata.storage());
        let cluster = metadata.cluster_size();
        let mut refcounts = Refcounts::open(Arc::clone(&storage), &metadata.header)?;
        #[cfg(test)]
        let max_loaded_bytes = LOADED_BYTES.get();
        #[cfg(not(test))]
        let max_loaded_bytes = MAX_LOADED_BYTES;
        let mut protect = |offset: u64, len_bytes: u64| {
            refcounts.protect(cluster.cluster_of(offset), cluster.clusters_for(len_bytes));
        };
        protect(
            metadata.header.snapshots_offset,
            table_len_bytes(&metadata.snapshots),
        );
        metadata
            .snapshots
            .iter()
            .for_each(|entry| protect(entry.l1_offset, entry.l1_bytes()));
        Ok(Self {
            storage,
            cluster,
            refcounts,
            freed: Freed::default(),
            max_loaded_bytes,
        })
    }

    /// Counts one reference less to the clusters of a structure of `len_bytes` at `offset`.
    pub(super) fn release_bytes(&mut self, offset: u64, len_bytes: u64) -> Result<()> {
        let HostCluster(first) = self.cluster.cluster_of(offset);
        let clusters = self.cluster.clusters_for(len_bytes);
        self.refcounts.unprotect(HostCluster(first), clusters);
        (first..first.saturating_add(clusters)).try_for_each(|number| self.release(HostCluster(number)))
    }

    /// Takes clusters for a structure of `len_bytes` and returns its offset; 0 for nothing.
    pub(super) fn allocate_bytes(&mut self, len_bytes: u64) -> Result<u64> {
        match self.cluster.clusters_for(len_bytes) {
            0 => Ok(0),
            clusters => Ok(self.refcounts.allocate(clusters)?.offset(self.cluster)),
        }
    }

    /// Writes the refcounts and what `rest` writes besides, in any order, and makes all of it durable.
    pub(super) fn settle(
        &mut self,
        metadata: &mut Metadata,
        rest: impl FnOnce(&mut Self) -> Result<()>,
    ) -> Result<()> {
        let dirty = self.refcounts.take_dirty();
        self.settle_taken(metadata, dirty, rest)
    }

    /// As [`Self::settle`], with the refcounts as they were when they were taken.
    pub(super) fn settle_taken(
        &mut self,
        metadata: &mut Metadata,
        dirty: DirtyRefcounts,
        rest: impl FnOnce(&mut Self) -> Result<()>,
    ) -> Result<()> {
        dirty.write(self.storage.as_ref())?;
        rest(self)?;
        self.storage.sync()?;
        self.refcounts.written(dirty)?;
        // A table that has moved leaves its old clusters free: the next call writes that.
        let header = &mut metadata.header;
        (header.refcount_table_offset, header.refcount_table_clusters) = self.refcounts.table_location();
        Ok(())
    }

    /// Writes a table of 64-bit entries.
    pub(super) fn write_l1(&self, l1: &[L1Entry], offset: u64) -> Result<()> {
        let bytes = fields::entry_bytes(l1.iter().map(|entry| entry.0));
        Ok(self.storage.write_at(&bytes, offset)?)
    }

    /// Replaces the entries of the L2 tables of an L1 table in place, in memory first, and writes the tables that change.
    pub(super) fn rewrite_tables(
        &mut self,
        l1: &[L1Entry],
        mut new: impl FnMut(&mut Refcounts, L2Entry) -> Result<L2Entry>,
    ) -> Result<()> {
        let storage = Arc::clone(&self.storage);
        walk::tables(storage.as_ref(), self.cluster, l1, &mut |_, table| {
            let mut failure = None;
            let changed = table.update(|entry| match new(&mut self.refcounts, entry) {
                Ok(entry) => entry,
                Err(error) => {
                    failure.get_or_insert(error);
                    entry
                }
            });
            if let Some(error) = failure {
                return Err(error);
            }
            self.refcounts.shrink(self.max_loaded_bytes);
            if !changed {
                return Ok(());
            }
            if self
                .refcounts
                .is_protected(self.cluster.cluster_of(table.offset()), 1)
            {
                return Err(Corruption::new("an l2 table lies on other metadata", table.offset()).into());
            }
            table.write(storage.as_ref())
        })
    }

    /// Withdraws the promises of features that are unknown here, as every writer must (qcow2 specification, autoclear).
    pub(super) fn clear_unknown_autoclear(&self, metadata: &mut Metadata) -> Result<()> {
        if metadata.header.autoclear & !KNOWN_AUTOCLEAR == 0 {
            return Ok(());
        }
        metadata.header.autoclear &= KNOWN_AUTOCLEAR;
        metadata.header.write_feature_fields(self.storage.as_ref())
    }

    /// Completes the entries of a new snapshot table where the version requires it, and judges its length.
    pub(super) fn check_table(&self, metadata: &Metadata, entries: &mut [SnapshotEntry]) -> Result<()> {
        if metadata.header.version >= 3 {
            entries
                .iter_mut()
                .for_each(|entry| entry.complete(metadata.header.virtual_size_bytes));
        }
        table_bytes(entries).map(drop)
    }

    /// Gives the room of what has become free back to the medium, once that is durable.
    pub(super) fn punch_freed(&self) {
        self.freed
            .punch(self.storage.as_ref(), self.cluster, &self.refcounts);
    }

    /// Places a new snapshot table and returns its bytes and its offset; nothing is written.
    pub(super) fn place_table(&mut self, entries: &[SnapshotEntry]) -> Result<(Vec<u8>, u64)> {
        let bytes = table_bytes(entries)?;
        let offset = self.allocate_bytes(bytes.len() as u64)?;
        Ok((bytes, offset))
    }

    /// Changes over to a snapshot table that is durable: one write within a sector, then a sync.
    ///
    /// The old table stays counted; its offset and length are returned.
    pub(super) fn commit_table(
        &self,
        metadata: &mut Metadata,
        entries: Vec<SnapshotEntry>,
        offset: u64,
    ) -> Result<(u64, u64)> {
        let old = (
            metadata.header.snapshots_offset,
            table_len_bytes(&metadata.snapshots),
        );
        metadata.header.snapshot_count = u32::try_from(entries.len()).unwrap_or(u32::MAX);
        metadata.header.snapshots_offset = offset;
        metadata.header.write_snapshot_fields(self.storage.as_ref())?;
        self.storage.sync()?;
        metadata.snapshots = entries;
        Ok(old)
    }

    pub(super) fn release(&mut self, cluster: HostCluster) -> Result<()> {
        if self.refcounts.sub(cluster, 1)? == 0 {
            self.freed.push(cluster);
        }
        Ok(())
    }
}

/// Tells that an operation is done although its clean-up failed.
pub(super) fn after_commit(done: &'static str, clean_up: Result<()>) -> Result<()> {
    clean_up.map_err(|source| Error::Leaked {
        done,
        source: Box::new(source),
    })
}
