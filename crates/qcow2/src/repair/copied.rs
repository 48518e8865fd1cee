//! Copied flags, as the refcounts have it: set where a cluster's refcount is exactly one (qcow2 specification, L1 and
//! L2 entries).
//!
//! Only the active tables have flags that mean something. A table is left alone where it is not sure to be one: if it
//! is not aligned, not in the file, or on other metadata.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::format::L2Entry;
use crate::walk::{self, L2Table};
use crate::{L1Entry, Metadata, Refcounts, Result, Storage, fields, snapshot_table};

/// Sets all copied flags that contradict the refcounts, durably.
pub(super) fn repair(metadata: &Metadata) -> Result<()> {
    let storage = metadata.storage();
    let cluster = metadata.cluster_size();
    let mut refcounts = Refcounts::open(Arc::clone(storage), &metadata.header)?;
    protect_tables(metadata, &mut refcounts);
    let file_bytes = storage.len()?;
    let mut done = BTreeSet::new();
    let mut l1 = metadata.l1.clone();
    for entry in &mut l1 {
        let offset = entry.host_offset();
        let place = cluster.cluster_of(offset);
        let sound = walk::judge(offset, cluster, file_bytes).is_ok() && !refcounts.is_protected(place, 1);
        if offset == 0 || !sound {
            continue;
        }
        *entry = entry.with_copied(refcounts.get(place)? == 1);
        if done.insert(offset) {
            repair_table(storage.as_ref(), &mut refcounts, metadata, *entry)?;
        }
    }
    if l1 != metadata.l1 {
        let bytes = fields::entry_bytes(l1.iter().map(|entry| entry.0));
        storage.write_at(&bytes, metadata.header.l1_offset)?;
    }
    Ok(storage.sync()?)
}

/// Repairs the flags of one L2 table.
fn repair_table(
    storage: &dyn Storage,
    refcounts: &mut Refcounts,
    metadata: &Metadata,
    entry: L1Entry,
) -> Result<()> {
    let cluster = metadata.cluster_size();
    // A visit of one table, so that one that cannot be read does not keep the others from being repaired.
    walk::tables(storage, cluster, &[entry], &mut |_, table: &mut L2Table<'_>| {
        let mut failed = None;
        let changed = table.update(|entry: L2Entry| {
            if entry.is_compressed() {
                return entry.with_copied(false);
            }
            if entry.host_offset() == 0 {
                return entry;
            }
            match refcounts.get(cluster.cluster_of(entry.host_offset())) {
                Ok(refcount) => entry.with_copied(refcount == 1),
                Err(error) => {
                    failed = Some(error);
                    entry
                }
            }
        });
        if let Some(error) = failed {
            return Err(error);
        }
        if changed {
            table.write(storage)?;
        }
        Ok(())
    })
}

/// Adds the metadata that [`Refcounts`] does not know of to what is protected.
fn protect_tables(metadata: &Metadata, refcounts: &mut Refcounts) {
    let cluster = metadata.cluster_size();
    let mut protect = |offset: u64, len_bytes: u64| {
        let first = cluster.cluster_of(offset);
        let end = cluster.cluster_of(cluster.round_up(offset.saturating_add(len_bytes)));
        refcounts.protect(first, end.0.saturating_sub(first.0));
    };
    let table_bytes = snapshot_table::table_len_bytes(&metadata.snapshots);
    protect(metadata.header.snapshots_offset, table_bytes);
    for snapshot in &metadata.snapshots {
        protect(snapshot.l1_offset, snapshot.l1_bytes());
    }
    if let Some(bitmaps) = metadata.header.bitmaps() {
        protect(bitmaps.directory_offset, bitmaps.directory_bytes);
    }
}
