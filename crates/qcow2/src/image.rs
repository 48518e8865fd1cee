//! An open image: the guest's disk, as it is now or as an internal snapshot has it.
//!
//! [`Image`] is what a virtual machine reads and writes. Every method takes `&self`; any number of threads may use
//! it. What needs the image still, snapshots, freezing, giving up the backing file, waits for the I/O under way and
//! keeps new I/O out meanwhile. How writes become durable is the engine's business.

mod open;
mod snapshots;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

pub use open::{ImageOptions, open_layer};

use crate::chain::ImageFormat;
use crate::engine::Engine;
use crate::error::{Result, Usage};
use crate::format::ClusterSize;
use crate::layer::{Layer, LayerInfo};
use crate::storage::{FileStorage, Storage};

/// A qcow2 image with the layers below it.
///
/// ```
/// use std::sync::Arc;
/// use qcow2::{CreateOptions, Image, ImageOptions, MemoryStorage};
/// # fn main() -> qcow2::Result<()> {
/// let storage = Arc::new(MemoryStorage::new());
/// qcow2::create(storage.as_ref(), &CreateOptions::new(1 << 30))?;
/// let image = Image::open(storage, None, &ImageOptions::default())?;
/// image.write_at(b"guest data", 512)?;
/// image.flush()?; // durable from here on
/// let mut bytes = [0; 10];
/// image.read_at(&mut bytes, 512)?;
/// assert_eq!(&bytes, b"guest data");
/// # Ok(())
/// # }
/// ```
///
/// Dropping it writes what it has in memory; errors of that are only logged, so [`Image::close`] is better.
#[derive(Debug)]
pub struct Image {
    engine: Engine,
    file: Option<Arc<FileStorage>>,
    path: RwLock<Option<PathBuf>>,
    l2_cache_bytes: u64,
    /// Held shared by all I/O, exclusively by what needs the image still.
    gate: RwLock<()>,
    /// No more writes: the image has an overlay.
    frozen: AtomicBool,
}

impl Image {
    /// Returns the size of the disk in bytes.
    #[must_use]
    pub fn len_bytes(&self) -> u64 {
        self.engine.geometry().virtual_size_bytes
    }

    /// Returns the size of the image's clusters.
    #[must_use]
    pub fn cluster_size(&self) -> ClusterSize {
        self.engine.geometry().cluster
    }

