//! Puts an overlay in the place of a live disk, so that the disk's file stays as it is at that instant.
//!
//! ```text
//! before the pause   overlay created under a temporary name, durable
//! in the pause       live file frozen | link to its frozen name | overlay renamed to the live name
//! after it           live file flushed, directory synced: by `settle` or by the guest's first flush
//! ```
//!
//! The live name is the live disk at every moment: before the rename it is the file that the guest writes to, after
//! it the overlay over that file. Nothing in the pause waits for the medium. A guest's flush is not acknowledged
//! before everything below is durable; what a power loss takes before that was never promised. The file system must
//! keep changes of one directory in their order, as journals do.
//!
//! A raw disk keeps its name, and the overlay gets one beside it. A disk without a name gets the frozen name, and
//! its overlay has none again.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use tempfile::TempPath;

use crate::chain::ImageFormat;
use crate::create::{CreateOptions, create};
use crate::engine::Unsettled;
use crate::error::Result;
use crate::header::{Backing, FrozenBacking};
use crate::image::{Image, ImageOptions};
use crate::layer::{Layer, RawImage};
use crate::storage::{Access, FileStorage};

/// A disk that the guest writes to.
#[derive(Clone, Debug)]
pub enum LiveDisk {
    /// A qcow2 image.
    Qcow2(Arc<Image>),
    /// A raw file.
    Raw(Arc<RawImage>),
}

/// Which name the overlay gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LiveName {
    /// That of the live file, which gets the frozen name instead.
    InPlace(PathBuf),
    /// This one, which nothing has yet; the live file keeps its own, and the frozen name is the same.
    Beside(PathBuf),
    /// None; the live file has none either, and gets the frozen name.
    Nameless,
}

/// What an overlay is to be.
#[derive(Clone, Debug)]
pub struct OverlayPlan {
    /// The overlay's name.
    pub live: LiveName,
    /// The name under which the live file stays, on the same file system.
    pub frozen: PathBuf,
    /// The snapshots to which the live file belongs from then on.
    pub owners: Option<FrozenBacking>,
    /// How the overlay is opened.
    pub options: ImageOptions,
}

/// An overlay that is ready to take a live disk's place; dropping it removes its file.
#[derive(Debug)]
pub struct OverlaySwitch {
    live: LiveDisk,
    plan: OverlayPlan,
    overlay: Image,
    temporary: Option<TempPath>,
}

/// What a switch has made.
#[derive(Debug)]
pub struct Switched {
    /// The overlay, which is the live disk now.
    pub image: Arc<Image>,
    /// What was the live disk.
    pub frozen: FrozenLayer,
}

/// A disk's file as it was when its overlay took its place.
#[derive(Clone, Debug)]
pub struct FrozenLayer {
    path: PathBuf,
    format: ImageFormat,
    unsettled: Arc<Unsettled>,
}

impl LiveDisk {
    fn layer(&self) -> Arc<dyn Layer> {
        match self {
            Self::Qcow2(image) => image.clone(),
            Self::Raw(raw) => raw.clone(),
        }
    }

    fn freeze(&self) {
        match self {
            Self::Qcow2(image) => image.freeze(),
            Self::Raw(raw) => raw.freeze(),
        }
    }

    fn thaw(&self) {
        match self {
            Self::Qcow2(image) => image.thaw(),
            Self::Raw(raw) => raw.thaw(),
        }
    }

    fn set_path(&self, path: &Path) {
        match self {
            Self::Qcow2(image) => image.set_path(Some(path)),
            Self::Raw(raw) => raw.set_path(path),
        }
    }

    fn cluster_bits(&self) -> Option<u32> {
        match self {
            Self::Qcow2(image) => Some(image.cluster_size().bits()),
            Self::Raw(_) => None,
        }
    }
}

impl OverlaySwitch {
    /// Creates the overlay, durably; the guest runs on.
    ///
    /// # Errors
    /// The frozen name is taken, the overlay cannot be created, or it would be no valid image.
    pub fn prepare(live: LiveDisk, plan: OverlayPlan) -> Result<Self> {
        let (directory, mut backing_name) = match &plan.live {
            LiveName::InPlace(name) | LiveName::Beside(name) => (directory_of(name), None),
            LiveName::Nameless => (
                directory_of(&plan.frozen),
                Some(std::path::absolute(&plan.frozen)?),
            ),
        };
        check_frozen_name(&plan, &directory)?;
        if backing_name.is_none() && directory_of(&plan.frozen) == directory {
            backing_name = plan.frozen.file_name().map(PathBuf::from);
        }
        let layer = live.layer();
        let format = layer.info().format;
        let backing_name = backing_name.map_or_else(|| std::path::absolute(&plan.frozen), Ok)?;
        let live_file = layer.file();
        let live_file = live_file.as_deref().map(FileStorage::file);
        let (storage, temporary) = new_file(&plan, &directory, live_file)?;
        let mut options = CreateOptions::overlay(layer.len_bytes(), Backing::new(backing_name, format));
        options.frozen_backing.clone_from(&plan.owners);
        options.cluster_bits = live.cluster_bits().unwrap_or(options.cluster_bits);
        create(&storage, &options)?;
        let overlay = Image::open_file(Arc::new(storage), None, Some(layer), &plan.options)?;
        Ok(Self {
            live,
            plan,
            overlay,
            temporary,
        })
    }

