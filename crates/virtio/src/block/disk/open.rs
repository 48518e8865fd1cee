//! Opening the files of a disk.

use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use qcow2::limits::MAX_CHAIN_DEPTH;
use qcow2::{
    Access, Cache, ChainError, FileStorage, Header, Image, ImageFormat, ImageOptions, Layer, Storage,
};

use super::Top;
use super::layers::layers_from;
use crate::block::RawFile;
use crate::config::{DiskCache, DiskConfig, DiskFormat};
use crate::error::{Error, Result};

/// What stands behind the name of a raw disk in that of its overlay.
const OVERLAY_SUFFIX: &str = ".qcow2";

/// Opens what `config` names.
pub(super) fn open(config: &DiskConfig) -> Result<Top> {
    match config.format {
        DiskFormat::Raw => open_raw(config),
        DiskFormat::Qcow2 => open_qcow2(config),
    }
}

fn open_raw(config: &DiskConfig) -> Result<Top> {
    let place = Place::of(&config.file)?;
    if !config.readonly {
        check_not_a_base(&place.path)?;
    }
    let raw = RawFile::open(&place.path, access(config), cache(config))?;
    Ok(Top::raw(raw, place.path, place.nameless))
}

fn open_qcow2(config: &DiskConfig) -> Result<Top> {
    open_image(config, |path, storage, options| {
        open_below(path, storage, options)
    })
}

/// Opens the qcow2 image that `config` names on top of `below`, whatever backing file it names itself.
pub(super) fn open_over(config: &DiskConfig, below: Arc<dyn Layer>) -> Result<Top> {
    open_image(config, |_, _, _| Ok(Some(below)))
}

/// Opens the qcow2 image that `config` names on top of what `below` returns for it.
fn open_image(
    config: &DiskConfig,
    below: impl FnOnce(&Path, &dyn Storage, &ImageOptions) -> qcow2::Result<Option<Arc<dyn Layer>>>,
) -> Result<Top> {
    let place = Place::of(&config.file)?;
    let options = image_options(config);
    let open = || {
        let storage = Arc::new(FileStorage::open(&place.path, options.access, options.cache)?);
        let below = below(&place.path, &*storage, &options)?;
        let name = (!place.nameless).then(|| place.path.clone());
        let image = Image::open_file(storage, name, below, &options)?;
        if layers_from(&image).len() > MAX_CHAIN_DEPTH {
            return Err(ChainError::TooDeep.into());
        }
        Ok(Top::image(Arc::new(image)))
    };
    open().map_err(|error| open_error(&config.file, error))
}

/// Opens what the qcow2 image at `path`, whose bytes are in `storage`, names as its backing file.
pub(super) fn open_below(
    path: &Path,
    storage: &dyn Storage,
    options: &ImageOptions,
) -> qcow2::Result<Option<Arc<dyn Layer>>> {
    let Some(backing) = Header::read(storage)?.backing() else {
        return Ok(None);
    };
    let (backing, format) = qcow2::resolve(path, &backing)?;
    let options = ImageOptions {
        access: Access::ReadOnly,
        ..*options
    };
    qcow2::open_layer(&backing, format, &options).map(Some)
}

pub(super) fn image_options(config: &DiskConfig) -> ImageOptions {
    ImageOptions {
        access: access(config),
        cache: cache(config),
        ..ImageOptions::default()
    }
}

/// Where a file is.
pub(super) struct Place {
    pub(super) path: PathBuf,
    pub(super) nameless: bool,
}

impl Place {
    /// Finds the real name of a file, so that what is put beside it is beside it, however it is reached. A device
    /// keeps the name by which it is known.
    pub(super) fn of(path: &Path) -> Result<Self> {
        let failed = |source| Error::OpenDisk {
            path: path.to_owned(),
            source,
        };
        let metadata = fs::metadata(path).map_err(failed)?;
        let nameless = metadata.nlink() == 0;
        let path = match metadata.is_file() && !nameless {
            true => fs::canonicalize(path).map_err(failed)?,
            false => path.to_owned(),
        };
        Ok(Self { path, nameless })
    }
}

fn access(config: &DiskConfig) -> Access {
    match config.readonly {
        true => Access::ReadOnly,
        false => Access::ReadWrite,
    }
}

fn cache(config: &DiskConfig) -> Cache {
    match config.cache {
        DiskCache::Writeback => Cache::Writeback,
        DiskCache::None => Cache::None,
    }
}

/// Returns the name of the overlay that takes the place of the raw disk at `path`.
pub(super) fn overlay_of(path: &Path) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(OVERLAY_SUFFIX);
    name.into()
}

/// Refuses a raw disk whose overlay stands beside it.
fn check_not_a_base(path: &Path) -> Result<()> {
    let overlay = overlay_of(path);
    match is_base_of(path, &overlay) {
        true => Err(Error::DiskIsBase {
            path: path.to_owned(),
            overlay,
        }),
        false => Ok(()),
    }
}

/// Tells whether the file at `path` is somewhere below the image `overlay`.
fn is_base_of(path: &Path, overlay: &Path) -> bool {
    let identity = |path: &Path| fs::metadata(path).ok().map(|file| (file.dev(), file.ino()));
    let wanted = identity(path);
    let mut layer = overlay.to_owned();
    for _ in 0..MAX_CHAIN_DEPTH {
        match backing_of(&layer) {
            Some((below, _)) if wanted.is_some() && identity(&below) == wanted => return true,
            Some((below, ImageFormat::Qcow2)) => layer = below,
            Some((_, ImageFormat::Raw)) | None => return false,
        }
    }
    false
}

/// Returns what the qcow2 image at `path` names as its backing file; nothing if it is none. It is only looked at, so
/// not locked.
fn backing_of(path: &Path) -> Option<(PathBuf, ImageFormat)> {
    let storage = FileStorage::from_file(File::open(path).ok()?, Access::ReadOnly);
    let backing = Header::read(&storage).ok()?.backing()?;
    qcow2::resolve(path, &backing).ok()
}

/// Tells whether a file is a device.
pub(super) fn is_device(file: &File) -> bool {
    file.metadata()
        .is_ok_and(|file| file.file_type().is_block_device())
}

/// Says which disk an error is of.
pub(in crate::block) fn open_error(path: &Path, error: qcow2::Error) -> Error {
    let path = path.to_owned();
    match error {
        qcow2::Error::Io(source) => Error::OpenDisk { path, source },
        qcow2::Error::InUse { path } => Error::DiskInUse { path },
        source => Error::Image { path, source },
    }
}
