//! The metadata in memory: L1, cached L2 tables, refcounts, and what of them the file does not have.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use super::Medium;
use super::table_cache::{Table, TableCache, TableParts};
use crate::error::{Corruption, Result, Usage};
use crate::fields;
use crate::format::{COMPRESSED, ClusterSize, CompressedCluster, HostCluster, L1Entry, L2Entry, ZERO};
use crate::header::Header;
use crate::metadata::Metadata;
use crate::refcount::{DirtyRefcounts, Refcounts};
use crate::snapshot_table::{SnapshotEntry, table_len_bytes};
use crate::storage::Storage;

/// Entries in one sector of an L1 table, the unit in which it is written.
const L1_SECTOR_ENTRIES: usize = 64;
/// Bytes of refcount blocks that are kept in memory.
const REFCOUNT_CACHE_BYTES: u64 = 16 << 20;
/// References that are gone but not written before a flush is due.
const MAX_FREED: usize = 1 << 18;

/// The metadata of an open image.
#[derive(Debug)]
pub(super) struct State {
    pub header: Header,
    pub tables: TableCache,
    /// L1 indexes whose tables are being read.
    pub reading: HashSet<u64>,
    cluster: ClusterSize,
    l1: Vec<L1Entry>,
    /// Sectors of the L1 table that the file does not have.
    l1_dirty: BTreeSet<usize>,
    /// Nothing in an image that is only read.
    refcounts: Option<Refcounts>,
    /// References that are gone in memory but not yet in the file, so that the clusters still count.
    freed: Vec<HostCluster>,
    /// From here on nothing was ever written: new clusters read as zeros.
    fresh_from: u64,
}

/// Clusters that were just taken.
#[derive(Clone, Copy, Debug)]
pub(super) struct Allocation {
    /// Offset of the first in the file.
    pub host: u64,
    pub clusters: u64,
    /// They read as zeros.
    pub fresh: bool,
}

/// What one flush writes, as it was when the flush began.
#[derive(Debug)]
pub(super) struct Batch {
    pub refcounts: Option<DirtyRefcounts>,
    pub tables: Vec<TableParts>,
    /// Offset in the file and bytes.
    pub l1: Vec<(u64, Vec<u8>)>,
    l1_sectors: BTreeSet<usize>,
    /// Clusters that lose a reference once all this is durable.
    pub freed: Vec<HostCluster>,
}

impl State {
    pub(super) fn new(
        medium: Arc<Medium>,
        metadata: Metadata,
        read_only: bool,
        l2_cache_bytes: u64,
    ) -> Result<Self> {
        let Metadata {
            header,
            l1,
            snapshots,
            ..
        } = metadata;
        let cluster = header.cluster_size;
        let fresh_from = cluster.round_up(medium.len()?);
        let refcounts = if read_only {
            None
        } else {
            let mut refcounts = Refcounts::open(medium, &header)?;
            protect_snapshots(&mut refcounts, &header, &snapshots);
            protect_tables(&mut refcounts, cluster, &l1)?;
            Some(refcounts)
        };
        Ok(Self {
            header,
            tables: TableCache::new(l2_cache_bytes / cluster.bytes()),
            reading: HashSet::new(),
            cluster,
            l1,
            l1_dirty: BTreeSet::new(),
            refcounts,
            freed: Vec::new(),
            fresh_from,
        })
    }

    /// Returns an entry of the L1 table; what lies beyond its end is unallocated.
    pub(super) fn l1_entry(&self, l1_index: u64) -> L1Entry {
        let index = usize::try_from(l1_index).unwrap_or(usize::MAX);
        self.l1.get(index).copied().unwrap_or_default()
    }

    fn set_l1_entry(&mut self, l1_index: u64, entry: L1Entry) -> Result<()> {
        let index = usize::try_from(l1_index).unwrap_or(usize::MAX);
        let place = self.l1.get_mut(index);
        let place =
            place.ok_or_else(|| Corruption::new("the l1 table is too short for the disk", l1_index))?;
        *place = entry;
        self.l1_dirty.insert(index / L1_SECTOR_ENTRIES);
        Ok(())
    }

    fn refcounts(&mut self) -> Result<&mut Refcounts> {
        Ok(self.refcounts.as_mut().ok_or(Usage::ReadOnly)?)
    }

    /// Takes so many clusters in one run.
    pub(super) fn allocate(&mut self, clusters: u64) -> Result<Allocation> {
        let cluster = self.cluster;
        let host = self.refcounts()?.allocate(clusters)?.offset(cluster);
        let fresh = host >= self.fresh_from;
        self.fresh_from = self.fresh_from.max(host + clusters * cluster.bytes());
        Ok(Allocation {
            host,
            clusters,
            fresh,
        })
    }

