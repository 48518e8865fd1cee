//! Deleting a snapshot.

use super::tree::{Tree, host_clusters};
use super::work::{Work, after_commit};
use super::{position, unknown};
use crate::error::Result;
use crate::format::{HostCluster, L1Entry};
use crate::metadata::{Metadata, read_l1};
use crate::snapshot_table::SnapshotEntry;

pub(super) fn delete(metadata: &mut Metadata, wanted: &str) -> Result<SnapshotEntry> {
    let index = position(metadata, wanted)?;
    let entry = metadata
        .snapshots
        .get(index)
        .cloned()
        .ok_or_else(|| unknown(wanted))?;
    let mut work = Work::begin(metadata)?;
    // Judged before anything is written: a snapshot whose table cannot be read is for a repair to drop.
    let storage = metadata.storage().as_ref();
    let l1 = read_l1(
        storage,
        metadata.cluster_size(),
        entry.l1_offset,
        entry.l1_entries,
    )?;
    let mut entries = metadata.snapshots.clone();
    entries.remove(index);
    work.check_table(metadata, &mut entries)?;
    let (table, table_offset) = work.place_table(&entries)?;
    // The tree's references go in memory now, so that a tree that cannot be freed is refused before anything is
    // written. Only the new table's clusters are written before the commit.
    let dirty = work.refcounts.take_dirty();
    let fits = work.fits(metadata)?;
    if fits {
        work.sub_tree(metadata, Tree::of(&l1))?;
    } else {
        work.check_tree(metadata, Tree::of(&l1))?;
    }
    work.clear_unknown_autoclear(metadata)?;
    work.settle_taken(metadata, dirty, |work| {
        Ok(work.storage.write_at(&table, table_offset)?)
    })?;
    let old_table = work.commit_table(metadata, entries, table_offset)?;

    let clean_up = if fits {
        Ok(())
    } else {
        work.sub_tree(metadata, Tree::of(&l1))
    };
    after_commit(
        "the snapshot is deleted",
        clean_up.and_then(|()| release(&mut work, metadata, &entry, &l1, old_table)),
    )?;
    Ok(entry)
}

/// Writes the refcounts without the snapshot's tree, frees its L1 table and the old snapshot table, and lets the active disk be written in place where no
/// other snapshot refers to it.
fn release(
    work: &mut Work,
    metadata: &mut Metadata,
    entry: &SnapshotEntry,
    l1: &[L1Entry],
    old_table: (u64, u64),
) -> Result<()> {
    work.release_bytes(entry.l1_offset, entry.l1_bytes())?;
    work.release_bytes(old_table.0, old_table.1)?;
    let affected = affected(&metadata.l1, l1);
    let mut active = metadata.l1.clone();
    for (entry, _) in active
        .iter_mut()
        .zip(&affected)
        .filter(|(_, affected)| !affected.is_unallocated())
    {
        let table = work.cluster.cluster_of(entry.host_offset());
        *entry = entry.with_copied(work.refcounts.get(table)? == 1);
    }
    // With the snapshot gone for good no flag can let anybody write to what another tree sees: no order is needed.
    let (size, l1_offset, old) = (work.cluster, metadata.header.l1_offset, metadata.l1.clone());
    work.settle(metadata, |work| {
        work.rewrite_tables(&affected, |refcounts, entry| {
            let cluster = match (entry.is_compressed(), entry.host_offset()) {
                (true, _) | (_, 0) => return Ok(entry.with_copied(false)),
                _ => HostCluster(host_clusters(entry, size)?.start),
            };
            Ok(entry.with_copied(refcounts.get(cluster)? == 1))
        })?;
        if active == old {
            Ok(())
        } else {
            work.write_l1(&active, l1_offset)
        }
    })?;
    metadata.l1 = active;
    work.punch_freed();
    Ok(())
}

/// The active L1 table with only those entries where the snapshot had one as well: a cluster that two trees share is at
/// the same place of the disk in both.
fn affected(active: &[L1Entry], snapshot: &[L1Entry]) -> Vec<L1Entry> {
    let both = |(active, snapshot): (&L1Entry, &L1Entry)| {
        if snapshot.is_unallocated() {
            L1Entry::default()
        } else {
            *active
        }
    };
    active.iter().zip(snapshot).map(both).collect()
}