    /// Lets the overlay take the live disk's place. The guest must be paused, with no I/O under way.
    ///
    /// # Errors
    /// The names cannot be changed; everything is then as before.
    pub fn switch(mut self) -> Result<Switched> {
        self.live.freeze();
        if let Err(error) = self.change_names() {
            self.live.thaw();
            return Err(error.into());
        }
        if !matches!(self.plan.live, LiveName::Beside(_)) {
            self.live.set_path(&self.plan.frozen);
        }
        let mut directories = vec![directory_of(&self.plan.frozen)];
        if let LiveName::InPlace(name) | LiveName::Beside(name) = &self.plan.live {
            self.overlay.set_path(Some(name));
            directories.push(directory_of(name));
        }
        directories.dedup();
        let layer = self.live.layer();
        let format = layer.info().format;
        let unsettled = Arc::new(Unsettled::new(layer, directories));
        self.overlay.engine().settle_before_flush(unsettled.clone());
        Ok(Switched {
            image: Arc::new(self.overlay),
            frozen: FrozenLayer {
                path: self.plan.frozen,
                format,
                unsettled,
            },
        })
    }

    fn change_names(&mut self) -> io::Result<()> {
        let frozen = &self.plan.frozen;
        match (&self.plan.live, self.temporary.take()) {
            (LiveName::InPlace(live), Some(temporary)) => {
                fs::hard_link(live, frozen)?;
                temporary.persist(live).map_err(|error| {
                    // The live name still is the live file; the second name must not stay.
                    let _ = fs::remove_file(frozen);
                    error.error
                })
            }
            (LiveName::Beside(name), Some(temporary)) => {
                temporary.persist_noclobber(name).map_err(|error| error.error)
            }
            _ => {
                let layer = self.live.layer();
                let file = layer.file().ok_or(io::ErrorKind::Unsupported)?;
                rustix::fs::linkat(
                    CWD,
                    descriptor_path(file.file()),
                    CWD,
                    frozen,
                    AtFlags::SYMLINK_FOLLOW,
                )?;
                Ok(())
            }
        }
    }
}

impl FrozenLayer {
    /// Returns the name of the frozen file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns its format.
    #[must_use]
    pub fn format(&self) -> ImageFormat {
        self.format
    }

    /// Returns the layer.
    #[must_use]
    pub fn layer(&self) -> &Arc<dyn Layer> {
        self.unsettled.layer()
    }

    /// Makes the frozen file and the new names durable, and lets other programs read the file.
    ///
    /// # Errors
    /// The medium's.
    pub fn settle(&self) -> Result<()> {
        self.unsettled.settle()
    }
}

/// Refuses a frozen name that the live file cannot get, so that it is known before the pause.
fn check_frozen_name(plan: &OverlayPlan, directory: &Path) -> io::Result<()> {
    if matches!(plan.live, LiveName::Beside(_)) {
        return Ok(());
    }
    if plan.frozen.symlink_metadata().is_ok() {
        return Err(io::ErrorKind::AlreadyExists.into());
    }
    if directory_of(&plan.frozen).metadata()?.dev() != directory.metadata()?.dev() {
        return Err(io::ErrorKind::CrossesDevices.into());
    }
    Ok(())
}

/// Creates the overlay's file, empty and locked, with the permissions of the live one.
fn new_file(
    plan: &OverlayPlan,
    directory: &Path,
    live: Option<&File>,
) -> Result<(FileStorage, Option<TempPath>)> {
    let cache = plan.options.cache;
    if plan.live == LiveName::Nameless {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let file: File = rustix::fs::open(directory, flags, Mode::RUSR | Mode::WUSR)
            .map_err(io::Error::from)?
            .into();
        let storage = FileStorage::open(&descriptor_path(&file), Access::ReadWrite, cache)?;
        return Ok((storage, None));
    }
    let temporary = tempfile::Builder::new()
        .prefix(".overlay-")
        .suffix(".qcow2")
        .tempfile_in(directory)?
        .into_temp_path();
    if let Some(live) = live {
        fs::set_permissions(&temporary, live.metadata()?.permissions())?;
    }
    Ok((
        FileStorage::open(&temporary, Access::ReadWrite, cache)?,
        Some(temporary),
    ))
}

/// Returns the name under which the system shows an open file of this process.
fn descriptor_path(file: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

fn directory_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}
