//! Counting the references of whole trees: L1 table, L2 tables, clusters.

use std::ops::Range;
use std::sync::Arc;

use super::work::Work;
use crate::error::{Corruption, Error, LimitExceeded, Result};
use crate::fields;
use crate::format::{self, ClusterSize, HostCluster, L1Entry, L2Entry};
use crate::limits::MAX_REFCOUNT_TABLE_BYTES;
use crate::metadata::Metadata;
use crate::walk;

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

impl Work {
    /// Whether all refcount blocks of the image, and those that come during an operation, fit into the memory that it
    /// takes: then nothing is written before the operation says so.
    pub(super) fn fits(&self, metadata: &Metadata) -> Result<bool> {
        let header = &metadata.header;
        let table = fields::read_vec(
            self.storage.as_ref(),
            "refcount table bytes",
            header.refcount_table_offset,
            u64::from(header.refcount_table_clusters).saturating_mul(self.cluster.bytes()),
            MAX_REFCOUNT_TABLE_BYTES,
        )?;
        let blocks = fields::entries(&table).filter(|entry| *entry != 0).count() as u64;
        Ok(blocks.saturating_mul(self.cluster.bytes()) <= self.max_loaded_bytes / 2)
    }

    /// Counts one reference more to every cluster of a tree, or refuses to with nothing written.
    ///
    /// Counts that do not fit into memory are written on the way; those images are looked through first.
    pub(super) fn add_tree(&mut self, metadata: &mut Metadata, tree: Tree<'_>) -> Result<()> {
        check_distinct(tree.l1)?;
        if !self.fits(metadata)? {
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
