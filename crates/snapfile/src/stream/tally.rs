//! What a front-to-back reader remembers to check the index against the frames (spec 9.8).
//!
//! Remembering every chunk would take 48 bytes each. Instead both sides are summed up: a hash of
//! every chunk's entry is added when a frame describes it and taken away when the index does, and
//! in the end the sum is zero. Chunks of zeros need no sum, as all chunks are described once.

use std::collections::BTreeMap;

use crate::chunk::{ChunkCounts, ChunkEntry, ChunkKind, Extent};
use crate::digest::{Digest, MemoryDigests};
use crate::error::{Corruption, Result};
use crate::format::{FooterFields, RootEntry};
use crate::frame::FrameInfo;
use crate::index::{IndexShape, Leaf};
use crate::intervals::Intervals;
use crate::memory_map::ChunkNumber;

/// Sums over the frames seen so far.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// Chunks described by frames.
    described: Intervals,
    /// Those of them that have data frames.
    data: Intervals,
    /// Sum of the hashes of all entries, less those in the index.
    difference: u128,
    /// Digests of the chunks in the index that are not zero, joined as far as they are known.
    regions: Digests,
    /// Offset and checksum of each leaf seen.
    leaves: BTreeMap<u64, (u64, u32)>,
    root: Option<(u64, u32)>,
    pub(super) directory: Option<(u64, u32)>,
    pub(super) counts: ChunkCounts,
    pub(super) stored_bytes: u64,
    /// Frames before this one.
    pub(super) frames: u64,
}

/// Digests of chunks in order; runs of zeros are counted.
#[derive(Debug, Default)]
struct Digests {
    next_chunk: u64,
    partial: Option<MemoryDigests>,
}

impl Tally {
    /// Begins after the frame of the memory map.
    pub(super) fn new(shape: &IndexShape) -> Self {
        let partial = Some(MemoryDigests::new(&shape.layout));
        Self {
            regions: Digests {
                next_chunk: 0,
                partial,
            },
            frames: 1,
            ..Self::default()
        }
    }

    /// Notes chunks that the frame at `offset` describes (spec 8.8).
    pub(super) fn describe(&mut self, offset: u64, extent: &Extent) -> Result<()> {
        let Extent { first, count, entry } = *extent;
        let chunks = first.0..first.0.saturating_add(count);
        if let Some(chunk) = self.described.insert(chunks.clone()) {
            return Err(Corruption::ChunkTwice { chunk, offset }.into());
        }
        if entry.kind != ChunkKind::Zero {
            self.difference = self.difference.wrapping_add(entry_hash(first, &entry));
        }
        if entry.kind.is_data() {
            self.data.insert(chunks);
            self.stored_bytes = self.stored_bytes.saturating_add(u64::from(entry.stored_len));
        }
        self.counts.add(entry.kind, count);
        Ok(())
    }

    /// Returns whether the chunk has come in a data frame.
    pub(super) fn is_data(&self, chunk: u64) -> bool {
        self.data.contains(chunk)
    }

    /// Takes the entries of a leaf away from the sum; leaves come in ascending order (spec 5.8).
    pub(super) fn leaf(&mut self, frame: &FrameInfo, leaf: &Leaf, shape: &IndexShape) -> Result<()> {
        let number = frame.fields.key;
        if self
            .leaves
            .last_key_value()
            .is_some_and(|(last, _)| *last >= number)
        {
            return Err(Corruption::FrameOrder {
                frame: frame.name(),
                offset: frame.offset,
            }
            .into());
        }
        self.leaves
            .insert(number, (frame.offset, frame.fields.payload_crc));
        for chunk in shape.leaf_chunks(number).map(ChunkNumber) {
            let Some(raw) = leaf.raw_entry(chunk) else {
                continue;
            };
            let entry = shape.parse_entry(chunk, &raw, frame.offset)?;
            if entry.kind != ChunkKind::Zero {
                self.difference = self.difference.wrapping_sub(entry_hash(chunk, &entry));
                self.regions.push(chunk, entry.digest);
            }
        }
        Ok(())
    }

