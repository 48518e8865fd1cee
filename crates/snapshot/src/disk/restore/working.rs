//! Disks that were kept by a copy: the guest gets a working copy of it.
//!
//! The fingerprint is that of the working copy, the very bytes that the guest will see.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use vmm::{Disk, DiskConfig, DiskFormat};

use super::{DiskResult, OwnFile, Places, open_disk};
use crate::disk::copy::copy_content;
use crate::disk::fingerprint::fingerprint;
use crate::disk::names::{copy_name, directory};
use crate::disk::save::len_bytes;
use crate::disk::{DiskEntry, DiskError, LayerKind};

/// Copies the copy, and opens what came of it.
pub(super) fn copy(
    entry: &DiskEntry,
    config: &mut DiskConfig,
    places: &Places<'_>,
) -> DiskResult<(Disk, Option<OwnFile>)> {
    let copy = find_copy(entry, places)?;
    let source = open(&copy)?;
    check_length(entry, &copy, &source)?;
    let given = places.given.get(&entry.id);
    let own = OwnFile::create(given.map(AsRef::as_ref), &copy)?;
    copy_and_check(entry, &copy, &source, &own)?;
    config.file.clone_from(&own.path);
    config.format = DiskFormat::Raw;
    Ok((open_disk(config)?, Some(own)))
}

/// The copy under the name that goes with the snapshot's own, or under the one that it was given.
fn find_copy(entry: &DiskEntry, places: &Places<'_>) -> DiskResult<PathBuf> {
    let snapshot = &places.owner.snapshot;
    let beside = directory(snapshot);
    let present = beside.join(copy_name(snapshot, &entry.id, &entry.format));
    let record = places.layers.get(&entry.id).and_then(|layers| layers.first());
    // A name that leads elsewhere is none of ours.
    let plain = |name: &&Path| name.file_name().is_some_and(|file| file == name.as_os_str());
    let recorded = record.map(|record| record.path.as_path()).filter(plain);
    let recorded = recorded.map(|name| beside.join(name));
    let mut candidates = std::iter::once(present.clone()).chain(recorded);
    let found = candidates.find(|path| path.exists());
    found.ok_or(DiskError::Missing {
        what: LayerKind::Copy,
        path: present,
    })
}

fn copy_and_check(entry: &DiskEntry, copy: &Path, source: &File, own: &OwnFile) -> DiskResult<()> {
    let len = entry.virtual_size_bytes;
    let failed = |source| DiskError::Copy {
        path: own.path.clone(),
        source,
    };
    copy_content(source, &own.file, len, &|_| Ok(())).map_err(failed)?;
    let found = fingerprint(&own.file, len, &|_| Ok(())).map_err(failed)?;
    match entry.layers.first() {
        Some(expected) if *expected == found => Ok(()),
        Some(expected) => Err(DiskError::Changed {
            what: LayerKind::Copy,
            path: copy.to_owned(),
            expected: *expected,
            found,
        }),
        None => Err(DiskError::NotKept),
    }
}

fn open(path: &Path) -> DiskResult<File> {
    File::open(path).map_err(|source| DiskError::Open {
        path: path.to_owned(),
        source,
    })
}

fn check_length(entry: &DiskEntry, path: &Path, file: &File) -> DiskResult<()> {
    let found = len_bytes(file).map_err(|source: io::Error| DiskError::Open {
        path: path.to_owned(),
        source,
    })?;
    if found == entry.virtual_size_bytes {
        return Ok(());
    }
    Err(DiskError::Size {
        path: path.to_owned(),
        expected: entry.virtual_size_bytes,
        found,
    })
}
