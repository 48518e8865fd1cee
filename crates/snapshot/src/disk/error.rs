//! What can be wrong with a disk.

use std::fmt;
use std::io;
use std::path::PathBuf;

use super::Fingerprint;
use super::source::DiskFault;

/// Why a disk cannot be kept in a snapshot or brought back from one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DiskError {
    /// A file of the disk cannot be opened or created.
    #[error("cannot open {}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What the system answered.
        #[source]
        source: io::Error,
    },
    /// The disk does not come to rest.
    #[error("it does not come to rest")]
    Hold {
        /// What is under way.
        #[source]
        source: DiskFault,
    },
    /// A write of the guest waits for room, so the disk has no state that could be kept.
    #[error("a write waits for room on the host: make room and resume the machine first")]
    WaitsForRoom,
    /// The mode asked for is not one for disks of this format.
    #[error("it is {format}, and mode {mode} is for {wanted} disks: mode overlay is for both")]
    WrongFormat {
        /// The format of its top layer.
        format: &'static str,
        /// The mode asked for.
        mode: &'static str,
        /// The format that the mode is for.
        wanted: &'static str,
    },
    /// The content cannot be copied.
    #[error("cannot copy to {}", path.display())]
    Copy {
        /// The file that was to hold the copy.
        path: PathBuf,
        /// What the system answered.
        #[source]
        source: io::Error,
    },
    /// A file of the snapshot would take the place of one that the machine works on.
    #[error("{} is in use by the machine and cannot be replaced", path.display())]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// The name for the frozen image is taken.
    #[error("{} exists, and the frozen image is to have that name", path.display())]
    FrozenTaken {
        /// The name.
        path: PathBuf,
    },
    /// A name was given for a frozen image that keeps its own.
    #[error("it is raw and keeps its name {} when it is frozen: it takes no other", path.display())]
    KeepsName {
        /// The name that it keeps.
        path: PathBuf,
    },
    /// The disk consists of too many files.
    #[error("it consists of {depth} files, and {limit} are the limit: flatten it first")]
    TooDeep {
        /// How many files it consists of.
        depth: usize,
        /// Most that it may consist of.
        limit: usize,
    },
    /// The disk cannot go on in an overlay.
    #[error("it cannot go on in an overlay")]
    Overlay {
        /// Why not.
        #[source]
        source: DiskFault,
    },
    /// The frozen image cannot be made durable.
    #[error("cannot make {} durable", path.display())]
    Settle {
        /// The frozen image.
        path: PathBuf,
        /// Why not.
        #[source]
        source: DiskFault,
    },
    /// No internal snapshot can be created in, read from or applied to its image.
    #[error("internal snapshot {name}")]
    Internal {
        /// Name or id of the snapshot.
        name: String,
        /// Why not.
        #[source]
        source: DiskFault,
    },
    /// A layer cannot be read for its fingerprint.
    #[error("cannot read {}", path.display())]
    Read {
        /// The layer.
        path: PathBuf,
        /// What the system answered.
        #[source]
        source: io::Error,
    },
    /// A file below the top one has no name, so that no snapshot can refer to it.
    #[error("a file that it consists of has no name: flatten it first")]
    Nameless,
    /// A layer was written to while it was read.
    #[error("{} was written to while its fingerprint was taken", path.display())]
    Touched {
        /// The layer.
        path: PathBuf,
    },
    /// A file that belongs to the snapshot is not where it should be.
    #[error("its {what} {} is missing", path.display())]
    Missing {
        /// What kind of file it is.
        what: LayerKind,
        /// Where it should be.
        path: PathBuf,
    },
    /// A file that belongs to the snapshot does not hold what it held when the snapshot was made.
    #[error("its {what} {} was changed: fingerprint {found}, the snapshot says {expected}", path.display())]
    Changed {
        /// What kind of file it is.
        what: LayerKind,
        /// The file.
        path: PathBuf,
        /// Fingerprint in the snapshot.
        expected: Fingerprint,
        /// Fingerprint of the file.
        found: Fingerprint,
    },
    /// The disk table names a format that this program does not know.
    #[error("its format {format:?} is not known")]
    UnknownFormat {
        /// The format.
        format: String,
    },
    /// The chain of backing files is not that of the snapshot.
    #[error("{} and its backing files are {found}, the snapshot says {expected}", path.display())]
    Depth {
        /// The top layer.
        path: PathBuf,
        /// Number of layers in the snapshot.
        expected: usize,
        /// Number of files found.
        found: usize,
    },
    /// The images that make the disk cannot be opened.
    #[error("cannot open {} and its backing files", path.display())]
    Chain {
        /// The top layer.
        path: PathBuf,
        /// What is wrong with them.
        #[source]
        source: DiskFault,
    },
    /// A file is not as long as the guest's disk.
    #[error("{} has {found} bytes, the guest's disk has {expected}", path.display())]
    Size {
        /// The file.
        path: PathBuf,
        /// Length of the disk.
        expected: u64,
        /// Length of the file.
        found: u64,
    },
    /// The snapshot does not keep the content, and no file was given for the disk.
    #[error("the snapshot does not keep its content, and no file was given")]
    NotKept,
    /// The overlay or working copy is to be made where a file is already.
    #[error("{} exists, and the disk's own file would replace it", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// The disk cannot be used in place.
    #[error("it was kept by {mode}, and only internal snapshots can be brought back in place")]
    NotInPlace {
        /// The mode that it was kept by.
        mode: &'static str,
    },
    /// A file was given for a disk that has none of its own when it is brought back so.
    #[error("it takes no file: {reason}")]
    TakesNoFile {
        /// Why not.
        reason: &'static str,
    },
    /// A file was given for a disk that the machine does not have.
    #[error("the machine has no such disk")]
    Unknown,
}

/// What kind of file belongs to a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum LayerKind {
    /// A raw copy.
    Copy,
    /// An image that was frozen, or a backing file of one.
    Image,
    /// An image with an internal snapshot.
    Internal,
}

impl fmt::Display for LayerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Copy => "copy",
            Self::Image => "image",
            Self::Internal => "image with the internal snapshot",
        })
    }
}
