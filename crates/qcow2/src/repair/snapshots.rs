//! Snapshots that lack the extra data of version 3, completed.
//!
//! ```text
//! refcounts of a new table, and the table | sync | 12 bytes of the header | sync | the old table is freed
//! ```

use std::sync::Arc;

use crate::snapshot_table::{table_bytes, table_len_bytes};
use crate::{Metadata, Refcounts, Result};

/// Writes a snapshot table in which every entry states its machine state's and its disk's size, if one does not.
///
/// The refcounts must be right.
pub(super) fn complete(metadata: &mut Metadata) -> Result<()> {
    if metadata.header.version < 3 || metadata.snapshots.iter().all(|snapshot| snapshot.is_complete()) {
        return Ok(());
    }
    let storage = Arc::clone(metadata.storage());
    let cluster = metadata.cluster_size();
    let old = cluster.cluster_of(metadata.header.snapshots_offset);
    let old_clusters = cluster.clusters_for(table_len_bytes(&metadata.snapshots));
    let image_bytes = metadata.header.virtual_size_bytes;
    for snapshot in &mut metadata.snapshots {
        snapshot.complete(image_bytes);
    }
    let mut bytes = table_bytes(&metadata.snapshots)?;
    bytes.resize(bytes.len().next_multiple_of(cluster.len()), 0);
    let mut refcounts = Refcounts::open(Arc::clone(&storage), &metadata.header)?;
    let place = refcounts.allocate(cluster.clusters_for(bytes.len() as u64))?;
    storage.write_at(&bytes, place.offset(cluster))?;
    refcounts.write_dirty(&mut metadata.header)?;
    storage.sync()?;
    metadata.header.snapshots_offset = place.offset(cluster);
    metadata.header.write_snapshot_fields(storage.as_ref())?;
    storage.sync()?;
    refcounts.free(old, old_clusters)?;
    refcounts.write_dirty(&mut metadata.header)
}
