//! What can be wrong with a disk.

use std::io;
use std::path::PathBuf;

use super::Fingerprint;

/// Why a disk cannot be copied into a snapshot or brought back from one.
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
        source: io::Error,
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
    /// The copy would take the place of a file that the machine works on.
    #[error("{} is in use by the machine and cannot be replaced by a copy", path.display())]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// The copy that belongs to the snapshot is not where it should be.
    #[error("its copy {} is missing", path.display())]
    Missing {
        /// Where it should be.
        path: PathBuf,
    },
    /// The copy that belongs to the snapshot does not hold what it held when the snapshot was made.
    #[error("its copy {} was changed: fingerprint {found}, the snapshot says {expected}", path.display())]
    Changed {
        /// The copy.
        path: PathBuf,
        /// Fingerprint in the snapshot.
        expected: Fingerprint,
        /// Fingerprint of the file.
        found: Fingerprint,
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
    /// The snapshot was made without copies, and no file was given for the disk.
    #[error("the snapshot has no copy of it, and no file was given")]
    NotCopied,
    /// The working copy is to be made where a file is already.
    #[error("{} exists, and a working copy would replace it", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// A file was given for a disk that the machine does not have.
    #[error("the machine has no such disk")]
    Unknown,
}
