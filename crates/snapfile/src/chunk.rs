//! What a chunk is stored as (spec 8): kinds, index entries and extents records.
//!
//! The checks here need nothing but the record itself and the number of chunks; what a record
//! says about other places of the file is checked where those are read.

use crate::digest::Digest;
use crate::format::{ExtentRecord, HEADER_LEN, IndexEntry};
use crate::memory_map::ChunkNumber;

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

impl ChunkKind {
    /// All kinds in the order of their codes.
    pub const ALL: [Self; 7] = [
        Self::Zero,
        Self::Fill,
        Self::Raw,
        Self::Zstd,
        Self::Lz4,
        Self::Duplicate,
        Self::Parent,
    ];

    /// Returns the kind with that code (spec 8.3).
    pub(crate) fn from_code(code: u8) -> Option<Self> {
        Self::ALL.get(usize::from(code)).copied()
    }

    /// Returns the code (spec 8.3).
    pub(crate) fn code(self) -> u8 {
        match self {
            Self::Zero => 0,
            Self::Fill => 1,
            Self::Raw => 2,
            Self::Zstd => 3,
            Self::Lz4 => 4,
            Self::Duplicate => 5,
            Self::Parent => 6,
        }
    }

    /// Returns whether the chunk has a data frame of its own.
    pub fn is_data(self) -> bool {
        matches!(self, Self::Raw | Self::Zstd | Self::Lz4)
    }

    /// Returns the kind's name in the specification.
    pub fn name(self) -> &'static str {
        match self {
            Self::Zero => "zero",
            Self::Fill => "fill",
            Self::Raw => "raw",
            Self::Zstd => "zstd",
            Self::Lz4 => "lz4",
            Self::Duplicate => "duplicate",
            Self::Parent => "parent",
        }
    }
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

impl ChunkEntry {
    /// Makes the entry of a chunk that needs no more than a kind, a value and a digest.
    pub(crate) fn without_data(kind: ChunkKind, value: u64, digest: Digest) -> Self {
        Self {
            kind,
            location: value,
            stored_len: 0,
            digest,
        }
    }

    /// Decodes an index entry; `Err` names the field that breaks a rule (spec 9.2, 9.4).
    ///
    /// The digest of a zero chunk is left as it is in the file, that is zero.
    pub(crate) fn from_index(raw: &IndexEntry, chunk_count: u64) -> Result<Self, &'static str> {
        let kind = ChunkKind::from_code(raw.kind).ok_or("kind")?;
        let entry = Self {
            kind,
            location: raw.location,
            stored_len: raw.stored_len,
            digest: Digest(raw.digest),
        };
        entry.check_value(chunk_count)?;
        if entry.kind.is_data() == (entry.stored_len == 0) {
            return Err("stored length");
        }
        Ok(entry)
    }

    /// Encodes the index entry.
    pub(crate) fn to_index(self) -> IndexEntry {
        let digest = if self.kind == ChunkKind::Zero {
            Digest::NONE
        } else {
            self.digest
        };
        IndexEntry {
            location: self.location,
            stored_len: self.stored_len,
            kind: self.kind.code(),
            reserved: [0; 3],
            digest: digest.0,
        }
    }

    /// Checks location and digest by the kind.
    fn check_value(&self, chunk_count: u64) -> Result<(), &'static str> {
        let valid = match self.kind {
            ChunkKind::Zero | ChunkKind::Parent => self.location == 0,
            ChunkKind::Fill => self.location != 0,
            ChunkKind::Raw | ChunkKind::Zstd | ChunkKind::Lz4 => {
                self.location >= HEADER_LEN as u64 && self.location.is_multiple_of(8)
            }
            ChunkKind::Duplicate => self.location < chunk_count,
        };
        if !valid {
            return Err("location");
        }
        if self.kind == ChunkKind::Zero && self.digest != Digest::NONE {
            return Err("digest");
        }
        Ok(())
    }
}

/// A run of chunks described by one record of an extents frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    /// The first chunk.
    pub(crate) first: ChunkNumber,
    /// How many chunks; 1 unless they are zero.
    pub(crate) count: u64,
    /// What each of them is.
    pub(crate) entry: ChunkEntry,
}

