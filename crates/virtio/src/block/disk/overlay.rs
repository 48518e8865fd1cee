//! Putting an overlay on top of a disk, so that what is below stays as it is.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};

use qcow2::limits::MAX_CHAIN_DEPTH;
use qcow2::switch::{FrozenLayer, LiveDisk, LiveName, OverlayPlan, OverlaySwitch};
use qcow2::{ChainError, FrozenBacking, FrozenOwner, RawImage};

use super::layers::{can_be_named, format_of, layers_from};
use super::open::{image_options, is_device, overlay_of};
use super::{Disk, LayerInfo, Store, Top};
use crate::block::BlockBackend;
use crate::config::DiskFormat;
use crate::error::Result;

/// The snapshot that a frozen image belongs to; kept in the overlay's header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrozenFor {
    /// Absolute path of the snapshot file.
    pub snapshot: PathBuf,
    /// Identity of the snapshot file.
    pub file_id: [u8; 16],
}

/// An overlay that is ready to become the top of a disk; dropping it removes its file.
pub struct PreparedOverlay {
    disk: Disk,
    /// What the overlay was made for.
    below: Arc<dyn BlockBackend>,
    overlay: OverlaySwitch,
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
    layer: FrozenLayer,
}

impl Disk {
    /// Makes an overlay, durable under a temporary name, which [`PreparedOverlay::switch`] puts on top.
    ///
    /// A qcow2 image that has a name gives it to the overlay and is called `frozen` afterwards; a raw image keeps
    /// its name, and the overlay is called like it with `.qcow2` behind. A file without a name gets the
    /// name `frozen`, and the overlay has none. `frozen` is on the disk's file system.
    ///
    /// # Errors
    /// The disk is read-only or a device, a request waits for room on the medium, the name `frozen` is taken, the
    /// chain of backing files is too deep, or the overlay cannot be made.
    pub fn prepare_overlay(&self, frozen: &Path, owner: &FrozenFor) -> Result<PreparedOverlay> {
        let _changing = self.changing();
        if self.is_read_only() {
            return Err(self.wrong_kind("it is read-only, so that it needs no overlay"));
        }
        if self.waits_for_room() {
            return Err(self.full());
        }
        if self.depth() >= MAX_CHAIN_DEPTH {
            return Err(self.failed(ChainError::TooDeep.into()));
        }
        let (below, store) = {
            let top = self.top();
            (Arc::clone(&top.backend), top.store.clone())
        };
        let owners = vec![FrozenOwner {
            snapshot: owner.snapshot.clone(),
            file_id: owner.file_id,
        }];
        let (live, name) = self.live(store)?;
        // A raw disk keeps its name.
        let frozen = match (&live, &name, self.path()) {
            (LiveDisk::Raw(_), LiveName::Beside(_), Some(path)) => path,
            _ => frozen.to_owned(),
        };
        let plan = OverlayPlan {
            live: name,
            frozen: frozen.clone(),
            owners: Some(FrozenBacking { owners }),
            options: image_options(self.config()),
        };
        let overlay = OverlaySwitch::prepare(live, plan).map_err(|error| self.failed(error))?;
        Ok(PreparedOverlay {
            disk: self.clone(),
            below,
            overlay,
            frozen,
        })
    }

    /// Returns what an overlay is put on, and the name that the overlay gets.
    fn live(&self, store: Store) -> Result<(LiveDisk, LiveName)> {
        match store {
            Store::Raw { file, path, nameless } => {
                if is_device(file.storage().file()) {
                    return Err(
                        self.wrong_kind("it is a device, beside which there is no place for an overlay")
                    );
                }
                let named = (!nameless).then(|| path.clone());
                let raw = RawImage::from_file(Arc::clone(file.storage()), named);
                let raw = Arc::new(raw.map_err(|error| self.failed(error))?);
                let name = match nameless {
                    true => LiveName::Nameless,
                    false => LiveName::Beside(overlay_of(&path)),
                };
                Ok((LiveDisk::Raw(raw), name))
            }
            Store::Image(image) if !can_be_named(&*image) => {
                Err(self
                    .wrong_kind("it stands on an internal snapshot, so that it has to be flattened first"))
            }
            Store::Image(image) => {
                let name = image.path().map_or(LiveName::Nameless, LiveName::InPlace);
                Ok((LiveDisk::Qcow2(image), name))
            }
            Store::Other => Err(self.wrong_kind("its bytes are in no file")),
        }
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
    /// A request waits for room on the medium, requests under way do not complete, the disk consists of other files
    /// by now, or the files cannot be renamed; the disk is as it was.
    pub fn switch(self) -> Result<FrozenDisk> {
        let disk = self.disk;
        let _changing = disk.changing();
        let _hold = disk.hold()?;
        if !Arc::ptr_eq(&disk.backend(), &self.below) {
            return Err(disk.wrong_kind("another overlay was put on it"));
        }
        let switched = self.overlay.switch().map_err(|error| disk.failed(error))?;
        *disk.inner.top.write().unwrap_or_else(PoisonError::into_inner) = Top::image(switched.image);
        Ok(FrozenDisk {
            path: self.frozen,
            format: format_of(switched.frozen.format()),
            layers: layers_from(&**switched.frozen.layer()),
            layer: switched.frozen,
        })
    }
}

impl FrozenDisk {
    /// Makes the frozen image and the new names durable, and lets others read the frozen image; the machine may run.
    ///
    /// # Errors
    /// The medium failed.
    pub fn settle(&self) -> Result<()> {
        self.layer
            .settle()
            .map_err(|error| super::open_error(&self.path, error))
    }
}

impl fmt::Debug for PreparedOverlay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PreparedOverlay")
            .field("disk", &self.disk)
            .field("overlay", &self.overlay)
            .finish_non_exhaustive()
    }
}