    /// Gives clusters back that nothing has ever referred to.
    pub(super) fn release(&mut self, allocation: Allocation) {
        let first = self.cluster.cluster_of(allocation.host);
        if let Err(error) = self
            .refcounts()
            .and_then(|refcounts| refcounts.free(first, allocation.clusters))
        {
            tracing::warn!(host = allocation.host, %error, "clusters of a failed write are leaked");
        }
    }

    /// Notes that a cluster loses a reference once the file says so.
    pub(super) fn free_later(&mut self, host: u64) {
        self.freed.push(self.cluster.cluster_of(host));
    }

    /// Notes that the clusters of compressed data lose a reference once the file says so.
    pub(super) fn free_compressed_later(&mut self, compressed: CompressedCluster) {
        self.freed
            .extend(compressed.clusters(self.cluster).map(HostCluster));
    }

    /// Makes the table of an L1 index one that may be changed: there, and nobody else's.
    ///
    /// A table that exists must be in the cache.
    pub(super) fn own_table(&mut self, l1_index: u64) -> Result<()> {
        let entry = self.l1_entry(l1_index);
        if !entry.is_unallocated() && entry.is_copied() {
            return Ok(());
        }
        let place = self.allocate(1)?;
        if let Err(error) = self.set_l1_entry(l1_index, L1Entry::new(place.host, true)) {
            self.release(place);
            return Err(error);
        }
        let first = self.cluster.cluster_of(place.host);
        self.refcounts()?.protect(first, 1);
        if entry.is_unallocated() {
            self.tables
                .insert_new(l1_index, place.host, self.cluster.len() / 8);
        } else {
            self.tables.relocate(l1_index, place.host);
            self.free_later(entry.host_offset());
        }
        Ok(())
    }

    /// Makes a table of entries that were read from the file, and judges them.
    pub(super) fn judged(&self, offset: u64, entries: Box<[L2Entry]>, file_bytes: u64) -> Table {
        let judge = Judge {
            cluster: self.cluster,
            zero_flag: self.header.version >= 3,
            file_bytes: self.cluster.round_up(file_bytes),
            refcounts: self.refcounts.as_ref(),
        };
        let bad = judge.bad_entries(&entries);
        Table::clean(offset, entries, bad)
    }

    /// Returns whether the file has everything that is in memory.
    pub(super) fn is_clean(&self) -> bool {
        let counted = self.refcounts.as_ref().is_none_or(Refcounts::is_clean);
        counted && self.tables.is_clean() && self.l1_dirty.is_empty() && self.freed.is_empty()
    }

    /// Returns whether so much is waiting to be written that a flush is due.
    pub(super) fn is_strained(&self) -> bool {
        self.tables.is_strained() || self.freed.len() > MAX_FREED
    }

    /// Takes a copy of everything that the file does not have.
    pub(super) fn take_batch(&mut self) -> Batch {
        let l1_sectors = std::mem::take(&mut self.l1_dirty);
        Batch {
            refcounts: self.refcounts.as_mut().map(Refcounts::take_dirty),
            tables: self.tables.take_dirty(),
            l1: l1_sectors.iter().map(|sector| self.l1_sector(*sector)).collect(),
            l1_sectors,
            freed: std::mem::take(&mut self.freed),
        }
    }

    fn l1_sector(&self, sector: usize) -> (u64, Vec<u8>) {
        let from = sector * L1_SECTOR_ENTRIES;
        let to = (from + L1_SECTOR_ENTRIES).min(self.l1.len());
        let entries = self.l1.get(from..to).unwrap_or_default();
        let bytes = fields::entry_bytes(entries.iter().map(|entry| entry.0));
        (self.header.l1_offset + from as u64 * 8, bytes)
    }

    /// Takes back a copy that could not be written: everything in it is dirty again.
    pub(super) fn put_back(&mut self, batch: Batch) {
        if let (Some(refcounts), Some(dirty)) = (&mut self.refcounts, batch.refcounts) {
            refcounts.put_back(dirty);
        }
        self.tables.put_back(&batch.tables);
        self.l1_dirty.extend(batch.l1_sectors);
        self.freed.extend(batch.freed);
    }

    /// Notes that a copy is durable, and returns the clusters that lose a reference by it.
    pub(super) fn written(&mut self, batch: Batch) -> Result<Vec<HostCluster>> {
        self.tables.written(&batch.tables);
        if let (Some(refcounts), Some(dirty)) = (&mut self.refcounts, batch.refcounts) {
            refcounts.written(dirty)?;
            refcounts.shrink(REFCOUNT_CACHE_BYTES);
            let (offset, clusters) = refcounts.table_location();
            self.header.refcount_table_offset = offset;
            self.header.refcount_table_clusters = clusters;
        }
        Ok(batch.freed)
    }

