//! The order of a check: metadata first, so that whatever uses it as well is found, then tables, then the comparison.

use std::collections::BTreeMap;

use super::on_disk::OnDisk;
use super::tree::Tables;
use super::{CheckReport, FindingKind, Progress, References, Structure, tell};
use crate::format::REFCOUNT_BLOCK_MASK;
use crate::{ClusterSize, HostCluster, Metadata, Result, Storage, snapshot_table};

/// Overlaps that are kept to be judged; an image with more is damaged beyond telling.
const MAX_OVERLAPS: usize = 1000;

/// What repair needs of a check.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) references: References,
    pub(crate) on_disk: OnDisk,
    /// Something leads nowhere: what it led to is not known, and clusters may be in use that look leaked.
    pub(crate) tree_damaged: bool,
    /// The refcount structures cannot be repaired in place.
    pub(crate) rebuild: bool,
}

/// A check under way.
#[derive(Debug)]
pub(crate) struct Scan<'a> {
    pub(super) metadata: &'a Metadata,
    pub(super) cluster: ClusterSize,
    pub(super) references: References,
    pub(super) on_disk: OnDisk,
    pub(crate) report: CheckReport,
    /// See [`Parts::tree_damaged`].
    pub(super) tree_damaged: bool,
    /// See [`Parts::rebuild`].
    pub(super) rebuild: bool,
    /// Clusters of metadata that something else uses.
    overlaps: BTreeMap<u64, Structure>,
}

impl<'a> Scan<'a> {
    /// Checks an image.
    pub(crate) fn run(metadata: &'a Metadata, progress: &mut Progress<'_>) -> Result<Self> {
        let storage = metadata.storage();
        let cluster = metadata.cluster_size();
        let on_disk = OnDisk::open(storage, &metadata.header)?;
        let references = References::new(cluster, storage.len()?, on_disk.width.max())?;
        let mut scan = Self {
            metadata,
            cluster,
            references,
            on_disk,
            report: CheckReport::default(),
            tree_damaged: false,
            rebuild: false,
            overlaps: BTreeMap::new(),
        };
        scan.report.total_clusters = cluster.clusters_for(metadata.header.virtual_size_bytes);
        scan.count_fixed_metadata()?;
        let tables = Tables::collect(&mut scan)?;
        scan.mark_refcount_blocks()?;
        scan.count_bitmaps()?;
        tables.count(&mut scan, progress)?;
        scan.count_refcount_blocks()?;
        scan.compare_refcounts()?;
        scan.judge_overlaps()?;
        let tables = tables.len() as u64 + 1;
        tell(progress, tables, tables)?;
        Ok(scan)
    }

    /// Keeps what repair needs.
    pub(crate) fn into_parts(self) -> Parts {
        Parts {
            references: self.references,
            on_disk: self.on_disk,
            tree_damaged: self.tree_damaged,
            rebuild: self.rebuild,
        }
    }

