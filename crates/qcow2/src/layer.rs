//! One layer of a backing chain, as its overlay reads it.
//!
//! An overlay asks the layer below for what it does not have itself, and that one asks the next. [`Image`] is a
//! qcow2 layer, [`RawImage`] a file whose bytes are the disk's. A layer that has an overlay is never written to
//! while it is read through it, but for what it still has in memory when the overlay takes its place.
//!
//! [`Image`]: crate::Image

mod raw;

use std::fmt::Debug;
use std::path::PathBuf;
use std::sync::Arc;

pub use raw::RawImage;

use crate::{FileStorage, ImageFormat, Result, Storage};

/// What a layer is, for those who list a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerInfo {
    /// The file's name; a file without a name has none.
    pub path: Option<PathBuf>,
    /// The file's format.
    pub format: ImageFormat,
    /// Size of the disk that the layer shows, in bytes.
    pub len_bytes: u64,
}

/// A disk's content down from one layer of its chain.
pub trait Layer: Send + Sync + Debug {
    /// Returns the size of the disk in bytes.
    fn len_bytes(&self) -> u64;

    /// Fills `buf` from `offset` on; what lies beyond the end of the disk reads as zeros.
    ///
    /// # Errors
    /// The medium's; a layer on the way is corrupt.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()>;

    /// Returns whether this layer itself, not one below it, says what `offset` holds, and for how many bytes, at
    /// most `len`, the answer is the same.
    ///
    /// # Errors
    /// As [`read_at`](Self::read_at).
    fn is_allocated(&self, offset: u64, len: u64) -> Result<(bool, u64)>;

    /// Returns whether there may be anything but zeros from `offset` on, in this layer or below it, and for how
    /// many bytes, at most `len`, the answer is the same.
    ///
    /// # Errors
    /// As [`read_at`](Self::read_at).
    fn holds_data(&self, offset: u64, len: u64) -> Result<(bool, u64)>;

    /// Makes everything that was written to this layer durable and lets other programs read its file.
    ///
    /// # Errors
    /// The medium's; a flush has failed before.
    fn settle(&self) -> Result<()>;

    /// Returns the layer below, if there is one.
    fn backing(&self) -> Option<Arc<dyn Layer>>;

    /// Returns what the layer is.
    fn info(&self) -> LayerInfo;

    /// Returns what the layer is stored in.
    fn storage(&self) -> Arc<dyn Storage>;

    /// Returns the layer's file, if it is stored in one.
    fn file(&self) -> Option<Arc<FileStorage>>;
}

/// Returns what the layers of a chain are, from `top` down.
pub fn layers(top: &dyn Layer) -> Vec<LayerInfo> {
    let mut layers = vec![top.info()];
    let mut below = top.backing();
    while let Some(layer) = below {
        layers.push(layer.info());
        below = layer.backing();
    }
    layers
}
