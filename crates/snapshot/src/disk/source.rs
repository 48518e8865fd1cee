//! A disk as a save needs it.

use std::any::Any;
use std::fmt::Debug;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use vmm::{Disk, DiskConfig, DiskFormat, FrozenDisk, FrozenFor, LayerInfo, PreparedOverlay};

use super::{Fingerprint, InternalEntry};

/// Why a disk does not do what is asked of it.
pub type DiskFault = Box<dyn std::error::Error + Send + Sync>;

/// A disk whose content can be kept as it is at one instant; a [`Disk`] is one.
pub trait DiskSource: Debug + Send + Sync {
    /// What the disk is called, and what it was opened by.
    fn config(&self) -> &DiskConfig;

    /// Length that the guest sees.
    fn virtual_size_bytes(&self) -> u64;

    /// The files that make its content, the top one first; never empty.
    fn layers(&self) -> Vec<DiskLayer>;

    /// Whether a write of the guest waits for room on the host.
    fn waits_for_room(&self) -> bool {
        false
    }

    /// Opens the top file.
    ///
    /// # Errors
    /// The file cannot be opened.
    fn file(&self) -> io::Result<File>;

    /// Keeps the content as it is until the answer is dropped; requests of the guest wait.
    ///
    /// Called while the machine is paused, it takes no time: nothing is under way.
    ///
    /// # Errors
    /// Requests under way do not complete.
    fn hold(&self) -> Result<Box<dyn Any + Send>, DiskFault>;

    /// Makes everything ready for the disk to go on in a new overlay, while the guest runs.
    ///
    /// The present image gets the name `frozen`; a raw file that has a name keeps that.
    ///
    /// # Errors
    /// The overlay cannot be created, or the disk cannot go on in one.
    fn prepare_overlay(&self, frozen: &Path, owner: &FrozenFor) -> Result<Box<dyn Overlay>, DiskFault>;

    /// Creates an internal snapshot of the content; called while the machine is paused.
    ///
    /// # Errors
    /// The image takes none, or the medium failed.
    fn create_internal_snapshot(&self, name: &str) -> Result<InternalEntry, DiskFault>;

    /// Computes the fingerprint of an internal snapshot (sections 4.5).
    ///
    /// # Errors
    /// There is no such snapshot, or the medium failed.
    fn internal_fingerprint(&self, id: &str) -> Result<Fingerprint, DiskFault>;

    /// Deletes an internal snapshot.
    ///
    /// # Errors
    /// There is no such snapshot, or the medium failed.
    fn delete_internal_snapshot(&self, id: &str) -> Result<(), DiskFault>;
}

/// A file that a disk consists of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskLayer {
    /// Its path; nothing if it has no name.
    pub path: Option<PathBuf>,
    /// How its bytes make content.
    pub format: DiskFormat,
}

/// An overlay that is ready; dropping it leaves the disk as it was.
pub trait Overlay: Debug + Send {
    /// Where the frozen image will be.
    fn frozen_path(&self) -> &Path;

    /// Lets the disk go on in the overlay; called while the machine is paused, it takes no time.
    ///
    /// # Errors
    /// A name is taken, or the file system refuses; the disk goes on as before.
    fn switch(self: Box<Self>) -> Result<Box<dyn FrozenImage>, DiskFault>;
}

/// An image that a disk no longer writes to.
pub trait FrozenImage: Debug + Send {
    /// The frozen image and its backing files, from the top down.
    fn layers(&self) -> Vec<DiskLayer>;

    /// Makes it and its name durable; the guest runs.
    ///
    /// # Errors
    /// The medium failed.
    fn settle(&self) -> Result<(), DiskFault>;
}

impl DiskSource for Disk {
    fn config(&self) -> &DiskConfig {
        Disk::config(self)
    }

    fn virtual_size_bytes(&self) -> u64 {
        self.len_bytes()
    }

    fn layers(&self) -> Vec<DiskLayer> {
        Disk::layers(self).iter().map(DiskLayer::from).collect()
    }

    fn waits_for_room(&self) -> bool {
        Disk::waits_for_room(self)
    }

    fn file(&self) -> io::Result<File> {
        Disk::file(self)
    }

    fn hold(&self) -> Result<Box<dyn Any + Send>, DiskFault> {
        Ok(Box::new(Disk::hold(self)?))
    }

    fn prepare_overlay(&self, frozen: &Path, owner: &FrozenFor) -> Result<Box<dyn Overlay>, DiskFault> {
        Ok(Box::new(Disk::prepare_overlay(self, frozen, owner)?))
    }

    fn create_internal_snapshot(&self, name: &str) -> Result<InternalEntry, DiskFault> {
        let created = Disk::create_internal_snapshot(self, name)?;
        Ok(InternalEntry {
            id: created.id,
            name: created.name,
        })
    }

    fn internal_fingerprint(&self, id: &str) -> Result<Fingerprint, DiskFault> {
        Ok(internal_fingerprint(Disk::file(self)?, id)?)
    }

    fn delete_internal_snapshot(&self, id: &str) -> Result<(), DiskFault> {
        Ok(Disk::delete_internal_snapshot(self, id)?)
    }
}

impl Overlay for PreparedOverlay {
    fn frozen_path(&self) -> &Path {
        PreparedOverlay::frozen_path(self)
    }

    fn switch(self: Box<Self>) -> Result<Box<dyn FrozenImage>, DiskFault> {
        Ok(Box::new(PreparedOverlay::switch(*self)?))
    }
}

impl FrozenImage for FrozenDisk {
    fn layers(&self) -> Vec<DiskLayer> {
        self.layers.iter().map(DiskLayer::from).collect()
    }

    fn settle(&self) -> Result<(), DiskFault> {
        Ok(FrozenDisk::settle(self)?)
    }
}

impl From<&LayerInfo> for DiskLayer {
    fn from(layer: &LayerInfo) -> Self {
        Self {
            path: (!layer.nameless).then(|| layer.path.clone()),
            format: layer.format,
        }
    }
}

/// Computes the fingerprint of an internal snapshot of an image that is in use: what a snapshot refers to does not
/// change while the image is written to.
fn internal_fingerprint(image: File, id: &str) -> qcow2::Result<Fingerprint> {
    let storage = qcow2::FileStorage::from_file(image, qcow2::Access::ReadOnly);
    let metadata = qcow2::Metadata::open(Arc::new(storage))?;
    qcow2::snapshots::fingerprint(&metadata, id).map(Fingerprint)
}
