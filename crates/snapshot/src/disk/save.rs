//! Keeping the disks as of the capture point: prepared before it, switched inside the pause, made durable behind it.
//!
//! | step | when | what can fail |
//! |---|---|---|
//! | [`DiskPlan::prepare`] | before memory is armed | a disk that the mode is not for; creating files |
//! | [`DiskPlan::reach_point`] | the last thing inside the pause | a name taken, a file system that refuses, the medium |
//! | [`DisksAtPoint::keep`] | behind it, one thread per disk | reading, writing, a cancel |
//! | [`publish`] | when the snapshot file is durable but has no name yet | renaming copies |
//!
//! A copy without its final name is removed when it is dropped, and an internal snapshot that is not published is
//! deleted. A switch to an overlay is not undone: the guest goes on over the frozen image, which holds all that it
//! wrote before; [`LeftOverlays`] names it in the error.

mod copied;
mod internal;
mod kept;
mod layers;
mod left;
mod overlay;

use std::any::Any;
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{SeekFrom, seek};

use super::beside::Watch;
use super::names::{copy_name, directory};
use super::source::{DiskLayer, Overlay};
use super::{DiskError, DiskSource, DisksMode, KnownFingerprints};
use crate::error::{Error, Result};
use copied::Target;
use internal::Created;
use kept::Unpublished;
use layers::fingerprint_layers;
use overlay::Frozen;

pub(crate) use kept::{KeptDisk, publish};
pub use left::LeftOverlay;
pub(crate) use left::LeftOverlays;
pub(crate) use overlay::SnapshotIdentity;

type DiskResult<T> = std::result::Result<T, DiskError>;

/// What is wanted of the disks.
#[derive(Debug)]
pub(crate) struct DiskWishes<'a> {
    pub(crate) snapshot: SnapshotIdentity<'a>,
    pub(crate) mode: DisksMode,
    /// Names of frozen images, by disk.
    pub(crate) frozen: &'a BTreeMap<String, PathBuf>,
}

/// The disks of a machine that is about to be saved.
#[derive(Debug, Default)]
pub(crate) struct DiskPlan {
    disks: Vec<Planned>,
    left: LeftOverlays,
    prepare: Duration,
}

#[derive(Debug)]
struct Planned {
    source: Arc<dyn DiskSource>,
    layers: Vec<DiskLayer>,
    how: How,
}

/// How a disk is kept, ready to be done.
#[derive(Debug)]
enum How {
    /// Its files are as they are.
    Record {
        fingerprints: bool,
    },
    Overlay(Box<dyn Overlay>),
    Internal {
        name: String,
    },
    Copy(Target),
}

/// The disks at the capture point; the guest may run on.
pub(crate) struct DisksAtPoint {
    since: Instant,
    disks: Vec<AtPoint>,
    figures: PointFigures,
}

/// What keeping disks cost up to the capture point.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct PointFigures {
    pub(crate) prepare: Duration,
    pub(crate) switch: Duration,
    pub(crate) internal: Duration,
}

struct AtPoint {
    source: Arc<dyn DiskSource>,
    layers: Vec<DiskLayer>,
    done: Done,
}

/// What was done with a disk inside the pause.
enum Done {
    Recorded { fingerprints: bool },
    Frozen(Frozen),
    Created(Created),
    Held(Target, Box<dyn Any + Send>),
}

impl DiskPlan {
    /// Looks at the disks and makes ready what does not belong into the pause.
    pub(crate) fn prepare(sources: Vec<Arc<dyn DiskSource>>, wishes: &DiskWishes<'_>) -> Result<Self> {
        let began = Instant::now();
        let known = |id: &String| sources.iter().any(|source| source.config().id == *id);
        if let Some(id) = wishes.frozen.keys().find(|id| !known(id)) {
            return Err(Error::disk(id)(DiskError::Unknown));
        }
        refuse_replacing(&sources, wishes)?;
        let disks = sources.into_iter().map(|source| {
            let id = source.config().id.clone();
            Planned::new(source, wishes).map_err(Error::disk(&id))
        });
        Ok(Self {
            disks: disks.collect::<Result<_>>()?,
            left: LeftOverlays::default(),
            prepare: began.elapsed(),
        })
    }

    /// Returns what will know of overlays that were left behind.
    pub(crate) fn left(&self) -> LeftOverlays {
        self.left.clone()
    }

    /// Fixes the content of all disks; called while the machine is paused, as the last thing that may fail.
    ///
    /// Internal snapshots come first and all at once: they take longer, and can be deleted again.
    pub(crate) fn reach_point(self) -> Result<DisksAtPoint> {
        let since = Instant::now();
        let mut figures = PointFigures {
            prepare: self.prepare,
            ..PointFigures::default()
        };
        let created = internal::create_all(&self.disks)?;
        if created.iter().any(Option::is_some) {
            figures.internal = since.elapsed();
        }
        let switching = Instant::now();
        let disks = self.disks.into_iter().zip(created);
        let disks: Vec<_> = disks
            .map(|(disk, created)| disk.reach_point(created, &self.left))
            .collect::<Result<_>>()?;
        if disks.iter().any(|disk| matches!(disk.done, Done::Frozen(_))) {
            figures.switch = switching.elapsed();
        }
        Ok(DisksAtPoint {
            since,
            disks,
            figures,
        })
    }
}

