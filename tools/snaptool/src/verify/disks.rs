//! Follows a snapshot to the files of its disks: each must be the one of the snapshot, and sound.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use qcow2::{Access, Cache, Chain, FileStorage, ImageFormat, Metadata};
use serde::Serialize;
use snapfile::Snapshot;

use crate::disks::{self, Disk, Fingerprint, Internal, Layer, Mode};
use crate::progress::Progress;

/// Bytes that are read at a time.
const STEP_BYTES: usize = 1 << 20;

/// What became of a file, the best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Nothing was recorded that could be compared.
    NotRecorded,
    /// It is as of the snapshot, and sound.
    Matches,
    /// It is as of the snapshot; its metadata was not checked, because a machine writes to the image.
    InUse,
    /// It is not where it was; it may be elsewhere.
    Missing,
    /// It is not the one of the snapshot: a restore would join memory with a disk of another time.
    Differs,
    /// It is as of the snapshot and has never been sound.
    Corrupt,
}

impl State {
    /// Whether the machine cannot be restored from what is there.
    pub fn is_damage(self) -> bool {
        self >= Self::Differs
    }
}

/// A disk and its files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CheckedDisk {
    /// Name of the disk.
    pub id: String,
    /// How its content is kept.
    pub mode: Mode,
    /// The worst state of a file.
    pub state: State,
    /// The files, the top one first.
    pub layers: Vec<CheckedLayer>,
}

/// A file of a disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CheckedLayer {
    /// Where it was found, or should be.
    pub file: Option<String>,
    /// What became of it.
    pub state: State,
    /// Corruptions that the check of a qcow2 image found.
    pub corruptions: u64,
    /// Leaked clusters that it found, which harm nothing.
    pub leaks: u64,
}

/// Checks every disk of a snapshot.
///
/// # Errors
/// The disk table or a file cannot be read.
pub fn check(file: &Path) -> anyhow::Result<Vec<CheckedDisk>> {
    let disks = Disk::all(&Snapshot::open(file)?)?;
    let meter = Meter {
        bar: Progress::new("verify disks"),
        total: disks
            .iter()
            .flat_map(|disk| &disk.layers)
            .filter_map(|layer| layer.file_bytes)
            .sum(),
        done: 0,
    };
    let mut work = Work {
        snapshot: file,
        meter,
    };
    disks.iter().map(|disk| work.disk(disk)).collect()
}

/// How far the reading is.
struct Meter {
    bar: Progress,
    total: u64,
    done: u64,
}

impl Meter {
    fn advance(&mut self, bytes: u64) {
        self.done = self.done.saturating_add(bytes);
        self.bar.update(self.done, self.total.max(self.done));
    }
}

struct Work<'a> {
    snapshot: &'a Path,
    meter: Meter,
}

impl Work<'_> {
    fn disk(&mut self, disk: &Disk) -> anyhow::Result<CheckedDisk> {
        let files = disk.files(self.snapshot);
        let mut layers = Vec::with_capacity(files.len());
        for (depth, (layer, file)) in disk.layers.iter().zip(&files).enumerate() {
            let internal = disk.internal.as_ref().filter(|_| depth == 0);
            layers.push(match file {
                Some(path) => self
                    .layer(layer, path, internal)
                    .with_context(|| path.display().to_string())?,
                None => CheckedLayer::new(layer.file.clone(), State::Missing),
            });
        }
        let worst = layers.iter().map(|layer| layer.state).max();
        Ok(CheckedDisk {
            id: disk.id.clone(),
            mode: disk.mode,
            state: worst.unwrap_or(State::NotRecorded),
            layers,
        })
    }

    fn layer(
        &mut self,
        layer: &Layer,
        path: &Path,
        internal: Option<&Internal>,
    ) -> anyhow::Result<CheckedLayer> {
        let found = match internal {
            Some(internal) => holder(path, internal, layer.fingerprint)?,
            None => (self.fingerprint(path, layer.file_bytes)? == Some(layer.fingerprint))
                .then(|| path.to_owned()),
        };
        let Some(path) = &found else {
            return Ok(CheckedLayer::new(
                Some(path.display().to_string()),
                State::Differs,
            ));
        };
        let name = Some(path.display().to_string());
        if layer.format.as_deref().and_then(disks::format) != Some(ImageFormat::Qcow2) {
            return Ok(CheckedLayer::new(name, State::Matches));
        }
        let storage = match FileStorage::open(path, Access::ReadOnly, Cache::Writeback) {
            // A machine that writes has the metadata in its memory.
            Err(qcow2::Error::InUse { .. }) => return Ok(CheckedLayer::new(name, State::InUse)),
            storage => storage?,
        };
        let metadata = match Metadata::open(Arc::new(storage)) {
            Ok(metadata) => metadata,
            Err(qcow2::Error::Io(error)) => return Err(error.into()),
            Err(_) => {
                return Ok(CheckedLayer {
                    corruptions: 1,
                    ..CheckedLayer::new(name, State::Corrupt)
                });
            }
        };
        let bar = &self.meter.bar;
        let report = qcow2::check::check(&metadata, &mut |done, total| bar.go_on(done, total))?;
        let sound = report.corruptions == 0 && report.check_errors == 0;
        Ok(CheckedLayer {
            corruptions: report.corruptions,
            leaks: report.leaks,
            ..CheckedLayer::new(name, if sound { State::Matches } else { State::Corrupt })
        })
    }

    /// Returns the fingerprint of a file, or `None` if it has another length than it had.
    fn fingerprint(&mut self, path: &Path, len_bytes: Option<u64>) -> anyhow::Result<Option<Fingerprint>> {
        let mut file = File::open(path)?;
        let found = file.metadata()?.len();
        if len_bytes.is_some_and(|expected| expected != found) {
            return Ok(None);
        }
        let mut hasher = blake3::Hasher::new();
        let mut buffer = vec![0; STEP_BYTES];
        loop {
            let read = file.read(&mut buffer)?;
            if read == 0 {
                return Ok(Some(Fingerprint(*hasher.finalize().as_bytes())));
            }
            hasher.update(buffer.get(..read).unwrap_or_default());
            self.meter.advance(read as u64);
        }
    }
}

impl CheckedLayer {
    fn new(file: Option<String>, state: State) -> Self {
        Self {
            file,
            state,
            corruptions: 0,
            leaks: 0,
        }
    }
}

/// Returns the image that has an internal snapshot as it was: the one at `path`, or one below it, if later snapshots have
/// put overlays on it.
///
/// The machine may go on writing to the image: the tables of a snapshot do not change by that.
fn holder(path: &Path, internal: &Internal, expected: Fingerprint) -> anyhow::Result<Option<PathBuf>> {
    let mut chain = match Chain::open_shared(path, ImageFormat::Qcow2) {
        Ok(chain) => chain,
        Err(qcow2::Error::Io(error)) => return Err(error.into()),
        Err(_) => return Ok(None),
    };
    let place = qcow2::snapshots::holder(&chain, &internal.id, &expected.0);
    Ok(place.map(|place| chain.layers.swap_remove(place).path))
}
