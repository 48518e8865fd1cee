//! Copies of the disks as of the capture point: prepared before it, made behind it, named at the commit.
//!
//! | step | when | what can fail |
//! |---|---|---|
//! | [`DiskCopies::prepare`] | before memory is armed | opening disks, creating files |
//! | [`DiskCopies::hold`] | at the capture point, inside the pause | a disk that does not rest |
//! | [`DiskCopies::copy`] | behind it, one thread per disk | reading, writing, a cancel |
//! | [`publish`] | when the snapshot file is durable but has no name yet | renaming |
//!
//! A copy without its final name is removed when it is dropped.

use std::any::Any;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{SeekFrom, seek};
use tempfile::TempPath;

use vmm::DiskConfig;

use super::beside::GivenUp;
use super::copy::{Proceed, copy_content};
use super::fingerprint::{Fingerprint, fingerprint};
use super::{DiskEntry, DiskError, DiskSource, copy_name, directory, format_name};
use crate::error::{Error, Result};

/// The disks of a machine that is about to be saved.
#[derive(Debug, Default)]
pub(crate) struct DiskCopies {
    disks: Vec<Prepared>,
}

#[derive(Debug)]
struct Prepared {
    source: Box<dyn DiskSource>,
    content: File,
    virtual_size_bytes: u64,
    /// Where the content goes; nothing if the disk is only recorded.
    target: Option<Target>,
}

#[derive(Debug)]
struct Target {
    file: File,
    temporary: TempPath,
    path: PathBuf,
}

/// What keeps the disks still, one for each disk that is copied.
pub(crate) struct DiskHolds {
    since: Instant,
    holds: Vec<Option<Box<dyn Any + Send>>>,
}

/// A disk behind its copying.
#[derive(Debug)]
pub(crate) struct CopiedDisk {
    pub(crate) config: DiskConfig,
    pub(crate) virtual_size_bytes: u64,
    /// The copy, unless the disk was only recorded.
    pub(crate) copy: Option<DiskCopy>,
}

/// A durable copy that does not have its name yet.
#[derive(Debug)]
pub(crate) struct DiskCopy {
    temporary: TempPath,
    pub(crate) path: PathBuf,
    pub(crate) fingerprint: Fingerprint,
    /// How long the disk was held.
    pub(crate) hold: Duration,
    /// From the capture point until the copy was durable and had its fingerprint.
    pub(crate) took: Duration,
}

/// Copies that have their names; dropped before they are kept, they are removed.
#[derive(Debug, Default)]
pub(crate) struct Published(Vec<TempPath>);

impl DiskCopies {
    /// Opens the disks; if `copy`, creates a file beside `snapshot` for each that the guest can write.
    pub(crate) fn prepare(sources: Vec<Box<dyn DiskSource>>, snapshot: &Path, copy: bool) -> Result<Self> {
        let disks = sources
            .into_iter()
            .map(|source| {
                let id = source.config().id.clone();
                Prepared::new(source, snapshot, copy).map_err(Error::disk(&id))
            })
            .collect::<Result<Vec<_>>>()?;
        let copies = Self { disks };
        copies.refuse_replacing()?;
        Ok(copies)
    }

    /// All bytes that will be copied, holes included.
    pub(crate) fn total_bytes(&self) -> u64 {
        let copied = self.disks.iter().filter(|disk| disk.target.is_some());
        copied.map(|disk| disk.virtual_size_bytes).sum()
    }

    /// Keeps the disks as they are; called while the machine is paused.
    pub(crate) fn hold(&self) -> Result<DiskHolds> {
        let since = Instant::now();
        let holds = self.disks.iter().map(Prepared::hold).collect::<Result<_>>()?;
        Ok(DiskHolds { since, holds })
    }

    /// Copies all disks at once, each on a thread, and lets each go as soon as its content is copied.
    pub(crate) fn copy(self, holds: DiskHolds, proceed: Proceed<'_>) -> Result<Vec<CopiedDisk>> {
        let since = holds.since;
        thread::scope(|scope| {
            let copying: Vec<_> = self
                .disks
                .into_iter()
                .zip(holds.holds)
                .map(|(disk, hold)| scope.spawn(move || disk.copy(hold, since, proceed)))
                .collect();
            let joined = copying.into_iter().map(thread::ScopedJoinHandle::join);
            joined
                .map(|copied| copied.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
                .collect()
        })
    }

    /// Refuses a copy that would take the name of a file on which the machine works.
    fn refuse_replacing(&self) -> Result<()> {
        let identity = |metadata: std::fs::Metadata| (metadata.dev(), metadata.ino());
        let used: Vec<_> = self
            .disks
            .iter()
            .filter_map(|disk| disk.content.metadata().ok().map(identity))
            .collect();
        for disk in &self.disks {
            let Some(target) = &disk.target else { continue };
            let there = target.path.metadata().map(identity);
            if there.is_ok_and(|there| used.contains(&there)) {
                let path = target.path.clone();
                return Err(Error::disk(&disk.source.config().id)(DiskError::InUse { path }));
            }
        }
        Ok(())
    }
}

impl Prepared {
    fn new(source: Box<dyn DiskSource>, snapshot: &Path, copy: bool) -> std::result::Result<Self, DiskError> {
        let config = source.config();
        let open = |path: &Path| {
            let path = path.to_owned();
            move |source| DiskError::Open { path, source }
        };
        let content = source.file().map_err(open(&config.file))?;
        let virtual_size_bytes = len_bytes(&content).map_err(open(&config.file))?;
        let target = if copy && !config.readonly {
            let path = directory(snapshot).join(copy_name(snapshot, config));
            Some(Target::create(path.clone()).map_err(open(&path))?)
        } else {
            None
        };
        Ok(Self {
            content,
            virtual_size_bytes,
            target,
            source,
        })
    }

