//! The first page of the file.

use crate::digest::Digest;
use crate::memory_map::ChunkSize;

/// The processor architecture of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Architecture {
    /// x86-64.
    X86_64,
    /// A code that this version does not know.
    Unknown(u16),
}

/// Random identity of one file; two files with equal content differ in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileId(pub [u8; 16]);

/// The file that an incremental snapshot needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParentReference {
    /// Root digest that the parent must have.
    pub root_digest: Digest,
    /// Path where the parent was, relative to the directory of this file; may be stale.
    pub hint: String,
}

/// What the header says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Major version of the format.
    pub major: u16,
    /// Minor version of the format.
    pub minor: u16,
    /// Features that a reader must know to read the file.
    pub incompatible: u64,
    /// Features that a program must know to append to the file.
    pub read_only_compatible: u64,
    /// Features that may be ignored.
    pub compatible: u64,
    /// Bytes of guest memory per chunk.
    pub chunk_size: ChunkSize,
    /// Binary logarithm of the entries in an index leaf.
    pub leaf_entries_log2: u8,
    /// Architecture of the guest.
    pub architecture: Architecture,
    /// Bytes of guest memory.
    pub memory_bytes: u64,
    /// Chunks in all regions.
    pub chunk_count: u64,
    /// Identity of the file.
    pub file_id: FileId,
    /// When the file was begun, in nanoseconds since the Unix epoch.
    pub created_unix_ns: u64,
    /// The parent, if the snapshot is incremental.
    pub parent: Option<ParentReference>,
    /// The program that wrote the file, such as `vmsnap 0.1.0`.
    pub producer: String,
}
