//! New refcount structures from the references alone.
//!
//! ```text
//! blocks and table in free clusters | sync | 12 bytes of the header | sync
//! ```
//!
//! The old structures stay untouched until the header names the new ones, and are simply not counted by these.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::check::{OnDisk, Parts, References};
use crate::format::REFCOUNT_BLOCK_MASK;
use crate::refcount::Width;
use crate::{ClusterSize, HostCluster, LimitExceeded, Metadata, Result, Storage, fields, limits};

/// Replaces the refcount structures of an image by ones that agree with the references.
pub(super) fn rebuild(metadata: &mut Metadata, mut parts: Parts) -> Result<()> {
    let cluster = metadata.cluster_size();
    let old = forget_old(metadata, &mut parts)?;
    let mut first_free = 0;
    if parts.tree_damaged {
        keep_leaks(&mut parts, &old)?;
        // Clusters whose only reference is not known any more are not told from free ones.
        first_free = parts.references.clusters();
    }
    let mut plan = Plan {
        cluster,
        width: parts.on_disk.width,
        references: parts.references,
        old,
        first_free,
        blocks: BTreeMap::new(),
    };
    let (table, clusters) = plan.place()?;
    let storage = Arc::clone(metadata.storage());
    plan.write(storage.as_ref(), table, clusters)?;
    storage.sync()?;
    metadata.header.refcount_table_offset = table.offset(cluster);
    metadata.header.refcount_table_clusters = clusters;
    metadata.header.write_refcount_table_fields(storage.as_ref())?;
    Ok(storage.sync()?)
}

/// Takes the references of the old structures away and returns the clusters where they are.
fn forget_old(metadata: &Metadata, parts: &mut Parts) -> Result<BTreeSet<u64>> {
    let cluster = metadata.cluster_size();
    let header = &metadata.header;
    let table_bytes = u64::from(header.refcount_table_clusters) * cluster.bytes();
    let mut old = BTreeSet::new();
    let table = parts.references.inside(header.refcount_table_offset, table_bytes);
    for number in table.into_iter().flatten() {
        let references = parts.references.get(number);
        parts.references.set(number, references.saturating_sub(1))?;
        old.insert(number);
    }
    for &entry in &parts.on_disk.table {
        let offset = entry & REFCOUNT_BLOCK_MASK;
        let Some(clusters) = parts.references.inside(offset, cluster.bytes()) else {
            continue;
        };
        if offset == 0 {
            continue;
        }
        // Exactly the entries that are as they have to be were counted.
        if offset == entry && cluster.is_aligned(offset) {
            let references = parts.references.get(clusters.start);
            parts
                .references
                .set(clusters.start, references.saturating_sub(1))?;
        }
        old.extend(clusters);
    }
    Ok(old)
}

/// Counts clusters that look leaked as they were counted: something that cannot be read may lead to them.
fn keep_leaks(parts: &mut Parts, old: &BTreeSet<u64>) -> Result<()> {
    for number in 0..parts.references.clusters() {
        if parts.references.get(number) == 0
            && !old.contains(&number)
            && let Some(refcount) = refcount(&mut parts.on_disk, number)?
        {
            parts.references.set(number, refcount)?;
        }
    }
    Ok(())
}

/// The refcount of a cluster, if it can be told and is not 0.
fn refcount(on_disk: &mut OnDisk, cluster: u64) -> Result<Option<u64>> {
    Ok(on_disk.get(cluster)?.filter(|count| *count > 0))
}

/// Where the new structures will be.
struct Plan {
    cluster: ClusterSize,
    width: Width,
    references: References,
    /// Clusters of the old structures, in use until the end.
    old: BTreeSet<u64>,
    /// Nothing before this cluster is free.
    first_free: u64,
    /// The cluster of each block, by the block's index.
    blocks: BTreeMap<u64, u64>,
}

impl Plan {
    /// Finds a place for every block and for the table, and counts them; returns the table's.
    fn place(&mut self) -> Result<(HostCluster, u32)> {
        let block_bits = self.width.block_bits(self.cluster);
        let mut wanted = BTreeSet::new();
        let mut cluster = self.references.next_counted(0);
        while cluster < self.references.clusters() {
            if self.references.get(cluster) > 0 {
                wanted.insert(cluster >> block_bits);
            }
            cluster = self.references.next_counted(cluster + 1);
        }
        let mut table: Option<(u64, u64)> = None;
        loop {
            while let Some(index) = wanted.pop_first() {
                if !self.blocks.contains_key(&index) {
                    let place = self.take(1)?;
                    self.blocks.insert(index, place);
                    wanted.insert(place >> block_bits);
                }
            }
            let entries = self.blocks.last_key_value().map_or(0, |(index, _)| index + 1);
            let needed = self.cluster.clusters_for(entries * 8).max(1);
            LimitExceeded::check(
                "refcount table bytes",
                entries * 8,
                limits::MAX_REFCOUNT_TABLE_BYTES,
            )?;
            match table {
                Some((first, clusters)) if clusters >= needed => {
                    return Ok((HostCluster(first), u32::try_from(clusters).unwrap_or(u32::MAX)));
                }
                Some((first, clusters)) => {
                    for number in first..first + clusters {
                        self.references.set(number, 0)?;
                    }
                }
                None => {}
            }
            let first = self.take(needed)?;
            table = Some((first, needed));
            wanted.extend(first >> block_bits..=(first + needed - 1) >> block_bits);
        }
    }

    /// Takes a run of free clusters.
    fn take(&mut self, clusters: u64) -> Result<u64> {
        let mut first = self.first_free;
        let mut next = first;
        while next - first < clusters {
            let used = self.references.get(next) > 0 || self.old.contains(&next);
            next += 1;
            if used {
                first = next;
            }
        }
        if clusters == 1 {
            self.first_free = first + 1;
        }
        for number in first..first + clusters {
            self.references.set(number, 1)?;
        }
        Ok(first)
    }

    /// Writes the blocks and the table to where nothing is.
    fn write(&self, storage: &dyn Storage, table: HostCluster, clusters: u32) -> Result<()> {
        let block_bits = self.width.block_bits(self.cluster);
        let mut entries = Vec::new();
        let mut bytes = vec![0; self.cluster.len()];
        for (&index, &place) in &self.blocks {
            bytes.fill(0);
            let first = index << block_bits;
            let end = (first + (1 << block_bits)).min(self.references.clusters());
            for (within, cluster) in (first..end).enumerate() {
                let count = self.references.get(cluster);
                if count > 0 {
                    self.width.set(&mut bytes, within, count);
                }
            }
            let offset = HostCluster(place).offset(self.cluster);
            storage.write_at(&bytes, offset)?;
            entries.resize(usize::try_from(index).unwrap_or(usize::MAX), 0);
            entries.push(offset);
        }
        let mut bytes = fields::entry_bytes(entries);
        bytes.resize(clusters as usize * self.cluster.len(), 0);
        Ok(storage.write_at(&bytes, table.offset(self.cluster))?)
    }
}
