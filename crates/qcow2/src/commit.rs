//! Pushes an overlay into its backing file.
//!
//! Nobody may use either meanwhile. What the overlay has is written to the backing file, which is then flushed; the
//! overlay stays as it is. Whenever that is cut off, the disk of the overlay is whole: it covers every range that
//! was or was not yet written below it. Whoever else needs the backing file as it was loses it, so a backing file
//! that belongs to a snapshot is not written to.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::chain::{ImageFormat, resolve};
use crate::error::{Error, Result, Usage};
use crate::header::{FrozenOwner, Header};
use crate::image::{Image, ImageOptions};
use crate::layer::{Layer, RawImage};
use crate::storage::{Access, Cache, FileStorage, Storage};

/// Most bytes copied at once.
const STEP_BYTES: u64 = 1 << 20;

/// How an overlay is committed.
#[derive(Clone, Copy, Debug)]
pub struct CommitOptions {
    /// Write to the backing file though snapshots need it as it is; they are lost.
    pub force: bool,
    /// Returns whether a snapshot still exists that the image says its backing file belongs to.
    pub owner_exists: fn(&FrozenOwner) -> bool,
}

impl Default for CommitOptions {
    /// Not by force; a snapshot exists if there is a file of its name.
    fn default() -> Self {
        Self {
            force: false,
            owner_exists: |owner| owner.snapshot.symlink_metadata().is_ok(),
        }
    }
}

/// What a commit has done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommitReport {
    /// The backing file.
    pub backing: PathBuf,
    /// Bytes of data written to it.
    pub written_bytes: u64,
    /// Bytes of it that were made zeros.
    pub zeroed_bytes: u64,
}

/// The backing file, writable.
#[derive(Debug)]
enum Base {
    Raw(Arc<RawImage>),
    Qcow2(Arc<Image>),
}

/// Writes what the image at `overlay` has into its backing file, durably. The overlay stays as it is.
///
/// `progress` is told the bytes of the disk that are done and all of them; `Break` ends the work.
///
/// # Errors
/// [`Error::Cancelled`]; the image has no backing file, or internal snapshots that may need it; the backing file
/// belongs to a snapshot; it is smaller and qcow2; another program uses one of the files; or the medium's.
pub fn commit(
    overlay: &Path,
    options: &CommitOptions,
    progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
) -> Result<CommitReport> {
    // Opened for writing so that nobody else changes it; nothing is written.
    let file = Arc::new(FileStorage::open(overlay, Access::ReadWrite, Cache::Writeback)?);
    let header = Header::read(file.as_ref())?;
    let backing = header.backing().ok_or(Usage::NoBacking)?;
    if header.snapshot_count > 0 {
        return Err(Usage::SnapshotsNeedBacking.into());
    }
    if let Some(frozen) = header.frozen_backing()?
        && !options.force
        && let Some(owner) = frozen
            .owners
            .into_iter()
            .find(|owner| (options.owner_exists)(owner))
    {
        let snapshot = owner.snapshot;
        return Err(Usage::BackingBelongsToSnapshot { snapshot }.into());
    }
    let (path, format) = resolve(overlay, &backing)?;
    let base = Base::open(&path, format, header.virtual_size_bytes)?;
    let layer = base.layer();
    let image = Image::open_file(
        file,
        Some(overlay.to_owned()),
        Some(layer),
        &ImageOptions::read_only(),
    )?;
    let mut report = CommitReport {
        backing: path,
        written_bytes: 0,
        zeroed_bytes: 0,
    };
    copy(&image, &base, &mut report, progress)?;
    base.flush()?;
    Ok(report)
}

fn copy(
    image: &Image,
    base: &Base,
    report: &mut CommitReport,
    progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
) -> Result<()> {
    let total = image.len_bytes();
    let mut buf = vec![0; usize::try_from(STEP_BYTES).unwrap_or(0)];
    let mut from = 0;
    while from < total {
        let (allocated, run) = image.is_allocated(from, total - from)?;
        let (data, known) = if allocated {
            image.holds_data(from, run)?
        } else {
            (false, run)
        };
        let len = if data {
            known.min(run).min(STEP_BYTES)
        } else {
            known.min(run)
        };
        if data {
            let piece = buf
                .get_mut(..usize::try_from(len).unwrap_or(0))
                .unwrap_or_default();
            image.read_at(piece, from)?;
            base.write_at(piece, from)?;
            report.written_bytes += len;
        } else if allocated {
            base.write_zeroes(from, len)?;
            report.zeroed_bytes += len;
        }
        from += len;
        if progress(from, total).is_break() {
            return Err(Error::Cancelled);
        }
    }
    Ok(())
}

impl Base {
    /// Opens the backing file for writing, large enough for a disk of `len_bytes`.
    fn open(path: &Path, format: ImageFormat, len_bytes: u64) -> Result<Self> {
        match format {
            ImageFormat::Raw => {
                let file = Arc::new(FileStorage::open(path, Access::ReadWrite, Cache::Writeback)?);
                if file.len()? < len_bytes {
                    file.set_len(len_bytes)?;
                }
                Ok(Self::Raw(Arc::new(RawImage::from_file(
                    file,
                    Some(path.to_owned()),
                )?)))
            }
            ImageFormat::Qcow2 => {
                let image = Image::open_chain(path, &ImageOptions::default())?;
                if image.len_bytes() < len_bytes {
                    let backing_bytes = image.len_bytes();
                    return Err(Usage::BackingTooSmall {
                        backing_bytes,
                        disk_bytes: len_bytes,
                    }
                    .into());
                }
                Ok(Self::Qcow2(image))
            }
        }
    }

    fn layer(&self) -> Arc<dyn Layer> {
        match self {
            Self::Raw(raw) => raw.clone(),
            Self::Qcow2(image) => image.clone(),
        }
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        match self {
            Self::Raw(raw) => raw.write_at(buf, offset),
            Self::Qcow2(image) => image.write_at(buf, offset),
        }
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> Result<()> {
        match self {
            Self::Raw(raw) => raw.write_zeroes(offset, len),
            Self::Qcow2(image) => image.write_zeroes(offset, len, true),
        }
    }

    fn flush(&self) -> Result<()> {
        match self {
            Self::Raw(raw) => raw.flush(),
            Self::Qcow2(image) => image.settle(),
        }
    }
}
