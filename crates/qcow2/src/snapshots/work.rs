//! What the operations share: the refcounts of the whole image in memory, counting a tree, and the write orders.

use std::ops::Range;
use std::sync::Arc;

use super::freed::Freed;
use crate::error::{Corruption, Error, LimitExceeded, Result};
use crate::fields;
use crate::format::{self, ClusterSize, HostCluster, L1Entry, L2Entry};
use crate::metadata::Metadata;
use crate::refcount::{DirtyRefcounts, Refcounts};
use crate::snapshot_table::{SnapshotEntry, table_bytes, table_len_bytes};
use crate::storage::Storage;
use crate::walk;

/// Bytes of refcount blocks kept in memory: enough for 8 TiB in clusters of 64 KiB with refcounts of 16 bits.
const MAX_LOADED_BYTES: u64 = 256 << 20;
/// Autoclear features that stay true when snapshots come and go.
const KNOWN_AUTOCLEAR: u64 = format::AUTOCLEAR_BITMAPS | format::AUTOCLEAR_RAW_EXTERNAL;

#[cfg(test)]
thread_local! {
    /// [`MAX_LOADED_BYTES`] for the operations of this thread.
    pub(super) static LOADED_BYTES: std::cell::Cell<u64> = const { std::cell::Cell::new(MAX_LOADED_BYTES) };
}

/// What an L1 table leads to, as far as another one does not lead to the same at the same place of the disk.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tree<'a> {
    l1: &'a [L1Entry],
    besides: &'a [L1Entry],
}

impl<'a> Tree<'a> {
    /// All that an L1 table leads to.
    pub(super) fn of(l1: &'a [L1Entry]) -> Self {
        Self { l1, besides: &[] }
    }

    /// What `l1` leads to and `besides` does not.
    pub(super) fn besides(l1: &'a [L1Entry], besides: &'a [L1Entry]) -> Self {
        Self { l1, besides }
    }

    /// The offset of the other L2 table for an index of the L1 table; 0 if there is none.
    fn beside(&self, index: u64) -> u64 {
        let entry = usize::try_from(index)
            .ok()
            .and_then(|index| self.besides.get(index));
        entry.map_or(0, |entry| entry.host_offset())
    }
}

/// One operation on the snapshots of an image.
#[derive(Debug)]
pub(super) struct Work {
    pub(super) storage: Arc<dyn Storage>,
    pub(super) cluster: ClusterSize,
    pub(super) refcounts: Refcounts,
    pub(super) freed: Freed,
    max_loaded_bytes: u64,
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

    /// Whether all refcounts of the image fit into the memory that an operation takes.
    pub(super) fn fits(&self, metadata: &Metadata) -> bool {
        let counted_bits = self
            .refcounts
            .capacity()
            .saturating_mul(1 << metadata.header.refcount_order);
        counted_bits / 8 <= self.max_loaded_bytes
    }

    /// Counts one reference more to every cluster of a tree, or refuses to with nothing written.
    ///
    /// Counts that do not fit into memory are written on the way; those images are looked through first.
    pub(super) fn add_tree(&mut self, metadata: &mut Metadata, tree: Tree<'_>) -> Result<()> {
        check_distinct(tree.l1)?;
        if !self.fits(metadata) {
            self.each_reference(metadata, tree, |work, cluster| {
                let count = work.refcounts.get(cluster)?;
                work.check_count(cluster, count.saturating_add(1))
            })?;
        }
        self.each_reference(metadata, tree, |work, cluster| {
            match work.refcounts.add(cluster, 1) {
                Ok(count) => work.check_count(cluster, count),
                Err(error) => {
                    let count = work.refcounts.get(cluster)?;
                    work.check_count(cluster, count.saturating_add(1)).and(Err(error))
                }
            }
        })
    }

    /// Counts one reference less to every cluster of a tree. What does not fit into memory is written on the way, so
    /// that the tree must be gone for good if [`Self::fits`] does not hold.
    pub(super) fn sub_tree(&mut self, metadata: &mut Metadata, tree: Tree<'_>) -> Result<()> {
        check_distinct(tree.l1)?;
        self.each_reference(metadata, tree, Self::release)
    }

    /// Refuses a tree with references that the refcounts do not count.
    pub(super) fn check_tree(&mut self, metadata: &mut Metadata, tree: Tree<'_>) -> Result<()> {
        check_distinct(tree.l1)?;
        self.each_reference(metadata, tree, |work, cluster| {
            match work.refcounts.get(cluster)? {
                0 => Err(work.uncounted(cluster)),
                _ => Ok(()),
            }
        })
    }