impl Extent {
    /// Decodes a record; `Err` names the field that breaks a rule (spec 8.7).
    pub(crate) fn from_record(raw: &ExtentRecord, chunk_count: u64) -> Result<Self, &'static str> {
        let kind = ChunkKind::from_code(raw.kind)
            .filter(|kind| !kind.is_data())
            .ok_or("kind")?;
        let entry = ChunkEntry::without_data(kind, raw.value, Digest(raw.digest));
        entry.check_value(chunk_count)?;
        let end = raw.first_chunk.checked_add(raw.count).ok_or("count")?;
        if raw.count == 0 || (raw.count > 1 && kind != ChunkKind::Zero) || end > chunk_count {
            return Err("count");
        }
        Ok(Self {
            first: ChunkNumber(raw.first_chunk),
            count: raw.count,
            entry,
        })
    }

    /// Encodes the record.
    pub(crate) fn to_record(self) -> ExtentRecord {
        let index = self.entry.to_index();
        ExtentRecord {
            first_chunk: self.first.0,
            count: self.count,
            kind: index.kind,
            reserved: [0; 7],
            value: index.location,
            digest: index.digest,
        }
    }
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

impl ChunkCounts {
    /// Adds `count` chunks of a kind.
    pub fn add(&mut self, kind: ChunkKind, count: u64) {
        let of_kind = match kind {
            ChunkKind::Zero => &mut self.zero,
            ChunkKind::Fill => &mut self.fill,
            ChunkKind::Raw => &mut self.raw,
            ChunkKind::Zstd => &mut self.zstd,
            ChunkKind::Lz4 => &mut self.lz4,
            ChunkKind::Duplicate => &mut self.duplicate,
            ChunkKind::Parent => &mut self.parent,
        };
        *of_kind = of_kind.saturating_add(count);
    }

    /// Returns the chunks of a kind.
    pub fn of(&self, kind: ChunkKind) -> u64 {
        match kind {
            ChunkKind::Zero => self.zero,
            ChunkKind::Fill => self.fill,
            ChunkKind::Raw => self.raw,
            ChunkKind::Zstd => self.zstd,
            ChunkKind::Lz4 => self.lz4,
            ChunkKind::Duplicate => self.duplicate,
            ChunkKind::Parent => self.parent,
        }
    }

    /// Returns the chunks of all kinds.
    pub fn total(&self) -> u64 {
        ChunkKind::ALL
            .iter()
            .fold(0, |sum: u64, kind| sum.saturating_add(self.of(*kind)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_equal_the_table_of_the_specification() {
        let spec = include_str!("../../../fmt-spec/snapfile-v1.md");
        for kind in ChunkKind::ALL {
            assert!(
                spec.contains(&format!("| {} | {} |", kind.code(), kind.name())),
                "{kind:?}"
            );
            assert_eq!(ChunkKind::from_code(kind.code()), Some(kind));
        }
        assert_eq!(ChunkKind::from_code(7), None);
    }

    #[test]
    fn index_entries_that_break_a_rule_are_refused_by_field() {
        let refused = |kind, location, stored_len, digest: u8| {
            let raw = IndexEntry {
                location,
                stored_len,
                kind,
                reserved: [0; 3],
                digest: [digest; 32],
            };
            ChunkEntry::from_index(&raw, 4).err()
        };
        assert_eq!(refused(3, 4096, 9, 1), None);
        assert_eq!(refused(7, 4096, 9, 1), Some("kind"));
        assert_eq!(refused(3, 4088, 9, 1), Some("location"), "in the header");
        assert_eq!(refused(3, 4100, 9, 1), Some("location"), "not aligned");
        assert_eq!(refused(3, 4096, 0, 1), Some("stored length"));
        assert_eq!(refused(0, 0, 0, 1), Some("digest"));
        assert_eq!(refused(1, 0, 0, 1), Some("location"), "a pattern of zeros");
        assert_eq!(refused(5, 4, 0, 1), Some("location"), "past the last chunk");
        assert_eq!(refused(6, 0, 1, 1), Some("stored length"));
    }

    #[test]
    fn extents_that_break_a_rule_are_refused_by_field() {
        let refused = |kind, first_chunk, count, value| {
            let raw = ExtentRecord {
                first_chunk,
                count,
                kind,
                reserved: [0; 7],
                value,
                digest: [0; 32],
            };
            Extent::from_record(&raw, 4).err()
        };
        assert_eq!(refused(0, 1, 3, 0), None);
        assert_eq!(refused(0, 1, 0, 0), Some("count"));
        assert_eq!(refused(0, 1, 4, 0), Some("count"), "past the last chunk");
        assert_eq!(refused(0, 1, u64::MAX, 0), Some("count"));
        assert_eq!(refused(1, 1, 3, 5), Some("count"), "only zeros come in runs");
        assert_eq!(refused(3, 1, 1, 0), Some("kind"));
        assert_eq!(refused(0, 1, 3, 5), Some("location"));
    }
}
