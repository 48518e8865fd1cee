//! The files that a disk consists of.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::Arc;

use qcow2::{FileStorage, ImageFormat, Layer};

use super::Store;
use crate::config::DiskFormat;

/// One file of a disk: the one that the guest writes to, or one of its backing files.
#[derive(Clone, Debug)]
pub struct LayerInfo {
    /// The file's path; of one without a name, a path by which this process reaches it.
    pub path: PathBuf,
    /// How its bytes make the disk's.
    pub format: DiskFormat,
    /// Whether the file has no name: it is gone with its last descriptor.
    pub nameless: bool,
    storage: Arc<FileStorage>,
}

impl LayerInfo {
    /// Returns another descriptor of the file. Position and lock are shared with the disk's own.
    ///
    /// # Errors
    /// The system gives no more descriptors.
    pub fn file(&self) -> io::Result<File> {
        self.storage.file().try_clone()
    }

    fn of(layer: &dyn Layer) -> Option<Self> {
        let info = layer.info();
        let storage = layer.file()?;
        let nameless = info.path.is_none();
        let reach = || format!("/proc/self/fd/{}", storage.file().as_raw_fd()).into();
        Some(Self {
            path: info.path.unwrap_or_else(reach),
            format: format_of(info.format),
            nameless,
            storage,
        })
    }
}

/// Returns the files of `layer` and of those below, from the top down, as far as they are used as files: what an
/// internal snapshot keeps is not.
pub(super) fn layers_from(layer: &dyn Layer) -> Vec<LayerInfo> {
    let mut layers: Vec<_> = LayerInfo::of(layer).into_iter().collect();
    let mut below = layer.backing();
    while let Some(layer) = below {
        layers.extend(LayerInfo::of(&*layer));
        below = layer.backing();
    }
    layers
}

/// Tells whether every layer is one that an image can name as its backing file.
pub(super) fn can_be_named(layer: &dyn Layer) -> bool {
    layer.file().is_some() && layer.backing().is_none_or(|below| can_be_named(&*below))
}

pub(super) fn format_of(format: ImageFormat) -> DiskFormat {
    match format {
        ImageFormat::Raw => DiskFormat::Raw,
        ImageFormat::Qcow2 => DiskFormat::Qcow2,
    }
}

impl Store {
    /// Returns the files, from the top down.
    pub(super) fn layers(&self) -> Vec<LayerInfo> {
        match self {
            Self::Raw { file, path, nameless } => vec![LayerInfo {
                path: path.clone(),
                format: DiskFormat::Raw,
                nameless: *nameless,
                storage: Arc::clone(file.storage()),
            }],
            Self::Image(image) => layers_from(&**image),
            Self::Other => Vec::new(),
        }
    }
}