impl Planned {
    fn new(source: Arc<dyn DiskSource>, wishes: &DiskWishes<'_>) -> DiskResult<Self> {
        let config = source.config();
        let layers = source.layers();
        let format = layers.first().map_or(config.format, |layer| layer.format);
        let how = match wishes.mode {
            DisksMode::None => How::Record { fingerprints: false },
            _ if config.readonly => How::Record { fingerprints: true },
            _ if source.waits_for_room() => return Err(DiskError::WaitsForRoom),
            DisksMode::Overlay => How::Overlay(overlay::prepare(&*source, &layers, wishes)?),
            DisksMode::Internal => How::Internal {
                name: internal::name(format, wishes.snapshot.path)?,
            },
            DisksMode::Copy => How::Copy(Target::prepare(&*source, format, wishes.snapshot.path)?),
        };
        Ok(Self { source, layers, how })
    }

    fn reach_point(self, created: Option<Created>, left: &LeftOverlays) -> Result<AtPoint> {
        let id = &self.source.config().id;
        let failed = Error::disk(id);
        let done = match (self.how, created) {
            (How::Internal { .. }, Some(created)) => Done::Created(created),
            (How::Overlay(overlay), _) => {
                let frozen = Frozen::switch(overlay, id, left);
                Done::Frozen(frozen.map_err(|source| failed(DiskError::Overlay { source }))?)
            }
            (How::Copy(target), _) => {
                let hold = self.source.hold();
                Done::Held(target, hold.map_err(|source| failed(DiskError::Hold { source }))?)
            }
            (How::Record { fingerprints }, _) => Done::Recorded { fingerprints },
            (How::Internal { .. }, None) => {
                unreachable!("every internal snapshot that is planned is created first")
            }
        };
        Ok(AtPoint {
            source: self.source,
            layers: self.layers,
            done,
        })
    }
}

impl DisksAtPoint {
    /// Returns what the disks have cost so far.
    pub(crate) fn figures(&self) -> PointFigures {
        self.figures
    }

    /// Makes the content of all disks durable and takes its fingerprints, each disk on a thread of its own.
    pub(super) fn keep(
        self,
        snapshot: &Path,
        known: &KnownFingerprints,
        watch: &Watch<'_>,
    ) -> Result<Vec<KeptDisk>> {
        let since = self.since;
        let keep = |disk: AtPoint| {
            let id = disk.source.config().id.clone();
            disk.keep(since, snapshot, known, watch)
                .map_err(|error| watch.given_up(&error).unwrap_or_else(|| Error::disk(&id)(error)))
        };
        thread::scope(|scope| {
            let keeping: Vec<_> = self
                .disks
                .into_iter()
                .map(|disk| scope.spawn(|| keep(disk)))
                .collect();
            let joined = keeping.into_iter().map(thread::ScopedJoinHandle::join);
            joined
                .map(|kept| kept.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
                .collect()
        })
    }
}

impl AtPoint {
    fn keep(
        self,
        since: Instant,
        snapshot: &Path,
        known: &KnownFingerprints,
        watch: &Watch<'_>,
    ) -> DiskResult<KeptDisk> {
        let mut kept = KeptDisk::new(&*self.source, &self.layers);
        match self.done {
            Done::Recorded { fingerprints: false } => {}
            Done::Recorded { fingerprints: true } => {
                let layers = fingerprint_layers(&self.layers, snapshot, known, watch)?;
                kept.add_layers(layers, since);
            }
            Done::Frozen(image) => {
                let layers = image.settle()?;
                kept.times.settle = since.elapsed();
                kept.entry.mode = DisksMode::Overlay;
                kept.file = layers.first().and_then(|layer| layer.path.clone());
                kept.depth = layers.len() + 1;
                kept.add_layers(fingerprint_layers(&layers, snapshot, known, watch)?, since);
            }
            Done::Created(created) => {
                kept.entry.mode = DisksMode::Internal;
                kept.entry.internal = Some(created.entry().clone());
                kept.file = self.layers.first().and_then(|layer| layer.path.clone());
                kept.add_layers(created.fingerprint(&self.layers, snapshot, known, watch)?, since);
                kept.unpublished = Some(Unpublished::Internal(created));
            }
            Done::Held(target, hold) => {
                let copy = target.copy(&*self.source, hold, since, watch)?;
                kept.entry.mode = DisksMode::Copy;
                kept.entry.layers = vec![copy.fingerprint];
                kept.layers = vec![copy.record()?];
                kept.file = Some(copy.path.clone());
                kept.times = copy.times;
                kept.unpublished = Some(Unpublished::Copy(copy));
            }
        }
        Ok(kept)
    }
}

/// Refuses a snapshot or a copy that would take the name of a file on which the machine works.
fn refuse_replacing(sources: &[Arc<dyn DiskSource>], wishes: &DiskWishes<'_>) -> Result<()> {
    let identity = |path: &Path| path.metadata().ok().map(|file| (file.dev(), file.ino()));
    let snapshot = wishes.snapshot.path;
    for source in sources {
        for layer in source.layers() {
            let Some(used) = layer.path.as_deref().and_then(identity) else {
                continue;
            };
            let copies = sources
                .iter()
                .map(|other| directory(snapshot).join(copy_name(snapshot, &other.config().id, "raw")));
            let copies = copies.filter(|_| wishes.mode == DisksMode::Copy);
            let mut written = std::iter::once(snapshot.to_owned()).chain(copies);
            if let Some(path) = written.find(|path| identity(path) == Some(used)) {
                return Err(Error::disk(&source.config().id)(DiskError::InUse { path }));
            }
        }
    }
    Ok(())
}

/// Length of a file or block device.
pub(super) fn len_bytes(file: &File) -> io::Result<u64> {
    Ok(seek(file, SeekFrom::End(0))?)
}
