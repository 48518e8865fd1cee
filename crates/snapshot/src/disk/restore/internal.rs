//! Disks that were kept by an internal snapshot.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use qcow2::{FileStorage, Metadata};
use vmm::{Disk, DiskConfig, DiskFormat};

use super::layers::{check_layers, find_top, open_beside_a_writer};
use super::overlay::create_overlay;
use super::{DiskResult, OwnFile, Places, open_disk};
use crate::disk::{DiskEntry, DiskError, DiskFault, Fingerprint, InternalEntry, LayerKind};

/// A disk that is to go on in its image as the internal snapshot has it.
#[derive(Debug)]
pub(super) struct InPlace {
    config: DiskConfig,
    image: PathBuf,
    entry: InternalEntry,
    /// Open for writing, and so locked, from the check on.
    storage: Arc<FileStorage>,
}

/// Opens a fresh overlay over what the internal snapshot shows, which is checked; it never has a name, for no image
/// can name a snapshot inside another as its backing file.
pub(super) fn over_snapshot(
    entry: &DiskEntry,
    config: &mut DiskConfig,
    places: &Places<'_>,
) -> DiskResult<(Disk, Option<OwnFile>)> {
    if places.given.contains_key(&entry.id) {
        return Err(DiskError::TakesNoFile {
            reason: "no file can name an internal snapshot as its backing file",
        });
    }
    let internal = internal(entry)?;
    let top = find_top(entry, LayerKind::Internal, places)?;
    let mut chain = open_beside_a_writer(&top)?;
    // Later snapshots may have put overlays on the image.
    let expected = entry.layers.first().ok_or(DiskError::NotKept)?;
    let above = qcow2::snapshots::holder(&chain, &internal.id, &expected.0).unwrap_or(0);
    chain.layers.drain(..above);
    let layer = chain.layers.first().ok_or(DiskError::NotKept)?;
    let image = layer.path.clone();
    check_snapshot(entry, internal, &image, Some(Arc::clone(&layer.storage)))?;
    check_layers(entry, &chain, 1, places)?;
    let own = OwnFile::create(None, &image)?;
    create_overlay(&own, entry.virtual_size_bytes, &image, DiskFormat::Qcow2, places)?;
    config.file.clone_from(&own.path);
    config.format = DiskFormat::Qcow2;
    let disk = Disk::on_snapshot(config, &image, &internal.id).map_err(|error| failed(internal, error))?;
    Ok((disk, Some(own)))
}

/// Checks the internal snapshot of an image, and keeps others from the image until it is applied.
pub(super) fn in_place(
    entry: &DiskEntry,
    config: &mut DiskConfig,
    places: &Places<'_>,
) -> DiskResult<InPlace> {
    if places.given.contains_key(&entry.id) {
        return Err(DiskError::TakesNoFile {
            reason: "it goes on in the image with the internal snapshot",
        });
    }
    let internal = internal(entry)?;
    let image = find_top(entry, LayerKind::Internal, places)?;
    let opened = FileStorage::open(&image, qcow2::Access::ReadWrite, qcow2::Cache::Writeback);
    let storage = Arc::new(opened.map_err(|error| DiskError::Chain {
        path: image.clone(),
        source: error.into(),
    })?);
    check_snapshot(entry, internal, &image, Some(Arc::clone(&storage)))?;
    config.file.clone_from(&image);
    config.format = DiskFormat::Qcow2;
    Ok(InPlace {
        config: config.clone(),
        image,
        entry: internal.clone(),
        storage,
    })
}

impl InPlace {
    /// Makes the image's content that of the snapshot, and opens the disk.
    pub(super) fn apply(self) -> DiskResult<Disk> {
        let apply = || -> qcow2::Result<()> {
            let mut metadata = Metadata::open(self.storage)?;
            metadata.ensure_writable()?;
            qcow2::snapshots::apply(&mut metadata, &self.entry.id).map(drop)
        };
        apply().map_err(|error| failed(&self.entry, error))?;
        tracing::info!(image = %self.image.display(), snapshot = self.entry.name, "applied");
        open_disk(&self.config)
    }
}

fn internal(entry: &DiskEntry) -> DiskResult<&InternalEntry> {
    entry.internal.as_ref().ok_or(DiskError::NotKept)
}

/// Refuses an image in which the snapshot is not what it was.
fn check_snapshot(
    entry: &DiskEntry,
    internal: &InternalEntry,
    image: &Path,
    storage: Option<Arc<FileStorage>>,
) -> DiskResult<()> {
    let (Some(storage), Some(expected)) = (storage, entry.layers.first()) else {
        return Err(DiskError::NotKept);
    };
    let fingerprint = || qcow2::snapshots::fingerprint(&Metadata::open(storage)?, &internal.id);
    let found = Fingerprint(fingerprint().map_err(|error| failed(internal, error))?);
    if found == *expected {
        return Ok(());
    }
    Err(DiskError::Changed {
        what: LayerKind::Internal,
        path: image.to_owned(),
        expected: *expected,
        found,
    })
}

fn failed(internal: &InternalEntry, error: impl Into<DiskFault>) -> DiskError {
    DiskError::Internal {
        name: internal.name.clone(),
        source: error.into(),
    }
}