    /// Returns which of these clusters will be free once each has lost a reference for every time it is named.
    ///
    /// They are in order and named once.
    pub(super) fn last_references(&mut self, freed: &mut [HostCluster]) -> Result<Vec<HostCluster>> {
        freed.sort_unstable();
        let refcounts = self.refcounts()?;
        let mut last = Vec::new();
        for same in freed.chunk_by(|one, other| one == other) {
            if let [cluster, ..] = same
                && refcounts.get(*cluster)? == same.len() as u64
            {
                last.push(*cluster);
            }
        }
        Ok(last)
    }

    /// Takes a reference from each of these clusters, which may be used again where it was the last.
    pub(super) fn drop_references(&mut self, freed: &[HostCluster]) -> Result<()> {
        let refcounts = self.refcounts()?;
        for cluster in freed {
            if refcounts.sub(*cluster, 1)? == 0 {
                refcounts.unprotect(*cluster, 1);
            }
        }
        Ok(())
    }
}

/// Keeps the snapshot table and the snapshots' L1 tables from being handed out or mapped.
fn protect_snapshots(refcounts: &mut Refcounts, header: &Header, snapshots: &[SnapshotEntry]) {
    let cluster = header.cluster_size;
    let l1_tables = snapshots
        .iter()
        .map(|snapshot| (snapshot.l1_offset, u64::from(snapshot.l1_entries) * 8));
    let table = (header.snapshots_offset, table_len_bytes(snapshots));
    for (offset, len_bytes) in l1_tables.chain([table]) {
        refcounts.protect(cluster.cluster_of(offset), cluster.clusters_for(len_bytes));
    }
}

/// Keeps the active L2 tables from being handed out or mapped, and refuses those that lie on other metadata.
fn protect_tables(refcounts: &mut Refcounts, cluster: ClusterSize, l1: &[L1Entry]) -> Result<()> {
    let tables = || l1.iter().filter(|entry| !entry.is_unallocated());
    for entry in tables() {
        if refcounts.is_protected(cluster.cluster_of(entry.host_offset()), 1) {
            return Err(Corruption::new("an l2 table lies on other metadata", entry.host_offset()).into());
        }
    }
    for entry in tables() {
        refcounts.protect(cluster.cluster_of(entry.host_offset()), 1);
    }
    Ok(())
}

/// What the entries of an L2 table are judged by.
struct Judge<'a> {
    cluster: ClusterSize,
    zero_flag: bool,
    /// Length of the file in whole clusters.
    file_bytes: u64,
    refcounts: Option<&'a Refcounts>,
}

impl Judge<'_> {
    /// Returns the indexes of entries that no I/O may follow.
    ///
    /// Clusters that follow one another in the file are looked up at once: there are many of them.
    fn bad_entries(&self, entries: &[L2Entry]) -> Vec<usize> {
        let mut bad = Vec::new();
        let mut index = 0;
        for run in entries.chunk_by(|one, next| self.is_followed_by(*one, *next)) {
            if self.may_be_bad(run) {
                let found = run.iter().zip(index..).filter(|(entry, _)| self.is_bad(**entry));
                bad.extend(found.map(|(_, index)| index));
            }
            index += run.len();
        }
        bad
    }

    /// Returns whether both entries are empty, or plain data in clusters that follow one another.
    fn is_followed_by(&self, one: L2Entry, next: L2Entry) -> bool {
        let plain = |entry: L2Entry| entry.0 & (COMPRESSED | ZERO) == 0 && entry.host_offset() != 0;
        (one.0 == 0 && next.0 == 0)
            || (plain(one) && plain(next) && next.host_offset() == one.host_offset() + self.cluster.bytes())
    }

    /// Returns whether one of the entries of a run may be bad.
    fn may_be_bad(&self, run: &[L2Entry]) -> bool {
        match run {
            [] => false,
            [entry, ..] if entry.0 == 0 => false,
            [entry] => self.is_bad(*entry),
            [first, .., last] => {
                let cluster = self.cluster.cluster_of(first.host_offset());
                self.is_bad(*first) || self.is_bad(*last) || self.is_metadata(cluster, run.len() as u64)
            }
        }
    }

    /// Returns whether no I/O may follow an entry.
    fn is_bad(&self, entry: L2Entry) -> bool {
        if let Some(compressed) = entry.compressed(self.cluster.bits()) {
            let clusters = compressed.clusters(self.cluster);
            let count = clusters.end() - clusters.start() + 1;
            return compressed.offset >= self.file_bytes
                || self.is_metadata(HostCluster(*clusters.start()), count);
        }
        if entry.reads_as_zero() && !self.zero_flag {
            return true;
        }
        let host = entry.host_offset();
        host != 0
            && (!self.cluster.is_aligned(host)
                || host >= self.file_bytes
                || self.is_metadata(self.cluster.cluster_of(host), 1))
    }

    fn is_metadata(&self, first: HostCluster, clusters: u64) -> bool {
        self.refcounts
            .is_some_and(|refcounts| refcounts.is_protected(first, clusters))
    }
}
