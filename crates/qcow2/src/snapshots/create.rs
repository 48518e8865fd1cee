//! Taking a snapshot.

use std::time::{SystemTime, UNIX_EPOCH};

use super::MAX_NAME_BYTES;
use super::tree::Tree;
use super::work::{Work, after_commit};
use crate::error::{LimitExceeded, Result, Unsupported, Usage};
use crate::format::L1Entry;
use crate::metadata::Metadata;
use crate::snapshot_table::{SnapshotEntry, known_extra};

pub(super) fn create(metadata: &mut Metadata, name: &str, when: SystemTime) -> Result<SnapshotEntry> {
    check_name(name)?;
    if metadata.header.refcount_order == 0 {
        let feature = "an internal snapshot in an image with refcounts of 1 bit";
        return Err(Unsupported::Feature { feature }.into());
    }
    let mut work = Work::begin(metadata)?;
    let l1 = disk_l1(metadata);
    let mut entry = new_entry(metadata, name, when, l1.len());
    let mut entries = metadata.snapshots.clone();
    entries.push(entry.clone());
    work.check_table(metadata, &mut entries)?;
    work.add_tree(metadata, Tree::of(&l1))?;
    entry.l1_offset = work.allocate_bytes(entry.l1_bytes())?;
    if let Some(last) = entries.last_mut() {
        last.l1_offset = entry.l1_offset;
    }
    let (table, table_offset) = work.place_table(&entries)?;
    work.clear_unknown_autoclear(metadata)?;

    // The active tree is still the only one, so these writes need no order among them: counts are only raised, and a
    // COPIED flag that is set or off, whatever the count, lets nobody write to what another tree sees.
    let active = without_copied(&metadata.l1, l1.len());
    let (old, active_offset) = (metadata.l1.clone(), metadata.header.l1_offset);
    work.settle(metadata, |work| {
        work.write_l1(&l1, entry.l1_offset)?;
        work.storage.write_at(&table, table_offset)?;
        work.rewrite_tables(&l1, |_, entry| Ok(entry.with_copied(false)))?;
        if active == old {
            Ok(())
        } else {
            work.write_l1(&active, active_offset)
        }
    })?;
    metadata.l1 = active;

    let (old_offset, old_len) = work.commit_table(metadata, entries, table_offset)?;
    let clean_up = work
        .release_bytes(old_offset, old_len)
        .and_then(|()| work.settle(metadata, |_| Ok(())));
    after_commit("the snapshot is taken", clean_up)?;
    Ok(entry)
}

/// The part of the active L1 table that maps the disk, as a snapshot has it: nothing in it is written in place.
///
/// What is behind it is the state of a machine, left there when a snapshot with one was applied.
fn disk_l1(metadata: &Metadata) -> Vec<L1Entry> {
    let wanted = metadata
        .cluster_size()
        .l1_entries_for(metadata.header.virtual_size_bytes);
    let wanted = usize::try_from(wanted)
        .unwrap_or(usize::MAX)
        .min(metadata.l1.len());
    let disk = metadata.l1.iter().take(wanted);
    disk.map(|entry| entry.with_copied(false)).collect()
}

/// An L1 table whose first `shared` entries are shared with a snapshot from now on.
fn without_copied(l1: &[L1Entry], shared: usize) -> Vec<L1Entry> {
    let entry = |(index, entry): (usize, &L1Entry)| entry.with_copied(entry.is_copied() && index >= shared);
    l1.iter().enumerate().map(entry).collect()
}

fn check_name(name: &str) -> Result<()> {
    LimitExceeded::check(
        "bytes of a snapshot's name",
        name.len() as u64,
        MAX_NAME_BYTES as u64,
    )?;
    if name.contains('\0') {
        return Err(Usage::Option {
            option: "name",
            problem: "a snapshot's name cannot contain a zero byte",
        }
        .into());
    }
    Ok(())
}

/// The entry of a snapshot of the disk as it is, without the place of its L1 table.
fn new_entry(metadata: &Metadata, name: &str, when: SystemTime, l1_entries: usize) -> SnapshotEntry {
    let since = when.duration_since(UNIX_EPOCH).unwrap_or_default();
    SnapshotEntry {
        l1_offset: 0,
        // At most as many as the header states, in 32 bits.
        l1_entries: u32::try_from(l1_entries).unwrap_or(u32::MAX),
        id: next_id(&metadata.snapshots).into_bytes(),
        name: name.as_bytes().to_vec(),
        seconds: u32::try_from(since.as_secs()).unwrap_or(u32::MAX),
        nanoseconds: since.subsec_nanos(),
        vm_clock_ns: 0,
        vm_state_bytes_32: 0,
        extra: known_extra(0, metadata.header.virtual_size_bytes),
    }
}

/// The id of the next snapshot: one more than the largest number that an id begins with.
fn next_id(snapshots: &[SnapshotEntry]) -> String {
    let largest = snapshots
        .iter()
        .map(|entry| leading_number(&entry.id))
        .max()
        .unwrap_or(0);
    match largest.checked_add(1) {
        Some(next) => next.to_string(),
        // As many ids as there are snapshots are taken, so that one of these is not.
        None => (1..=u64::MAX)
            .map(|number| number.to_string())
            .find(|id| snapshots.iter().all(|entry| entry.id != id.as_bytes()))
            .unwrap_or_default(),
    }
}

fn leading_number(id: &[u8]) -> u64 {
    let digits = id.iter().take_while(|byte| byte.is_ascii_digit());
    digits.fold(0, |number: u64, digit| {
        number.saturating_mul(10).saturating_add(u64::from(digit - b'0'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(id: &str) -> SnapshotEntry {
        SnapshotEntry {
            l1_offset: 0,
            l1_entries: 0,
            id: id.into(),
            name: Vec::new(),
            seconds: 0,
            nanoseconds: 0,
            vm_clock_ns: 0,
            vm_state_bytes_32: 0,
            extra: Vec::new(),
        }
    }

    #[test]
    fn the_next_id_is_never_taken() {
        let ids = |ids: &[&str]| next_id(&ids.iter().map(|id| entry(id)).collect::<Vec<_>>());
        assert_eq!(ids(&[]), "1");
        assert_eq!(ids(&["1", "7", "x", "03"]), "8");
        assert_eq!(ids(&["12abc"]), "13");
        assert_eq!(ids(&["1", "18446744073709551615"]), "2");
        assert_eq!(ids(&["99999999999999999999999"]), "1");
    }
}
