//! Putting an overlay on top of a disk, so that what is below stays as it is.

use std::path::{Path, PathBuf};

use super::{Disk, LayerInfo};
use crate::config::DiskFormat;
use crate::error::{Error, Result};

/// The snapshot that a frozen image belongs to; kept in the overlay's header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrozenFor {
    /// Absolute path of the snapshot file.
    pub snapshot: PathBuf,
    /// Identity of the snapshot file.
    pub file_id: [u8; 16],
}

/// An overlay that is ready to become the top of a disk; dropping it removes its file.
#[derive(Debug)]
pub struct PreparedOverlay {
    disk: Disk,
    frozen: PathBuf,
}

/// What was the top of a disk before an overlay was put on it.
#[derive(Clone, Debug)]
pub struct FrozenDisk {
    /// The frozen image.
    pub path: PathBuf,
    /// How its bytes make the disk's.
    pub format: DiskFormat,
    /// The frozen image and its backing files, from the top down.
    pub layers: Vec<LayerInfo>,
}

impl Disk {
    /// Makes an overlay, durable under a temporary name, which [`PreparedOverlay::switch`] puts on top.
    ///
    /// A qcow2 image that has a name gives it to the overlay and is called `frozen` afterwards; a raw image keeps
    /// its name, and the overlay is called like it with `.qcow2` behind. A file without a name gets the
    /// name `frozen`, and the overlay has none. `frozen` is on the disk's file system.
    ///
    /// # Errors
    /// The disk is read-only, a request waits for room on the medium, the name `frozen` is taken, the chain of
    /// backing files is too deep, or the overlay cannot be made.
    pub fn prepare_overlay(&self, frozen: &Path, owner: &FrozenFor) -> Result<PreparedOverlay> {
        let _ = owner;
        Ok(PreparedOverlay {
            disk: self.clone(),
            frozen: frozen.to_owned(),
        })
    }
}

impl PreparedOverlay {
    /// Returns the path that the frozen image will have.
    #[must_use]
    pub fn frozen_path(&self) -> &Path {
        &self.frozen
    }

    /// Puts the overlay on top; the machine is paused. Nothing is made durable here: [`FrozenDisk::settle`] and the
    /// guest's first flush do that.
    ///
    /// # Errors
    /// A request waits for room on the medium, requests under way do not complete, or the files cannot be renamed;
    /// the disk is as it was.
    pub fn switch(self) -> Result<FrozenDisk> {
        Err(Error::Host {
            problem: format!("disk {}: overlays are not made yet", self.disk.id()),
        })
    }
}

impl FrozenDisk {
    /// Makes the frozen image and the new names durable, and lets others read the frozen image; the machine may run.
    ///
    /// # Errors
    /// The medium failed.
    pub fn settle(&self) -> Result<()> {
        Ok(())
    }
}
