//! Disks that are kept by an overlay.

use std::path::{Path, PathBuf};

use vmm::{DiskFormat, FrozenFor};

use super::{DiskResult, DiskWishes, LeftOverlays};
use crate::disk::names::{directory, format_name, frozen_path};
use crate::disk::source::{DiskFault, DiskLayer, FrozenImage, Overlay};
use crate::disk::{DiskError, DiskSource, MAX_DEPTH};

/// The snapshot file that frozen images will belong to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SnapshotIdentity<'a> {
    pub(crate) path: &'a Path,
    pub(crate) file_id: [u8; 16],
}

/// Makes the overlay of a disk, and decides what its present image will be called.
pub(super) fn prepare(
    source: &dyn DiskSource,
    layers: &[DiskLayer],
    wishes: &DiskWishes<'_>,
) -> DiskResult<Box<dyn Overlay>> {
    if layers.len() >= MAX_DEPTH {
        return Err(DiskError::TooDeep {
            depth: layers.len(),
            limit: MAX_DEPTH,
        });
    }
    let frozen = frozen_name(source, layers, wishes)?;
    let snapshot = wishes.snapshot.path;
    let owner = FrozenFor {
        snapshot: std::path::absolute(snapshot).map_err(|source| DiskError::Open {
            path: snapshot.to_owned(),
            source,
        })?,
        file_id: wishes.snapshot.file_id,
    };
    source
        .prepare_overlay(&frozen, &owner)
        .map_err(|source| DiskError::Overlay { source })
}

/// The name that was asked for, or one that goes with the snapshot's, in the directory of the disk: a file without a
/// name is where the file below it is, or else where the snapshot will be.
fn frozen_name(
    source: &dyn DiskSource,
    layers: &[DiskLayer],
    wishes: &DiskWishes<'_>,
) -> DiskResult<PathBuf> {
    let id = &source.config().id;
    let top = layers.first();
    let given = wishes.frozen.get(id);
    if let Some(DiskLayer {
        path: Some(path),
        format: DiskFormat::Raw,
    }) = top
    {
        return match given {
            Some(other) if other != path => Err(DiskError::KeepsName { path: path.clone() }),
            _ => Ok(path.clone()),
        };
    }
    if let Some(given) = given {
        let path = given.clone();
        return match given.symlink_metadata() {
            Ok(_) => Err(DiskError::FrozenTaken { path }),
            Err(_) => Ok(path),
        };
    }
    let named = layers.iter().find_map(|layer| layer.path.as_deref());
    let snapshot = wishes.snapshot.path;
    let format = top.map_or(DiskFormat::Raw, |layer| layer.format);
    let beside = directory(named.unwrap_or(snapshot));
    frozen_path(snapshot, id, format_name(format), beside)
}

/// An image that a disk was switched away from and that is not durable yet.
///
/// If the save fails before it is, it is made durable afterwards, when the guest runs: others cannot read it before.
#[derive(Debug)]
pub(super) struct Frozen {
    image: Option<Box<dyn FrozenImage>>,
    left: LeftOverlays,
}

impl Frozen {
    /// Lets the disk go on in its overlay.
    pub(super) fn switch(
        overlay: Box<dyn Overlay>,
        disk: &str,
        left: &LeftOverlays,
    ) -> Result<Self, DiskFault> {
        let frozen = overlay.frozen_path().to_owned();
        let image = overlay.switch()?;
        left.push(disk, frozen);
        Ok(Self {
            image: Some(image),
            left: left.clone(),
        })
    }

    /// Makes the image durable, and returns it with its backing files.
    pub(super) fn settle(mut self) -> DiskResult<Vec<DiskLayer>> {
        let Some(image) = self.image.take() else {
            return Ok(Vec::new());
        };
        let layers = image.layers();
        let path = || layers.first().and_then(|layer| layer.path.clone());
        image.settle().map_err(|source| DiskError::Settle {
            path: path().unwrap_or_default(),
            source,
        })?;
        Ok(layers)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        if let Some(image) = self.image.take() {
            self.left.settle_later(image);
        }
    }
}