    /// Refuses L2 tables that the active L1 table and another lead to and that the refcounts count only once.
    pub(super) fn check_shared(&mut self, one: &[L1Entry], other: &[L1Entry]) -> Result<()> {
        for (one, other) in one.iter().zip(other) {
            if !one.is_unallocated() && one.host_offset() == other.host_offset() {
                let cluster = self.cluster.cluster_of(one.host_offset());
                let count = self.refcounts.get(cluster)?;
                self.check_count(cluster, count)?;
            }
        }
        Ok(())
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

    /// Calls `count` with every host cluster that a tree refers to, once for each reference, L2 tables included.
    fn each_reference(
        &mut self,
        metadata: &mut Metadata,
        tree: Tree<'_>,
        mut count: impl FnMut(&mut Self, HostCluster) -> Result<()>,
    ) -> Result<()> {
        let storage = Arc::clone(&self.storage);
        let size = self.cluster;
        let file_bytes = storage.len()?;
        let mut besides = vec![0; size.len()];
        walk::tables(storage.as_ref(), size, tree.l1, &mut |index, table| {
            count(self, size.cluster_of(table.offset()))?;
            match tree.beside(index) {
                0 => besides.fill(0),
                offset => {
                    walk::judge(offset, size, file_bytes)?;
                    storage.read_at(&mut besides, offset)?;
                }
            }
            for (entry, beside) in table.entries().zip(fields::entries(&besides)) {
                if entry.0 & !format::COPIED == beside & !format::COPIED {
                    continue;
                }
                for number in host_clusters(entry, size)? {
                    count(self, HostCluster(number))?;
                }
                if self.refcounts.loaded_bytes() > self.max_loaded_bytes {
                    self.refcounts.write_dirty(&mut metadata.header)?;
                    self.refcounts.shrink(self.max_loaded_bytes / 2);
                }
            }
            Ok(())
        })
    }

    fn release(&mut self, cluster: HostCluster) -> Result<()> {
        if self.refcounts.sub(cluster, 1)? == 0 {
            self.freed.push(cluster);
        }
        Ok(())
    }

    /// Judges the count that a cluster gets with one reference more.
    fn check_count(&self, cluster: HostCluster, count: u64) -> Result<()> {
        LimitExceeded::check("references to one cluster", count, self.refcounts.max())?;
        if count < 2 {
            Err(self.uncounted(cluster))
        } else {
            Ok(())
        }
    }

    fn uncounted(&self, cluster: HostCluster) -> Error {
        let what = "the refcount of a cluster is lower than its references";
        Corruption::new(what, cluster.offset(self.cluster)).into()
    }
}

/// The host clusters that an entry refers to: none, the one with the data or the kept room, all that compressed data
/// touches.
pub(super) fn host_clusters(entry: L2Entry, size: ClusterSize) -> Result<Range<u64>> {
    if let Some(compressed) = entry.compressed(size.bits()) {
        let clusters = compressed.clusters(size);
        if *clusters.start() == 0 {
            return Err(Corruption::new("compressed data lies on the header", compressed.offset).into());
        }
        return Ok(*clusters.start()..clusters.end() + 1);
    }
    let offset = entry.host_offset();
    if offset == 0 {
        return Ok(0..0);
    }
    if !size.is_aligned(offset) {
        return Err(Corruption::new("a data cluster does not begin with a cluster", offset).into());
    }
    let HostCluster(number) = size.cluster_of(offset);
    Ok(number..number + 1)
}

/// Refuses an L1 table that leads to one L2 table twice: no writer makes one, and the work would have no bound.
fn check_distinct(l1: &[L1Entry]) -> Result<()> {
    let mut offsets: Vec<u64> = l1
        .iter()
        .map(|entry| entry.host_offset())
        .filter(|offset| *offset != 0)
        .collect();
    offsets.sort_unstable();
    match offsets.windows(2).find(|pair| pair.first() == pair.last()) {
        Some(pair) => {
            let offset = pair.first().copied().unwrap_or_default();
            Err(Corruption::new("an l1 table leads to the same l2 table twice", offset).into())
        }
        None => Ok(()),
    }
}

/// Tells that an operation is done although its clean-up failed.
pub(super) fn after_commit(done: &'static str, clean_up: Result<()>) -> Result<()> {
    clean_up.map_err(|source| Error::Leaked {
        done,
        source: Box::new(source),
    })
}
