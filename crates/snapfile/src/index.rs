//! The index: from chunk number to where the chunk is (spec 9).
//!
//! Two levels, each behind a checksum: the root, which is in memory while a file is open, and
//! leaves, which are read when they are needed. A leaf of zeros need not exist, so that the index
//! of a guest with terabytes of untouched memory is small. `build` is the writer's side.

pub(crate) mod build;

use std::ops::Range;

use crate::chunk::{ChunkEntry, ChunkKind};
use crate::digest::{Level, zero_digest};
use crate::error::{Corruption, Error, GuestRanges, LimitExceeded, Result};
use crate::format::{FrameType, HEADER_LEN, IndexEntry, RootEntry};
use crate::frame::{FRAME_HEADER_LEN, FrameInfo};
use crate::limits;
use crate::memory_map::{ChunkLayout, ChunkNumber};

/// Leaves that the writer aims at, so that the root of any guest stays at 256 KiB.
const WANTED_LEAVES: u64 = 1 << 14;
/// Entries of a leaf if the guest is not huge: 48 KiB.
const DEFAULT_LEAF_ENTRIES_LOG2: u8 = 10;

/// How the chunks of a snapshot are spread over leaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct IndexShape {
    /// How memory is cut into chunks.
    pub(crate) layout: ChunkLayout,
    /// Binary logarithm of the entries in a leaf.
    pub(crate) leaf_entries_log2: u8,
}

impl IndexShape {
    /// Chooses the size of leaves for a new file.
    pub(crate) fn choose(layout: ChunkLayout, leaf_entries_log2: Option<u8>) -> Result<Self> {
        let mut shape = Self {
            layout,
            leaf_entries_log2: DEFAULT_LEAF_ENTRIES_LOG2,
        };
        if let Some(log2) = leaf_entries_log2 {
            shape.leaf_entries_log2 =
                log2.clamp(limits::MIN_LEAF_ENTRIES_LOG2, limits::MAX_LEAF_ENTRIES_LOG2);
        }
        while leaf_entries_log2.is_none()
            && shape.leaf_count() > WANTED_LEAVES
            && shape.leaf_entries_log2 < limits::MAX_LEAF_ENTRIES_LOG2
        {
            shape.leaf_entries_log2 += 1;
        }
        LimitExceeded::check("index leaves", shape.leaf_count(), limits::MAX_LEAVES)?;
        Ok(shape)
    }

    /// Returns the number of leaves, present or not.
    pub(crate) fn leaf_count(&self) -> u64 {
        self.layout.chunk_count().div_ceil(1 << self.leaf_entries_log2)
    }

    /// Returns the leaf that describes a chunk.
    pub(crate) fn leaf_of(&self, chunk: ChunkNumber) -> u64 {
        chunk.0 >> self.leaf_entries_log2
    }

    /// Returns the chunks that a leaf describes.
    pub(crate) fn leaf_chunks(&self, leaf: u64) -> Range<u64> {
        let count = self.layout.chunk_count();
        let first = leaf.saturating_mul(1 << self.leaf_entries_log2).min(count);
        first..first.saturating_add(1 << self.leaf_entries_log2).min(count)
    }

    /// Returns the guest memory that a leaf describes.
    pub(crate) fn leaf_guest(&self, leaf: u64) -> GuestRanges {
        self.layout.guest_ranges(self.leaf_chunks(leaf))
    }

    /// Returns the guest memory of one chunk.
    pub(crate) fn chunk_guest(&self, chunk: ChunkNumber) -> GuestRanges {
        self.layout.guest_ranges(chunk.0..chunk.0.saturating_add(1))
    }

    /// Returns the entry of a chunk of zeros.
    pub(crate) fn zero_entry(&self, chunk: ChunkNumber) -> ChunkEntry {
        let level = Level::of_chunks(self.layout.chunk_size());
        let unit = self.layout.chunk_in_region(chunk) * level.units();
        ChunkEntry::without_data(ChunkKind::Zero, 0, zero_digest(level, unit))
    }

