//! The files that a disk consists of.

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use crate::config::DiskFormat;

/// One file of a disk: the one that the guest writes to, or one of its backing files.
#[derive(Clone, Debug)]
pub struct LayerInfo {
    /// The file's path; of one without a name, the path by which it was opened.
    pub path: PathBuf,
    /// How its bytes make the disk's.
    pub format: DiskFormat,
    /// Whether the file has no name: it is gone with its last descriptor.
    pub nameless: bool,
    pub(super) file: Arc<File>,
}

impl LayerInfo {
    /// Returns another descriptor of the file. Position and lock are shared with the disk's own.
    ///
    /// # Errors
    /// The system gives no more descriptors.
    pub fn file(&self) -> io::Result<File> {
        self.file.try_clone()
    }
}
