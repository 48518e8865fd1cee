//! Making the active disk what a snapshot holds.

use super::tree::Tree;
use super::work::{Work, after_commit};
use super::{position, unknown};
use crate::error::{LimitExceeded, Result, Unsupported};
use crate::format::{AUTOCLEAR_BITMAPS, L1Entry};
use crate::limits::MAX_L1_BYTES;
use crate::metadata::{Metadata, read_l1};
use crate::snapshot_table::SnapshotEntry;

/// Offset of the virtual size in the header. Behind it are the encryption method, the number of entries of the active
/// L1 table and its offset (qcow2 specification, header).
const HEADER_SIZE_AND_L1: u64 = 24;

pub(super) fn apply(metadata: &mut Metadata, wanted: &str) -> Result<SnapshotEntry> {
    let index = position(metadata, wanted)?;
    let entry = metadata
        .snapshots
        .get(index)
        .cloned()
        .ok_or_else(|| unknown(wanted))?;
    let virtual_size_bytes = entry
        .virtual_size_bytes()
        .unwrap_or(metadata.header.virtual_size_bytes);
    check_possible(metadata, virtual_size_bytes)?;
    let mut work = Work::begin(metadata)?;
    let l1 = new_l1(metadata, &entry, virtual_size_bytes)?;
    let (gained, lost) = differences(&l1, &metadata.l1);
    work.add_tree(metadata, Tree::besides(&gained, &lost))?;
    work.check_shared(&l1, &metadata.l1)?;
    let l1_bytes = l1.len() as u64 * 8;
    let l1_offset = work.allocate_bytes(l1_bytes)?;
    work.clear_unknown_autoclear(metadata)?;

    // A new table instead of the old one overwritten: that takes more than a sector, and a crash could tear it.
    work.settle(metadata, |work| {
        work.write_l1(&l1, l1_offset)?;
        work.rewrite_tables(&gained, |_, entry| Ok(entry.with_copied(false)))
    })?;
    let old = (
        metadata.header.l1_offset,
        u64::from(metadata.header.l1_entries) * 8,
    );
    metadata.header.virtual_size_bytes = virtual_size_bytes;
    metadata.header.l1_offset = l1_offset;
    metadata.header.l1_entries = u32::try_from(l1.len()).unwrap_or(u32::MAX);
    commit(&work, metadata)?;
    metadata.l1 = l1;

    after_commit(
        "the snapshot is applied",
        release_old(&mut work, metadata, Tree::besides(&lost, &gained), old),
    )?;
    Ok(entry)
}

/// Refuses what a disk's change of content or size would make wrong.
fn check_possible(metadata: &Metadata, virtual_size_bytes: u64) -> Result<()> {
    if metadata.header.autoclear & AUTOCLEAR_BITMAPS != 0 {
        let feature = "applying a snapshot to an image whose bitmaps would no longer describe it";
        return Err(Unsupported::Feature { feature }.into());
    }
    if metadata.header.version < 3 && virtual_size_bytes != metadata.header.virtual_size_bytes {
        // Its other snapshots need not state their size: they have the image's.
        let feature = "applying a snapshot of another size in an image of version 2";
        return Err(Unsupported::Feature { feature }.into());
    }
    Ok(())
}

/// The snapshot's L1 table as the active one: long enough for the disk, and nothing in it is written in place because
/// the snapshot refers to all of it, too.
fn new_l1(metadata: &Metadata, entry: &SnapshotEntry, virtual_size_bytes: u64) -> Result<Vec<L1Entry>> {
    let size = metadata.cluster_size();
    let mut l1 = read_l1(
        metadata.storage().as_ref(),
        size,
        entry.l1_offset,
        entry.l1_entries,
    )?;
    let needed = size.l1_entries_for(virtual_size_bytes);
    LimitExceeded::check("bytes of an l1 table", needed.saturating_mul(8), MAX_L1_BYTES)?;
    let needed = usize::try_from(needed).unwrap_or(0);
    l1.resize(l1.len().max(needed).max(1), L1Entry::default());
    l1.iter_mut().for_each(|entry| *entry = entry.with_copied(false));
    Ok(l1)
}

/// The entries of the new table that lead elsewhere than the old one's, and those of the old one that go, each at its
/// place.
///
/// An L2 table that both lead to keeps its references: one that goes and one that comes.
fn differences(new: &[L1Entry], old: &[L1Entry]) -> (Vec<L1Entry>, Vec<L1Entry>) {
    let differ = |one: &[L1Entry], other: &[L1Entry]| {
        let elsewhere = |(index, entry): (usize, &L1Entry)| {
            let there = other.get(index).map_or(0, |entry| entry.host_offset());
            if entry.host_offset() == there {
                L1Entry::default()
            } else {
                *entry
            }
        };
        one.iter().enumerate().map(elsewhere).collect()
    };
    (differ(new, old), differ(old, new))
}

/// Changes over to the new L1 table and size: one write within a sector, then a sync.
fn commit(work: &Work, metadata: &Metadata) -> Result<()> {
    let header = &metadata.header;
    let mut fields = header.virtual_size_bytes.to_be_bytes().to_vec();
    fields.extend([0; 4]); // not encrypted: such an image is not opened
    fields.extend(header.l1_entries.to_be_bytes());
    fields.extend(header.l1_offset.to_be_bytes());
    work.storage.write_at(&fields, HEADER_SIZE_AND_L1)?;
    Ok(work.storage.sync()?)
}

/// Frees the old tree and the old L1 table.
fn release_old(work: &mut Work, metadata: &mut Metadata, lost: Tree<'_>, old: (u64, u64)) -> Result<()> {
    work.sub_tree(metadata, lost)?;
    work.release_bytes(old.0, old.1)?;
    work.settle(metadata, |_| Ok(()))?;
    work.punch_freed();
    Ok(())
}
