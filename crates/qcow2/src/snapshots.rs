//! Internal snapshots: list, create, apply, delete, and a fingerprint of what one maps.
//!
//! A snapshot is a copy of the L1 table; every cluster that it leads to counts one reference more. Everything is
//! counted in memory first, so that an image that cannot do it is refused before anything is written. Then each
//! operation writes what nobody refers to yet, makes it durable, and changes over with one write into the first sector
//! of the header: a crash leaves the image as it was before that write or as it is after it, and at worst clusters
//! that nobody refers to, or COPIED flags that say less or more than the refcounts.
//!
//! ```text
//! create   counts + 1, L1 copy, table, COPIED off | sync | header: table | sync | old table free
//! apply    counts + 1, new active L1              | sync | header: L1    | sync | old tree - 1
//! delete   table without it                       | sync | header: table | sync | its tree - 1, COPIED on
//! ```
//!
//! Nobody else may have the image open, and whoever keeps tables or refcounts of it in memory writes them before and
//! reads them again afterwards, whether it succeeded or not.

mod apply;
mod create;
mod delete;
mod fingerprint;
mod freed;
mod holder;
#[cfg(test)]
mod tests;
mod tree;
mod work;

use std::sync::Arc;
use std::time::SystemTime;

use crate::error::{Result, Usage};
use crate::metadata::Metadata;
use crate::snapshot_table::SnapshotEntry;

pub use fingerprint::fingerprint;
pub use holder::holder;

/// Bytes of a snapshot's name: as many as QEMU's tools keep.
pub const MAX_NAME_BYTES: usize = 255;

/// Returns the snapshots of an image, in the order in which they were made.
#[must_use]
pub fn list(metadata: &Metadata) -> &[SnapshotEntry] {
    &metadata.snapshots
}

/// Returns the snapshot that has `wanted` as its id or, if none has, the first that has it as its name.
///
/// # Errors
/// [`Usage::NoSuchSnapshot`].
pub fn find<'a>(metadata: &'a Metadata, wanted: &str) -> Result<&'a SnapshotEntry> {
    position(metadata, wanted).and_then(|index| metadata.snapshots.get(index).ok_or_else(|| unknown(wanted)))
}

/// Takes a snapshot of the active disk and returns its entry. The state of a machine is not part of it.
///
/// # Errors
/// Before anything is written: the name is too long, there are too many snapshots, the image must be repaired first or
/// its refcounts cannot count one reference more. Later ones are those of the storage; `metadata` is then as in the
/// file, and the snapshot is there if `metadata` has it.
pub fn create(metadata: &mut Metadata, name: &str, when: SystemTime) -> Result<SnapshotEntry> {
    change(metadata, |metadata| create::create(metadata, name, when))
}

/// Makes the active disk what a snapshot holds, its size included, and returns the snapshot's entry.
///
/// The state of a machine that the snapshot holds comes with it, behind the end of the disk, where QEMU looks for it.
///
/// # Errors
/// Before anything is written: there is no such snapshot, the image must be repaired first, it has bitmaps that would
/// no longer describe the disk, its version does not let a disk with snapshots change its size, or its refcounts cannot
/// count one reference more. Later ones as for [`create()`].
pub fn apply(metadata: &mut Metadata, wanted: &str) -> Result<SnapshotEntry> {
    change(metadata, |metadata| apply::apply(metadata, wanted))
}

/// Deletes a snapshot and returns what its entry was. Clusters that only it referred to are given back to the medium.
///
/// # Errors
/// Before anything is written: there is no such snapshot, or the image must be repaired first. Later ones as for
/// [`create()`].
pub fn delete(metadata: &mut Metadata, wanted: &str) -> Result<SnapshotEntry> {
    change(metadata, |metadata| delete::delete(metadata, wanted))
}

/// Runs an operation; if it fails, the metadata is read from the file again, which may be before or after the change.
fn change<T>(metadata: &mut Metadata, operation: impl FnOnce(&mut Metadata) -> Result<T>) -> Result<T> {
    let before = metadata.clone();
    let result = operation(metadata);
    if result.is_err() {
        *metadata = Metadata::open(Arc::clone(before.storage())).unwrap_or_else(|_| without_copied(before));
    }
    result
}

/// The metadata of an image of which nobody knows what reached the file: every write copies first, which is right in any
/// case.
fn without_copied(mut metadata: Metadata) -> Metadata {
    let entries = metadata.l1.iter_mut();
    entries.for_each(|entry| *entry = entry.with_copied(false));
    metadata
}

/// The index of the snapshot with an id or, failing that, a name.
fn position(metadata: &Metadata, wanted: &str) -> Result<usize> {
    let by = |text: fn(&SnapshotEntry) -> &[u8]| {
        metadata
            .snapshots
            .iter()
            .position(|entry| text(entry) == wanted.as_bytes())
    };
    by(|entry| &entry.id)
        .or_else(|| by(|entry| &entry.name))
        .ok_or_else(|| unknown(wanted))
}

fn unknown(wanted: &str) -> crate::Error {
    Usage::NoSuchSnapshot {
        wanted: wanted.to_owned(),
    }
    .into()
}
