//! Files for the disks of a restored guest.
//!
//! A disk that was copied gets a working copy of its own: the copy beside the snapshot stays as it is, so that it can
//! be restored again. The fingerprint is that of the working copy, the very bytes that the guest will see. A disk
//! that the guest only reads, or that the snapshot has no copy of, is used where it is.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use tempfile::TempPath;

use vmm::DiskConfig;

use super::copy::copy_content;
use super::fingerprint::fingerprint;
use super::save::len_bytes;
use super::{DiskEntry, DiskError, copy_name, directory};
use crate::error::{Error, Result};

type DiskResult<T> = std::result::Result<T, DiskError>;

/// Files made for a restored guest; what is not kept is removed.
#[derive(Debug, Default)]
pub(crate) struct WorkingDisks {
    /// Asked for under a name by the caller.
    named: Vec<TempPath>,
    /// Never had a name: they are gone with their last descriptor, whatever becomes of this process.
    nameless: Vec<File>,
}

impl WorkingDisks {
    /// Called when the machine has opened its disks, and so keeps the nameless ones: those with a name stay.
    pub(crate) fn opened(self) {
        for path in self.named {
            if let Err(error) = path.keep() {
                tracing::warn!(%error, "a working copy");
            }
        }
    }
}

/// Where the disks of a snapshot are.
pub(crate) struct Places<'a> {
    /// The snapshot file.
    pub(crate) snapshot: &'a Path,
    /// Names of the copies beside it, by disk.
    pub(crate) copies: &'a BTreeMap<String, String>,
    /// Files that the caller gave, by disk.
    pub(crate) given: &'a BTreeMap<String, PathBuf>,
}

/// Finds, checks and if need be copies the file of every disk, and puts its path into `disks`.
pub(crate) fn prepare(
    table: &[DiskEntry],
    disks: &mut [DiskConfig],
    places: &Places<'_>,
) -> Result<WorkingDisks> {
    let known = |id: &String| table.iter().any(|entry| entry.id == *id);
    if let Some(id) = places.given.keys().find(|id| !known(id)) {
        return Err(Error::disk(id)(DiskError::Unknown));
    }
    let mut working = WorkingDisks::default();
    for (entry, disk) in table.iter().zip(disks) {
        place(entry, disk, places, &mut working).map_err(Error::disk(&entry.id))?;
    }
    Ok(working)
}

fn place(
    entry: &DiskEntry,
    disk: &mut DiskConfig,
    places: &Places<'_>,
    working: &mut WorkingDisks,
) -> DiskResult<()> {
    let given = places.given.get(&entry.id);
    if entry.fingerprint.is_some() {
        let copy = find_copy(disk, places)?;
        disk.file = make_working_copy(entry, &copy, given.map(PathBuf::as_path), working)?;
        return Ok(());
    }
    match given {
        Some(path) => disk.file.clone_from(path),
        None if entry.readonly => {}
        None => return Err(DiskError::NotCopied),
    }
    let file = open(&disk.file)?;
    check_size(entry, &disk.file, &file)
}

/// The copy under the name that goes with the snapshot's own, or under the one that it was given.
fn find_copy(disk: &DiskConfig, places: &Places<'_>) -> DiskResult<PathBuf> {
    let beside = directory(places.snapshot);
    let present = beside.join(copy_name(places.snapshot, disk));
    // A name that leads elsewhere is none of ours.
    let plain = |name: &&String| {
        Path::new(name)
            .file_name()
            .is_some_and(|file| file == name.as_str())
    };
    let recorded = places.copies.get(&disk.id).filter(plain);
    let recorded = recorded.map(|name| beside.join(name));
    let mut candidates = std::iter::once(present.clone()).chain(recorded);
    let found = candidates.find(|path| path.exists());
    found.ok_or(DiskError::Missing { path: present })
}

fn make_working_copy(
    entry: &DiskEntry,
    copy: &Path,
    given: Option<&Path>,
    working: &mut WorkingDisks,
) -> DiskResult<PathBuf> {
    let source = open(copy)?;
    check_size(entry, copy, &source)?;
    if let Some(path) = given {
        let (target, temporary) = create_named(path)?;
        working.named.push(temporary);
        copy_and_check(entry, copy, &source, &target, path)?;
        return Ok(path.to_owned());
    }
    let target = create_nameless(copy)?;
    // The machine opens the file once more by this path.
    let path = PathBuf::from(format!("/proc/self/fd/{}", target.as_raw_fd()));
    copy_and_check(entry, copy, &source, &target, &path)?;
    working.nameless.push(target);
    Ok(path)
}

fn copy_and_check(
    entry: &DiskEntry,
    copy: &Path,
    source: &File,
    target: &File,
    path: &Path,
) -> DiskResult<()> {
    let len = entry.virtual_size_bytes;
    let failed = |source| DiskError::Copy {
        path: path.to_owned(),
        source,
    };
    copy_content(source, target, len, &|_| Ok(())).map_err(failed)?;
    let found = fingerprint(target, len, &|_| Ok(())).map_err(failed)?;
    match entry.fingerprint {
        Some(expected) if expected != found => Err(DiskError::Changed {
            path: copy.to_owned(),
            expected,
            found,
        }),
        _ => Ok(()),
    }
}

fn create_named(path: &Path) -> DiskResult<(File, TempPath)> {
    let opened = |source: io::Error| match source.kind() {
        io::ErrorKind::AlreadyExists => DiskError::Exists {
            path: path.to_owned(),
        },
        _ => DiskError::Open {
            path: path.to_owned(),
            source,
        },
    };
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(path)
        .map_err(opened)?;
    Ok((file, TempPath::try_from_path(path).map_err(opened)?))
}

/// Beside the copy, where blocks can be shared with it, or else where temporary files go.
fn create_nameless(copy: &Path) -> DiskResult<File> {
    let created = tempfile::tempfile_in(directory(copy)).or_else(|_| tempfile::tempfile());
    created.map_err(|source| DiskError::Open {
        path: std::env::temp_dir(),
        source,
    })
}

fn open(path: &Path) -> DiskResult<File> {
    File::open(path).map_err(|source| DiskError::Open {
        path: path.to_owned(),
        source,
    })
}

fn check_size(entry: &DiskEntry, path: &Path, file: &File) -> DiskResult<()> {
    let found = len_bytes(file).map_err(|source| DiskError::Open {
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

#[cfg(test)]
mod tests;
