//! What can go wrong, split as a caller decides.
//!
//! [`Error`] has one variant per decision: retry or make room ([`Error::Io`]), repair ([`Error::Corrupt`]), use
//! another program ([`Error::Unsupported`], [`Error::Limit`]), wait for whoever has the image
//! ([`Error::InUse`]), mend the chain ([`Error::Chain`]), or fix the caller ([`Error::Usage`]).

use std::io;
use std::path::PathBuf;

use crate::limits;

/// The crate's result.
pub type Result<T> = std::result::Result<T, Error>;

/// Everything that can go wrong with a disk image.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused an operation on the file. A full medium is here, too: [`Error::is_full`].
    #[error("i/o error")]
    Io(#[from] io::Error),
    /// The file does not begin as a qcow2 image does.
    #[error("not a qcow2 image")]
    NotQcow2,
    /// The image uses what this crate does not know or does not do.
    #[error(transparent)]
    Unsupported(#[from] Unsupported),
    /// The image contradicts the specification or itself.
    #[error(transparent)]
    Corrupt(#[from] Corruption),
    /// Another program has the image open in a way that excludes ours.
    #[error("{} is in use by another program", path.display())]
    InUse {
        /// The image.
        path: PathBuf,
    },
    /// A count or length is beyond what is accepted.
    #[error(transparent)]
    Limit(#[from] LimitExceeded),
    /// The chain of backing files cannot be built.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// The operation is done, but what it no longer needs could not be freed: clusters are lost until a repair.
    #[error("{done}, but clusters that are no longer needed could not be freed")]
    Leaked {
        /// What is done.
        done: &'static str,
        /// Why the rest failed.
        source: Box<Error>,
    },
    /// The caller's progress callback said stop.
    #[error("cancelled")]
    Cancelled,
    /// The caller asked for something that cannot be done.
    #[error(transparent)]
    Usage(#[from] Usage),
}

impl Error {
    /// Returns whether the medium is full: the operation may succeed once there is room.
    #[must_use]
    pub fn is_full(&self) -> bool {
        matches!(
            self,
            Self::Io(error) if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
        )
    }
}

/// What this crate would have to know or do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unsupported {
    /// The version is neither 2 nor 3.
    #[error("qcow2 version {version} is not supported, only 2 and 3 are")]
    Version {
        /// The version.
        version: u32,
    },
    /// Incompatible features whose bits are unknown.
    #[error("incompatible features {bits:#x} are not supported: {names}")]
    Features {
        /// The unknown bits.
        bits: u64,
        /// Their names where the image states them.
        names: String,
    },
    /// A known feature that this crate does not do.
    #[error("{feature} is not supported")]
    Feature {
        /// Its name.
        feature: &'static str,
    },
    /// Clusters are compressed by an unknown method.
    #[error("compression type {value} is not supported")]
    CompressionType {
        /// Its number.
        value: u8,
    },
    /// The image is marked dirty: its refcounts are not to be trusted until it is repaired.
    #[error("the image is marked dirty and must be repaired before it is written to")]
    Dirty,
    /// The image is marked corrupt: it may only be read.
    #[error("the image is marked corrupt and must be repaired before it is written to")]
    MarkedCorrupt,
}

/// Where an image contradicts the specification or itself.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("corrupt image: {what} (offset {offset:#x})")]
pub struct Corruption {
    /// What is wrong, a clause without a full stop.
    pub what: &'static str,
    /// The byte of the file where it shows, or the value that is wrong where it is itself an offset.
    pub offset: u64,
}

impl Corruption {
    /// Returns the corruption `what` that shows at `offset`.
    #[must_use]
    pub fn new(what: &'static str, offset: u64) -> Self {
        Self { what, offset }
    }
}

/// A count or length beyond what is accepted ([`limits`]).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}: {value} is beyond the limit of {limit}")]
pub struct LimitExceeded {
    /// What is counted.
    pub what: &'static str,
    /// Its value.
    pub value: u64,
    /// The largest value accepted.
    pub limit: u64,
}

impl LimitExceeded {
    /// Refuses a `value` larger than `limit`.
    pub(crate) fn check(what: &'static str, value: u64, limit: u64) -> std::result::Result<(), Self> {
        if value > limit {
            Err(Self { what, value, limit })
        } else {
            Ok(())
        }
    }
}

/// Why a chain of backing files cannot be built.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChainError {
    /// A layer cannot be opened or is refused.
    #[error("{}", path.display())]
    Layer {
        /// The layer's file.
        path: PathBuf,
        /// Why.
        source: Box<Error>,
    },
    /// An image names a backing file without its format, which is never guessed from the content.
    #[error(
        "{} names the backing file {name:?} without its format; state it with \
         `qemu-img rebase -u -F FORMAT -b {name} {}`",
        path.display(),
        path.display()
    )]
    FormatNotStated {
        /// The image that names it.
        path: PathBuf,
        /// The backing file's name.
        name: String,
    },
    /// A backing file has a format that is not known here.
    #[error("{}: backing file format {format:?} is not supported", path.display())]
    Format {
        /// The image that names it.
        path: PathBuf,
        /// The format.
        format: String,
    },
    /// A backing file's name is not a file's but a protocol's.
    #[error("{}: backing file {name:?} is not the name of a local file", path.display())]
    Protocol {
        /// The image that names it.
        path: PathBuf,
        /// The name.
        name: String,
    },
    /// A file is among its own backing files.
    #[error("{} is among its own backing files", path.display())]
    Loop {
        /// The file.
        path: PathBuf,
    },
    /// There are more layers than accepted.
    #[error("the chain of backing files is deeper than {}", limits::MAX_CHAIN_DEPTH)]
    TooDeep,
}

/// What the caller asked for and cannot have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Usage {
    /// An option of a new image has no such value.
    #[error("{option}: {problem}")]
    Option {
        /// The option.
        option: &'static str,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The image is open for reading only.
    #[error("the image is open for reading only")]
    ReadOnly,
    /// The image has no backing file.
    #[error("the image has no backing file")]
    NoBacking,
    /// The backing file must stay as it is, because a snapshot needs it.
    #[error("the backing file belongs to the snapshot {}", snapshot.display())]
    BackingBelongsToSnapshot {
        /// The snapshot file.
        snapshot: PathBuf,
    },
    /// The backing file shows a smaller disk.
    #[error("the backing file has {backing_bytes} bytes, fewer than the {disk_bytes} of the disk")]
    BackingTooSmall {
        /// Size of the backing file's disk.
        backing_bytes: u64,
        /// Size of the overlay's disk.
        disk_bytes: u64,
    },
    /// The image has internal snapshots, which may need what the backing file has.
    #[error("the image has internal snapshots that may need its backing file")]
    SnapshotsNeedBacking,
    /// A range ends beyond the disk.
    #[error("range of {len} bytes at {offset:#x} is not inside the disk of {disk_bytes} bytes")]
    OutOfRange {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
        /// The disk's size.
        disk_bytes: u64,
    },
    /// No internal snapshot has this id or name.
    #[error("no internal snapshot has the id or name {wanted:?}")]
    NoSuchSnapshot {
        /// What was asked for.
        wanted: String,
    },
    /// The header would not fit into the first cluster.
    #[error(
        "the header with its extensions and the backing name ({len_bytes} bytes) does not fit into a cluster"
    )]
    HeaderTooLong {
        /// Bytes it needs.
        len_bytes: usize,
    },
}
