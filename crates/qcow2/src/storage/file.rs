//! A locked file.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::lock::{Lock, LockError};
use crate::storage::direct::DirectFile;
use crate::storage::{Access, Cache, Storage};

/// A file, locked against other programs as QEMU locks its images.
///
/// The lock ends with the storage, even where copies of its descriptor live on: a child process has some from its
/// fork to its exec, and whoever opens the file again at that moment would otherwise find it in use.
#[derive(Debug)]
pub struct FileStorage {
    file: File,
    path: Option<PathBuf>,
    access: Mutex<Access>,
    direct: Option<DirectFile>,
}

impl FileStorage {
    /// Opens the file at `path` and locks it.
    ///
    /// # Errors
    /// It cannot be opened, or another program has it open in a way that excludes `access`.
    pub fn open(path: &Path, access: Access, cache: Cache) -> Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).write(access == Access::ReadWrite);
        if cache == Cache::None {
            options.custom_flags(libc::O_DIRECT);
        }
        let file = options.open(path)?;
        match Lock::acquire(&file, access) {
            Ok(()) => {}
            Err(LockError::InUse) => {
                return Err(Error::InUse {
                    path: path.to_owned(),
                });
            }
            Err(LockError::Io(error)) => return Err(error.into()),
        }
        let direct = match cache {
            Cache::Writeback => None,
            Cache::None => Some(DirectFile::new(&file)),
        };
        Ok(Self {
            file,
            path: Some(path.to_owned()),
            access: Mutex::new(access),
            direct,
        })
    }

    /// Takes over an open file, which is not locked here and goes through the page cache.
    #[must_use]
    pub fn from_file(file: File, access: Access) -> Self {
        Self {
            file,
            path: None,
            access: Mutex::new(access),
            direct: None,
        }
    }

    /// Returns the path under which the file was opened, if it was.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// Returns the file.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }
}

impl FileStorage {
    /// Gives up writing: from now on writes are refused, and others may read the file.
    ///
    /// # Errors
    /// The operating system's.
    pub fn downgrade(&self) -> io::Result<()> {
        let mut access = self.access.lock().unwrap_or_else(PoisonError::into_inner);
        *access = Access::ReadOnly;
        Lock::downgrade(&self.file)
    }

    /// Returns what the file may be used for now.
    #[must_use]
    pub fn access(&self) -> Access {
        *self.access.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ensure_writable(&self) -> io::Result<()> {
        match self.access() {
            Access::ReadWrite => Ok(()),
            Access::ReadOnly => Err(Errno::BADF.into()),
        }
    }

    /// Seeks for data or holes; nothing where there are none up to the end or the system cannot tell.
    fn seek(&self, from: rustix::fs::SeekFrom) -> io::Result<Option<u64>> {
        match rustix::fs::seek(&self.file, from) {
            Ok(found) => Ok(Some(found)),
            Err(Errno::NXIO) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

impl Drop for FileStorage {
    fn drop(&mut self) {
        // A file that was taken over may have locks that are not ours.
        if self.path.is_some()
            && let Err(error) = Lock::release(&self.file)
        {
            tracing::warn!(%error, path = ?self.path, "cannot unlock");
        }
    }
}

impl Storage for FileStorage {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        match &self.direct {
            Some(direct) => direct.read_at(&self.file, buf, offset),
            None => read_zero_filled(&self.file, buf, offset),
        }
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.ensure_writable()?;
        match &self.direct {
            Some(direct) => direct.write_at(&self.file, buf, offset),
            None => self.file.write_all_at(buf, offset),
        }
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn len(&self) -> io::Result<u64> {
        // Unlike the metadata's length, this is the size of a block device, too.
        (&self.file).seek(SeekFrom::End(0))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.ensure_writable()?;
        match &self.direct {
            Some(direct) => direct.set_len(&self.file, len),
            None => self.file.set_len(len),
        }
    }

    fn punch_hole(&self, offset: u64, len: u64) -> io::Result<()> {
        self.ensure_writable()?;
        if len == 0 {
            return Ok(());
        }
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match rustix::fs::fallocate(&self.file, flags, offset, len) {
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::NODEV) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        self.seek(rustix::fs::SeekFrom::Data(offset))
    }

    fn next_hole(&self, offset: u64) -> io::Result<u64> {
        Ok(self.seek(rustix::fs::SeekFrom::Hole(offset))?.unwrap_or(offset))
    }
}

/// Fills `buf` from `offset` on, with zeros beyond the end of the file.
fn read_zero_filled(file: &File, mut buf: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !buf.is_empty() {
        match file.read_at(buf, offset) {
            Ok(0) => {
                buf.fill(0);
                return Ok(());
            }
            Ok(moved) => {
                buf = buf.get_mut(moved..).unwrap_or_default();
                offset = offset.saturating_add(moved as u64);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
