//! Disks that were kept by an overlay: the guest gets one of its own over the frozen image.

use std::path::Path;

use qcow2::{Backing, CreateOptions, FileStorage, FrozenBacking, FrozenOwner, ImageFormat};
use vmm::{Disk, DiskConfig, DiskFormat};

use super::layers::{check_layers, find_top, open_chain, parse_format};
use super::{DiskResult, OwnFile, Places, open_disk};
use crate::disk::{DiskEntry, DiskError, LayerKind};

/// Opens a fresh overlay over the frozen image, which is checked.
pub(super) fn over_frozen(
    entry: &DiskEntry,
    config: &mut DiskConfig,
    places: &Places<'_>,
) -> DiskResult<(Disk, Option<OwnFile>)> {
    let format = parse_format(&entry.format)?;
    let top = find_top(entry, LayerKind::Image, places)?;
    let chain = open_chain(&top, format)?;
    check_layers(entry, &chain, 0, places)?;
    let given = places.given.get(&entry.id);
    let own = OwnFile::create(given.map(AsRef::as_ref), &top)?;
    create_overlay(&own, entry.virtual_size_bytes, &top, format, places)?;
    config.file.clone_from(&own.path);
    config.format = DiskFormat::Qcow2;
    Ok((open_disk(config)?, Some(own)))
}

/// Writes an empty overlay over `base`, and into it that `base` belongs to the snapshot.
pub(super) fn create_overlay(
    own: &OwnFile,
    virtual_size_bytes: u64,
    base: &Path,
    format: DiskFormat,
    places: &Places<'_>,
) -> DiskResult<()> {
    let failed = |source: Box<dyn std::error::Error + Send + Sync>| DiskError::Overlay { source };
    let format = match format {
        DiskFormat::Raw => ImageFormat::Raw,
        _ => ImageFormat::Qcow2,
    };
    // Absolute: a file without a name is in no directory.
    let base = base.canonicalize().map_err(|error| failed(error.into()))?;
    let options = CreateOptions {
        frozen_backing: Some(FrozenBacking {
            owners: vec![FrozenOwner {
                snapshot: places.owner.snapshot.clone(),
                file_id: places.owner.file_id,
            }],
        }),
        ..CreateOptions::overlay(virtual_size_bytes, Backing::new(base, format))
    };
    let file = own.file.try_clone().map_err(|error| failed(error.into()))?;
    let storage = FileStorage::from_file(file, qcow2::Access::ReadWrite);
    qcow2::create(&storage, &options).map_err(|error| failed(error.into()))
}