    fn hold(&self) -> Result<Option<Box<dyn Any + Send>>> {
        if self.target.is_none() {
            return Ok(None);
        }
        let failed = |source| Error::disk(&self.source.config().id)(DiskError::Hold { source });
        self.source.hold().map(Some).map_err(failed)
    }

    fn copy(
        self,
        hold: Option<Box<dyn Any + Send>>,
        since: Instant,
        proceed: Proceed<'_>,
    ) -> Result<CopiedDisk> {
        let config = self.source.config().clone();
        let len = self.virtual_size_bytes;
        let copy = match self.target {
            None => None,
            Some(target) => {
                let failed = |source| match GivenUp::is(&source) {
                    true => Error::Cancelled,
                    false => Error::disk(&config.id)(DiskError::Copy {
                        path: target.path.clone(),
                        source,
                    }),
                };
                copy_content(&self.content, &target.file, len, proceed).map_err(failed)?;
                drop(hold);
                let hold = since.elapsed();
                let fingerprint = fingerprint(&target.file, len, &|_| proceed(0)).map_err(failed)?;
                target.file.sync_all().map_err(failed)?;
                Some(DiskCopy {
                    fingerprint,
                    hold,
                    took: since.elapsed(),
                    temporary: target.temporary,
                    path: target.path,
                })
            }
        };
        Ok(CopiedDisk {
            config,
            virtual_size_bytes: len,
            copy,
        })
    }
}

impl Target {
    /// Creates a hidden file, mode 0600, beside `path`.
    fn create(path: PathBuf) -> io::Result<Self> {
        let mut prefix = std::ffi::OsString::from(".");
        prefix.push(path.file_name().unwrap_or_default());
        prefix.push(".");
        let created = tempfile::Builder::new()
            .prefix(&prefix)
            .suffix(".tmp")
            .tempfile_in(directory(&path))?;
        let (file, temporary) = created.into_parts();
        Ok(Self {
            file,
            temporary,
            path,
        })
    }
}

impl CopiedDisk {
    /// What the disk table says of the disk.
    pub(crate) fn entry(&self) -> DiskEntry {
        DiskEntry {
            id: self.config.id.clone(),
            format: format_name(self.config.format).to_owned(),
            virtual_size_bytes: self.virtual_size_bytes,
            readonly: self.config.readonly,
            fingerprint: self.copy.as_ref().map(|copy| copy.fingerprint),
        }
    }

    /// The name of the copy in the directory of the snapshot.
    pub(crate) fn copy_name(&self) -> Option<String> {
        let name = self.copy.as_ref()?.path.file_name()?;
        Some(name.to_string_lossy().into_owned())
    }
}

/// Gives all copies their names, durably; an error, or dropping the answer before it is kept, removes them.
pub(crate) fn publish(disks: Vec<CopiedDisk>) -> Result<Published> {
    let mut published = Published::default();
    for disk in disks {
        let Some(copy) = disk.copy else { continue };
        let path = copy.path;
        let failed = |source| {
            Error::disk(&disk.config.id)(DiskError::Copy {
                path: path.clone(),
                source,
            })
        };
        copy.temporary
            .persist(&path)
            .map_err(|error| failed(error.error))?;
        published.0.push(TempPath::try_from_path(&path).map_err(failed)?);
        File::open(directory(&path))
            .and_then(|directory| directory.sync_all())
            .map_err(failed)?;
    }
    Ok(published)
}

impl Published {
    /// The copies stay.
    pub(crate) fn keep(self) {
        for path in self.0 {
            // Only ever forgets to remove; there is nothing that could fail on Linux.
            if let Err(error) = path.keep() {
                tracing::warn!(%error, "a disk copy");
            }
        }
    }
}

/// Length of a file or block device.
pub(super) fn len_bytes(file: &File) -> io::Result<u64> {
    Ok(seek(file, SeekFrom::End(0))?)
}
