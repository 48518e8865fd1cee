//! The errors of this crate.

use std::path::{Path, PathBuf};

use crate::disk::{DiskError, LeftOverlay};

/// The crate's result.
pub(crate) type Result<T> = std::result::Result<T, Error>;

/// Why a machine could not be saved, restored or checked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Someone asked for the end of the save before its file was complete.
    #[error("the snapshot was cancelled")]
    Cancelled,
    /// The snapshot file cannot be created, written or made durable.
    #[error("cannot write {}", path.display())]
    Write {
        /// The file that was to be.
        path: PathBuf,
        /// What stood in the way.
        #[source]
        source: Box<snapfile::Error>,
    },
    /// A snapshot file cannot be opened or read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: Box<snapfile::Error>,
    },
    /// A file cannot be found where the caller says that it is.
    #[error("cannot find {}", path.display())]
    Path {
        /// The path as given.
        path: PathBuf,
        /// What the system answered.
        #[source]
        source: std::io::Error,
    },
    /// The new snapshot would take the place of a file that it needs.
    #[error("{} is needed by the new snapshot and cannot be replaced by it", path.display())]
    ReplacesParent {
        /// The parent, or a parent of it.
        path: PathBuf,
    },
    /// Guest memory cannot be captured or filled.
    #[error("guest memory")]
    Memory(#[from] memsnap::Error),
    /// A disk cannot be kept, or not be brought back.
    #[error("disk {id}")]
    Disk {
        /// The disk.
        id: String,
        /// What is wrong with it.
        #[source]
        source: DiskError,
    },
    /// A save ended without a snapshot behind the instant at which its disks were switched to overlays.
    #[error("{}, which no snapshot needs", left_text(left))]
    LeftOverlays {
        /// The disks and what they go on over.
        left: Vec<LeftOverlay>,
        /// Why there is no snapshot.
        #[source]
        source: Box<Error>,
    },
    /// Something was said about a device that the machine in the file does not have.
    #[error("the machine has no {device}")]
    NoSuchDevice {
        /// The device.
        device: String,
    },
    /// The machine cannot be paused, saved, created or resumed.
    #[error(transparent)]
    Machine(#[from] vmm::Error),
    /// The machine's state cannot be encoded or decoded.
    #[error("machine state")]
    State(#[from] vmm::StateError),
    /// A section of the file is missing or breaks its schema.
    #[error("section {name}: {problem}")]
    Section {
        /// Name of the section.
        name: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The snapshot does not show the built-in guest.
    #[error("not a snapshot of the built-in guest")]
    NotBuiltin(#[from] vmm::builtin::OracleError),
    /// A section of the file cannot be read.
    #[error("section {name}")]
    ReadSection {
        /// Name of the section.
        name: String,
        /// What is wrong with it.
        #[source]
        source: Box<snapfile::Error>,
    },
}

impl Error {
    /// Makes an error of the file that is to be written to `path`.
    pub(crate) fn write(path: &Path) -> impl Fn(snapfile::Error) -> Self + Copy {
        move |source| Self::Write {
            path: path.to_owned(),
            source: Box::new(source),
        }
    }

    /// Makes an error of the file that is read from `path`.
    pub(crate) fn read(path: &Path) -> impl Fn(snapfile::Error) -> Self + Copy {
        move |source| Self::Read {
            path: path.to_owned(),
            source: Box::new(source),
        }
    }

    /// Makes an error of a disk.
    pub(crate) fn disk(id: &str) -> impl Fn(DiskError) -> Self + Copy {
        move |source| Self::Disk {
            id: id.to_owned(),
            source,
        }
    }

    /// Returns the kind of the error.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Cancelled => ErrorKind::Cancelled,
            Self::LeftOverlays { source, .. } => source.kind(),
            Self::Memory(memsnap::Error::Pressure { .. } | memsnap::Error::Stall { .. }) => {
                ErrorKind::Abandoned
            }
            _ => ErrorKind::Failed,
        }
    }
}

/// Names the overlays that a failed save left.
fn left_text(left: &[LeftOverlay]) -> String {
    let texts = left.iter().map(|LeftOverlay { disk, frozen }| {
        format!("disk {disk} goes on in an overlay over {}", frozen.display())
    });
    texts.collect::<Vec<_>>().join(", ")
}

/// How a caller decides what to do about an [`Error`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// Someone asked for the end.
    Cancelled,
    /// The pressure policy or a limit gave the snapshot up; the guest runs on and it can be tried again.
    Abandoned,
    /// Something went wrong.
    Failed,
}
