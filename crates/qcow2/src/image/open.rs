//! Opening images, alone or with the chain below them.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, RwLock};

use super::Image;
use crate::chain::{Chain, ChainLayer, ImageFormat};
use crate::engine::{Engine, Parts};
use crate::error::{Corruption, Result};
use crate::layer::{Layer, RawImage};
use crate::lock::Lock;
use crate::metadata::{self, Metadata};
use crate::repair::{Repair, repair};
use crate::snapshots;
use crate::storage::{Access, Cache, FileStorage, Storage};

/// Memory for L2 tables unless stated otherwise: 256 GiB of disk with clusters of 64 KiB.
const DEFAULT_L2_CACHE_BYTES: u64 = 32 << 20;

/// How an image is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageOptions {
    /// For reading only, or for writing, too.
    pub access: Access,
    /// Whether the host's page cache is used.
    pub cache: Cache,
    /// Memory for L2 tables in bytes; it is exceeded where a few tables need more.
    pub l2_cache_bytes: u64,
}

impl Default for ImageOptions {
    /// Writable, through the page cache.
    fn default() -> Self {
        Self {
            access: Access::ReadWrite,
            cache: Cache::Writeback,
            l2_cache_bytes: DEFAULT_L2_CACHE_BYTES,
        }
    }
}

impl ImageOptions {
    /// Returns the options of an image that is only read.
    #[must_use]
    pub fn read_only() -> Self {
        Self {
            access: Access::ReadOnly,
            ..Self::default()
        }
    }
}

/// Opens a disk of either format with its chain.
///
/// # Errors
/// As [`Image::open_chain`].
pub fn open_layer(path: &Path, format: ImageFormat, options: &ImageOptions) -> Result<Arc<dyn Layer>> {
    match format {
        ImageFormat::Raw => Ok(Arc::new(RawImage::open(path, options.access, options.cache)?)),
        ImageFormat::Qcow2 => Ok(Image::open_chain(path, options)?),
    }
}

impl Image {
    /// Opens the image in `storage`, which the caller has locked, over the layer that it names as its backing file.
    ///
    /// An image that is marked dirty is repaired first if it is to be written to.
    ///
    /// # Errors
    /// As [`Metadata::open`]; it is to be written to and marked corrupt.
    pub fn open(
        storage: Arc<dyn Storage>,
        backing: Option<Arc<dyn Layer>>,
        options: &ImageOptions,
    ) -> Result<Self> {
        let mut metadata = Metadata::open(storage)?;
        if options.access == Access::ReadWrite {
            if metadata.header.is_dirty() && !metadata.header.is_marked_corrupt() {
                metadata = repaired(&metadata)?;
            }
            metadata.ensure_writable()?;
        }
        let virtual_size_bytes = metadata.header.virtual_size_bytes;
        Self::from_metadata(metadata, virtual_size_bytes, backing, options)
    }

    /// Opens the image in a file that the caller has locked, with the name that the file has.
    ///
    /// Programs that ask for it (`--force-share`) may read the file all the same, as they may with QEMU's images.
    ///
    /// # Errors
    /// As [`Image::open`].
    pub fn open_file(
        file: Arc<FileStorage>,
        path: Option<PathBuf>,
        backing: Option<Arc<dyn Layer>>,
        options: &ImageOptions,
    ) -> Result<Self> {
        let mut image = Self::open(file.clone(), backing, options)?;
        Lock::share_reading(file.file())?;
        image.file = Some(file);
        image.set_path(path.as_deref());
        Ok(image)
    }

    /// Opens the image at `path` with its chain, whose other layers are only read.
    ///
    /// # Errors
    /// As [`Chain::open`] and [`Image::open`].
    pub fn open_chain(path: &Path, options: &ImageOptions) -> Result<Arc<Self>> {
        let chain = Chain::open(path, ImageFormat::Qcow2, options.access, options.cache)?;
        Self::from_chain(chain, options)
    }

    /// Opens the top image of a chain whose files are open; `options` must fit how they were opened.
    ///
    /// # Errors
    /// As [`Image::open`].
    pub fn from_chain(mut chain: Chain, options: &ImageOptions) -> Result<Arc<Self>> {
        let below = chain.layers.split_off(chain.layers.len().min(1));
        let backing = open_layers(below, options)?;
        let top = chain.layers.pop().ok_or(crate::Error::NotQcow2)?;
        Ok(Arc::new(Self::open_file(
            top.storage,
            Some(top.path),
            backing,
            options,
        )?))
    }

    /// Opens the disk as an internal snapshot has it, for reading only.
    ///
    /// # Errors
    /// As [`Image::open`]; no snapshot has the id or name `wanted`.
    pub fn open_snapshot(
        storage: Arc<dyn Storage>,
        backing: Option<Arc<dyn Layer>>,
        wanted: &str,
        options: &ImageOptions,
    ) -> Result<Self> {
        let mut metadata = Metadata::open(storage)?;
        let snapshot = snapshots::find(&metadata, wanted)?;
        let virtual_size_bytes = snapshot
            .virtual_size_bytes()
            .unwrap_or(metadata.header.virtual_size_bytes);
        let (offset, entries) = (snapshot.l1_offset, snapshot.l1_entries);
        let cluster = metadata.cluster_size();
        metadata.l1 = metadata::read_l1(metadata.storage().as_ref(), cluster, offset, entries)?;
        let options = ImageOptions {
            access: Access::ReadOnly,
            ..*options
        };
        Self::from_metadata(metadata, virtual_size_bytes, backing, &options)
    }

    fn from_metadata(
        metadata: Metadata,
        virtual_size_bytes: u64,
        backing: Option<Arc<dyn Layer>>,
        options: &ImageOptions,
    ) -> Result<Self> {
        let cluster = metadata.cluster_size();
        if (metadata.l1.len() as u64) < cluster.l1_entries_for(virtual_size_bytes) {
            return Err(Corruption::new(
                "the l1 table is too short for the disk",
                metadata.header.l1_offset,
            )
            .into());
        }
        let engine = Engine::new(Parts {
            metadata,
            virtual_size_bytes,
            read_only: options.access == Access::ReadOnly,
            backing,
            l2_cache_bytes: options.l2_cache_bytes,
        })?;
        Ok(Self {
            engine,
            file: None,
            path: RwLock::new(None),
            l2_cache_bytes: options.l2_cache_bytes,
            gate: RwLock::new(()),
            frozen: AtomicBool::new(false),
        })
    }
}

/// Repairs an image that was not closed by a writer who postpones refcounts, and reads its metadata again.
fn repaired(metadata: &Metadata) -> Result<Metadata> {
    tracing::warn!("the image was not closed; its refcounts are counted anew");
    let report = repair(metadata.storage().clone(), Repair::All, &mut |_, _| {
        ControlFlow::Continue(())
    })?;
    tracing::info!(?report, "the image is repaired");
    Metadata::open(metadata.storage().clone())
}

/// Opens layers for reading, given from the top down, and returns the top one.
fn open_layers(layers: Vec<ChainLayer>, options: &ImageOptions) -> Result<Option<Arc<dyn Layer>>> {
    let options = ImageOptions {
        access: Access::ReadOnly,
        ..*options
    };
    let mut above: Option<Arc<dyn Layer>> = None;
    for layer in layers.into_iter().rev() {
        above = Some(match layer.format {
            ImageFormat::Raw => Arc::new(RawImage::from_file(layer.storage, Some(layer.path))?),
            ImageFormat::Qcow2 => Arc::new(Image::open_file(
                layer.storage,
                Some(layer.path),
                above.take(),
                &options,
            )?),
        });
    }
    Ok(above)
}
