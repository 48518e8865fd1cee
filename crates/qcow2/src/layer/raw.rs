//! A file whose bytes are the disk's.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use super::{Layer, LayerInfo};
use crate::{Access, Cache, Error, FileStorage, ImageFormat, Result, Storage, Usage};

/// Bytes of zeros written at a time.
const ZEROS: usize = 64 << 10;

/// A raw disk, as the last layer of a chain or written to directly.
#[derive(Debug)]
pub struct RawImage {
    storage: Arc<dyn Storage>,
    file: Option<Arc<FileStorage>>,
    path: RwLock<Option<PathBuf>>,
    len_bytes: u64,
    writable: AtomicBool,
    /// Held shared by every write, exclusively while writing is given up.
    writes: RwLock<()>,
}

impl RawImage {
    /// Opens and locks the file at `path`.
    ///
    /// # Errors
    /// It cannot be opened, or another program uses it.
    pub fn open(path: &Path, access: Access, cache: Cache) -> Result<Self> {
        let file = Arc::new(FileStorage::open(path, access, cache)?);
        let mut image = Self::new(file.clone(), access)?;
        image.file = Some(file);
        image.path = RwLock::new(Some(path.to_owned()));
        Ok(image)
    }

    /// Takes over an open file that the caller has locked, with the name that it has.
    ///
    /// # Errors
    /// Its length cannot be found out.
    pub fn from_file(file: Arc<FileStorage>, path: Option<PathBuf>) -> Result<Self> {
        let mut image = Self::new(file.clone(), file.access())?;
        image.file = Some(file);
        image.path = RwLock::new(path);
        Ok(image)
    }

    /// Makes a disk of any storage.
    ///
    /// # Errors
    /// Its length cannot be found out.
    pub fn new(storage: Arc<dyn Storage>, access: Access) -> Result<Self> {
        let len_bytes = storage.len()?;
        Ok(Self {
            storage,
            file: None,
            path: RwLock::new(None),
            len_bytes,
            writable: AtomicBool::new(access == Access::ReadWrite),
            writes: RwLock::new(()),
        })
    }

    /// Returns the file's name, if it has one.
    #[must_use]
    pub fn path(&self) -> Option<PathBuf> {
        self.path.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn set_path(&self, path: &Path) {
        *self.path.write().unwrap_or_else(PoisonError::into_inner) = Some(path.to_owned());
    }

    /// Writes `buf` at `offset`.
    ///
    /// # Errors
    /// The range is not inside the disk, the disk is read-only, or the medium's.
    pub fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        let _writing = self.begin_write(offset, buf.len() as u64)?;
        Ok(self.storage.write_at(buf, offset)?)
    }

    /// Makes a range read as zeros.
    ///
    /// # Errors
    /// As [`write_at`](Self::write_at).
    pub fn write_zeroes(&self, offset: u64, len: u64) -> Result<()> {
        let _writing = self.begin_write(offset, len)?;
        let zeros = vec![0; ZEROS];
        let mut done = 0;
        while done < len {
            let piece = usize::try_from(len - done).map_or(ZEROS, |rest| rest.min(ZEROS));
            self.storage
                .write_at(zeros.get(..piece).unwrap_or_default(), offset + done)?;
            done += piece as u64;
        }
        Ok(())
    }

    /// Makes every completed write durable.
    ///
    /// # Errors
    /// The medium's.
    pub fn flush(&self) -> Result<()> {
        Ok(self.storage.sync()?)
    }

    /// Refuses writes from now on; returns when none is under way.
    pub fn freeze(&self) {
        let _alone = self.writes.write().unwrap_or_else(PoisonError::into_inner);
        self.writable.store(false, Ordering::Release);
    }

    /// Takes [`freeze`](Self::freeze) back.
    pub(crate) fn thaw(&self) {
        self.writable.store(true, Ordering::Release);
    }

    fn begin_write(&self, offset: u64, len: u64) -> Result<std::sync::RwLockReadGuard<'_, ()>> {
        let writing = self.writes.read().unwrap_or_else(PoisonError::into_inner);
        if !self.writable.load(Ordering::Acquire) {
            return Err(Usage::ReadOnly.into());
        }
        if offset.checked_add(len).is_none_or(|end| end > self.len_bytes) {
            let disk_bytes = self.len_bytes;
            return Err(Error::Usage(Usage::OutOfRange {
                offset,
                len,
                disk_bytes,
            }));
        }
        Ok(writing)
    }
}

impl Layer for RawImage {
    fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let inside = self.len_bytes.saturating_sub(offset).min(buf.len() as u64);
        let (inside, beyond) = buf.split_at_mut(usize::try_from(inside).unwrap_or(usize::MAX));
        self.storage.read_at(inside, offset)?;
        beyond.fill(0);
        Ok(())
    }

    fn is_allocated(&self, offset: u64, len: u64) -> Result<(bool, u64)> {
        let inside = self.len_bytes.saturating_sub(offset);
        Ok(if inside == 0 {
            (false, len)
        } else {
            (true, inside.min(len))
        })
    }

    fn holds_data(&self, offset: u64, len: u64) -> Result<(bool, u64)> {
        let end = offset.saturating_add(len).min(self.len_bytes);
        if offset >= end {
            return Ok((false, len));
        }
        let beyond_end = |until: u64| {
            if until >= self.len_bytes {
                len
            } else {
                until - offset
            }
        };
        match self.storage.next_data(offset)? {
            Some(data) if data <= offset => {
                let hole = self.storage.next_hole(offset)?;
                Ok((true, hole.clamp(offset + 1, end) - offset))
            }
            Some(data) => Ok((false, beyond_end(data.min(end)))),
            None => Ok((false, len)),
        }
    }

    fn settle(&self) -> Result<()> {
        self.storage.sync()?;
        if let Some(file) = &self.file
            && !self.writable.load(Ordering::Acquire)
        {
            file.downgrade()?;
        }
        Ok(())
    }

    fn backing(&self) -> Option<Arc<dyn Layer>> {
        None
    }

    fn info(&self) -> LayerInfo {
        LayerInfo {
            path: self.path(),
            format: ImageFormat::Raw,
            len_bytes: self.len_bytes,
        }
    }

    fn storage(&self) -> Arc<dyn Storage> {
        self.storage.clone()
    }

    fn file(&self) -> Option<Arc<FileStorage>> {
        self.file.clone()
    }
}