    /// Decodes the entry of a chunk, whose frame must end at or before `data_end` (spec 9.4).
    pub(crate) fn parse_entry(
        &self,
        chunk: ChunkNumber,
        raw: &IndexEntry,
        data_end: u64,
    ) -> Result<ChunkEntry> {
        let invalid = |field| {
            Error::from(Corruption::IndexEntry {
                chunk: chunk.0,
                field,
                guest: self.chunk_guest(chunk),
            })
        };
        let entry = ChunkEntry::from_index(raw, self.layout.chunk_count()).map_err(invalid)?;
        if entry.kind == ChunkKind::Zero {
            return Ok(self.zero_entry(chunk));
        }
        if entry.kind.is_data() {
            if entry.stored_len > self.layout.chunk_size().bytes() {
                return Err(invalid("stored length"));
            }
            let end = entry
                .location
                .checked_add(FRAME_HEADER_LEN + u64::from(entry.stored_len));
            if end.is_none_or(|end| end > data_end) {
                return Err(invalid("location"));
            }
        }
        Ok(entry)
    }
}

/// Decodes the checked payload of the root's frame (spec 9.5, 9.6).
pub(crate) fn parse_root(frame: &FrameInfo, payload: &[u8], shape: &IndexShape) -> Result<Vec<RootEntry>> {
    let (records, tail) = payload.as_chunks::<{ RootEntry::LEN }>();
    if records.len() as u64 != shape.leaf_count() || !tail.is_empty() {
        let len_bytes = payload.len() as u64;
        return Err(Corruption::RootLength {
            offset: frame.offset,
            len_bytes,
        }
        .into());
    }
    let entries: Vec<RootEntry> = records.iter().map(RootEntry::decode).collect();
    let mut earliest = HEADER_LEN as u64;
    for (leaf, entry) in (0..).zip(&entries) {
        if entry.offset == 0 && entry.leaf_crc == 0 {
            continue;
        }
        let end = entry.offset.saturating_add(FRAME_HEADER_LEN);
        if entry.offset < earliest || entry.offset % 8 != 0 || end > frame.offset {
            let (offset, leaf_offset) = (frame.offset, entry.offset);
            return Err(Corruption::RootEntry {
                offset,
                leaf,
                leaf_offset,
                guest: shape.leaf_guest(leaf),
            }
            .into());
        }
        earliest = end;
    }
    Ok(entries)
}

/// The payload of an index leaf, checked as a whole but not yet entry by entry.
#[derive(Debug)]
pub(crate) struct Leaf {
    first_chunk: u64,
    payload: Vec<u8>,
}

impl Leaf {
    /// Checks a leaf's length and checksums (spec 9.2, 9.3); `padded` is payload and padding.
    ///
    /// `leaf_crc` is what the root says, if the root is known.
    pub(crate) fn parse(
        frame: &FrameInfo,
        leaf: u64,
        mut padded: Vec<u8>,
        leaf_crc: Option<u32>,
        shape: &IndexShape,
    ) -> Result<Self> {
        frame.expect(FrameType::Leaf, leaf)?;
        let offset = frame.offset;
        let guest = || shape.leaf_guest(leaf);
        let mismatch = |(stored, computed)| {
            Error::from(Corruption::LeafChecksum {
                leaf,
                offset,
                stored,
                computed,
                guest: guest(),
            })
        };
        frame.checked_payload(&padded).map_err(mismatch)?;
        if let Some(stored) = leaf_crc.filter(|stored| *stored != frame.fields.payload_crc) {
            return Err(mismatch((stored, frame.fields.payload_crc)));
        }
        let chunks = shape.leaf_chunks(leaf);
        let expected = (chunks.end - chunks.start) * IndexEntry::LEN as u64;
        if u64::from(frame.fields.stored_len) != expected || chunks.is_empty() {
            return Err(Corruption::LeafLength {
                leaf,
                offset,
                guest: guest(),
            }
            .into());
        }
        padded.truncate(usize::try_from(expected).unwrap_or(usize::MAX));
        Ok(Self {
            first_chunk: chunks.start,
            payload: padded,
        })
    }

    /// Returns the entry of a chunk as it is in the file; `None` if the leaf does not describe it.
    pub(crate) fn raw_entry(&self, chunk: ChunkNumber) -> Option<IndexEntry> {
        let place = usize::try_from(chunk.0.checked_sub(self.first_chunk)?).ok()?;
        let (entries, _) = self.payload.as_chunks::<{ IndexEntry::LEN }>();
        entries.get(place).map(IndexEntry::decode)
    }

    /// Returns the bytes of memory that the leaf takes.
    pub(crate) fn len_bytes(&self) -> usize {
        self.payload.len()
    }
}
