//! The index in the making: what the writer knows of every chunk.
//!
//! Leaves come to be when a chunk in them is described; a leaf whose chunks are all zero by one
//! call never does. So memory is 48 bytes per chunk that is not in a large run of zeros.

use std::ops::Range;

use super::IndexShape;
use crate::chunk::{ChunkEntry, ChunkKind};
use crate::digest::{Digest, MemoryDigests};
use crate::format::{FrameType, RootEntry};
use crate::frame::FrameDraft;
use crate::memory_map::ChunkNumber;

/// What is known of the chunks of a leaf.
#[derive(Debug)]
enum LeafState {
    /// No chunk is described.
    Unknown,
    /// All chunks are zero.
    Zero,
    /// One entry per chunk; `None` where it is not described.
    Entries(Vec<Option<ChunkEntry>>),
}

/// The index of a file that is being written.
#[derive(Debug)]
pub(crate) struct IndexBuilder {
    shape: IndexShape,
    leaves: Vec<LeafState>,
}

impl IndexBuilder {
    /// Makes an index that describes nothing.
    pub(crate) fn new(shape: IndexShape) -> Self {
        let leaves = (0..shape.leaf_count()).map(|_| LeafState::Unknown).collect();
        Self { shape, leaves }
    }

    /// Returns the first chunk of `chunks` that is described already.
    pub(crate) fn first_described(&self, chunks: Range<u64>) -> Option<u64> {
        self.runs(chunks).find_map(|(leaf, run)| match self.leaf(leaf)? {
            LeafState::Unknown => None,
            LeafState::Zero => Some(run.start),
            LeafState::Entries(_) => run
                .clone()
                .find(|chunk| self.entry(ChunkNumber(*chunk)).is_some()),
        })
    }

    /// Returns the entry of a chunk, if it is described.
    pub(crate) fn entry(&self, chunk: ChunkNumber) -> Option<ChunkEntry> {
        let leaf = self.shape.leaf_of(chunk);
        match self.leaf(leaf)? {
            LeafState::Unknown => None,
            LeafState::Zero => Some(self.shape.zero_entry(chunk)),
            LeafState::Entries(entries) => {
                let place = usize::try_from(chunk.0 - self.shape.leaf_chunks(leaf).start).ok()?;
                entries.get(place).copied().flatten()
            }
        }
    }

    /// Describes a chunk.
    pub(crate) fn set(&mut self, chunk: ChunkNumber, entry: ChunkEntry) {
        let leaf = self.shape.leaf_of(chunk);
        let first = self.shape.leaf_chunks(leaf).start;
        let place = usize::try_from(chunk.0 - first).ok();
        if let Some(slot) = place.and_then(|place| self.entries_mut(leaf)?.get_mut(place)) {
            *slot = Some(entry);
        }
    }

    /// Describes a run of chunks as zero.
    pub(crate) fn set_zero(&mut self, chunks: Range<u64>) {
        let runs: Vec<_> = self.runs(chunks).collect();
        for (leaf, run) in runs {
            let whole = run == self.shape.leaf_chunks(leaf);
            match usize::try_from(leaf)
                .ok()
                .and_then(|leaf| self.leaves.get_mut(leaf))
            {
                Some(state @ LeafState::Unknown) if whole => *state = LeafState::Zero,
                _ => run.for_each(|chunk| {
                    self.set(ChunkNumber(chunk), self.shape.zero_entry(ChunkNumber(chunk)))
                }),
            }
        }
    }

    /// Returns the first chunk that is not described, and how many there are.
    pub(crate) fn missing(&self) -> Option<(u64, u64)> {
        let mut missing: Option<(u64, u64)> = None;
        let mut add = |first: u64, count: u64| {
            let (start, sum) = missing.unwrap_or((first, 0));
            missing = Some((start, sum + count));
        };
        for (leaf, state) in (0..).zip(&self.leaves) {
            let chunks = self.shape.leaf_chunks(leaf);
            match state {
                LeafState::Unknown => add(chunks.start, chunks.end - chunks.start),
                LeafState::Zero => {}
                LeafState::Entries(entries) => chunks
                    .zip(entries)
                    .filter(|(_, entry)| entry.is_none())
                    .for_each(|(chunk, _)| add(chunk, 1)),
            }
        }
        missing
    }

    /// Appends the frame of a leaf that begins at `offset`; a leaf of zeros has none.
    pub(crate) fn append_leaf(&self, leaf: u64, offset: u64, out: &mut Vec<u8>) -> RootEntry {
        let absent = RootEntry {
            offset: 0,
            leaf_crc: 0,
            reserved: [0; 4],
        };
        let Some(LeafState::Entries(entries)) = self.leaf(leaf) else {
            return absent;
        };
        let mut entries = entries.iter().flatten().peekable();
        if entries.clone().all(|entry| entry.kind == ChunkKind::Zero) || entries.peek().is_none() {
            return absent;
        }
        let payload: Vec<u8> = entries.flat_map(|entry| entry.to_index().encode()).collect();
        let header = FrameDraft::plain(FrameType::Leaf, leaf, &payload).append(&payload, out);
        RootEntry {
            offset,
            leaf_crc: header.payload_crc,
            reserved: [0; 4],
        }
    }

    /// Returns the number of leaves, present or not.
    pub(crate) fn leaf_count(&self) -> u64 {
        self.shape.leaf_count()
    }

    /// Returns the digests of all regions.
    pub(crate) fn region_digests(&self) -> Vec<Digest> {
        let mut digests = MemoryDigests::new(&self.shape.layout);
        for (leaf, state) in (0..).zip(&self.leaves) {
            let LeafState::Entries(entries) = state else {
                let chunks = self.shape.leaf_chunks(leaf);
                digests.push_zeros(chunks.end - chunks.start);
                continue;
            };
            for entry in entries.iter().flatten() {
                match entry.kind {
                    ChunkKind::Zero => digests.push_zeros(1),
                    _ => digests.push(entry.digest),
                }
            }
        }
        digests.finish()
    }

    fn leaf(&self, leaf: u64) -> Option<&LeafState> {
        self.leaves.get(usize::try_from(leaf).ok()?)
    }

    /// Returns the entries of a leaf, made if there are none yet.
    fn entries_mut(&mut self, leaf: u64) -> Option<&mut Vec<Option<ChunkEntry>>> {
        let chunks = self.shape.leaf_chunks(leaf);
        let state = self.leaves.get_mut(usize::try_from(leaf).ok()?)?;
        if let LeafState::Unknown = state {
            let len = usize::try_from(chunks.end - chunks.start).ok()?;
            *state = LeafState::Entries(vec![None; len]);
        }
        match state {
            LeafState::Entries(entries) => Some(entries),
            LeafState::Unknown | LeafState::Zero => None,
        }
    }

    /// Splits a run of chunks at the borders of leaves.
    fn runs(&self, chunks: Range<u64>) -> impl Iterator<Item = (u64, Range<u64>)> + use<> {
        let shape = self.shape.clone();
        let mut next = chunks.start;
        std::iter::from_fn(move || {
            let leaf = shape.leaf_of(ChunkNumber(next));
            let end = shape.leaf_chunks(leaf).end.min(chunks.end);
            let run = next..end;
            next = end;
            (run.start < run.end).then_some((leaf, run))
        })
    }
}
