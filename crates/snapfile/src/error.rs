//! What can go wrong, split as a caller decides.
//!
//! [`Error`] has one variant per decision: retry or report ([`Error::Io`]), restore from elsewhere
//! ([`Error::Corrupt`], [`Error::Incomplete`]), use a newer program ([`Error::Unsupported`]), find
//! the parent ([`Error::Parent`]), or fix the caller ([`Error::Usage`]). What is broken in a
//! corrupt file is a [`Corruption`], which names the clause of the specification.

mod corruption;

use std::io;

pub use corruption::{Corruption, GuestRanges};

use crate::digest::Digest;
use crate::header::FileId;

/// The crate's result.
pub type Result<T> = std::result::Result<T, Error>;

/// Everything that can go wrong while a snapshot file is written or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused an operation on the file.
    #[error("i/o error")]
    Io(#[from] io::Error),
    /// The file breaks a clause of the specification.
    #[error(transparent)]
    Corrupt(#[from] Corruption),
    /// The file is sound as far as can be told, but needs a newer reader.
    #[error(transparent)]
    Unsupported(#[from] Unsupported),
    /// The file has no footer: its writer was stopped before the commit.
    #[error("incomplete snapshot: no footer at the end of its {len_bytes} bytes")]
    Incomplete {
        /// Bytes that are there.
        len_bytes: u64,
    },
    /// A count or length is beyond what the format allows.
    #[error(transparent)]
    LimitExceeded(#[from] LimitExceeded),
    /// The parent of an incremental snapshot is missing or is not the right one.
    #[error(transparent)]
    Parent(#[from] ParentError),
    /// The caller's progress callback said stop.
    #[error("cancelled")]
    Cancelled,
    /// The caller asked for something that cannot be done.
    #[error(transparent)]
    Usage(#[from] Usage),
}

impl Error {
    /// Returns the clause of the specification that the file breaks or that forbids to read it.
    pub fn clause(&self) -> Option<&'static str> {
        match self {
            Self::Corrupt(corruption) => Some(corruption.clause()),
            Self::Unsupported(unsupported) => Some(unsupported.clause()),
            Self::Incomplete { .. } => Some("10.2"),
            Self::LimitExceeded(limit) => Some(limit.clause()),
            Self::Parent(parent) => Some(parent.clause()),
            Self::Io(_) | Self::Usage(_) | Self::Cancelled => None,
        }
    }
}

/// What a newer reader would have to know (spec 12).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unsupported {
    /// 6.3: the major version is not 1.
    #[error("format version {major}.{minor}: only version 1 is read")]
    Version {
        /// Major version of the file.
        major: u16,
        /// Minor version of the file.
        minor: u16,
    },
    /// 12.2: the file uses incompatible features that are not known here.
    #[error("incompatible features {bits:#x}: not known to this reader")]
    Features {
        /// The unknown bits.
        bits: u64,
    },
    /// 5.6: a frame of unknown type that may not be skipped.
    #[error("frame at offset {offset:#x}: type {frame_type} is not known to this reader")]
    FrameType {
        /// Offset of the frame.
        offset: u64,
        /// Its type.
        frame_type: u8,
    },
}

impl Unsupported {
    /// Returns the clause of the specification that forbids reading the file.
    pub fn clause(&self) -> &'static str {
        match self {
            Self::Version { .. } => "6.3",
            Self::Features { .. } => "12.2",
            Self::FrameType { .. } => "5.6",
        }
    }
}

/// A count or length beyond what the format allows (spec 13).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}: {value} is beyond the limit of {limit}")]
pub struct LimitExceeded {
    /// What is counted.
    pub what: &'static str,
    /// Its value.
    pub value: u64,
    /// The largest value allowed.
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

    /// Returns the clause of the specification that sets the limit.
    pub fn clause(&self) -> &'static str {
        "13.1"
    }
}

/// Why the parent of an incremental snapshot cannot be used (spec 11).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ParentError {
    /// 11.2: a chunk is in the parent, and the parent was not given.
    #[error("parent with root digest {root_digest} is needed (it was at {hint:?})")]
    Missing {
        /// Root digest of the parent.
        root_digest: Digest,
        /// Where it was.
        hint: String,
    },
    /// 11.1: a parent was given to a snapshot that has none.
    #[error("the snapshot has no parent")]
    NotIncremental,
    /// 11.2: the root digest of the parent is another one.
    #[error("parent has root digest {found}, not {expected}")]
    RootDigest {
        /// What the header names.
        expected: Digest,
        /// What the file given has.
        found: Digest,
    },
    /// 11.2: memory map, architecture or chunk size of the parent are different.
    #[error("parent differs in {what}")]
    Layout {
        /// What differs.
        what: &'static str,
    },
    /// 11.3: the hint does not lead to a regular file.
    #[error("parent hint {hint:?} does not lead to a file")]
    Hint {
        /// The hint.
        hint: String,
    },
    /// 11.5: there are more parents than the limit.
    #[error("chain of parents is longer than {limit}")]
    TooDeep {
        /// The largest number allowed.
        limit: usize,
    },
    /// 11.5: a file is among its own parents.
    #[error("chain of parents comes back to file {file_id}")]
    Loop {
        /// The file that is there twice.
        file_id: FileId,
    },
}

