//! What tells a snapshot from one that was deleted and taken anew under its id.

use super::find;
use crate::error::Result;
use crate::format::COPIED;
use crate::metadata::{Metadata, read_l1};
use crate::walk;

/// Returns the fingerprint of what a snapshot maps: BLAKE3 of its id, name and size and of its L1 and L2 tables.
///
/// All numbers are 64-bit and big-endian: the length of the id and its bytes, the length of the name and its bytes, the
/// virtual size in bytes, the number of L1 entries, and each L1 entry, followed, where it leads to an L2 table, by the
/// entries of that table. The COPIED flag of entries counts as 0, so that writing to the active disk, other snapshots
/// and their end change nothing: a cluster that a snapshot refers to is never written in place.
///
/// # Errors
/// There is no such snapshot; its tables are not where tables can be or cannot be read.
pub fn fingerprint(metadata: &Metadata, wanted: &str) -> Result<[u8; 32]> {
    let entry = find(metadata, wanted)?;
    let storage = metadata.storage().as_ref();
    let size = metadata.cluster_size();
    let l1 = read_l1(storage, size, entry.l1_offset, entry.l1_entries)?;
    let virtual_size_bytes = entry
        .virtual_size_bytes()
        .unwrap_or(metadata.header.virtual_size_bytes);
    let mut hasher = blake3::Hasher::new();
    for text in [&entry.id, &entry.name] {
        hasher.update(&(text.len() as u64).to_be_bytes());
        hasher.update(text);
    }
    hasher.update(&virtual_size_bytes.to_be_bytes());
    hasher.update(&(l1.len() as u64).to_be_bytes());
    let mut next = 0;
    let mut up_to = |hasher: &mut blake3::Hasher, end: usize| {
        for entry in l1.get(next..end).unwrap_or_default() {
            hasher.update(&(entry.0 & !COPIED).to_be_bytes());
        }
        next = end;
    };
    walk::tables(storage, size, &l1, &mut |index, table| {
        up_to(
            &mut hasher,
            usize::try_from(index).unwrap_or(l1.len()).saturating_add(1),
        );
        table.update(|entry| entry.with_copied(false));
        hasher.update(table.bytes());
        Ok(())
    })?;
    up_to(&mut hasher, l1.len());
    Ok(*hasher.finalize().as_bytes())
}
