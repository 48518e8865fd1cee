//! What can go wrong, split as a caller decides: see [`Error`].

use std::io;

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
    /// The file is sound as far as can be told, but needs a newer or another reader.
    #[error("unsupported: {0}")]
    Unsupported(String),
    /// The file has no footer: its writer was stopped before the commit.
    #[error("incomplete snapshot: no footer in the {len_bytes} bytes of the file")]
    Incomplete {
        /// Bytes that are there.
        len_bytes: u64,
    },
    /// A count or length is beyond what the format allows.
    #[error(transparent)]
    LimitExceeded(#[from] LimitExceeded),
    /// The caller asked for something that cannot be done.
    #[error(transparent)]
    Usage(#[from] Usage),
}

/// A broken clause of the specification.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Corruption {
    /// 6.1: the file does not begin with the magic bytes.
    #[error("header at offset 0x0: not a snapshot file")]
    Magic,
}

impl Corruption {
    /// Returns the clause of the specification that is broken, such as `8.4`.
    pub fn clause(&self) -> &'static str {
        match self {
            Self::Magic => "6.1",
        }
    }
}

/// A count or length beyond what the format allows.
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
}

/// A request that cannot be done as asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Usage {
    /// A region is empty, unaligned, out of order or overlaps its predecessor.
    #[error(
        "memory region at {guest_address:#x} of {len_bytes:#x} bytes: not a page multiple in address order"
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
}