    /// Returns whether writes are refused.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.engine.is_read_only() || self.frozen.load(Ordering::Acquire)
    }

    /// Returns the image's name, if it has one.
    #[must_use]
    pub fn path(&self) -> Option<PathBuf> {
        self.path.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn set_path(&self, path: Option<&Path>) {
        *self.path.write().unwrap_or_else(PoisonError::into_inner) = path.map(Path::to_owned);
    }

    pub(crate) fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Fills `buf` from `offset` on; what lies beyond the end of the disk reads as zeros.
    ///
    /// # Errors
    /// The medium's; the image or one below it is corrupt.
    pub fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let _running = self.running();
        self.engine.read_at(buf, offset)
    }

    /// Writes `buf` at `offset`. It is durable after the next flush.
    ///
    /// # Errors
    /// The range is not inside the disk, the image is read-only or corrupt, or the medium's. A full medium
    /// ([`Error::is_full`](crate::Error::is_full)) has changed nothing that the guest sees but, at most, bytes of
    /// the range.
    pub fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        let _running = self.running_for_writes()?;
        self.engine.write_at(buf, offset)
    }

    /// Makes a range read as zeros. With `may_unmap` its room is given back, otherwise kept where there is any.
    ///
    /// # Errors
    /// As [`write_at`](Self::write_at).
    pub fn write_zeroes(&self, offset: u64, len: u64, may_unmap: bool) -> Result<()> {
        let _running = self.running_for_writes()?;
        self.engine.write_zeroes(offset, len, may_unmap)
    }

    /// Gives back the room of the whole clusters in a range, which then read as zeros.
    ///
    /// It is a hint: version 2 images with a backing file stay as they are.
    ///
    /// # Errors
    /// As [`write_at`](Self::write_at).
    pub fn discard(&self, offset: u64, len: u64) -> Result<()> {
        let _running = self.running_for_writes()?;
        self.engine.discard(offset, len)
    }

    /// Makes every completed write durable, in the layers below, too, where they were written to until this image
    /// took their place.
    ///
    /// # Errors
    /// The medium's. After a failed sync every further change is refused: what is durable is then unknown. After
    /// a full medium the next flush tries again.
    pub fn flush(&self) -> Result<()> {
        let _running = self.running();
        self.engine.flush()
    }

    /// Copies what a range has from the layers below into this image, and returns the bytes copied.
    ///
    /// # Errors
    /// As [`write_at`](Self::write_at).
    pub fn copy_up(&self, offset: u64, len: u64) -> Result<u64> {
        let _running = self.running_for_writes()?;
        self.engine.copy_up(offset, len)
    }

    /// Forgets the backing file, from which nothing must be needed any more.
    ///
    /// # Errors
    /// The image has internal snapshots, which may need the backing file; it is read-only; or the medium's.
    pub fn drop_backing(&self) -> Result<()> {
        let _still = self.still();
        self.check_writable()?;
        if self.engine.snapshot_count() > 0 {
            return Err(Usage::SnapshotsNeedBacking.into());
        }
        self.engine.drop_backing()
    }

    /// Refuses writes from now on; returns when none is under way.
    pub fn freeze(&self) {
        let _still = self.still();
        self.frozen.store(true, Ordering::Release);
    }

    /// Takes [`freeze`](Self::freeze) back.
    pub(crate) fn thaw(&self) {
        self.frozen.store(false, Ordering::Release);
    }

    /// Makes everything written durable and complete: nothing is left in memory that the file does not have, unless
    /// something is written meanwhile.
    ///
    /// A frozen image gives its lock up to that of a reader, so that other programs may read the file.
    ///
    /// # Errors
    /// As [`flush`](Self::flush).
    pub fn settle(&self) -> Result<()> {
        // Not exclusively: the overlay of a frozen image reads through it meanwhile.
        let _running = self.running();
        self.engine.flush_all()?;
        if let Some(file) = &self.file
            && self.is_read_only()
        {
            file.downgrade()?;
        }
        Ok(())
    }

    /// Writes what is in memory and closes the image.
    ///
    /// # Errors
    /// As [`flush`](Self::flush).
    pub fn close(self) -> Result<()> {
        self.engine.flush_all()
    }

    /// Lets I/O begin once nobody needs the image still.
    fn running(&self) -> RwLockReadGuard<'_, ()> {
        self.gate.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn running_for_writes(&self) -> Result<RwLockReadGuard<'_, ()>> {
        let running = self.running();
        self.check_writable()?;
        Ok(running)
    }

    /// Waits for all I/O and keeps new I/O out.
    fn still(&self) -> RwLockWriteGuard<'_, ()> {
        self.gate.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn check_writable(&self) -> Result<()> {
        if self.is_read_only() {
            return Err(Usage::ReadOnly.into());
        }
        Ok(())
    }
}

impl Layer for Image {
    fn len_bytes(&self) -> u64 {
        Self::len_bytes(self)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        Self::read_at(self, buf, offset)
    }

    fn is_allocated(&self, offset: u64, len: u64) -> Result<(bool, u64)> {
        let _running = self.running();
        self.engine.is_allocated(offset, len)
    }

    fn holds_data(&self, offset: u64, len: u64) -> Result<(bool, u64)> {
        let _running = self.running();
        self.engine.holds_data(offset, len)
    }

    fn settle(&self) -> Result<()> {
        Self::settle(self)
    }

    fn backing(&self) -> Option<Arc<dyn Layer>> {
        self.engine.backing()
    }

    fn info(&self) -> LayerInfo {
        LayerInfo {
            path: self.path(),
            format: ImageFormat::Qcow2,
            len_bytes: self.len_bytes(),
        }
    }

    fn storage(&self) -> Arc<dyn Storage> {
        self.engine.medium().inner().clone()
    }

    fn file(&self) -> Option<Arc<FileStorage>> {
        self.file.clone()
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        if let Err(error) = self.engine.flush_all() {
            tracing::error!(%error, path = ?self.path(), "what an image had in memory is lost");
        }
    }
}