    /// Checks that the root names the leaves seen and that all chunks are accounted for.
    pub(super) fn root(&mut self, frame: &FrameInfo, root: &[RootEntry], shape: &IndexShape) -> Result<()> {
        let chunk_count = shape.layout.chunk_count();
        if let Some(chunk) = self.described.first_missing(chunk_count) {
            let (count, guest) = (
                chunk_count - self.described.count(),
                shape.chunk_guest(ChunkNumber(chunk)),
            );
            return Err(Corruption::ChunkMissing { chunk, count, guest }.into());
        }
        for (leaf, entry) in (0..).zip(root) {
            let (offset, leaf_crc) = self.leaves.remove(&leaf).unwrap_or((0, 0));
            if entry.offset != offset {
                let (leaf_offset, guest) = (entry.offset, shape.leaf_guest(leaf));
                return Err(Corruption::RootEntry {
                    offset: frame.offset,
                    leaf,
                    leaf_offset,
                    guest,
                }
                .into());
            }
            if entry.leaf_crc != leaf_crc {
                let (stored, computed, guest) = (entry.leaf_crc, leaf_crc, shape.leaf_guest(leaf));
                return Err(Corruption::LeafChecksum {
                    leaf,
                    offset,
                    stored,
                    computed,
                    guest,
                }
                .into());
            }
        }
        if self.difference != 0 || !self.leaves.is_empty() {
            return Err(Corruption::IndexMismatch { offset: frame.offset }.into());
        }
        self.root = Some((frame.offset, frame.fields.payload_crc));
        Ok(())
    }

    /// Checks that the footer names the root and the directory seen (spec 10.4).
    pub(super) fn check_targets(&self, footer: &FrameInfo, fields: &FooterFields) -> Result<()> {
        let (root_offset, root_crc) = self.root.unwrap_or_default();
        let (directory_offset, directory_crc) = self.directory.unwrap_or_default();
        let targets = [
            ("root offset", fields.root_offset, root_offset),
            ("root checksum", u64::from(fields.root_crc), u64::from(root_crc)),
            ("directory offset", fields.directory_offset, directory_offset),
            (
                "directory checksum",
                u64::from(fields.directory_crc),
                u64::from(directory_crc),
            ),
        ];
        match targets.iter().find(|(_, stated, found)| stated != found) {
            None => Ok(()),
            Some(&(field, value, _)) => Err(Corruption::FooterTarget {
                offset: footer.offset,
                field,
                value,
            }
            .into()),
        }
    }

    /// Returns the digests of all regions, by the index.
    pub(super) fn region_digests(&mut self, shape: &IndexShape) -> Vec<Digest> {
        self.regions.push_zeros(shape.layout.chunk_count());
        self.regions
            .partial
            .take()
            .map_or_else(Vec::new, MemoryDigests::finish)
    }
}

impl Digests {
    /// Appends a chunk after zeros for those left out before it.
    fn push(&mut self, chunk: ChunkNumber, digest: Digest) {
        self.push_zeros(chunk.0);
        if let Some(partial) = &mut self.partial {
            partial.push(digest);
        }
        self.next_chunk = chunk.0 + 1;
    }

    /// Appends zeros up to the chunk `end`.
    fn push_zeros(&mut self, end: u64) {
        if let Some(partial) = &mut self.partial {
            partial.push_zeros(end.saturating_sub(self.next_chunk));
        }
        self.next_chunk = self.next_chunk.max(end);
    }
}

/// Returns 128 bits that two entries share only if they are equal.
fn entry_hash(chunk: ChunkNumber, entry: &ChunkEntry) -> u128 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&chunk.0.to_le_bytes());
    hasher.update(&entry.to_index().encode());
    hasher
        .finalize()
        .as_bytes()
        .first_chunk::<16>()
        .map_or(0, |bytes| u128::from_le_bytes(*bytes))
}
