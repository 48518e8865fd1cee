//! Disks for a restored guest.
//!
//! What belongs to the snapshot stays as it is, so that it can be restored again: the guest gets an overlay of its own
//! over a frozen image or an internal snapshot, or a working copy of a copy. Unless the caller gives it a name, the
//! guest's file never has one: it is gone with the machine, whatever becomes of this process. Layers are checked before
//! anything is made of them.

mod given;
mod internal;
mod layers;
mod overlay;
mod working;

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;
use tempfile::TempPath;

use vmm::{Disk, DiskConfig, FrozenFor};

use super::names::directory;
use super::{DiskEntry, DiskError, DisksMode, KnownFingerprints};
use crate::error::{Error, Result};
use crate::machine_record::LayerRecord;
use internal::InPlace;

type DiskResult<T> = std::result::Result<T, DiskError>;

/// How disks are brought back.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum DisksRestore {
    /// Each guest gets files of its own, and the snapshot stays as it is.
    #[default]
    Overlay,
    /// Internal snapshots are applied, and the guest goes on in the images: what they hold beside the snapshot is lost.
    InPlace,
}

/// Where the disks of a snapshot are, and how they are brought back.
pub(crate) struct Places<'a> {
    /// The snapshot file and its identity.
    pub(crate) owner: FrozenFor,
    /// The files of the layers, by disk.
    pub(crate) layers: &'a BTreeMap<String, Vec<LayerRecord>>,
    /// Files that the caller gave, by disk.
    pub(crate) given: &'a BTreeMap<String, PathBuf>,
    pub(crate) how: DisksRestore,
    /// Whether fingerprints are compared even where length and time of a file are those of the snapshot.
    pub(crate) check: bool,
    pub(crate) known: &'a KnownFingerprints,
}

/// Disks that can be opened for a restored guest; files made for them that are not kept are removed.
#[derive(Debug, Default)]
pub(crate) struct ReadyDisks {
    disks: Vec<(String, Ready)>,
    /// Asked for under a name by the caller.
    named: Vec<TempPath>,
}

/// A disk, but for what cannot be undone.
#[derive(Debug)]
enum Ready {
    Open(Disk),
    InPlace(InPlace),
}

/// A file for the guest's writes.
struct OwnFile {
    file: File,
    path: PathBuf,
    /// Removes the file unless it is kept; nothing for one without a name.
    temporary: Option<TempPath>,
}

/// Finds, checks and makes the files of every disk, opens it, and puts file and format into its configuration.
pub(crate) fn open_disks(
    table: &[DiskEntry],
    configs: &mut [DiskConfig],
    places: &Places<'_>,
) -> Result<ReadyDisks> {
    let known = |id: &String| table.iter().any(|entry| entry.id == *id);
    if let Some(id) = places.given.keys().find(|id| !known(id)) {
        return Err(Error::disk(id)(DiskError::Unknown));
    }
    let mut ready = ReadyDisks::default();
    for (entry, config) in table.iter().zip(configs) {
        let disk = ready
            .open(entry, config, places)
            .map_err(Error::disk(&entry.id))?;
        ready.disks.push((entry.id.clone(), disk));
    }
    Ok(ready)
}

impl ReadyDisks {
    fn open(&mut self, entry: &DiskEntry, config: &mut DiskConfig, places: &Places<'_>) -> DiskResult<Ready> {
        let in_place = places.how == DisksRestore::InPlace && !entry.readonly;
        let not_in_place = DiskError::NotInPlace {
            mode: entry.mode.name(),
        };
        let (disk, file) = match entry.mode {
            DisksMode::Internal if in_place => {
                return internal::in_place(entry, config, places).map(Ready::InPlace);
            }
            DisksMode::Overlay | DisksMode::Copy if in_place => return Err(not_in_place),
            DisksMode::Overlay => overlay::over_frozen(entry, config, places)?,
            DisksMode::Internal => internal::over_snapshot(entry, config, places)?,
            DisksMode::Copy => working::copy(entry, config, places)?,
            DisksMode::None => (given::open(entry, config, places)?, None),
        };
        self.named.extend(file.and_then(|file: OwnFile| file.temporary));
        check_size(entry, config, disk.len_bytes())?;
        Ok(Ready::Open(disk))
    }

    /// Does what cannot be undone, and returns the disks in the order of the guest; called when nothing else is left.
    pub(crate) fn finish(&mut self) -> Result<Vec<Disk>> {
        let disks = std::mem::take(&mut self.disks).into_iter();
        let finish = |(id, ready): (String, Ready)| match ready {
            Ready::Open(disk) => Ok(disk),
            Ready::InPlace(disk) => disk.apply().map_err(Error::disk(&id)),
        };
        disks.map(finish).collect()
    }

    /// The guest has its disks: files with a name stay.
    pub(crate) fn keep(self) {
        for path in self.named {
            if let Err(error) = path.keep() {
                tracing::warn!(%error, "the file of a disk");
            }
        }
    }
}

impl OwnFile {
    /// Creates the file `given`, where nothing may be, or one without a name on the file system of `near`.
    fn create(given: Option<&Path>, near: &Path) -> DiskResult<Self> {
        match given {
            Some(path) => Self::named(path),
            None => Self::nameless(near),
        }
    }

    fn named(path: &Path) -> DiskResult<Self> {
        let opened = |source: io::Error| match source.kind() {
            io::ErrorKind::AlreadyExists => DiskError::Exists {
                path: path.to_owned(),
            },
            _ => DiskError::Open {
                path: path.to_owned(),
                source,
            },
        };
        let mut options = File::options();
        let file = options.read(true).write(true).create_new(true).open(path);
        Ok(Self {
            file: file.map_err(opened)?,
            path: path.to_owned(),
            temporary: Some(TempPath::try_from_path(path).map_err(opened)?),
        })
    }

    /// In the directory of `near`, where blocks can be shared with it and a snapshot can give the file a name; or
    /// else where temporary files go.
    fn nameless(near: &Path) -> DiskResult<Self> {
        let created = create_nameless(directory(near)).or_else(|_| create_nameless(&std::env::temp_dir()));
        let file = created.map_err(|source| DiskError::Open {
            path: std::env::temp_dir(),
            source,
        })?;
        Ok(Self {
            // By this path the disk opens the file once more.
            path: PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd())),
            file,
            temporary: None,
        })
    }
}

/// Creates a file that can still be given a name, mode 0600; where the file system has no such files, one that cannot.
fn create_nameless(directory: &Path) -> io::Result<File> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    match openat(CWD, directory, flags, Mode::RUSR | Mode::WUSR) {
        Ok(file) => Ok(File::from(file)),
        Err(Errno::OPNOTSUPP | Errno::ISDIR) => tempfile::tempfile_in(directory),
        Err(error) => Err(error.into()),
    }
}

fn check_size(entry: &DiskEntry, config: &DiskConfig, found: u64) -> DiskResult<()> {
    if found == entry.virtual_size_bytes {
        return Ok(());
    }
    Err(DiskError::Size {
        path: config.file.clone(),
        expected: entry.virtual_size_bytes,
        found,
    })
}

/// Opens a disk, which knows what is wrong with its files.
fn open_disk(config: &DiskConfig) -> DiskResult<Disk> {
    Disk::open(config).map_err(|error| DiskError::Chain {
        path: config.file.clone(),
        source: error.into(),
    })
}

#[cfg(test)]
mod tests;
