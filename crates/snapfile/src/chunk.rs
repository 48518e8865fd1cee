//! What a chunk is stored as.

use crate::digest::Digest;

/// Compression of chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec {
    /// Zstandard at a level from fast negative ones to 19.
    Zstd {
        /// The level; 1 by default.
        level: i32,
    },
    /// LZ4 blocks: larger files, a third of the decoding time.
    Lz4,
    /// No compression.
    Raw,
}

impl Default for Codec {
    fn default() -> Self {
        Self::Zstd { level: 1 }
    }
}

/// How a chunk is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ChunkKind {
    /// All bytes are zero; nothing is stored.
    Zero,
    /// One 8-byte pattern, repeated.
    Fill,
    /// The plain bytes.
    Raw,
    /// One Zstandard frame.
    Zstd,
    /// One LZ4 block.
    Lz4,
    /// Equal to another chunk of the file, which is a data chunk.
    Duplicate,
    /// Equal to the chunk of the same number in the parent.
    Parent,
}

/// Where a chunk is and what it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkEntry {
    /// How it is stored.
    pub kind: ChunkKind,
    /// Data: offset of its frame. Duplicate: number of the source chunk. Fill: the pattern. Else 0.
    pub location: u64,
    /// Bytes of the encoded payload; 0 unless the chunk is data.
    pub stored_len: u32,
    /// Digest of the plain content.
    pub digest: Digest,
}

/// Chunks by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct ChunkCounts {
    /// Chunks of zeros.
    pub zero: u64,
    /// Chunks of one repeated pattern.
    pub fill: u64,
    /// Chunks stored plain.
    pub raw: u64,
    /// Chunks stored with Zstandard.
    pub zstd: u64,
    /// Chunks stored with LZ4.
    pub lz4: u64,
    /// Chunks equal to another one of the file.
    pub duplicate: u64,
    /// Chunks equal to the parent's.
    pub parent: u64,
}
