//! Encodes chunks on one thread.

use std::io::Write;

use super::Writer;
use crate::chunk::{ChunkEntry, ChunkKind, Extent};
use crate::codec::{Compressor, Pattern, pattern};
use crate::digest::{ChunkHasher, Digest};
use crate::error::{Result, Usage};
use crate::format::FrameType;
use crate::frame::{FrameDraft, len_u32};
use crate::memory_map::{ChunkNumber, ChunkRange};

/// Encodes chunks on one thread; owns the codec's context and buffers.
#[derive(Debug)]
pub struct Encoder<'a, W> {
    writer: &'a Writer<W>,
    hasher: ChunkHasher,
    compressor: Option<Compressor>,
}

impl<'a, W: Write + Send> Encoder<'a, W> {
    pub(super) fn new(writer: &'a Writer<W>) -> Self {
        Self {
            writer,
            hasher: ChunkHasher::default(),
            compressor: None,
        }
    }

    /// Encodes a chunk on the calling thread and appends it under a short lock.
    ///
    /// `plain` is the chunk's part of guest memory, see
    /// [`ChunkLayout::chunk`](crate::ChunkLayout::chunk). Chunks may come in any order, each once.
    pub fn put_chunk(&mut self, chunk: ChunkNumber, plain: &[u8]) -> Result<()> {
        let range = self.check(chunk, plain)?;
        let entry = match pattern(plain) {
            Pattern::Zero => Some(ChunkEntry::without_data(ChunkKind::Zero, 0, Digest::NONE)),
            Pattern::Fill(word) => {
                let digest = self.digest(chunk, plain);
                Some(ChunkEntry::without_data(
                    ChunkKind::Fill,
                    u64::from_le_bytes(word),
                    digest,
                ))
            }
            Pattern::Mixed => None,
        };
        if let Some(entry) = entry {
            return self.put_extent(chunk, entry, range.len_bytes);
        }
        let digest = self.digest(chunk, plain);
        if self.in_parent(chunk, &digest)? {
            let entry = ChunkEntry::without_data(ChunkKind::Parent, 0, digest);
            return self.put_extent(chunk, entry, range.len_bytes);
        }
        if let Some(source) = self.find_duplicate(&digest)? {
            let entry = ChunkEntry::without_data(ChunkKind::Duplicate, source.0, digest);
            return self.put_extent(chunk, entry, range.len_bytes);
        }
        self.put_data(chunk, plain, digest)
    }

    fn check(&self, chunk: ChunkNumber, plain: &[u8]) -> Result<ChunkRange> {
        self.writer.check_number(chunk)?;
        let range = self.writer.layout.chunk(chunk);
        match range.filter(|range| u64::from(range.len_bytes) == plain.len() as u64) {
            Some(range) => Ok(range),
            None => {
                let expected = range.map_or(0, |range| range.len_bytes);
                Err(Usage::ChunkLength {
                    chunk: chunk.0,
                    expected,
                    found: plain.len(),
                }
                .into())
            }
        }
    }

    fn digest(&mut self, chunk: ChunkNumber, plain: &[u8]) -> Digest {
        let layout = &self.writer.layout;
        self.hasher
            .digest(layout.chunk_size(), layout.chunk_in_region(chunk), plain)
    }

    fn in_parent(&self, chunk: ChunkNumber, digest: &Digest) -> Result<bool> {
        match &self.writer.parent {
            Some(parent) => Ok(parent.chunk_entry(chunk)?.digest == *digest),
            None => Ok(false),
        }
    }

    fn find_duplicate(&self, digest: &Digest) -> Result<Option<ChunkNumber>> {
        if !self.writer.deduplicate {
            return Ok(None);
        }
        let state = self.writer.shared.lock()?;
        let candidate = state.duplicates.candidate(digest);
        Ok(candidate.filter(|source| {
            state
                .index
                .entry(*source)
                .is_some_and(|entry| entry.digest == *digest)
        }))
    }

    /// Records a chunk that needs no frame of its own.
    fn put_extent(&self, chunk: ChunkNumber, entry: ChunkEntry, len_bytes: u32) -> Result<()> {
        let shared = &self.writer.shared;
        let mut state = shared.lock()?;
        if state.index.entry(chunk).is_some() {
            return Err(Usage::ChunkTwice { chunk: chunk.0 }.into());
        }
        state.push_extent(Extent {
            first: chunk,
            count: 1,
            entry,
        });
        state.index.set(chunk, entry);
        shared.count(&state, entry.kind, 1, u64::from(len_bytes));
        shared.write_full_batch(state)
    }

    /// Compresses a chunk and appends its frame.
    fn put_data(&mut self, chunk: ChunkNumber, plain: &[u8], digest: Digest) -> Result<()> {
        let compressor = match &mut self.compressor {
            Some(compressor) => compressor,
            None => self.compressor.insert(Compressor::new(self.writer.codec)?),
        };
        let (kind, payload) = compressor.compress(plain);
        let draft = FrameDraft {
            frame_type: FrameType::Data.code(),
            kind,
            key: chunk.0,
            plain_len: len_u32(plain),
            digest,
        };
        let header = draft.header(payload);
        let shared = &self.writer.shared;
        let mut state = shared.lock()?;
        if state.index.entry(chunk).is_some() {
            return Err(Usage::ChunkTwice { chunk: chunk.0 }.into());
        }
        state.append_data(&header, kind, payload, self.writer.align_raw);
        if self.writer.deduplicate {
            state.duplicates.insert(&digest, chunk);
        }
        shared.count(&state, kind, 1, plain.len() as u64);
        shared.write_full_batch(state)
    }
}