impl ParentError {
    /// Returns the clause of the specification that is not met.
    pub fn clause(&self) -> &'static str {
        match self {
            Self::NotIncremental => "11.1",
            Self::Missing { .. } | Self::RootDigest { .. } | Self::Layout { .. } => "11.2",
            Self::Hint { .. } => "11.3",
            Self::TooDeep { .. } | Self::Loop { .. } => "11.5",
        }
    }
}

/// A request that cannot be done as asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Usage {
    /// There are no regions at all.
    #[error("memory map without regions")]
    NoRegions,
    /// A region is empty, unaligned, out of order or overlaps its predecessor.
    #[error(
        "memory region at {guest_address:#x} of {len_bytes:#x} bytes: not page multiples in address order"
    )]
    MemoryRegion {
        /// First guest physical address of the region.
        guest_address: u64,
        /// Length of the region.
        len_bytes: u64,
    },
    /// The chunk size is not a power of two from 4 KiB to 2 MiB.
    #[error("chunk size {bytes}: not a power of two from 4096 to 2097152")]
    ChunkSize {
        /// The size asked for.
        bytes: u32,
    },
    /// A chunk number is past the last chunk.
    #[error("chunk {chunk}: there are only {chunk_count}")]
    NoSuchChunk {
        /// The chunk asked for.
        chunk: u64,
        /// Chunks that there are.
        chunk_count: u64,
    },
    /// A buffer does not have the length of its chunk.
    #[error("chunk {chunk}: buffer of {found} bytes for {expected} bytes of memory")]
    ChunkLength {
        /// The chunk.
        chunk: u64,
        /// Bytes of guest memory in the chunk.
        expected: u32,
        /// Bytes of the buffer.
        found: usize,
    },
    /// A chunk was put twice.
    #[error("chunk {chunk}: put twice")]
    ChunkTwice {
        /// The chunk.
        chunk: u64,
    },
    /// The snapshot was finished before all chunks were put.
    #[error("{count} chunks were not put, the first is {first}")]
    ChunksMissing {
        /// The first of them.
        first: u64,
        /// How many.
        count: u64,
    },
    /// A section of that kind and name was put before, or the writer makes it itself.
    #[error("section {name:?} of kind {kind}: put twice or not for the caller to put")]
    Section {
        /// Code of the kind.
        kind: u32,
        /// Name of the section.
        name: String,
    },
    /// The name of a section, the producer or the parent hint holds a NUL byte.
    #[error("{what}: NUL in a string")]
    Nul {
        /// What the string is.
        what: &'static str,
    },
    /// An earlier panic of the output left it unusable.
    #[error("an earlier write panicked")]
    WriteFailed,
}