    /// The storage of the image.
    pub(super) fn storage(&self) -> &'a dyn Storage {
        self.metadata.storage().as_ref()
    }

    /// Counts the header, the snapshot table and the refcount table.
    fn count_fixed_metadata(&mut self) -> Result<()> {
        let header = &self.metadata.header;
        self.count_metadata(Structure::Header, 0, self.cluster.bytes(), 1)?;
        let table_bytes = u64::from(header.refcount_table_clusters) * self.cluster.bytes();
        self.count_metadata(
            Structure::RefcountTable,
            header.refcount_table_offset,
            table_bytes,
            1,
        )?;
        if !self.metadata.snapshots.is_empty() {
            let table_bytes = snapshot_table::table_len_bytes(&self.metadata.snapshots);
            self.count_metadata(Structure::SnapshotTable, header.snapshots_offset, table_bytes, 1)?;
        }
        Ok(())
    }

    /// Counts `times` references of metadata, and notes what uses the same clusters already.
    pub(super) fn count_metadata(&mut self, of: Structure, offset: u64, len: u64, times: u64) -> Result<()> {
        self.count(of, offset, len, times)?;
        if let Some(clusters) = self.references.inside(offset, len) {
            for cluster in clusters {
                if self.references.mark(cluster)? {
                    self.overlap(cluster, of);
                }
            }
        }
        Ok(())
    }

    /// Counts `times` references of bytes of the file.
    pub(super) fn count(&mut self, of: Structure, offset: u64, len: u64, times: u64) -> Result<()> {
        if len == 0 || times == 0 {
            return Ok(());
        }
        let Some(clusters) = self.references.inside(offset, len) else {
            self.tree_damaged = true;
            self.report.corrupt(times, offset, FindingKind::BeyondEnd { of });
            return Ok(());
        };
        for cluster in clusters {
            let added = self.references.add(cluster, times)?;
            if added.metadata {
                self.overlap(cluster, of);
            }
            if added.overflow > 0 {
                let at = HostCluster(cluster).offset(self.cluster);
                self.report
                    .corrupt(added.overflow, at, FindingKind::CountOverflow);
            }
        }
        Ok(())
    }

    /// Notes that a cluster of metadata is used by something else.
    pub(super) fn overlap(&mut self, cluster: u64, with: Structure) {
        if self.overlaps.len() < MAX_OVERLAPS {
            self.overlaps.entry(cluster).or_insert(with);
        }
    }

    /// Marks the refcount blocks as metadata; they are counted last.
    fn mark_refcount_blocks(&mut self) -> Result<()> {
        for index in 0..self.on_disk.table.len() {
            if let Some(cluster) = self.refcount_block(index)
                && self.references.mark(cluster)?
            {
                self.overlap(cluster, Structure::RefcountBlock);
            }
        }
        Ok(())
    }

    /// The cluster of the refcount block that an entry names, if the entry is as it has to be.
    fn refcount_block(&self, index: usize) -> Option<u64> {
        let entry = self.on_disk.table.get(index).copied()?;
        let cluster = self.cluster.cluster_of(entry).0;
        (entry != 0 && self.cluster.is_aligned(entry) && cluster < self.references.clusters())
            .then_some(cluster)
    }

    /// Counts the refcount blocks, each of which must be referenced by its entry alone.
    fn count_refcount_blocks(&mut self) -> Result<()> {
        let of = Structure::RefcountBlock;
        for index in 0..self.on_disk.table.len() {
            let entry = self.on_disk.table.get(index).copied().unwrap_or(0);
            if let Some(cluster) = self.refcount_block(index) {
                let added = self.references.add(cluster, 1)?;
                let references = self.references.get(cluster).saturating_add(added.overflow);
                if references != 1 {
                    self.rebuild = true;
                    self.report
                        .corrupt(1, entry, FindingKind::SharedRefcountBlock { references });
                }
            } else if entry & !REFCOUNT_BLOCK_MASK != 0 {
                self.rebuild = true;
                self.report
                    .corrupt(1, entry, FindingKind::ReservedBits { of, entry });
            } else if !self.cluster.is_aligned(entry) {
                self.rebuild = true;
                self.report.corrupt(1, entry, FindingKind::Misaligned { of });
            } else if entry != 0 {
                self.rebuild = true;
                self.report.corrupt(1, entry, FindingKind::BeyondEnd { of });
            }
        }
        Ok(())
    }

    /// Reports overlaps that the refcounts do not show.
    fn judge_overlaps(&mut self) -> Result<()> {
        for (cluster, with) in std::mem::take(&mut self.overlaps) {
            let at = HostCluster(cluster).offset(self.cluster);
            let shown = self.on_disk.get(cluster)? != Some(self.references.get(cluster));
            if shown {
                self.report.note(at, FindingKind::Overlap { with });
            } else {
                self.report.corrupt(1, at, FindingKind::Overlap { with });
            }
        }
        Ok(())
    }
}
