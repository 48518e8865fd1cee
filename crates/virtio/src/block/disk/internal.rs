//! Snapshots inside a disk's qcow2 image.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use qcow2::{Access, FileStorage, Image, ImageOptions, Usage};

use super::open::{Place, image_options, open_below, open_over};
use super::{Disk, Store, open_error};
use crate::config::DiskConfig;
use crate::error::{Error, Result};

/// A snapshot inside a disk's image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InternalSnapshot {
    /// Its id, unique in the image.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Size of the disk in it, in bytes.
    pub virtual_size_bytes: u64,
}

impl Disk {
    /// Opens a disk whose top is the qcow2 overlay `config.file` and whose backing is what the internal snapshot
    /// `snapshot_id` of `image` keeps; whatever backing file the overlay names is not looked at. Another overlay
    /// can be put on it only once it is flattened.
    ///
    /// Another machine may be writing to `image`, as long as it does not delete the snapshot.
    ///
    /// # Errors
    /// As [`Disk::open`], or there is no such snapshot.
    pub fn on_snapshot(config: &DiskConfig, image: &Path, snapshot_id: &str) -> Result<Self> {
        let place = Place::of(image)?;
        let failed = |error| open_error(image, error);
        let options = ImageOptions {
            access: Access::ReadOnly,
            ..image_options(config)
        };
        let storage = Arc::new(open_beside_a_writer(&place.path, &options).map_err(failed)?);
        let below = open_below(&place.path, &*storage, &options).map_err(failed)?;
        let snapshot = Image::open_snapshot(storage, below, snapshot_id, &options).map_err(failed)?;
        Self::of(config, open_over(config, Arc::new(snapshot))?)
    }

    /// Makes a snapshot inside the disk's image, durable when this returns. Requests wait meanwhile.
    ///
    /// # Errors
    /// The disk is not a writable qcow2 image, a request waits for room on the medium, requests under way do not
    /// complete, or the medium failed.
    pub fn create_internal_snapshot(&self, name: &str) -> Result<InternalSnapshot> {
        let _changing = self.changing();
        let image = self.writable_image()?;
        let _hold = self.hold()?;
        let entry = image.create_snapshot(name).map_err(|error| self.failed(error))?;
        Ok(InternalSnapshot {
            id: entry.id().into_owned(),
            name: entry.name().into_owned(),
            virtual_size_bytes: entry.virtual_size_bytes().unwrap_or(self.len_bytes()),
        })
    }

    /// Deletes the snapshot `id` inside the disk's image. Requests wait meanwhile.
    ///
    /// # Errors
    /// As [`Self::create_internal_snapshot`], or there is no such snapshot.
    pub fn delete_internal_snapshot(&self, id: &str) -> Result<()> {
        let _changing = self.changing();
        let image = self.writable_image()?;
        let _hold = self.hold()?;
        image
            .delete_snapshot(id)
            .map(|_| ())
            .map_err(|error| self.failed(error))
    }

    /// Returns the image that the guest writes to.
    pub(super) fn writable_image(&self) -> Result<Arc<Image>> {
        if self.is_read_only() {
            return Err(self.failed(Usage::ReadOnly.into()));
        }
        match &self.top().store {
            Store::Image(image) => Ok(Arc::clone(image)),
            Store::Raw { .. } | Store::Other => Err(self.wrong_kind("it is not a qcow2 image")),
        }
    }

    /// Returns the error of an operation that a disk of this kind does not know.
    pub(super) fn wrong_kind(&self, problem: &'static str) -> Error {
        Error::DiskKind {
            disk: self.id().to_owned(),
            problem,
        }
    }

    /// Says of an error that it is this disk's.
    pub(super) fn failed(&self, source: qcow2::Error) -> Error {
        let path = self.layers().into_iter().next().map(|live| live.path);
        Error::Image {
            path: path.unwrap_or_else(|| self.config().file.clone()),
            source,
        }
    }
}

/// Opens an image of which only an internal snapshot is read. Locked if nobody writes to it; but who does writes to
/// other clusters than the snapshot's, so that it is read all the same.
fn open_beside_a_writer(path: &Path, options: &ImageOptions) -> qcow2::Result<FileStorage> {
    match FileStorage::open(path, options.access, options.cache) {
        Err(qcow2::Error::InUse { .. }) => {
            tracing::debug!(path = %path.display(), "a snapshot is read while its image is written to");
            Ok(FileStorage::from_file(File::open(path)?, Access::ReadOnly))
        }
        opened => opened,
    }
}
